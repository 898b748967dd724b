"""Across seeds, targets and problems: how sure the best learning rate is, profiles over optimizers, measured rates.

Sources: Efron and Tibshirani, An Introduction to the Bootstrap (1993), for the interval; Dolan and Moré, Benchmarking
optimization software with performance profiles, Mathematical Programming 91 (2002); Hansen, Auger, Ros, Mersmann, Tušar
and Brockhoff, COCO (Optimization Methods and Software 36, 2021), for runtime distributions over targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from gradbench.analysis.points import best_of_seeds
from gradbench.analysis.summary import PairSummary, name_among, pair_trials, rows_where, summarise_all
from gradbench.analysis.verdicts import Reference, relative_gaps
from gradbench.errors import GradbenchError
from gradbench.record.schema import TARGET_COLUMNS
from gradbench.record.store import Run


def by_seed(trials: pa.Table, to: Reference | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(learning rates (R,), steps to the target (R, S), final gaps to a reference (R, S)), over the seeds S that every
    learning rate has; infinite for never."""
    rates, row = np.unique(trials["learning_rate"].to_numpy(), return_inverse=True)
    seeds, column = np.unique(trials["seed"].to_numpy(), return_inverse=True)
    steps, gaps = np.full((2, len(rates), len(seeds)), np.nan)
    taken = trials["steps_to_target"].to_numpy(zero_copy_only=False).astype(float)
    steps[row, column] = np.where(np.isnan(taken), np.inf, taken)
    gaps[row, column] = relative_gaps(trials, to)
    complete = ~np.isnan(gaps).any(axis=0)
    return rates, steps[:, complete], gaps[:, complete]


