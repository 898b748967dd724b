"""What a search asks for and is told."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbench.analysis.verdicts import end_loss

SCORED = ("initial_loss", "final_loss", "smoothed_loss", "steps_to_target")  # the columns that `scores` needs


@dataclass(frozen=True)
class Asked:
    """Trials: their settings by name, each (N,), their seeds (N,), and why each is tried."""

    settings: Mapping[str, np.ndarray]
    seeds: np.ndarray
    why: Sequence[str]

    @classmethod
    def of(cls, points: Sequence[Mapping[str, float]], seeds: Sequence[int], why: str) -> Asked:
        """Each point with each of the seeds."""
        every = [point for point in points for _ in seeds]
        settings = {name: np.array([point[name] for point in every], float) for name in points[0]}
        return cls(settings, np.array(list(seeds) * len(points), np.int64), [why] * len(every))


# Yields what it asks for and is sent the scores of those trials, (N,); the same scores lead to the same trials.
Searching = Generator[Asked, np.ndarray, None]


def scores(columns: Mapping[str, Any], low: float, steps: int) -> np.ndarray:
    """How good trials are, lower being better, from their columns of trials.parquet (never is below 0 or NaN).

    From -1 to 0 where the target is reached, sooner being lower; else the gap of the loss at the end (with minibatches
    the smoothed one, as the verdicts have it) to `low`, the minimum or the target loss, relative to the first, or where
    that is NaN this loss; infinite where a trial diverged or got nowhere.
    """
    first, final, smoothed, to_target = (np.asarray(columns[name], float) for name in SCORED)
    last = end_loss(final, smoothed)
    with np.errstate(invalid="ignore", divide="ignore"):
        missed = last if np.isnan(low) else np.maximum(last - low, 0) / np.maximum(first - low, 1e-300)
        score = np.where(to_target >= 0, to_target / steps - 1, missed)
        return np.where(np.isfinite(final) & np.isfinite(last) & (last < first), score, np.inf)
