"""A float64 gradient against differences of the loss, along random directions and single entries of each leaf.

One direction may move several leaves at once, each so far that all change the loss by about as much. Where the sum of
their slopes is right to SLOPE_TOLERANCE of each leaf's own, all of them are: with random weights the errors of two
leaves cancel with a probability of about SLOPE_TOLERANCE. Otherwise, and at kinks, each leaf is tested alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gradbench.gradients.formula import oracle, reference
from gradbench.gradients.formula.differences import UNIT, Slope, slope_at_zero
from gradbench.gradients.formula.scale import meaning
from gradbench.gradients.rounding.band import quantile
from gradbench.gradients.rounding.primitives import names
from gradbench.inputs.problem import Problem
from gradbench.program.xla.jaxprs import custom_rules

# Where differences resolve no fault as small as this share of a leaf's slope, the direction is INCONCLUSIVE: half of
# a slope is the coarsest fault (a factor 2) that must be seen.
COARSEST = 0.5
# A derivative that iterates to a tolerance (an adjoint of an ODE, an implicit root) differs from the loss's own by a
# multiple of the tolerance. A difference below float32's unit is INCONCLUSIVE, not FAIL; where a custom rule of the
# loss has a while loop, one below the square root of that unit.
NEGLIGIBLE, NEGLIGIBLE_ITERATED = 2.0**-24, 2.0**-12
# The relative error of each slope that a direction through several leaves must resolve: about float32's band.
SLOPE_TOLERANCE = 2.0**-16
# Primitives whose slope may jump, or may become infinite, at a point.
KINKED = names(
    "abs max min sign clamp select_n cond while sort top_k argmax argmin reduce_max reduce_min cummax cummin floor "
    "ceil round rem sqrt rsqrt cbrt pow eq ne lt le gt ge scatter_max scatter_min scatter-max scatter-min "
    "pure_callback select_and_scatter_add select_and_gather_add reduce_window_max reduce_window_min"
)
ITERATES = "a rule that iterates to a tolerance may be so far off"


@dataclasses.dataclass
class Test:
    """One test: its name, PASS / FAIL / INCONCLUSIVE, one line of finding, the smallest relative fault it could see,
    and in a few words what is wrong, if known. An INCONCLUSIVE one with `resolves` is a difference too small to call a
    fault."""

    name: str
    verdict: str
    finding: str
    resolves: float | None = None
    culprit: str = ""


class Loss:
    """The loss at a point as a function of one number, the step along a direction; float64, op by op.

    `size` is a change of the loss that matters, for where all slopes are 0; `roundings` one standard deviation of the
    norm of each leaf of its gradient.
    """

    def __init__(self, problem: Problem, point: oracle.Point, noise: float | None, size: float, roundings: list[float]):
        self.size, self.roundings = size, roundings
        self.trace = oracle.trace(problem.loss, point.params, point.data)
        self.leaves = [np.asarray(x).astype(np.float64) for x in jax.tree.leaves(point.params)]
        self._data = jax.tree.leaves(point.data)
        self.rules = custom_rules(self.trace)
        self.smooth = KINKED.isdisjoint(oracle.primitives(self.trace))
        self.iterates = any(rule.iterates for rule in self.rules)
        self._moving: list[int] | None = None
        self.value = self.at(0.0, [None] * len(self.leaves))
        self.has_band = noise is not None  # if not, a thousand roundings are assumed
        self.noise = max(UNIT * abs(self.value), 1000 * UNIT * abs(self.value) if noise is None else noise)

    def at(self, step: float, direction: Sequence[np.ndarray | None]) -> float:
        """`direction` has one array per leaf, or None where the leaf stays."""
        moved = {n: x + step * v for n, (x, v) in enumerate(zip(self.leaves, direction)) if v is not None}
        if [*moved] != self._moving:
            self._moving = [*moved]
            self._value_at = reference.prepared(self.trace, [*self.leaves, *self._data], self._moving)
        return float(self._value_at([*moved.values()])[0])

    def rounding(self, leaf: int) -> float:
        """The rounding error of a leaf's gradient: one that cancels to 0 is not 0 in float64."""
        deviation = self.roundings[leaf]
        return quantile(1) * deviation if math.isfinite(deviation) else 0.0

    def slope(
        self, direction: Sequence[np.ndarray | None], start: float, size: float, shares: Sequence[float] = (1.0,)
    ) -> Slope | None:
        """The slope along a direction, from steps around `start`; `size` is that of the slope in question and `shares`
        those of the leaves that move; None where the loss is not finite nearby."""
        moved = [(x, v) for x, v in zip(self.leaves, direction) if v is not None]
        # x + hv is rounded by half a unit of x, so the step is off by that over v.
        blurs = [UNIT * float(np.max(np.abs(x[v != 0] / v[v != 0]), initial=0.0)) for x, v in moved]
        blur = sum(share * blur for share, blur in zip(shares, blurs, strict=True))
        return slope_at_zero(lambda h: self.at(h, direction), self.value, self.noise, start, size, self.smooth, blur)


