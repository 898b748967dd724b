"""Which rows of a trial are kept: the points of its curve, and those at which its metrics are evaluated."""

from __future__ import annotations

import numpy as np

from gradbench.inputs.plan import SweepPlan
from gradbench.program.program import Block


def recorded_rows(total_rows: int, points: int) -> np.ndarray:
    """The rows of a curve that are kept: all, or both ends and log-spaced between, at most `points`; int64, sorted."""
    if points >= total_rows:
        return np.arange(total_rows)
    last = total_rows - 1
    spaced = np.geomspace(1, max(last, 1), max(points - 1, 1)).round().astype(np.int64)
    return np.unique([0, *np.minimum(spaced, last), last]) if points > 2 else np.unique([0, last])


def curve_points(plan: SweepPlan) -> int:
    """Points a trial's curve keeps at most: --record-points, or fewer so that a run keeps at most 5 million rows."""
    return max(2, min(plan.record_points, 5_000_000 // plan.trials))


def metric_points(plan: SweepPlan, recorded: int) -> int:
    """Points at which a trial's metrics are kept, `recorded` values each: as of its curve, and under the same bound."""
    return max(2, min(curve_points(plan), 5_000_000 // (plan.trials * max(recorded, 1))))


def wanted_rows(plan: SweepPlan, block: Block, points: int) -> tuple[np.ndarray, np.ndarray]:
    """For each chunk of a trial the rows that are kept, at most `points` per trial: int32 (chunks, most rows kept in
    one), padded with -1; and the steps of all of them, int64."""
    total_rows = -(-plan.steps // block.stride) + 1
    kept = recorded_rows(total_rows, points)
    by_chunk = [kept[kept // block.rows == c] for c in range(-(-total_rows // block.rows))]
    wanted = np.full((len(by_chunk), max(map(len, by_chunk))), -1, np.int32)
    for chunk, rows in enumerate(by_chunk):
        wanted[chunk, : len(rows)] = rows - chunk * block.rows
    return wanted, np.minimum(kept * block.stride, plan.steps)


def rows_of_chunk(
    wanted: np.ndarray, first: np.ndarray, ends: np.ndarray, block: Block, steps: int, last_too: bool = False
) -> np.ndarray:
    """Which rows each slot's trial keeps of the chunk that begins at step `first` (S,): (K, S), -1 where none. With
    `last_too` also the last row of a trial that ends, by `ends` (S,), before the plan's `steps`."""
    rows = wanted[np.minimum(first // block.steps, len(wanted) - 1)].T
    last = -(-ends // block.stride) - first // block.stride
    rows = np.where(rows <= last, rows, -1)
    if not last_too or (ends == steps).all():
        return rows
    extra = np.where((last >= 0) & (last < block.rows) & ~(rows == last).any(axis=0), last, -1)
    return np.vstack([rows, extra])
