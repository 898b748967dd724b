"""Is the derivative the derivative of the loss? Float64, op by op, against finite differences (see differences.py) and
other ways to compute it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gradbench.gradients.formula import oracle
from gradbench.gradients.formula.differences import UNIT
from gradbench.gradients.formula.directions import ITERATES, NEGLIGIBLE_ITERATED, Loss, Test, differences
from gradbench.gradients.formula.suspects import Suspects, likely, listed
from gradbench.gradients.rounding.band import Spread, quantile
from gradbench.inputs.problem import Problem

_TAYLOR_STEPS = 20  # quarterings at most


def check_value(problem: Problem, start: oracle.Point) -> Test | None:
    """FAIL where the loss is not finite at the start, in float64: then there is no gradient to check or to train with.
    None where it is finite, and where it cannot be run, which `check` reports."""
    try:
        value = float(oracle.evaluate(problem.loss, start.params, start.data)[0])
    except Exception:
        return None
    if math.isfinite(value):
        return None
    finding = f"it is {value} there: no gradient to check; start where the loss is finite, or fix the loss or its data"
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

    `spread` is the rounding spread of (value, gradient) in some dtype and `share` that dtype's unit over float64's;
    `suspects` what could be at fault, the loss's own rules if None; `size` a change of the loss that matters, for where
    all slopes are 0.
    """
    value, *gradient = oracle.evaluate(oracle.value_and_grad(problem.loss), point.params, point.data)
    norms = [0.0] * len(gradient) if spread is None else [n / share for n in spread.norm[1:]]
    loss = Loss(problem, point, None if spread is None else float(spread.sigma[0]) / share, size, norms)
    # x + hv is rounded to float64 too, which moves the loss by g times that.
    inputs = sum(float(np.nansum((x * g) ** 2)) for x, g in zip(loss.leaves, gradient) if np.isfinite(g).all())
    loss.noise += UNIT * math.sqrt(inputs)
    names = leaf_names(point.params)
    generator = np.random.default_rng(1)
    by_differences, reach = differences(loss, gradient, names, generator, fast, point.examples)
    tests = [by_differences]
    if by_differences.verdict != "FAIL" or all(np.isfinite(g).all() for g in gradient):
        tests.append(_taylor(loss, gradient, reach, generator))
        if not fast:
            tests.append(_forward_against_reverse(problem, loss, point, gradient, norms, generator))
        if problem.gradient is not None:
            tests.append(_analytic(problem.gradient, loss, point, gradient, norms, names))
    tests += _value_of_rules(loss, float(value))
    if by_differences.verdict == "FAIL":

        def agrees(other: list[np.ndarray]) -> bool:
            own = np.random.default_rng(1)
            return differences(loss, other, names, own, fast, point.examples)[0].verdict != "FAIL"

        finding, culprit = (suspects or Suspects.of(loss.trace, point)).judge(gradient, names, agrees)
        tests.append(Test("suspects", "INCONCLUSIVE", finding, culprit=culprit))
    return tests, gradient


def check_start(problem: Problem, start: oracle.Point, spread: Spread | None, share: float, fast: bool) -> list[Test]:
    """The tests that fail at the start itself, where kinks and `where` traps lie (a start is often 0); see `check`.

    What is INCONCLUSIVE there was tested at the point nearby, and is left out unless it is a small difference. With
    `fast` only a gradient that is not finite is tested.
    """
    _, *gradient = oracle.evaluate(oracle.value_and_grad(problem.loss), start.params, start.data)
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
    """Each leaf's path, such as `['layer']['w']`; without the leading dot for a named tuple's."""
    return [
        jax.tree_util.keystr(path).lstrip(".") or "params" for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]


