"""Second order: Hessian-vector products against differences of the gradient, against each other, and in each program.

The gradient is taken to be right: the test is whether H v is its derivative. The check of a gradient does that for
the loss <v, gradient>, whose gradient is H v.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from gradbench.errors import PlanError, error_text
from gradbench.gradients.execution.execution import Execution, Row, keep
from gradbench.gradients.formula import derivative as formula
from gradbench.gradients.formula import oracle
from gradbench.gradients.formula.differences import UNIT
from gradbench.gradients.formula.directions import Test
from gradbench.gradients.formula.suspects import Suspects
from gradbench.gradients.rounding.band import FEW, Spread, quantile
from gradbench.gradients.second.products import OVER, PRODUCTS, has_no_forward, slope
from gradbench.inputs.problem import Problem

LOG = logging.getLogger(__name__)
NO_FORWARD = "a custom_vjp has no forward derivative"


def known(order: int) -> None:
    """Raises PlanError for an order of derivatives that is not checked."""
    if order not in (1, 2):
        raise PlanError(f"order={order}: need 1 for gradients, or 2 for Hessian-vector products too")


@dataclasses.dataclass
class Found:
    """What was found at second order: tests in float64, one row per product, dtype, precision and device, and what
    was skipped."""

    tests: list[Test] = dataclasses.field(default_factory=list)
    rows: list[Row] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)


def check(
    problem: Problem,
    places: list[oracle.Point],
    dtypes: Sequence[str],
    precisions: Sequence[str],
    devices: Sequence[jax.Device],
    fast: bool,
) -> Found:
    """Check a problem's Hessian-vector products at its first place in float64, and in every dtype, precision and device
    at all its places; with `fast` only forward over reverse, at the first."""
    found, spread, share = Found(), None, 1.0
    reference = places[0].rounded("float64")
    if (lacking := missing(problem, reference)) is not None:
        return Found([lacking])
    for dtype in dtypes:
        points = [place.rounded(dtype) for place in places[: 1 if fast else 2]]
        for precision in precisions if dtype == "float32" else precisions[:1]:
            for device in devices:
                execution = Products(problem, dtype, precision, device)
                LOG.info("%s: Hessian-vector products in %s on %s", problem.name, dtype, device.platform)
                try:
                    rows, skipped = execution.check(points, OVER[:1] if fast else OVER)
                except Exception as error:  # a user's loss may hold anything
                    reason = f"its band cannot be run: {error_text(error)}"
                    rows, skipped = [execution.error_row(OVER[0], "INCONCLUSIVE", reason)], {}
                found.rows += rows
                found.skipped |= skipped
                if spread is None and dtype == "float32" and execution.spreads:
                    spread, share = execution.spreads[0], execution.form.unit / UNIT
    LOG.info("%s: Hessian-vector products, by differences in float64", problem.name)
    if spread is None:
        spread, share = spread_of(problem, places[0])
    try:
        found.tests = tests(problem, reference, spread, share, fast)
    except Exception as error:
        found.tests = [undecided(error)]
    return found


def undecided(error: Exception) -> Test:
    """The INCONCLUSIVE Test for a product that raises in float64."""
    reason = f"it cannot be run one primitive at a time in float64: {error_text(error)}"
    return Test("Hessian-vector product", "INCONCLUSIVE", reason)


def missing(problem: Problem, point: oracle.Point) -> Test | None:
    """INCONCLUSIVE where the gradient cannot be differentiated."""
    given = along(point)
    try:
        oracle.trace(jax.value_and_grad(slope(problem.loss)), given.params, given.data)
    except Exception as error:
        return Test("Hessian-vector product", "INCONCLUSIVE", f"the gradient has no derivative: {error_text(error)}")
    return None


def along(point: oracle.Point, number: int = 0) -> oracle.Point:
    """The point with data (data, v), v a random direction: normal, in the point's dtype."""
    generator = np.random.default_rng([11, number])
    vector = jax.tree.map(lambda x: generator.standard_normal(np.shape(x)), point.params)
    return dataclasses.replace(point, data=(point.data, oracle.rounded(vector, point.dtype)))


