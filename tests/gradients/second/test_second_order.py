"""Hessian-vector products: faults of the second order are found and named, right ones pass, and so do the library's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from sampling import sample

import gradbench
from gradbench.errors import PlanError
from gradbench.gradients.formula import derivative as formula
from gradbench.gradients.formula import noise, oracle
from gradbench.gradients.second import check as second
from gradbench.gradients.second.products import OVER, PRODUCTS
from gradbench.inputs.problem import Problem, load_problem
from gradbench.theory.curvature import hessian_products
from gradbench.theory.replay import flat_loss

CPU = jax.devices("cpu")[0]


def ruled(back, save=lambda x: x):
    """sin, its rule `back(saved, cotangent)`, of whatever `save(x)` saves."""
    made = jax.custom_vjp(jnp.sin)
    made.defvjp(lambda x: (jnp.sin(x), save(x)), lambda saved, ct: (back(saved, ct),))
    return made


def forward_ruled(slope):
    made = jax.custom_jvp(jnp.sin)
    made.defjvp(lambda x, t: (made(x[0]), slope(x[0]) * t[0]))
    return made


def cosine(of):
    """The cosine with `of(x, t)` for its derivative."""
    made = jax.custom_jvp(jnp.cos)
    made.defjvp(lambda x, t: (made(x[0]), of(x[0], t[0])))
    return made


def product(back):
    """x @ w with a reverse rule."""
    made = jax.custom_vjp(jnp.dot)
    made.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, ct: back(*saved, ct))
    return made


def entrywise(function):
    return lambda p, data: jnp.sum(function(p["x"]) ** 2 * p["y"])


def bilinear(function):
    return lambda p, data: jnp.sum(jnp.tanh(function(p["x"], p["y"])) ** 2)


def problem(loss, shapes=((5,), ())):
    def init(key):
        keys = jax.random.split(key, 2)
        return {n: jax.random.normal(k, s) for n, k, s in zip("xy", keys, shapes)}

    return Problem(init=init, loss=loss, data=(), name="mine")


SQUARE = ((4, 3), (3, 4))
# All right at first order.
FAULTS = {
    "the rule's own derivative stopped": problem(entrywise(ruled(lambda x, ct: lax.stop_gradient(jnp.cos(x)) * ct))),
    "a residual stopped": problem(entrywise(ruled(lambda c, ct: c * ct, lambda x: lax.stop_gradient(jnp.cos(x))))),
    "the slope's rule off by a factor": problem(entrywise(forward_ruled(cosine(lambda x, t: -0.5 * jnp.sin(x) * t)))),
    "the slope's rule has the wrong sign": problem(entrywise(forward_ruled(cosine(lambda x, t: jnp.sin(x) * t)))),
    "the slope's rule off by 1e-6": problem(
        entrywise(forward_ruled(cosine(lambda x, t: -(1 + 1e-6) * jnp.sin(x) * t)))
    ),
    "the slope's rule blocked": problem(entrywise(forward_ruled(cosine(lambda x, t: 0.0 * t)))),
    "the slope from a table": problem(
        entrywise(forward_ruled(lambda x: jnp.cos(lax.stop_gradient(x)) - jnp.sin(lax.stop_gradient(x)) * (x * 0)))
    ),
    "one factor of a product's rule stopped": problem(
        bilinear(product(lambda x, w, ct: (ct @ lax.stop_gradient(w).T, x.T @ ct))), SQUARE
    ),
    "the cotangent of a product's rule stopped": problem(
        bilinear(product(lambda x, w, ct: (ct @ w.T, x.T @ lax.stop_gradient(ct)))), SQUARE
    ),
}
RIGHT = {
    "no rule": problem(entrywise(jnp.sin)),
    "a reverse rule": problem(entrywise(ruled(lambda x, ct: jnp.cos(x) * ct))),
    "a reverse rule that saves the slope": problem(entrywise(ruled(lambda c, ct: c * ct, jnp.cos))),
    "a forward rule": problem(entrywise(forward_ruled(cosine(lambda x, t: -jnp.sin(x) * t)))),
    "a product's rule": problem(bilinear(product(lambda x, w, ct: (ct @ w.T, x.T @ ct))), SQUARE),
    "linear": problem(lambda p, data: 3 * jnp.sum(p["x"]) + p["y"]),
    "kinks": problem(lambda p, data: jnp.sum(jnp.abs(p["x"]) + jax.nn.relu(p["x"]) ** 2) * p["y"]),
    "a loop": problem(lambda p, data: lax.scan(lambda c, x: (jnp.tanh(c + x), c), p["y"], p["x"])[0] ** 2),
}


def spread_of(given, point):
    """Of reverse over reverse in float64."""
    trace = oracle.trace(PRODUCTS[OVER[1]](given.loss), point.params, point.data)
    leaves = jax.tree.leaves((point.params, point.data))
    return noise.sample(trace, leaves, "float64", "highest", CPU).spread


def found_in(given, known=True):
    """The tests by name; without the spread where it is not `known`."""
    point = oracle.points(given, "float64", 1)[0]
    spread = spread_of(given, second.along(point)) if known else None
    return {test.name: test for test in second.tests(given, point, spread, 1.0, False)}


@pytest.mark.parametrize("name", sample(FAULTS, 4))
def test_a_fault_of_the_second_order_is_found_and_its_rule_named(name):
    tests = found_in(FAULTS[name])
    assert tests["differences of gradient"].verdict == "FAIL"
    assert "custom_" in tests["suspects"].culprit


@pytest.mark.parametrize("name", sample(RIGHT, 4))
def test_right_products_pass(name):
    assert {test.verdict for test in found_in(RIGHT[name]).values()} == {"PASS"}


def test_a_hessian_that_is_not_symmetric_is_said():
    assert found_in(FAULTS["one factor of a product's rule stopped"])["symmetry"].verdict == "FAIL"
    assert found_in(FAULTS["the slope's rule blocked"])["symmetry"].verdict == "PASS"  # a diagonal one always is


def cancelling(p, data):
    """Of a right Hessian whose entries, of 1e12 in each term, are of order 1 in all."""
    return jnp.sum(jnp.sin(1e6 * p["x"]) + p["x"] ** 3 - jnp.sin(1e6 * p["x"] + jnp.pi * 2e-5) * p["y"] / p["y"])


ILL = problem(cancelling)


def test_without_a_spread_a_difference_decides_nothing():
    verdicts = {name: test.verdict for name, test in found_in(ILL, known=False).items()}
    assert "INCONCLUSIVE" in (verdicts[OVER[0]], verdicts[OVER[2]], verdicts["symmetry"])
    assert "FAIL" not in (verdicts[OVER[0]], verdicts[OVER[2]], verdicts["symmetry"])


def test_within_its_spread_an_ill_conditioned_product_passes():
    tests = found_in(ILL)
    assert {tests[name].verdict for name in (OVER[0], OVER[2], "symmetry")} == {"PASS"}


def spoilt(composition):
    """`composition` with NaN in one entry."""

    def made(loss):
        def run(params, rest):
            slope, along = composition(loss)(params, rest)
            return slope, {**along, "x": along["x"].at[0].set(jnp.nan)}

        return run

    return made


def test_a_composition_that_is_not_finite_fails(monkeypatch):
    monkeypatch.setitem(second.PRODUCTS, OVER[0], spoilt(PRODUCTS[OVER[0]]))
    for known in (True, False):
        test = found_in(RIGHT["no rule"], known)[OVER[0]]
        assert (test.verdict, test.culprit) == ("FAIL", f"second order: {OVER[0]} of leaf ['x']")


def test_a_product_that_is_not_finite_says_nothing_of_symmetry_unless_it_is_in_one_direction(monkeypatch):
    given = RIGHT["no rule"]
    point = oracle.points(given, "float64", 1)[0]
    one = second.along(point)
    product = oracle.evaluate(PRODUCTS[OVER[1]](given.loss), one.params, one.data)[1:]
    broken = [np.full_like(x, np.nan) for x in product]
    assert second._symmetry(given, point, broken, [0.0, 0.0]).verdict == "INCONCLUSIVE"
    assert {test.verdict for test in second._compositions(given, one, broken, [0.0, 0.0])} == {"INCONCLUSIVE"}
    monkeypatch.setitem(second.PRODUCTS, OVER[1], spoilt(PRODUCTS[OVER[1]]))
    assert second._symmetry(given, point, product, [0.0, 0.0]).culprit.startswith("second order: reverse over reverse")


@pytest.fixture(scope="module")
def products():
    given = RIGHT["no rule"]
    execution = second.Products(given, "float32", "highest", CPU)
    point = second.along(oracle.points(given, "float32", 1)[0])
    expected = oracle.evaluate(PRODUCTS[OVER[0]](given.loss), point.params, point.data, "float32")
    return execution, point, expected


def judged(products, by):
    """The row of a product that is too large by the factor 1 + by."""
    execution, point, expected = products
    run = PRODUCTS[OVER[0]](execution.problem.loss)
    execution._runners[OVER[0]] = lambda p, rest: jax.tree.map(lambda x: x * jnp.float32(1 + by), run(p, rest))
    return execution.product(OVER[0], point, expected)


def test_a_product_that_is_computed_wrongly_is_found_down_to_what_the_report_says(products):
    row = judged(products, 0.0)
    assert row.verdict == "PASS"
    assert judged(products, 2 * row.resolves).verdict == "FAIL"


def test_the_report_has_the_second_order_and_its_command():
    report = gradbench.check_gradient(FAULTS["a residual stopped"], order=2, fast=True)
    assert report.verdict == "FAIL"
    assert report.formula_verdict == "PASS"
    assert report.culprit.startswith("second order: custom_vjp of sin")
    assert "order=2" in report.command()
    assert "differences of gradient" in str(report)
    assert {"second", "programs"} <= set(report.to_json())


def test_forward_mode_that_a_rule_has_not_is_said_once():
    report = gradbench.check_gradient(RIGHT["a reverse rule"], order=2, programs=["jit"])
    assert report.verdict == "PASS"
    assert report.skipped["reverse over forward"] == "a custom_vjp has no forward derivative"


def test_an_order_that_is_not_checked_is_refused():
    with pytest.raises(PlanError, match="order=3: need 1 for gradients, or 2"):
        gradbench.check_gradient(RIGHT["no rule"], order=3)


def test_of_a_function_first_order_passes_and_second_fails():
    mine = ruled(lambda x, ct: lax.stop_gradient(jnp.cos(x)) * ct)
    report = gradbench.check_function(mine, jnp.linspace(0.1, 1.0, 4), reference=jnp.sin, order=2, fast=True)
    failed = {row.check for row in report.rows if row.verdict == "FAIL"}
    assert failed == {OVER[0], OVER[1]}
    assert "custom_vjp of sin" in next(test.culprit for test in report.second if test.name == "suspects")


def raises(*_):
    raise NotImplementedError("no such primitive")


def test_a_second_order_that_cannot_be_run_is_inconclusive(monkeypatch):
    monkeypatch.setattr(second, "tests", raises)
    report = gradbench.check_function(jnp.sin, jnp.ones(2), reference=jnp.sin, order=2, fast=True)
    assert report.verdict == "INCONCLUSIVE"
    assert "no such primitive" in report.second[0].finding


def test_the_second_order_is_judged_where_the_first_cannot_be_run(monkeypatch):
    monkeypatch.setattr(formula, "check", raises)
    monkeypatch.setattr(second, "tests", lambda *_: [formula.Test("symmetry", "PASS", "")])
    report = gradbench.check_function(jnp.sin, jnp.ones(2), order=2, fast=True)
    assert report.verdict == "INCONCLUSIVE"
    assert "no such primitive" in report.formula[0].finding
    assert [test.name for test in report.second] == ["symmetry"]


def test_a_right_rule_by_itself_passes_in_all_three_ways():
    mine = forward_ruled(cosine(lambda x, t: -jnp.sin(x) * t))
    report = gradbench.check_function(mine, jnp.linspace(0.1, 1.0, 4), order=2, fast=True)
    assert report.verdict == "PASS"
    assert {row.check for row in report.rows} > set(OVER)


def flat(given, dtype):
    """The problem of one vector, as sharpness and curvature see it."""
    start = load_problem(given)
    leaves = oracle.points(start, "float64", 1)[0].params
    vector = np.concatenate([np.ravel(x) for x in jax.tree.leaves(leaves)])
    return Problem(init=lambda key: vector, loss=flat_loss(start, dtype), data=start.plain.data, name="flat"), start


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ("quadratic_bowl[dim=5]", "float64"),
        ("logistic_regression", "float32"),
        pytest.param("mlp[hidden=3]", "float32", marks=pytest.mark.thorough),
        pytest.param("mlp[hidden=3]", "float64", marks=pytest.mark.thorough),
    ],
)
def test_the_products_of_sharpness_and_curvature_are_right(given, dtype):
    one, start = flat(given, dtype)
    execution = second.Products(one, dtype, "highest", CPU)
    point = second.along(oracle.points(one, dtype, 1)[0])
    expected = oracle.evaluate(PRODUCTS[OVER[1]](one.loss), point.params, point.data)
    reference = execution.expectation(point, expected, OVER[0], 8)
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        got = hessian_products(start, dtype)(point.params, point.data[1], point.data[0])
    found = execution.judge([np.asarray(got)], reference, ["slope", "params"])
    assert found.verdict == "PASS"
    # Where nothing rounds, as on the bowl, the least error that can be planted is the dtype's step.
    by = max(2 * found.resolves, np.finfo(dtype).eps)
    off = execution.judge([np.asarray(got) * (1 + by)], reference, ["slope", "params"])
    assert off.verdict == "FAIL"