class Interval(NamedTuple):
    """A value and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def best_rate_interval(
    trials: pa.Table,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    to: Reference | None = None,
) -> Interval | None:
    """The best learning rate of a pair's trials (analysis.PairSummary.best), with a percentile bootstrap interval.

    `to` is the problem's reference, by default that of these trials.

    Seeds are drawn with replacement, the same for every learning rate, as seeds share their starting points. With one
    seed the interval is that one point. None where every learning rate diverges. Efron and Tibshirani 1993,
    chapter 13.
    """
    rates, steps, gaps = by_seed(trials, to)
    count = gaps.shape[1]

    def best(take: np.ndarray) -> int | None:
        return best_of_seeds(steps[:, take], gaps[:, take])

    chosen = best(np.arange(count)) if count else None
    if chosen is None:
        return None
    drawn = np.sort(np.random.default_rng(seed).integers(count, size=(resamples, count)), axis=1)
    samples, times = np.unique(drawn, axis=0, return_counts=True)  # with few seeds there are few different samples
    found = [best(take) for take in samples]
    places = np.repeat([chosen if index is None else index for index in found], times)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(places, [tail, 100 - tail], method="inverted_cdf").astype(int)
    return Interval(float(rates[chosen]), float(rates[min(low, chosen)]), float(rates[max(high, chosen)]))


def performance_profile(costs: Mapping[str, Sequence[float]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Dolan and Moré's profiles: solver -> (ratios, shares), shares[i] of problems solved within ratios[i] × the best.

    `costs` holds each solver's cost of every problem, in the same order, infinite where not solved. A problem that
    nobody solves counts as unsolved for all. Raises GradbenchError where the numbers of costs differ.
    """
    table = np.array([list(values) for values in costs.values()], float)
    if table.ndim != 2 or table.size == 0:
        raise GradbenchError("performance profile: every optimizer needs a cost for the same problems")
    least = table.min(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(np.isfinite(table), np.where(table == least, 1.0, table / least), np.inf)
    steps = np.unique(np.append(ratio[np.isfinite(ratio)], 1.0))
    return {name: (steps, (row[:, None] <= steps).mean(axis=0)) for name, row in zip(costs, ratio)}


def ecdf_over_targets(costs: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """(costs sorted, share reached at each): the empirical distribution of the costs, in which those never reached
    (infinite) stay in the total. Hansen et al. 2021."""
    values = np.asarray(costs, float)
    reached = np.sort(values[np.isfinite(values)])
    at, last = np.unique(reached, return_counts=True)
    return at, np.cumsum(last) / max(len(values), 1)


def measured_rate(steps: Sequence[float], gaps: Sequence[float], tail: float = 0.5) -> float:
    """The factor by which a step multiplies the loss gap: exp of the least-squares slope of log gap against step.

    Over the last `tail` of the steps with a gap, where only the slowest direction is left. NaN with fewer than two
    positive gaps there. The distance to the minimum contracts by the square root of the factor.
    """
    x, y = np.asarray(steps, float), np.asarray(gaps, float)
    some = (y > 0) & np.isfinite(y)
    x, y = x[some], y[some]
    use = x >= x.max(initial=0.0) * (1 - tail)
    if use.sum() < 2 or np.ptp(x[use]) == 0:
        return math.nan
    x, y = x[use] - x[use].mean(), np.log(y[use])
    return float(np.exp(x @ y / (x @ x)))


def steps_at_best(run: Run, pair: PairSummary) -> np.ndarray:
    """Steps to each of the six targets, (targets × seeds,), at the pair's best learning rate; infinite for never."""
    trials = pair_trials(run, pair)
    seeds = max(trials["seed"].to_pylist()) + 1
    if pair.best is None:
        return np.full(len(TARGET_COLUMNS) * seeds, np.inf)
    at = rows_where(trials, {"learning_rate": pair.best.learning_rate})
    columns = [at[name].to_numpy(zero_copy_only=False).astype(float) for name in TARGET_COLUMNS]
    values = np.concatenate(columns)
    return np.where(np.isnan(values), np.inf, values)


def _solvers(runs: Sequence[Run]) -> dict[str, list[tuple[Run, PairSummary]]]:
    solvers: dict[str, list[tuple[Run, PairSummary]]] = {}
    for place, (run, pairs) in enumerate(zip(runs, summarise_all(runs)), 1):
        for pair in pairs:
            solvers.setdefault(name_among(runs, place, pair.optimizer), []).append((run, pair))
    return solvers


def profile_rows(runs: Sequence[Run], seconds: bool = False) -> list[dict[str, Any]]:
    """Performance profiles over the problems that all solvers have, in steps to the plan's target at each one's best
    learning rate, or in `seconds` of one trial alone: rows of solver, ratio, share. None where nobody reaches it."""
    solvers = _solvers(runs)
    shared = (
        set.intersection(*({pair.problem for _, pair in found} for found in solvers.values())) if solvers else set()
    )
    costs = {
        name: [
            _cost(pair, seconds)
            for _, pair in sorted(found, key=lambda item: item[1].problem)
            if pair.problem in shared
        ]
        for name, found in solvers.items()
    }
    if not any(math.isfinite(cost) for values in costs.values() for cost in values):
        return []
    rows = []
    for name, (ratios, shares) in performance_profile(costs).items():
        end = max(float(ratios[-1]) * 1.5, 2.0)
        rows += [{"solver": name, "ratio": float(r), "share": float(s)} for r, s in zip(ratios, shares)]
        rows.append({"solver": name, "ratio": end, "share": float(shares[-1])})
    return rows


def _cost(pair: PairSummary, seconds: bool) -> float:
    if pair.best is None or pair.best.steps_to_target is None:
        return math.inf
    steps = max(pair.best.steps_to_target, 1.0)
    return steps * (pair.solo_step_s or math.inf) if seconds else steps


def ecdf_rows(runs: Sequence[Run], seconds: bool = False) -> list[dict[str, Any]]:
    """The share of (problem, seed, target) reached within a number of steps, or within `seconds` of one trial alone, at
    each pair's best learning rate, over the problems whose minimum is known: rows of solver, cost, share."""
    found: dict[str, tuple[np.ndarray, float]] = {}
    for name, pairs in _solvers(runs).items():
        known = [(run, pair) for run, pair in pairs if pair.reference.kind == "minimum"]
        known = [(run, pair) for run, pair in known if not seconds or pair.solo_step_s]
        units = [pair.solo_step_s or 0.0 if seconds else 1.0 for _, pair in known]
        if known:
            costs = np.concatenate([steps_at_best(run, pair) * unit for (run, pair), unit in zip(known, units)])
            found[name] = costs, max(run.plan.steps * unit for (run, _), unit in zip(known, units))
    rows = []
    end = max((last for _, last in found.values()), default=0.0)
    for name, (costs, _) in found.items():
        at, shares = ecdf_over_targets(costs.tolist())
        ends = [0.0, *at.tolist(), end], [0.0, *shares.tolist(), float(shares[-1]) if len(shares) else 0.0]
        rows += [{"solver": name, "cost": cost, "share": share} for cost, share in zip(*ends)]
    return rows