class Products(Execution):
    """Every Hessian-vector product of a problem in one dtype and precision on one device."""

    functions = PRODUCTS
    what = "Hessian-vector product"

    def check(self, points: list[oracle.Point], names: Sequence[str] = OVER) -> tuple[list[Row], dict[str, str]]:
        """(one row per product, at its worst point; the products that were skipped, with the reason)."""
        rows: dict[str, Row] = {}
        skipped: dict[str, str] = {}
        for point in map(along, points):
            expected = oracle.evaluate(PRODUCTS[OVER[0]](self.problem.loss), point.params, point.data, self.dtype)
            for name in (name for name in names if name not in skipped):
                try:
                    keep(rows, self.product(name, point, expected))
                except Exception as error:
                    if has_no_forward(error):
                        skipped[name] = NO_FORWARD
                    else:
                        reason = f"the program cannot be run: {error_text(error)}"
                        keep(rows, self.error_row(name, "INCONCLUSIVE", reason))
        return list(rows.values()), skipped

    def product(self, name: str, point: oracle.Point, expected: list[np.ndarray]) -> Row:
        """One product under jit at one point."""
        reference = self.expectation(point, expected, name, FEW)
        if name == OVER[1]:
            self._references.append(reference)
        if name not in self._runners:
            self._runners[name] = jax.jit(PRODUCTS[name](self.problem.loss))
        names = ["slope", *formula.leaf_names(point.params)]
        return self.run(name, self._runners[name], reference, names=names)


def spread_of(problem: Problem, point: oracle.Point) -> tuple[Spread | None, float]:
    """The spread of (<v, gradient>, H v) in float32 at a point, and float32's unit over float64's; None where that
    cannot be computed."""
    execution = Products(problem, "float32", "highest", jax.devices("cpu")[0])
    share = execution.form.unit / UNIT
    try:
        narrow = along(point.rounded("float32"))
        return execution.band(narrow, OVER[1]).sample(narrow.params, narrow.data, FEW).as_of_all(), share
    except Exception:
        return None, share


@np.errstate(all="ignore")
def tests(problem: Problem, point: oracle.Point, spread: Spread | None, share: float, fast: bool) -> list[Test]:
    """The tests of H v in float64 at a float64 point. `spread` is that of (<v, gradient>, H v) in some dtype, `share`
    that dtype's unit over float64's."""
    given = along(point)
    of_slope = Problem(init=lambda key: given.params, loss=slope(problem.loss), data=given.data, name=problem.name)
    suspects = Suspects(
        oracle.trace(problem.loss, point.params, point.data),
        given.params,
        given.data,
        lambda loss, params, rest: PRODUCTS[OVER[1]](lambda p, data: loss(p, data))(params, rest)[1],
    )
    gradient = oracle.evaluate(jax.grad(problem.loss), point.params, point.data)
    # Where all of H v is 0 it need not be known to a share of itself, but of the size of <v, gradient>.
    size = math.sqrt(sum(float(np.sum((v * g) ** 2)) for v, g in zip(jax.tree.leaves(given.data[1]), gradient)))
    found, product = formula.check(of_slope, given, spread, share, fast, suspects, size)
    norms = [math.nan] * len(product) if spread is None else [n / share for n in spread.norm[1:]]
    found = [_named(test) for test in found if test.name not in ("value of the rules", "forward against reverse")]
    others = [] if fast else [*_compositions(problem, given, product, norms), _symmetry(problem, point, product, norms)]
    suspected = [test for test in found if test.name == "suspects"]
    return [test for test in found if test.name != "suspects"] + others + suspected


def _named(test: Test) -> Test:
    """A test of the derivative of <v, gradient>, reworded for second order."""
    name = "differences of gradient" if test.name == "finite differences" else test.name
    finding = test.finding.replace("the gradient", "H v").replace("the loss is", "the gradient is")
    return dataclasses.replace(
        test, name=name, finding=finding, culprit=test.culprit and f"second order: {test.culprit}"
    )


