"""The slope of a function of one number from differences of its values, whatever its natural length scale.

A central difference over a step h is off by truncation, which falls with h, and by rounding, which rises as 1/h. Over a
step far longer than the function's own length it may seem settled at a wrong number: a bump 1e-4 wide has no slope over
steps of 0.1. So a difference counts only as far as every shorter step agrees with it within rounding, down to the steps
whose own rounding hides the slope. Where the loss may have a kink the one-sided slopes are found in the same way, since
every number between them is a right answer there.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

from gradbench.gradients.rounding.band import quantile
from gradbench.gradients.rounding.numbers.formats import format_of

UNIT = format_of("float64").unit
# Steps are start / 4^n: all of the first ones, then every third. That is enough to refute a longer one, since the
# function keeps its slope over all steps much shorter than its length.
_EVERY, _APART = 5, 3
_FINEST, _COARSEST = 60, -40  # n
_HIDDEN = 0.1  # a step shorter than one whose rounding is this share of the slope refutes nothing
_SETTLED = 1e-6  # longer steps are tried until the slope is known to this (relative)


@dataclasses.dataclass(frozen=True)
class Slope:
    """A slope from differences: a value, or an interval at a kink, +- tolerance; and the step it was found with."""

    low: float
    high: float
    tolerance: float
    kink: bool
    step: float

    def off(self, slope: float) -> float:
        """How far `slope` lies outside the interval."""
        return max(self.low - slope, slope - self.high, 0.0)


@dataclasses.dataclass(frozen=True)
class _Difference:
    """Over one step: the slopes ahead and behind, and the rounding error of their mean (of either, twice that)."""

    step: float
    ahead: float
    behind: float
    rounding: float

    @property
    def central(self) -> float:
        return (self.ahead + self.behind) / 2


def slope_at_zero(
    function: Callable[[float], float],
    value: float,
    noise: float,
    start: float,
    size: float,
    smooth: bool,
    blur: float = 0.0,
) -> Slope | None:
    """The slope of `function` at 0, where it is `value`; None where it is not finite nearby.

    Args:
        noise: the standard deviation of one value by rounding.
        start: a step of the size of what is moved; the search goes to far shorter and longer ones from there.
        size: of the slope in question; a slope far below it need not be resolved.
        smooth: whether the function is known to have no kink.
        blur: how far a step may differ from the intended one, since the point that it leads to is rounded.
    """
    factor, known = quantile(1), {}

    def difference(number: int) -> None:
        if number in known:
            return
        step = start * 4.0**-number
        ahead, behind = function(step), function(-step)
        if math.isfinite(ahead) and math.isfinite(behind):
            # Rounding grows with the function's value.
            rounding = factor * (noise + UNIT * (abs(ahead) + abs(behind))) / (math.sqrt(2) * step)
            slopes = (ahead - value) / step, (value - behind) / step
            rounding += blur / step * max(map(abs, slopes))
            known[number] = _Difference(step, *slopes, rounding)

    central = _searched(known, difference, size)
    if central is None:
        return None
    middle, error, best = central
    smooth_slope = Slope(middle, middle, error, False, known[best].step)
    if smooth:
        return smooth_slope
    one, other = (_best(_extrapolated(known, side)) for side in ("ahead", "behind"))
    if one is None or other is None:
        return smooth_slope
    (ahead, ahead_error, _), (behind, behind_error, _) = one, other
    errors = ahead_error + behind_error
    if abs(ahead - behind) > errors:
        return Slope(min(ahead, behind), max(ahead, behind), max(ahead_error, behind_error), True, known[best].step)
    # There may be a kink smaller than the errors: the interval includes its ends.
    reach = max(error, abs(ahead - middle) + ahead_error, abs(behind - middle) + behind_error)
    return dataclasses.replace(smooth_slope, tolerance=reach)


def _searched(
    known: dict[int, _Difference], difference: Callable[[int], None], size: float
) -> tuple[float, float, int] | None:
    """`_refined` of ever shorter steps until rounding hides the slope, and of longer ones until it is settled."""
    number = 1
    while number < _FINEST:
        difference(number)
        last = known.get(number)
        if last and last.rounding > _HIDDEN * max(abs(last.ahead), abs(last.behind), size):
            break
        number += 1 if number < _EVERY else _APART
    central = _refined(known, difference)
    number = 0
    while number >= _COARSEST and (central is None or (central[2] <= number + 2 and central[1] > _SETTLED * size)):
        difference(number)
        number -= 2
        central = _refined(known, difference)
    return central


_Sequence = dict[int, tuple[float, float]]  # n -> a slope and its rounding


def _refined(known: dict[int, _Difference], difference: Callable[[int], None]) -> tuple[float, float, int] | None:
    """`_best` of the central differences, after those next to the best one are made too."""
    while True:
        best = _best({number: (d.central, d.rounding) for number, d in known.items()})
        if best is None:
            return None
        before = len(known)
        for number in (best[2] - 1, best[2] + 1):
            if number >= 1:
                difference(number)
        if len(known) == before:
            return best


def _best(slopes: _Sequence) -> tuple[float, float, int] | None:
    """The slope known best, its error and its n.

    The error is rounding, plus the largest of three estimates of truncation: the change to the next shorter step, as
    far as truncation that falls at least like the step explains it; the change from the next longer one, for truncation
    that falls like its square (so that two steps that agree by chance are not chosen); what shorter steps refute beyond
    their own rounding. The shortest is known by the change from the one before.
    """
    order = sorted(slopes)
    if len(order) < 2:
        return None
    found = []
    for place, number in enumerate(order):
        value, rounding = slopes[number]
        finer = order[place + 1 :] or [order[place - 1]]
        ratio = 4.0 ** abs(finer[0] - number)
        signs = [abs(slopes[finer[0]][0] - value) * ratio / (ratio - 1)]
        signs += [abs(slopes[n][0] - value) - slopes[n][1] for n in finer]
        if place:
            ratio = 4.0 ** (number - order[place - 1])
            signs.append(abs(slopes[order[place - 1]][0] - value) / (ratio**2 - 1))
        found.append((rounding + max(signs), number, value))
    error, number, value = min(found)
    return value, error, number


def _extrapolated(known: dict[int, _Difference], side: str) -> _Sequence:
    """One-sided slopes with their error of order h removed by the next shorter step (Richardson)."""
    order, found = sorted(known), {}
    for number, finer in itertools.pairwise(order):
        ratio = 4.0 ** (finer - number)
        slope, shorter = getattr(known[number], side), getattr(known[finer], side)
        rounding = 2 * (ratio * known[finer].rounding + known[number].rounding) / (ratio - 1)
        found[number] = (ratio * shorter - slope) / (ratio - 1), rounding
    return found
