"""Is the derivative the derivative of the loss? Float64, op by op, against finite differences (see differences.py) and
other ways to compute it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gradbench.gradients.formula import oracle, reference
from gradbench.gradients.formula.differences import UNIT, Slope, slope_at_zero
from gradbench.gradients.formula.scale import meaning
from gradbench.gradients.formula.suspects import Suspects, likely, listed
from gradbench.gradients.rounding.band import Spread, quantile
from gradbench.gradients.rounding.primitives import names
from gradbench.inputs.problem import Problem
from gradbench.program.xla.jaxprs import custom_rules

# A fault smaller than this is not resolved by differences and the direction is INCONCLUSIVE: half of a leaf's slope
# is the coarsest fault (a factor 2) that must be seen.
COARSEST = 0.5
# A derivative that iterates to a tolerance (an adjoint of an ODE, an implicit root) differs from its loss's by some
# multiple of that. Below the unit of float32 the difference is INCONCLUSIVE, not FAIL; below the root of that unit
# where a custom rule of the loss holds a while loop.
NEGLIGIBLE, NEGLIGIBLE_ITERATED = 2.0**-24, 2.0**-12
# Primitives whose slope may jump, or may become infinite, at a point.
KINKED = names(
    "abs max min sign clamp select_n cond while sort top_k argmax argmin reduce_max reduce_min cummax cummin floor "
    "ceil round rem sqrt rsqrt cbrt pow eq ne lt le gt ge scatter_max scatter_min scatter-max scatter-min "
    "pure_callback select_and_scatter_add select_and_gather_add reduce_window_max reduce_window_min"
)
_TAYLOR_STEPS = 20  # quarterings at most
_ITERATES = "a rule that iterates to a tolerance may be so far off"


@dataclasses.dataclass
class Test:
    """One test: its name, PASS / FAIL / INCONCLUSIVE, one line of finding, the smallest fault it could see, and what is
    wrong in a few words, as far as it knows. An INCONCLUSIVE one with `resolves` is a difference too small to accuse.
    """

    name: str
    verdict: str
    finding: str
    resolves: float | None = None
    culprit: str = ""


class Loss:
    """The loss at a point as a function of one number, the step along a direction; float64, op by op.

    `size` is a change of it that matters, where all slopes may be 0; `roundings` one standard deviation of the norm of
    each leaf of its gradient.
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
        # Without a band a thousand roundings are assumed.
        self.noise = max(UNIT * abs(self.value), 1000 * UNIT * abs(self.value) if noise is None else noise)

    def at(self, step: float, direction: Sequence[np.ndarray | None]) -> float:
        """`direction` has one array per leaf, or None where the leaf stays."""
        moved = {n: x + step * v for n, (x, v) in enumerate(zip(self.leaves, direction)) if v is not None}
        if [*moved] != self._moving:
            self._moving = [*moved]
            self._value_at = reference.prepared(self.trace, [*self.leaves, *self._data], self._moving)
        return float(self._value_at([*moved.values()])[0])

    def slope(self, direction: Sequence[np.ndarray | None], start: float, size: float) -> Slope | None:
        """Along a direction, from steps around `start`, where `size` is that of the slope asked about; None where the
        loss is not finite nearby."""
        moved = [(x, v) for x, v in zip(self.leaves, direction) if v is not None]
        # x + hv is rounded, by half a unit of x: a step too long or too short by that over v.
        blur = max(UNIT * float(np.max(np.abs(x[v != 0] / v[v != 0]), initial=0.0)) for x, v in moved)
        return slope_at_zero(lambda h: self.at(h, direction), self.value, self.noise, start, size, self.smooth, blur)


def check_value(problem: Problem, start: oracle.Point) -> Test | None:
    """FAIL where the loss is not finite at the start, in float64: there is no gradient to check, nor one to train by.
    None where it is, and where it cannot be run, which `check` finds out."""
    try:
        value = float(oracle.evaluate(problem.loss, start.params, start.data)[0])
    except Exception:
        return None
    if math.isfinite(value):
        return None
    finding = f"it is {value} there: no gradient to check; start where the loss is finite, or mend the loss or its data"
    return Test("loss at the start", "FAIL", finding, culprit=f"the loss is {value} at the start")


