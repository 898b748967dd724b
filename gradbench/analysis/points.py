"""One setting over its seeds; which of several is best, which are as good, and where they begin to diverge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class RateSummary:
    """One learning rate, with a value for each axis, over its seeds. Gaps are to the pair's reference and relative to
    the first gap (relative_gaps). A diverged trial's gap is infinite."""

    learning_rate: float
    seeds: int
    verdicts: dict[str, int]  # most frequent first
    gap_median: float
    gap_low: float
    gap_high: float
    loss_median: float  # the final loss; not finite where most diverge
    steps_to_target: float | None  # median over seeds; None where half of them or more never reach it
    steps_worst: float  # of the slowest seed; infinite where one never reaches it
    time_to_target_s: float | None  # median steps times the solo step time
    settings: Mapping[str, float] = field(default_factory=dict)  # the values of the pair's axes

    @property
    def verdict(self) -> str:
        """One word where the seeds agree, else words with counts."""
        if len(self.verdicts) == 1:
            return next(iter(self.verdicts))
        return ", ".join(f"{count} {word}" for word, count in self.verdicts.items())


def median_of(values: np.ndarray) -> float:
    """The median; of an even number of values the upper middle one if that is infinite."""
    low, high = np.sort(values)[[(len(values) - 1) // 2, len(values) // 2]]
    return float(high if math.isinf(high) else (low + high) / 2)


def with_most_seeds(points: Sequence[RateSummary]) -> list[RateSummary]:
    """The points that may be compared: a search confirms what it found with all seeds."""
    most = max(point.seeds for point in points)
    return [point for point in points if point.seeds == most]


def best_point(points: list[RateSummary]) -> RateSummary | None:
    """The best of those with the most seeds; None where none works."""
    rates = with_most_seeds(points)
    middle = [math.inf if rate.steps_to_target is None else rate.steps_to_target for rate in rates]
    columns = ([rate.steps_worst for rate in rates], middle, [r.gap_median for r in rates], [r.gap_high for r in rates])
    index = best_index(*map(np.array, columns))
    return None if index is None else rates[index]


def best_index(worst: np.ndarray, middle: np.ndarray, gap_middle: np.ndarray, gap_worst: np.ndarray) -> int | None:
    """Which of R points is best, by the rule of summary.PairSummary.best, from the slowest seed's and the median steps
    to the target, the median and the worst gap, each (R,), infinite for never. None where none works."""
    for candidates in (np.isfinite(worst), np.isfinite(middle)):
        if candidates.any():
            return int(np.lexsort((gap_middle, np.where(candidates, middle, np.inf)))[0])
    gaps = np.where(np.isfinite(gap_worst) & (gap_middle < 1), gap_middle, np.inf)
    return int(np.argmin(gaps)) if np.isfinite(gaps).any() else None


def best_of_seeds(steps: np.ndarray, gaps: np.ndarray) -> int | None:
    """best_index of (R, S) steps to the target and gaps at the end over S > 0 seeds, infinite for never."""
    # Races call this for every seed; np.median would take most of their time.
    steps, gaps = np.sort(steps, axis=1), np.sort(gaps, axis=1)
    middle = [(of[:, (of.shape[1] - 1) // 2] + of[:, of.shape[1] // 2]) / 2 for of in (steps, gaps)]
    return best_index(steps[:, -1], *middle, gaps[:, -1])


def ties_of(rates: list[RateSummary], best: RateSummary | None, floor: float) -> list[RateSummary]:
    """The points other than the best with as many median steps, whose median gap is the best's, or differs from it by
    less than `floor`, or is at most `floor` as the best's is."""
    if best is None:
        return []

    def ties(rate: RateSummary) -> bool:
        low, high = sorted((rate.gap_median, best.gap_median))
        return rate.steps_to_target == best.steps_to_target and (high == low or high <= floor or high - low < floor)

    return [rate for rate in rates if rate is not best and ties(rate)]


def good_stretch(
    rates: list[RateSummary], best: RateSummary | None, floor: float, factor: float, equal_ends: bool
) -> tuple[RateSummary, RateSummary] | None:
    """The ends of the unbroken stretch of good points around the best, of points along one axis."""
    if best is None:
        return None
    good = good_points(rates, best, floor, factor, equal_ends)
    low = high = rates.index(best)
    while low > 0 and good[low - 1]:
        low -= 1
    while high + 1 < len(rates) and good[high + 1]:
        high += 1
    return rates[low], rates[high]


def good_points(
    points: Sequence[RateSummary], best: RateSummary, floor: float, factor: float, equal_ends: bool
) -> list[bool]:
    """Whether each point is good, as summary.PairSummary.good says."""
    gap = factor * max(best.gap_median, floor)
    progress = (1 - max(best.gap_median, floor)) / factor

    def is_good(rate: RateSummary) -> bool:
        if best.steps_to_target is not None:
            return rate.steps_worst <= factor * best.steps_to_target or (equal_ends and rate.gap_high <= floor)
        return rate.gap_high <= gap and 1 - rate.gap_high >= progress

    return list(map(is_good, points))


def edge_of(rates: list[RateSummary]) -> tuple[float | None, float | None]:
    """(largest rate below, smallest rate at which more than half of the seeds diverge), of `rates` ascending; None for
    none."""
    below = None
    for rate in rates:
        if rate.verdicts.get("diverged", 0) * 2 > rate.seeds:
            return below, rate.learning_rate
        below = rate.learning_rate
    return below, None
