"""Right gradients of losses as users write them are not accused, and what is wrong in such losses is found."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import sample

from gradbench import Problem, check_gradient
from gradbench.gradients.execution import sandbox
from gradbench.gradients.execution.execution import Execution
from gradbench.gradients.formula import derivative as formula
from gradbench.gradients.formula import differences, oracle

GENERATOR = np.random.default_rng(5)
ROWS = GENERATOR.standard_normal((100, 10))
VALUES = ROWS @ GENERATOR.standard_normal(10)


def lasso(params, data):
    rows, values = data
    return jnp.mean((rows @ params - values) ** 2) + 0.1 * jnp.sum(jnp.abs(params))


def test_a_lasso_from_zero_passes():
    problem = Problem(init=lambda key: jnp.zeros(10), loss=lasso, data=(ROWS, VALUES), name="lasso")
    report = check_gradient(problem, fast=True)
    start = oracle.points(problem, "float64", 2)[1]
    at_start, _ = formula.check(problem, start, None, 1.0, False)
    assert report.verdict == "PASS", str(report)
    assert at_start[0].verdict == "PASS", at_start[0].finding
    assert "kinks" in at_start[0].finding


EXPONENTS = [-12, 12, 0, -8, -4, 4, 8]
LENGTHS = [(exponent, (n + k) % 2 * 1.0) for k in (0, 1) for n, exponent in enumerate(EXPONENTS)]


@pytest.mark.parametrize(("exponent", "offset"), sample(LENGTHS, 2))
def test_a_loss_of_any_length_is_judged_at_its_own(exponent, offset):
    """From a start of the loss's own length, and from one that is all 0."""
    length = 10.0**exponent

    def bump(params, data, factor=1.0):
        params = factor * params + jax.lax.stop_gradient((1 - factor) * params)
        return jnp.sum(1 / (1 + (params / length - 0.7) ** 2))

    for factor, verdict in ((1.0, "PASS"), (1.001, "FAIL"), (0.0, "FAIL"), (-1.0, "FAIL")):
        problem = Problem(
            init=lambda key: offset * length * jax.random.normal(key, (5,)),
            loss=lambda params, data, factor=factor: bump(params, data, factor),
        )
        start = oracle.points(problem, "float64", 2)[1]
        tests, _ = formula.check(problem, start, None, 1.0, False)
        assert tests[0].verdict == verdict, (factor, tests[0].finding)


@pytest.mark.parametrize(("function", "ends"), [(abs, (-1, 1)), (lambda x: max(0.0, x), (0, 1))])
@pytest.mark.parametrize("curvature", [0.0, 3.0])
def test_a_kink_is_an_interval_beside_a_curve_too(function, ends, curvature):
    slope = differences.slope_at_zero(lambda x: function(x) + curvature * x * x, 0.0, 1e-16, 1.0, 1.0, False)
    assert slope.kink
    np.testing.assert_allclose((slope.low, slope.high), ends, atol=slope.tolerance)
    assert slope.tolerance < 1e-6


def test_steps_that_agree_by_chance_do_not_win():
    """Over long steps the differences of a narrow bump are all 0, exactly."""
    slope = differences.slope_at_zero(lambda x: np.exp(-((x / 1e-6 - 0.5) ** 2)), np.exp(-0.25), 1e-16, 1.0, 1e5, True)
    np.testing.assert_allclose(slope.low, np.exp(-0.25) * 1e6, atol=slope.tolerance)
    assert slope.tolerance < 1e-6 * slope.low


@pytest.mark.parametrize("size", sample([1000, 50_000]))
def test_a_rounding_that_all_entries_share_is_allowed(size):
    """Compilers multiply by a rounded 1/3: the gradient's scale is off by up to a unit, however many entries."""
    problem = Problem(init=lambda key: jax.random.normal(key, (size,)), loss=lambda p, _: jnp.sum((p / 3.0) ** 2))
    report = check_gradient(problem, programs=["jit", "value_and_grad"])
    assert report.verdict == "PASS", str(report)


def test_a_scale_a_few_units_off_is_still_found():
    """What entries share is at most some units: ten of them are not allowed."""

    @jax.custom_vjp
    def half_square(p):
        return jnp.sum((p / 3.0) ** 2)

    def backward(p, cotangent):
        rounding = 1 + (2.0**-20 if p.dtype == jnp.float32 else 0.0)
        return (cotangent * (2 * p / 9.0) * rounding,)

    half_square.defvjp(lambda p: (half_square(p), p), backward)
    problem = Problem(init=lambda key: jax.random.normal(key, (1000,)), loss=lambda p, _: half_square(p))
    report = check_gradient(problem, programs=["value_and_grad"], fast=True)
    assert report.verdict != "PASS", str(report)


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "PASS"), (-1.0, "INCONCLUSIVE")])
def test_a_remainder_of_order_1_up_to_the_last_step_does_not_pass(factor, verdict):
    # twenty quarterings of a step of about 1 leave 4**-20 = 1e-12 of it, far above the loss's rounding
    rule = jax.custom_vjp(lambda x: x)
    rule.defvjp(lambda x: (x, None), lambda _, g: (factor * g,))
    problem = Problem(lambda key: jnp.ones(2), lambda p, _: jnp.sum(rule(p) ** 2))
    report = check_gradient(problem, fast=True)
    [line] = [line for line in str(report).splitlines() if "Taylor remainder" in line]
    assert line.split()[2] == verdict