@np.errstate(all="ignore")
def check(
    problem: Problem,
    point: oracle.Point,
    spread: Spread | None,
    share: float,
    fast: bool,
    suspects: Suspects | None = None,
    size: float = 0.0,
) -> tuple[list[Test], list[np.ndarray]]:
    """Every test of the derivative at a float64 point, and the gradient's flat leaves (float64).

    `spread` is the rounding spread of (value, gradient) in some dtype and `share` its unit over float64's; `suspects`
    what could be at fault, the loss's own rules where it is None; `size` a change of the loss that matters, where all
    slopes may be 0.
    """
    value, *gradient = oracle.evaluate(jax.value_and_grad(problem.loss), point.params, point.data)
    norms = [0.0] * len(gradient) if spread is None else [n / share for n in spread.norm[1:]]
    loss = Loss(problem, point, None if spread is None else float(spread.sigma[0]) / share, size, norms)
    # x + hv is rounded to float64 too, which moves the loss by g times that.
    inputs = sum(float(np.nansum((x * g) ** 2)) for x, g in zip(loss.leaves, gradient) if np.isfinite(g).all())
    loss.noise += UNIT * math.sqrt(inputs)
    names = leaf_names(point.params)
    generator = np.random.default_rng(1)
    differences, reach = _differences(loss, gradient, names, generator, fast, point.examples)
    tests = [differences]
    if differences.verdict != "FAIL" or all(np.isfinite(g).all() for g in gradient):
        tests.append(_taylor(loss, gradient, reach, generator))
        if not fast:
            tests.append(_forward_against_reverse(problem, loss, point, gradient, norms, generator))
        if problem.gradient is not None:
            tests.append(_analytic(problem.gradient, loss, point, gradient, norms, names))
    tests += _value_of_rules(loss, float(value))
    if differences.verdict == "FAIL":

        def agrees(other: list[np.ndarray]) -> bool:
            own = np.random.default_rng(1)
            return _differences(loss, other, names, own, fast, point.examples)[0].verdict != "FAIL"

        finding, culprit = (suspects or Suspects.of(loss.trace, point)).judge(gradient, names, agrees)
        tests.append(Test("suspects", "INCONCLUSIVE", finding, culprit=culprit))
    return tests, gradient


def check_start(problem: Problem, start: oracle.Point, spread: Spread | None, share: float, fast: bool) -> list[Test]:
    """The tests that fail at the start itself, where kinks and `where` traps lie (a start is often 0); see `check`.

    What is unclear there was tested at the point nearby, but for a difference too small to accuse. With `fast` only a
    gradient that is not finite is looked into.
    """
    _, *gradient = oracle.evaluate(jax.value_and_grad(problem.loss), start.params, start.data)
    if fast and all(np.isfinite(g).all() for g in gradient):
        return []
    tests, _ = check(problem, start, spread, share, True)
    kept = [t for t in tests if t.verdict == "FAIL" or (t.verdict == "INCONCLUSIVE" and t.resolves is not None)]
    kept += [t for t in tests if kept and t.name == "suspects"]
    return [
        dataclasses.replace(t, finding=f"at the start: {t.finding}", culprit=t.culprit and f"{t.culprit} at the start")
        for t in kept
    ]


def leaf_names(params: Any) -> list[str]:
    """Each leaf's path, as `['layer']['w']`; of a named tuple's without the dot in front."""
    return [
        jax.tree_util.keystr(path).lstrip(".") or "params" for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]


def _value_of_rules(loss: Loss, with_gradient: float) -> list[Test]:
    """A custom rule may report another value than the function that it differentiates: the loss beside a gradient is
    then not the loss. No test where there is no custom rule."""
    if not loss.rules:
        return []
    off, slack = abs(with_gradient - loss.value), quantile(1) * math.sqrt(2) * loss.noise
    relative = off / abs(loss.value) if loss.value else off
    finding = f"the loss is {loss.value:.10g}, beside its gradient {with_gradient:.10g}"
    if off <= slack:
        return [Test("value of the rules", "PASS", finding, slack / abs(loss.value) if loss.value else None)]
    if loss.iterates and relative <= NEGLIGIBLE_ITERATED:
        return [Test("value of the rules", "INCONCLUSIVE", f"{finding}: {_ITERATES}", relative)]
    finding = f"{finding}: a rule reports another value ({listed(loss.rules)})"
    return [Test("value of the rules", "FAIL", finding, culprit=f"the value of {likely(loss.rules)}")]


