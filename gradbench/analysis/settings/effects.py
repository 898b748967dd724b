"""How much each axis of a pair matters, and which of its values are good.

The response is the logarithm of the final gap, bounded below by the gap that counts as 0 and above by the first gap,
which a diverged trial gets. Its variance over the points is divided as in an analysis of variance (Fisher,
Statistical Methods for Research Workers, 1925): an axis explains the variance of the means at its values, two axes
together the variance of the means at their pairs of values beyond that (Hutter, Hoos and Leyton-Brown, An Efficient
Approach for Assessing Hyperparameter Importance, ICML 2014, section 2, on a grid, where it needs no model).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradbench.analysis.points import RateSummary, good_points, good_stretch
from gradbench.analysis.summary import GOOD_FACTOR, PairSummary

INTERACTION = 0.1  # share of the variance from which an interaction of two axes is reported
MIN_PER_BIN = 5  # points per bin of an axis's values, where the design is no grid
MAX_BINS = 8
RATE = "learning_rate"


@dataclass(frozen=True)
class AxisEffect:
    """One axis of a pair.

    best: its value at the pair's best point; None where none works.
    good: the ends of the unbroken stretch of good values (summary.PairSummary.good) around the best, the other axes at
        their best; for a design that is no grid, the lowest and highest of all good points. None where none works.
    share: of the variance of the response, 0 to 1; None where the response is the same everywhere.
    levels: value -> (mean of the response over the others, the lowest response), ascending; log10 of a gap.
    """

    name: str
    best: float | None
    good: tuple[float, float] | None
    share: float | None
    levels: dict[float, tuple[float, float]]


@dataclass(frozen=True)
class Effects:
    """The axes of a pair, the learning rate first, and the interactions of two, from INTERACTION on. `exact` where all
    combinations were tried; else values are put into bins of at least MIN_PER_BIN points."""

    axes: list[AxisEffect]
    interactions: dict[tuple[str, str], float]
    exact: bool


def value_of(point: RateSummary, axis: str) -> float:
    return point.learning_rate if axis == RATE else point.settings[axis]


def response(pair: PairSummary) -> np.ndarray:
    """log10 of each point's median gap, clipped to [floor, 1], where the floor counts as 0: (N,)."""
    gaps = np.array([point.gap_median for point in pair.points])
    return np.log10(np.clip(np.nan_to_num(gaps, nan=np.inf), max(pair.floor, 1e-300), 1.0))


def effects(pair: PairSummary, factor: float = GOOD_FACTOR) -> Effects:
    """What each axis of a pair explains, and its good values."""
    names = [RATE, *pair.settings]
    values = np.array([[value_of(point, name) for point in pair.points] for name in names])
    levels = [np.unique(of) for of in values]
    exact = len(pair.points) == math.prod(map(len, levels))
    places = [np.searchsorted(level, of) if exact else _bins(of) for level, of in zip(levels, values)]
    y = response(pair)
    total = float(((y - y.mean()) ** 2).sum())
    between = [_between(y, place, exact) for place in places]
    alone = [None if total == 0 else max(0.0, ss / total) for ss in between]
    found = {}
    for (i, one), (j, other) in itertools.combinations(enumerate(names), 2):
        if total and exact:
            both = _between(y, places[i] * len(levels[j]) + places[j], exact)
            found[one, other] = max(0.0, (both - between[i] - between[j]) / total)
    axes = [
        AxisEffect(
            name,
            None if pair.best is None else value_of(pair.best, name),
            _good(pair, name, factor, exact),
            share,
            _levels(y, of, place),
        )
        for name, share, of, place in zip(names, alone, values, places)
    ]
    named = {names: share for names, share in found.items() if share >= INTERACTION}
    return Effects(axes, dict(sorted(named.items(), key=lambda item: -item[1])), exact)


def _bins(values: np.ndarray) -> np.ndarray:
    """The bin of each value, (N,), of a few bins with equally many points."""
    count = int(np.clip(len(values) // MIN_PER_BIN, 1, MAX_BINS))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right")


def _between(y: np.ndarray, place: np.ndarray, exact: bool) -> float:
    """The sum of squares between groups. For drawn points less its expectation by chance, the mean square within groups
    times the degrees of freedom, as omega squared has it (Hays, Statistics for Psychologists, 1963)."""
    _, place, count = np.unique(place, return_inverse=True, return_counts=True)
    means = np.bincount(place, y) / count
    between = float((count * (means - y.mean()) ** 2).sum())
    if exact:
        return between
    groups, left = len(count), len(y) - len(count)
    within = float(((y - means[place]) ** 2).sum())
    return between - (groups - 1) * within / left if left > 0 else between


def _levels(y: np.ndarray, values: np.ndarray, place: np.ndarray) -> dict[float, tuple[float, float]]:
    """The middle value of each group -> its mean and lowest response."""
    groups = [place == group for group in np.unique(place)]
    return {float(np.median(values[of])): (float(y[of].mean()), float(y[of].min())) for of in groups}


def along(pair: PairSummary, axis: str, at: RateSummary) -> list[RateSummary]:
    """The points that differ from `at` in no other axis, ascending in this one."""
    others = [name for name in (RATE, *pair.settings) if name != axis]
    kept = [point for point in pair.points if all(value_of(point, name) == value_of(at, name) for name in others)]
    return sorted(kept, key=lambda point: value_of(point, axis))


def _good(pair: PairSummary, axis: str, factor: float, exact: bool) -> tuple[float, float] | None:
    if pair.best is None:
        return None
    judged = {"floor": pair.floor, "factor": factor, "equal_ends": pair.reference.kind != "target"}
    if not exact:
        good = good_points(pair.points, pair.best, **judged)
        values = [value_of(point, axis) for point, fine in zip(pair.points, good) if fine or point is pair.best]
        return min(values), max(values)
    found = good_stretch(along(pair, axis, pair.best), pair.best, **judged)
    return found and (value_of(found[0], axis), value_of(found[1], axis))


def at_an_end(effect: AxisEffect, ties: Sequence[RateSummary]) -> str | None:
    """The end of an axis other than the learning rate at which the best lies, "lowest" or "highest"; None if it lies
    inside, or a point inside does as well."""
    values = list(effect.levels)
    if effect.best is None or effect.name == RATE or len(values) < 3 or effect.best not in (values[0], values[-1]):
        return None
    if any(value_of(point, effect.name) != effect.best for point in ties):
        return None
    return "lowest" if effect.best == values[0] else "highest"