@dataclasses.dataclass(eq=False)
class _Leaf:
    """A leaf of the gradient: its norm, the root of its mean square, the length of the parameters, and the directions
    in which it is tested, each with the one entry that it moves, or None where it moves all."""

    number: int
    name: str
    g: np.ndarray
    norm: float
    root: float
    length: float
    directions: list[tuple[np.ndarray, int | None]]

    def along(self, direction: np.ndarray, entry: int | None) -> float:
        return float(np.sum(self.g * direction)) if entry is None else float(self.g.reshape(-1)[entry])

    def spread(self, entry: int | None) -> float:
        """A direction of +-1/sqrt(n) moves every entry 1/sqrt(n)."""
        return math.sqrt(self.g.size) if entry is None else 1.0

    def start(self, entry: int | None) -> float:
        return self.length * min(self.spread(entry), 16)


def differences(
    loss: Loss, gradient: list[np.ndarray], names: list[str], generator: Any, fast: bool, examples: int | None
) -> tuple[Test, list[float]]:
    """The test, and per leaf the largest move of an entry in the step by which a slope is known best."""
    few = fast or sum(g.size for g in gradient) > 10**5
    reach, leaves = [oracle.length(x) for x in loss.leaves], []
    for number, (g, name, length) in enumerate(zip(gradient, names, reach)):
        if g.size:
            norm = float(np.linalg.norm(g))
            root = norm / math.sqrt(g.size)
            leaves.append(_Leaf(number, name, g, norm, root, length, _directions(g, generator, few)))
    # The largest change of the loss as one leaf moves by its length: a slope of 0 need only be known to a share of it.
    sizes = [leaf.root * leaf.length for leaf in leaves]
    steepest = max((size for size in [loss.size, *sizes] if math.isfinite(size)), default=0.0)
    found, most = _Along(loss, examples, steepest), max(sizes, default=0.0)
    steep = [leaf for leaf, size in zip(leaves, sizes) if size > SLOPE_TOLERANCE * most]
    finite = all(math.isfinite(leaf.root) for leaf in leaves)
    if not finite or len(steep) < 2 or loss.iterates or not _together(loss, steep, found, reach):
        steep = []
    for leaf in (leaf for leaf in leaves if leaf not in steep):
        for direction, entry in leaf.directions:
            whole = [direction if n == leaf.number else None for n in range(len(loss.leaves))]
            along = leaf.along(direction, entry)
            size = max(abs(along), leaf.root) if math.isfinite(leaf.norm) else 0.0
            slope = loss.slope(whole, leaf.start(entry), size)
            found.add(leaf, entry, slope, along)
            if slope is not None:
                reach[leaf.number] = min(reach[leaf.number], slope.step / leaf.spread(entry))
    return found.test(), reach


def _together(loss: Loss, leaves: list[_Leaf], found: _Along, reach: list[float]) -> bool:
    """Whether the leaves' slopes are right, each to SLOPE_TOLERANCE, by directions that move all leaves at once."""
    generator, moves, resolved = np.random.default_rng(2), list(reach), []
    for given in itertools.zip_longest(*(leaf.directions for leaf in leaves)):
        chosen = [(leaf, one[0], one[1]) for leaf, one in zip(leaves, given) if one is not None]
        slopes = np.array([leaf.along(direction, entry) for leaf, direction, entry in chosen])
        sizes = np.maximum(np.abs(slopes), [leaf.root for leaf, *_ in chosen])
        starts = np.array([leaf.start(entry) for leaf, _, entry in chosen])
        weights = starts * np.min(sizes * starts) / (sizes * starts) * generator.uniform(0.5, 1, len(chosen))
        whole: list[np.ndarray | None] = [None] * len(loss.leaves)
        for (leaf, direction, _), slope, weight in zip(chosen, slopes, weights):
            whole[leaf.number] = direction * math.copysign(weight, slope)  # so that all terms of the sum are positive
        along = float(np.abs(slopes) @ weights)
        least = float(np.min(sizes * weights))
        shares = np.abs(slopes) * weights / along if along else np.ones(len(chosen))
        slope = loss.slope(whole, 1.0, least, list(shares))
        rounding = [loss.rounding(leaf.number) + 8 * UNIT * leaf.norm for leaf, *_ in chosen]
        slack = math.inf if slope is None else slope.tolerance + float(np.dot(rounding, weights)) + UNIT * along
        if slope is None or slope.kink or not slope.off(along) <= slack <= SLOPE_TOLERANCE * least:
            return False
        resolved += [slack / least] * len(chosen)
        for (leaf, _, entry), weight in zip(chosen, weights):
            moves[leaf.number] = min(moves[leaf.number], slope.step * weight / leaf.spread(entry))
    reach[:] = moves
    found.agree(resolved)
    return True