def _differences(loss: Loss, gradient, names, generator, fast: bool, examples: int | None) -> tuple[Test, list[float]]:
    """Per leaf: random directions of +-1/sqrt(n), and single entries, the largest and random ones. Also, per leaf, how
    far an entry was moved where a slope was known best."""
    reach = [oracle.length(leaf) for leaf in loss.leaves]
    few = fast or sum(g.size for g in gradient) > 10**5
    # What the loss changes by as a leaf moves by its length, of the leaf where that is most: beside it a slope of 0
    # need not be known to a share of itself.
    sizes = [float(np.sqrt(np.mean(g**2))) * oracle.length(leaf) for leaf, g in zip(loss.leaves, gradient)]
    steepest = max((size for size in [loss.size, *sizes] if math.isfinite(size)), default=0.0)
    found = _Along(loss, examples, steepest)
    for number, (leaf, g, name) in enumerate(zip(loss.leaves, gradient, names)):
        length, norm = oracle.length(leaf), float(np.linalg.norm(g))
        for direction, entry in _directions(g, generator, few):
            whole = [direction if n == number else None for n in range(len(gradient))]
            along = float(np.sum(g * direction)) if entry is None else float(g.reshape(-1)[entry])
            size = max(abs(along), norm / math.sqrt(g.size)) if math.isfinite(norm) else 0.0
            # A direction of +-1/sqrt(n) moves every entry 1/sqrt(n).
            spread = math.sqrt(g.size) if entry is None else 1.0
            slope = loss.slope(whole, length * min(spread, 16), size)
            where = name if entry is None else f"{name}{list(map(int, np.unravel_index(entry, g.shape)))}"
            found.add(number, name, where, slope, along, norm, norm / math.sqrt(g.size), length)
            if slope is not None:
                reach[number] = min(reach[number], slope.step / spread)
    return found.test(), reach


def _directions(g: np.ndarray, generator: np.random.Generator, few: bool) -> list[tuple[np.ndarray, int | None]]:
    """Directions in a leaf, each with the entry that it moves, or None where it moves all."""
    entries = [int(np.nanargmax(np.abs(g)))] if np.isfinite(g).any() else []
    entries += [int(i) for i in np.flatnonzero(~np.isfinite(g))[:1]]
    entries += [] if few else [int(i) for i in generator.integers(g.size, size=2)]
    drawn = [generator.random(g.shape) < 0.5 for _ in range(1 if few or g.size == 1 else 2)]
    whole = [(np.where(d, -1.0, 1.0) / math.sqrt(g.size), None) for d in drawn if g.size > 1]
    return [*whole, *((_unit(g.shape, i), i) for i in dict.fromkeys(entries))]


class _Along:
    """What differences say of a gradient along one direction after another; `steepest` is a change of the loss beside
    which smaller ones need not be known."""

    def __init__(self, loss: Loss, examples: int | None, steepest: float):
        self._loss, self._examples, self._steepest = loss, examples, steepest
        self._faults: list[tuple[float, str, str]] = []
        self._close: list[tuple[float, str]] = []
        self._unclear: list[str] = []
        self._seen, self._kinks, self._tried = 0.0, 0, 0

    def add(
        self,
        number: int,
        name: str,
        where: str,
        slope: Slope | None,
        along: float,
        norm: float,
        root: float,
        length: float,
    ) -> None:
        """The slope `along` against differences, in leaf `number`, whose gradient has the norm, and the root of the
        mean of squares, `root`."""
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
        # The gradient rounds too: a leaf that is 0 by cancellation is not 0 in float64.
        rounding = self._loss.roundings[number]
        own = quantile(1) * rounding if math.isfinite(rounding) else 0.0
        slack = slope.tolerance + own + UNIT * (norm * 8 + abs(along))
        off, reference = slope.off(along), max(abs(along), root, abs(middle))
        iterates = self._loss.iterates
        if slack < off <= (NEGLIGIBLE_ITERATED if iterates else NEGLIGIBLE) * reference:
            text = f"{where}: slope {along:.10g}, differences give {middle:.10g}, {off / reference:.0e} apart"
            excuse = _ITERATES if iterates else "less than float32 resolves"
            self._close.append((off / reference, f"{text}: {excuse}"))
        elif off > slack:
            self._faults.append((off / slack, f"{where}: {self._told(slope, along, middle, slack)}", name))
        elif slack > COARSEST * reference and slack * length > NEGLIGIBLE * self._steepest:
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