def test_a_rule_that_reports_another_value_is_found():
    @jax.custom_vjp
    def larger(x):
        return jnp.tanh(x)

    @jax.custom_jvp
    def shifted(x):
        return jnp.tanh(x)

    @jax.custom_jvp
    def right(x):
        return jnp.tanh(x)

    larger.defvjp(lambda x: (1.1 * jnp.tanh(x), x), lambda x, ct: (ct * (1 - jnp.tanh(x) ** 2),))
    shifted.defjvp(lambda x, t: (jnp.tanh(x[0]) + 0.01, t[0] * (1 - jnp.tanh(x[0]) ** 2)))
    right.defjvp(lambda x, t: (jnp.tanh(x[0]), t[0] * (1 - jnp.tanh(x[0]) ** 2)))
    for function, verdict in ((larger, "FAIL"), (shifted, "FAIL"), (right, "PASS")):
        problem = Problem(init=lambda key: jax.random.normal(key, (5,)), loss=lambda p, _, f=function: jnp.sum(f(p)))
        tests, _ = formula.check(problem, oracle.points(problem, "float64", 1)[0], None, 1.0, True)
        found = {test.name: test for test in tests}
        assert found["finite differences"].verdict == "PASS"
        assert found["value of the rules"].verdict == verdict
        assert (f"of {function.__name__}" in found["value of the rules"].finding) == (verdict == "FAIL")


def bowl(params, data):
    return jnp.sum(data * params * params)


BOWL = Problem(init=lambda key: jnp.ones(3), loss=bowl, data=np.ones(3), name="bowl")


def test_a_program_that_ends_its_process_fails_by_name(monkeypatch):
    script = "import os, sys; sys.stdin.buffer.readline(); sys.stderr.write('F0 emitter.cc Check failed'); os.abort()"
    monkeypatch.setattr(sandbox, "COMMAND", [sys.executable, "-c", script])
    sandbox.child.cache_clear()
    try:
        report = check_gradient(BOWL, programs=["value_and_grad", "batched"])
    finally:
        sandbox.child.cache_clear()
    verdicts = {row.program: row.verdict for row in report.rows}
    assert verdicts == {"value_and_grad": "PASS", "batched": "FAIL"}
    assert "SIGABRT: F0 emitter.cc Check failed" in report.rows[-1].reason
    assert "SIGABRT" in str(report)


def test_the_child_compiles_and_outlives_what_it_cannot_compile():
    with jax.enable_x64(True):
        double, wrong = jax.jit(lambda x: 2 * x), jax.jit(lambda x: jnp.linalg.cholesky(x))
        shape = (jax.ShapeDtypeStruct((3, 3), jnp.float64),)
        first = sandbox.child()
        sandbox.survive(double, shape, {})()
        sandbox.survive(wrong, shape, {"no such option": 1})()
        sandbox.survive(double, shape, {})()
    assert sandbox.child() is first


def test_a_quotient_whose_reciprocal_leaves_the_range_is_named():
    """Shares of a sum near the top of float32: programs that take x * (1 / y) give 0."""
    largest = float(np.finfo(np.float32).max)
    target = np.array([0.7, 0.1, 0.1, 0.1])

    def shares(params, data):
        x = params * jnp.asarray(0.9 * largest, params.dtype)
        return jnp.sum((x / jnp.sum(x) - data) ** 2)

    def by_reciprocal(params, data):
        x = params * jnp.asarray(0.9 * largest, params.dtype)
        return jnp.sum((x * (1 / jnp.sum(x)) - data) ** 2)

    problem = Problem(init=lambda key: jnp.full(4, 0.25), loss=shares, data=target, name="shares")
    execution = Execution(problem, "float32", "highest", jax.devices("cpu")[0])
    reference = execution.reference(oracle.points(problem, "float32", 2)[1])
    row = execution.run("jit", jax.jit(jax.value_and_grad(by_reciprocal)), reference)
    assert row.verdict == "FAIL"
    assert "reciprocal" in row.reason


def test_the_rounding_of_a_point_far_from_zero_is_in_the_error():
    """|(1 + h) - 1|: below 2^-53 no step moves the point, and the difference is 0 for a kink from -1 to 1."""
    unit = 2.0**-53
    slope = differences.slope_at_zero(lambda h: abs((1 + h) - 1), 0.0, 0.0, 1.0, 0.0, False, blur=unit)
    assert slope.kink
    np.testing.assert_allclose((slope.low, slope.high), (-1, 1), atol=slope.tolerance)
    assert 0 < slope.tolerance < 1e-6


def test_a_complex_constant_is_modelled():
    problem = Problem(
        init=lambda key: jax.random.normal(key, (50,)), loss=lambda p, _: jnp.sum(jnp.abs(p * (0.3 + 1j)) ** 2)
    )
    report = check_gradient(problem, programs=["value_and_grad"])
    assert report.verdict == "PASS", str(report)


@pytest.mark.thorough
def test_a_loop_that_does_not_end_in_the_dtype_is_stopped_and_said():
    def counted(x):  # from 4096 on float32 is spaced by 2^-11
        top = jax.lax.while_loop(lambda c: c < 4097, lambda c: c + 2.0**-13, jnp.full((), 4096, x.dtype))
        return x * top

    report = check_gradient(counted, 3.0, dtype=["float64", "float32"], programs=["value_and_grad"])
    assert [row.verdict for row in report.rows] == ["PASS", "INCONCLUSIVE"]
    assert "has not ended" in report.rows[1].reason