def _directions(g: np.ndarray, generator: np.random.Generator, few: bool) -> list[tuple[np.ndarray, int | None]]:
    """Directions in a leaf, each with the one entry that it moves, or None where it moves all."""
    entries = [int(np.nanargmax(np.abs(g)))] if np.isfinite(g).any() else []
    entries += [int(i) for i in np.flatnonzero(~np.isfinite(g))[:1]]
    entries += [] if few else [int(i) for i in generator.integers(g.size, size=2)]
    drawn = [generator.random(g.shape) < 0.5 for _ in range(1 if few or g.size == 1 else 2)]
    whole = [(np.where(d, -1.0, 1.0) / math.sqrt(g.size), None) for d in drawn if g.size > 1]
    return [*whole, *((_unit(g.shape, i), i) for i in dict.fromkeys(entries))]


class _Along:
    """Collects what differences say of a gradient, direction by direction; `steepest` is a change of the loss, and
    changes far below it need not be resolved."""

    def __init__(self, loss: Loss, examples: int | None, steepest: float):
        self._loss, self._examples, self._steepest = loss, examples, steepest
        self._faults: list[tuple[float, str, str]] = []
        self._close: list[tuple[float, str]] = []
        self._unclear: list[str] = []
        self._seen, self._kinks, self._tried = 0.0, 0, 0

    def agree(self, resolved: list[float]) -> None:
        """Count directions that agree, each resolved to this share of its slope."""
        self._tried += len(resolved)
        self._seen = max([self._seen, *resolved])

    def add(self, leaf: _Leaf, entry: int | None, slope: Slope | None, along: float) -> None:
        """Compare the slope `along` in a leaf with differences."""
        name, root = leaf.name, leaf.root
        where = name if entry is None else f"{name}{list(map(int, np.unravel_index(entry, leaf.g.shape)))}"
        self._tried += 1
        if slope is None:
            if math.isfinite(along):
                self._unclear.append(f"{where}: the loss is not finite nearby")
            else:
                text = f"{where}: the gradient is {along}, the loss not finite nearby"
                self._faults.append((math.inf, text, name))
            return
        middle = (slope.low + slope.high) / 2
        if not math.isfinite(along):
            one_sided = f"one-sided slopes are {slope.low:.6g} and {slope.high:.6g}"
            give = one_sided if slope.kink else f"differences give {middle:.6g}"
            self._faults.append((math.inf, f"{where}: the gradient is {along}, {give}{_where(self._loss)}", name))
            return
        self._kinks += slope.kink
        slack = slope.tolerance + self._loss.rounding(leaf.number) + UNIT * (leaf.norm * 8 + abs(along))
        off, reference = slope.off(along), max(abs(along), root, abs(middle))
        iterates = self._loss.iterates
        if slack < off <= (NEGLIGIBLE_ITERATED if iterates else NEGLIGIBLE) * reference:
            text = f"{where}: slope {along:.10g}, differences give {middle:.10g}, {off / reference:.0e} apart"
            excuse = ITERATES if iterates else "less than float32 resolves"
            self._close.append((off / reference, f"{text}: {excuse}"))
        elif off > slack:
            self._faults.append((off / slack, f"{where}: {self._told(slope, along, middle, slack)}", name))
        elif slack > COARSEST * reference and slack * leaf.length > NEGLIGIBLE * self._steepest:
            self._unclear.append(f"{where}: differences are only good to {slack:.1e}")
        elif slack <= COARSEST * reference:
            self._seen = max(self._seen, slack / reference)

    def _told(self, slope: Slope, along: float, middle: float, slack: float) -> str:
        ratio = f", {along / middle:.7g} times" if abs(middle) > slack else ""
        told = meaning(along / middle, self._examples, slack / abs(middle)) if ratio else ""
        ratio += f": {told}" if told and "too large" not in told and "of what" not in told else ""
        kind = "not between the one-sided slopes" if slope.kink else "differences give"
        got = f"{slope.low:.7g} and {slope.high:.7g}" if slope.kink else f"{middle:.7g}"
        return f"slope {along:.7g}, {kind} {got} +- {slack:.1e}{ratio}"

    def test(self) -> Test:
        name, tried = "finite differences", self._tried
        if self._faults:
            off, text, leaf = max(self._faults)
            culprit = f"leaf {leaf}" + (" is not finite" if math.isinf(off) else "")
            return Test(name, "FAIL", f"{text} ({len(self._faults)} of {tried} directions)", culprit=culprit)
        if self._close:
            relative, text = max(self._close)
            return Test(name, "INCONCLUSIVE", f"{text} ({len(self._close)} of {tried})", relative)
        if self._unclear:
            return Test(name, "INCONCLUSIVE", f"{self._unclear[0]} ({len(self._unclear)} of {tried})")
        kinks = f", {self._kinks} at kinks, between the one-sided slopes" if self._kinks else ""
        return Test(name, "PASS", f"{tried} directions agree{kinks}", self._seen)


def _unit(shape: tuple[int, ...], entry: int) -> np.ndarray:
    direction = np.zeros(shape)
    direction.reshape(-1)[entry] = 1.0
    return direction


def _where(loss: Loss) -> str:
    if "select_n" not in oracle.primitives(loss.trace):
        return ""
    return " (the loss has a `where`: its unused branch has an infinite derivative; guard the argument too)"