def _taylor(loss: Loss, gradient, reach: list[float], generator) -> Test:
    """The remainder f(x+hv) - f(x) - h<g,v> falls like h^2, and like h^3 in the central form, down to the noise.

    v moves an entry by a quarter of its leaf's length, but at most 1000 times what differences moved it: those are best
    over steps of u^(1/3) of the loss's own length.
    """
    name = "Taylor remainder"
    sizes = [min(oracle.length(leaf) / 4, 1000 * r) for leaf, r in zip(loss.leaves, reach)]
    direction = [size * generator.standard_normal(g.shape) for size, g in zip(sizes, gradient)]
    along = float(sum(np.sum(g * v) for g, v in zip(gradient, direction)))
    floor = 10 * quantile(1) * loss.noise
    rows: list[tuple[float, float, float]] = []
    for power in range(_TAYLOR_STEPS):
        step = 4.0**-power
        ahead, behind = loss.at(step, direction), loss.at(-step, direction)
        rows.append((step, abs(ahead - loss.value - step * along), abs(ahead - behind - 2 * step * along)))
        if all(max(row[1:]) <= floor for row in rows[-2:]) and power > 2:
            break
    text, verdict = [], "PASS"
    for label, column in (("slope", 1), ("central", 2)):
        usable = [(r[0], r[column]) for r in rows if math.isfinite(r[column]) and r[column] > floor]
        if len(usable) < 3:
            text.append(f"{label} at the noise floor")
            continue
        steps, remainders = np.log(usable[-4:]).T
        slope = float(np.polyfit(steps, remainders, 1)[0])
        text.append(f"{label} {slope:.2f}")
        # A wrong gradient's remainder is of order 1 down to the floor: the last one above is at most 4 times that. One
        # that drops further at one step had a kink on its way until then.
        if slope < 1.5 and usable[-1][1] < 8 * floor:
            verdict = "INCONCLUSIVE"
    if verdict != "PASS":
        text.append("expected orders 2 and 3; lower means a wrong gradient, or a loss that is not smooth here")
    return Test(name, verdict, ", ".join(text))


def _forward_against_reverse(problem: Problem, loss: Loss, point, gradient, norms, generator) -> Test:
    """<w, Jv> = <J'w, v>: for a scalar loss the forward derivative along v against <g, v>."""
    name = "forward against reverse"
    worst, slack = 0.0, 0.0
    for _ in range(2):
        direction = [generator.choice([-1.0, 1.0], size=g.shape) for g in gradient]
        tangent = jax.tree.structure(point.params).unflatten(direction)

        def along(params, data, tangent=tangent):
            return jax.jvp(lambda p: problem.loss(p, data), (params,), (oracle.float64(tangent),))[1]

        try:
            forward = float(oracle.evaluate(along, point.params, point.data)[0])
        except TypeError:
            return Test(name, "PASS", "skipped: a custom_vjp has no forward derivative")
        reverse = float(sum(np.sum(g * v) for g, v in zip(gradient, direction)))
        worst = max(worst, abs(forward - reverse))
        # Two ways to compute it (sqrt 2); an error of norm s moves <., v> by at most s sqrt(n); the sum rounds n times.
        spread = (
            quantile(1) * math.sqrt(2 * g.size) * s + math.sqrt(g.size) * UNIT * float(np.sum(np.abs(g)))
            for g, s in zip(gradient, norms)
        )
        slack = max(slack, sum(spread))
    size = math.sqrt(sum(float(np.sum(g * g)) for g in gradient))
    finding = f"they differ by {worst:.1e}, rounding allows {slack:.1e}"
    return _agreement(name, finding, worst <= slack + 16 * UNIT * size, worst / size if size else worst, loss)


def _agreement(name: str, finding: str, within: bool, relative: float, loss: Loss) -> Test:
    """The test of two derivatives, each of which may iterate, that are `relative` apart."""
    if not within and loss.iterates and relative <= NEGLIGIBLE_ITERATED:
        return Test(name, "INCONCLUSIVE", f"{finding}: {_ITERATES}", relative)
    return Test(name, "PASS" if within else "FAIL", finding)


def _analytic(function: Callable, loss: Loss, point, gradient, norms, names) -> Test:
    known = oracle.evaluate(function, point.params, point.data)
    worst = []
    for g, a, s, name in zip(gradient, known, norms, names):
        off = float(np.linalg.norm(g - a))
        # The formula's own rounding is taken to be that of the derivative: twice the spread.
        slack = 2 * quantile(len(gradient)) * s + 16 * UNIT * float(np.linalg.norm(g))
        worst.append((off / slack if slack else (math.inf if off else 0.0), name, off))
    ratio, name, off = max(worst)
    size = float(np.sqrt(sum(np.sum(g * g) for g in gradient)))
    relative = off / size if size else off
    finding = f"{name} differs by {relative:.1e} of the norm"
    test = _agreement("analytic gradient", finding, ratio <= 1, relative, loss)
    return dataclasses.replace(test, culprit=f"analytic gradient of leaf {name}" if test.verdict == "FAIL" else "")
