"""A coarse grid, then finer around the best: a pattern search over the axes on their own scales.

From the best point the neighbours along each axis are tried, a step to each side; the best of all is gone on from, and
where none is better every step is halved (Kolda, Lewis and Torczon, Optimization by Direct Search, SIAM Review 45,
2003, section 3). The learning rate may leave its range where the best lies at the end of it. Points are
compared with one seed; in the end the best and the better one beside it are run with all seeds, and the next best
until one works with every seed or the pair's trials (`trials_of`) are used up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.specs.axis import LOG, Axis, place_of, value_at
from gradbench.inputs.specs.searches import REFINE_POINTS
from gradbench.search.asked import Asked, Searching

FEWEST, MOST = 4, 9  # learning rates of the coarse grid: about one a decade
BEYOND = 1e4  # how far the learning rate may leave its range
FINEST = 1 / 16  # of an axis's range, the step along it that is small enough
RATE = "learning_rate"


class Line:
    """An axis as a search moves along it: places are numbers on its own scale, of values their numbers."""

    def __init__(self, axis: Axis, step: float | None = None, finest: float = 0.0, beyond: float = 0.0):
        self.axis, self.ranged = axis, axis.scale is not None
        low, high = 0.0, float(len(axis.values) - 1)
        if axis.scale is not None:
            low, high = (place_of(axis.values[end], axis.scale) for end in (0, -1))
        self.low, self.high = low - beyond, high + beyond
        self.step = 1.0 if not self.ranged else step or (high - low) / 4
        self.finest = 1.0 if not self.ranged else finest or (high - low) * FINEST
        self.middle = (low + high) / 2 if self.ranged else float((len(axis.values) - 1) // 2)

    def value(self, place: float) -> float:
        return self.axis.values[round(place)] if self.axis.scale is None else value_at(place, self.axis.scale)

    def beside(self, place: float) -> list[float]:
        """A step to each side, as far as there is something."""
        return [at for at in (place - self.step, place + self.step) if self.low - 1e-9 <= at <= self.high + 1e-9]


def lines(plan: SweepPlan, optimizer: str, factor: float) -> tuple[list[Line], list[float]]:
    """The axes of a pair, the learning rate first, and where on it the coarse grid lies."""
    rates, others = plan.rates, plan.axes_of(optimizer)
    if not isinstance(plan.learning_rates, str) or len(rates) == 1:
        rate = Line(Axis(RATE, tuple(rates)))
        return [rate, *map(Line, others)], [float(i) for i in range(len(rates))]
    low, high = math.log(rates[0]), math.log(rates[-1])
    count = int(np.clip(round((high - low) / math.log(10)) + 1, FEWEST, min(MOST, len(rates)) if len(rates) > 4 else 4))
    coarse = np.linspace(low, high, count).tolist()
    step = (high - low) / (count - 1) / 2
    axis = Axis(RATE, (rates[0], rates[-1]), LOG)
    return [Line(axis, step, math.log(factor), math.log(BEYOND)), *map(Line, others)], coarse


def refine(plan: SweepPlan, optimizer: str, factor: float) -> Searching:
    """Until the best learning rate is known within `factor` and every other axis to FINEST of its range."""
    along, coarse = lines(plan, optimizer, factor)
    found: dict[tuple[float, ...], float] = {}
    middles = [line.middle for line in along[1:]]

    def asked(places: Sequence[tuple[float, ...]], seeds: Sequence[int], why: str) -> Asked:
        points = [
            {line.axis.name: line.value(at) for line, at in (*zip(along[1:], p[1:]), (along[0], p[0]))} for p in places
        ]
        return Asked.of(points, seeds, why)

    def best() -> tuple[float, ...]:
        # Of equals the lowest rate, and of points that all diverge: what is too large diverges, too.
        return min(found, key=lambda p: (found[p], p))

    new, why = [(at, *middles) for at in coarse], "coarse grid"
    most = REFINE_POINTS * len(along)
    while new and len(found) + len(new) <= most:
        told = yield asked(new, [0], why)
        before = min(found.values(), default=math.inf)
        found |= dict(zip(new, told.tolist()))
        if why != "coarse grid" and not min(found.values()) < before:
            _finer(along)
        new, why = _beside(along, best(), found), "beside the best"
        while not new and _finer(along):
            new = _beside(along, best(), found)
    last, why = _confirmed(best(), found), "the best and its better neighbour, with the other seeds"
    others = range(1, plan.seeds)
    waiting = [point for point in sorted(found, key=lambda p: (found[p], p)) if math.isfinite(found[point])]
    left = plan.trials_of(optimizer) - len(found)
    while others and last and (left := left - len(last) * len(others)) >= 0:
        told = yield asked(last, others, why)
        waiting = [point for point in waiting if point not in last]
        if np.isfinite(told).reshape(len(last), -1).all(axis=1).any():
            return
        last, why = waiting[:2], "the next best, since with other seeds those before do not work"


def _beside(along: Sequence[Line], at: tuple[float, ...], found: dict[tuple[float, ...], float]) -> list:
    """The neighbours of a point that were not tried."""
    near = [(*at[:i], round(to, 9), *at[i + 1 :]) for i, line in enumerate(along) for to in line.beside(at[i])]
    known = {tuple(round(x, 6) for x in point) for point in found}
    return [point for point in dict.fromkeys(near) if tuple(round(x, 6) for x in point) not in known]


def _finer(along: Sequence[Line]) -> bool:
    """Halve the steps that are not small enough; whether there was one."""
    coarse = [line for line in along if line.step > line.finest * (1 + 1e-9)]
    for line in coarse:
        line.step /= 2
    return bool(coarse)


def _confirmed(at: tuple[float, ...], found: dict[tuple[float, ...], float]) -> list[tuple[float, ...]]:
    """A point and the better one of the nearest that were tried to each side of its learning rate."""
    row = sorted(point for point in found if point[1:] == at[1:])
    place = row.index(at)
    beside = row[max(place - 1, 0) : place] + row[place + 1 : place + 2]
    return [at, *sorted(beside, key=lambda point: found[point])[:1]]