def _value_of_rules(loss: Loss, with_gradient: float) -> list[Test]:
    """A custom rule may report another value than the function that it differentiates: the loss returned with a
    gradient is then not the loss. No test where there is no custom rule."""
    if not loss.rules:
        return []
    off, slack = abs(with_gradient - loss.value), quantile(1) * math.sqrt(2) * loss.noise
    relative = off / abs(loss.value) if loss.value else off
    finding = f"the loss is {loss.value:.10g}, beside its gradient {with_gradient:.10g}"
    if off <= slack:
        return [Test("value of the rules", "PASS", finding, slack / abs(loss.value) if loss.value else None)]
    if loss.iterates and relative <= NEGLIGIBLE_ITERATED:
        return [Test("value of the rules", "INCONCLUSIVE", f"{finding}: {ITERATES}", relative)]
    finding = f"{finding}: a rule reports another value ({listed(loss.rules)})"
    return [Test("value of the rules", "FAIL", finding, culprit=f"the value of {likely(loss.rules)}")]


def _taylor(loss: Loss, gradient, reach: list[float], generator) -> Test:
    """The remainder f(x+hv) - f(x) - h<g,v> falls like h^2, and like h^3 in the central form, down to the noise.

    v moves an entry by a quarter of its leaf's length, but at most 1000 times the step of the differences, which are
    best at u^(1/3) of the loss's own length.
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
        # A wrong gradient's remainder is of order 1 down to the floor, where the last one above it is at most 4 times
        # that, or to the last step. One that drops further in one step had a kink within its longer steps.
        at_last = usable[-1][0] == rows[-1][0] and slope > 0.5  # of order 0 it would be rounding
        if slope < 1.5 and (usable[-1][1] < 8 * floor or at_last):
            verdict = "INCONCLUSIVE"
    if verdict != "PASS":
        text.append("expected orders 2 and 3; lower means a wrong gradient, or a loss that is not smooth here")
    return Test(name, verdict, ", ".join(text))


def _forward_against_reverse(problem: Problem, loss: Loss, point, gradient, norms, generator) -> Test:
    """<w, Jv> = <J'w, v>: for a scalar loss the forward derivative along v against <g, v>."""
    name = "forward against reverse"
    worst, slack = 0.0, 0.0

    def along(params, both):
        data, tangent = both
        return jax.jvp(lambda p: problem.loss(p, data), (params,), (tangent,))[1]

    for _ in range(2):
        direction = [generator.choice([-1.0, 1.0], size=g.shape) for g in gradient]
        tangent = jax.tree.structure(point.params).unflatten(direction)
        try:
            forward = float(oracle.evaluate(along, point.params, (point.data, tangent))[0])
        except TypeError:
            return Test(name, "PASS", "skipped: a custom_vjp has no forward derivative")
        reverse = float(sum(np.sum(g * v) for g, v in zip(gradient, direction)))
        worst = max(worst, abs(forward - reverse))
        # Two computations (sqrt 2); an error of norm s moves <., v> by at most s sqrt(n); the sum rounds n times.
        spread = (
            quantile(1) * math.sqrt(2 * g.size) * s + math.sqrt(g.size) * UNIT * float(np.sum(np.abs(g)))
            for g, s in zip(gradient, norms)
        )
        slack = max(slack, sum(spread))
    size = math.sqrt(sum(float(np.sum(g * g)) for g in gradient))
    allowed = f", rounding allows {slack:.1e}" if loss.has_band else ""
    finding = f"they differ by {worst:.1e}{allowed}"
    return _agreement(name, finding, worst <= slack + 16 * UNIT * size, worst / size if size else worst, loss)


def _agreement(name: str, finding: str, within: bool, relative: float, loss: Loss) -> Test:
    """The Test of two derivatives, `relative` apart, either of which may be iterated to a tolerance."""
    if not within and not loss.has_band:
        return Test(name, "INCONCLUSIVE", f"{finding}; how far rounding may take them is not known", relative)
    if not within and loss.iterates and relative <= NEGLIGIBLE_ITERATED:
        return Test(name, "INCONCLUSIVE", f"{finding}: {ITERATES}", relative)
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