def _compositions(
    problem: Problem, given: oracle.Point, product: list[np.ndarray], norms: list[float]
) -> Iterator[Test]:
    """The products that begin or end with forward mode, against reverse over reverse. `norms` are deviations of the
    norm of each leaf, NaN where none is known."""
    unit = _largest(product)
    size = math.sqrt(sum(float(np.sum((p / unit) ** 2)) for p in product))
    for name in (OVER[0], OVER[2]):
        if not _finite(product):
            yield Test(name, "INCONCLUSIVE", "reverse over reverse is not finite")
            continue
        try:
            _, *other = oracle.evaluate(PRODUCTS[name](problem.loss), given.params, given.data)
        except Exception as error:
            what = NO_FORWARD if has_no_forward(error) else error_text(error)
            yield Test(name, "PASS", f"skipped: {what}")
            continue
        worst = (0.0, 0.0, "")
        for p, o, norm, leaf in zip(product, other, norms, formula.leaf_names(given.params)):
            # Two computations (sqrt 2), each with the spread of one; and each result is rounded to float64.
            rounding = math.sqrt(2) * norm / unit if math.isfinite(norm) else 0.0
            allowed = quantile(len(product)) * rounding + 2 * UNIT * size
            off = float(np.linalg.norm((o - p) / unit)) if _finite([o]) else math.inf
            worst = max(worst, (off / allowed if allowed else (math.inf if off else 0.0), off, leaf))
        ratio, off, leaf = worst
        relative = off / size if size else off * unit
        finding = f"{leaf or 'it'} differs from reverse over reverse by {relative:.1e} of its norm"
        yield _told(name, finding, ratio <= 1, math.isinf(off) or _known(norms), f"{name} of leaf {leaf}")


def _symmetry(problem: Problem, point: oracle.Point, product: list[np.ndarray], norms: list[float]) -> Test:
    """<u, H v> = <v, H u>: a Hessian is symmetric where it is continuous (Schwarz)."""
    one, other = along(point), along(point, 1)
    v, u = ([np.asarray(x) for x in jax.tree.leaves(p.data[1])] for p in (one, other))
    _, *turned = oracle.evaluate(PRODUCTS[OVER[1]](problem.loss), other.params, other.data)
    if not _finite([*product, *turned]):
        fault = _finite(product) and _is_finite_by_forward(problem, other)
        finding = "a product along a random direction is not finite"
        return _told("symmetry", finding, False, fault, f"{OVER[1]} is not finite along a direction")
    unit = _largest([*product, *turned])
    product, turned = ([x / unit for x in leaves] for leaves in (product, turned))
    left, right = inner_of(u, product), inner_of(v, turned)
    # An error of norm s moves <u, .> by at most s |u|.
    slack = sum(
        quantile(2 * len(product)) * norm / unit * float(np.linalg.norm(a) + np.linalg.norm(b))
        for a, b, norm in zip(u, v, norms)
        if math.isfinite(norm)
    )
    # In <u, .> the products round, by |u| |.| UNIT in all (Cauchy and Schwarz), and then their exact sum.
    sizes = (float(np.linalg.norm(a) * np.linalg.norm(p)) for a, p in (*zip(u, product), *zip(v, turned)))
    slack += 2 * UNIT * sum(sizes)
    gap, size = abs(left - right), max(abs(left), abs(right))
    finding = f"<u, H v> = {unit * left:.9g}, <v, H u> = {unit * right:.9g}"
    test = _told("symmetry", finding, gap <= slack, _known(norms), "the Hessian is not symmetric")
    return dataclasses.replace(test, resolves=slack / size) if test.verdict == "PASS" and size else test


def _told(name: str, finding: str, within: bool, decides: bool, culprit: str) -> Test:
    """The Test: FAIL if it is not within what rounding allows and that `decides`, else INCONCLUSIVE."""
    if within:
        return Test(name, "PASS", finding)
    if not decides:
        return Test(name, "INCONCLUSIVE", f"{finding}; how far rounding may take it is not known")
    return Test(name, "FAIL", finding, culprit=f"second order: {culprit}")


def _is_finite_by_forward(problem: Problem, given: oracle.Point) -> bool:
    try:
        return _finite(oracle.evaluate(PRODUCTS[OVER[0]](problem.loss), given.params, given.data))
    except Exception:
        return False


def _finite(leaves: list[np.ndarray]) -> bool:
    return all(bool(np.isfinite(x).all()) for x in leaves)


def _known(norms: list[float]) -> bool:
    return all(map(math.isfinite, norms))


def _largest(leaves: list[np.ndarray]) -> float:
    """The power of 2 below the largest finite magnitude, a unit in which squares stay in range; 1/2 where all is 0."""
    largest = max((float(np.max(np.abs(x), where=np.isfinite(x), initial=0.0)) for x in leaves), default=0.0)
    return math.ldexp(0.5, math.frexp(largest)[1])


def inner_of(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """The inner product over all entries: products are rounded, their sum is exact and rounded once."""
    return math.fsum(x for a, b in zip(one, other) for x in np.ravel(a * b))
