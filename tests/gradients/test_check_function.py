"""The check of a plain function and its arguments, and what the headline of a report says is at fault."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradbench
from gradbench.cli.check import exit_code
from gradbench.errors import GradbenchError
from gradbench.gradients import faults
from gradbench.gradients.execution import programs
from gradbench.gradients.formula import oracle
from gradbench.gradients.function import checked

ONE = {"fast": True, "programs": ["jit"]}


def polynomial(x, coefficients, power):
    return jnp.sum(coefficients["a"] * x**power) + coefficients["b"]


def test_a_function_is_checked_at_its_arguments():
    arguments = (np.array([0.5, -1.5]), {"a": jnp.array([2.0, 3.0]), "b": 1.0, "used": True}, 2)
    report = gradbench.check_gradient(polynomial, *arguments, **ONE)
    assert report.verdict == "PASS"
    assert list(report.leaves) == ["x", "coefficients['a']", "coefficients['b']"]
    assert report.parameters == 5
    wanted = "gradbench.check_gradient(polynomial, x, coefficients, power, dtype='float32'"
    assert report.command(report.rows[0]).startswith(wanted)


def test_the_loss_made_of_a_function_is_the_function():
    arguments = (jnp.array([0.5, -1.5]), {"a": jnp.array([2.0, 3.0]), "b": 1.0}, 2)
    problem = checked(polynomial, arguments).problem
    params = problem.init(jax.random.key(0))
    assert problem.loss(params, problem.data) == polynomial(*arguments)


def test_arguments_may_be_any_number():
    def total(*terms):
        return sum(jnp.sum(term**2) for term in terms)

    report = gradbench.check_gradient(total, jnp.ones(2), 2.0, **ONE)
    assert list(report.leaves) == ["terms[0]", "terms[1]"]


def test_what_is_no_array_is_passed_as_it_is():
    def norm(x, axis, how, flag, scale):
        assert flag is True
        return how(jnp.sum(x * scale, axis=axis))

    report = gradbench.check_gradient(norm, np.ones((2, 3)), 0, jnp.max, True, np.array([1, 2, 3]), **ONE)
    assert report.passed
    assert list(report.leaves) == ["x"]


@pytest.mark.parametrize("seed", range(4))
def test_a_point_near_the_arguments_does_not_leave_the_domain(seed):
    problem = checked(lambda x: jnp.sum(jnp.log(x)), (jnp.array([0.01, 1.0, 2.0]),)).problem
    point = oracle.points(problem, "float32", 1, seed)[0]
    assert (point.params.x > 0).all()
    assert (point.params.x != np.float32([0.01, 1.0, 2.0])).all()


def test_of_a_function_no_program_of_a_sweep_is_run(monkeypatch):
    asked = []
    select = programs.select
    monkeypatch.setattr(programs, "select", lambda names, fast: asked.append(names) or select(("jit", "batched"), fast))
    assert [row.program for row in gradbench.check_gradient(jnp.sum, jnp.ones(2)).rows] == ["jit"]
    assert asked == [None]


def square(x):
    return jnp.sum(x**2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((square,), "square: missing a required argument: 'x'; write check_gradient"),
        ((square, 1.0, 2.0), "square: too many positional arguments"),
        ((square, 3), "square: no float among its arguments.*write 3.0 for 3"),
        ((square, "three"), "square: no float among its arguments"),
        ((square, [1.0, "three"]), r"square: the loss raised TypeError"),
        ((lambda x: x, jnp.ones(3)), r"f: the loss must be a scalar, got shape \(3,\)"),
        ((lambda x: x @ jnp.ones(4), jnp.ones(3)), r"f: the loss raised TypeError.*\(.*test_check_function.py:\d+\)$"),
        (("mlp", "float32"), "mlp: 1 arguments beside a problem.*dtype='float32'"),
        ((42,), "int is no problem; give a name, a path or a gradbench.Problem"),
    ],
)
def test_wrong_use_is_one_line(arguments, words):
    for check in (gradbench.check_gradient, gradbench.assert_gradient):
        with pytest.raises(GradbenchError, match=words) as caught:
            check(*arguments)
        assert "\n" not in str(caught.value)


gelu = faults._rule(lambda x: x * jax.nn.sigmoid(1.702 * x), lambda x, y, ct: ct * jax.nn.sigmoid(1.702 * x))
own_square = faults._rule(lambda x: x * x, lambda x, y, ct: 2 * x * ct)


@pytest.mark.parametrize(
    ("function", "culprit"),
    [
        (lambda x: jnp.sum(jax.nn.relu(gelu(x)) ** 2), "custom_vjp of .* "),
        (lambda x: jnp.sum(x * jax.lax.stop_gradient(x)), "stop_gradient$"),
        (lambda x: jnp.linalg.norm(x - jnp.array([0.25, -0.25, 0.5])), "leaf x is not finite at the start$"),
        (lambda x: jnp.sum(own_square(x) * jax.lax.stop_gradient(x)), "stop_gradient$"),
        (lambda x: jnp.sum(gelu(x)) + jax.lax.stop_gradient(jnp.sum(jnp.sign(x))), "custom_vjp of .* "),
    ],
)
def test_the_headline_of_a_wrong_formula_names_what_does_it(function, culprit):
    report = gradbench.check_gradient(function, jnp.array([0.25, -0.25, 0.5]), **ONE)
    assert report.verdict == "FAIL"
    assert re.match(culprit, report.culprit)
    assert str(report).startswith(f"f: FAIL: {report.culprit}   (")
    assert report.to_json()["culprit"] == report.culprit


def test_a_formula_that_fails_is_told_apart_from_programs_that_pass():
    report = gradbench.check_gradient(lambda x: jnp.sum(gelu(x)), jnp.array([0.3, -0.2]), **ONE)
    assert (report.formula_verdict, report.execution_verdict) == ("FAIL", "PASS")
    assert "(a wrong formula, computed rightly)" in str(report)


def _off(loss, examples):
    """value_and_grad whose gradient of w1 is 1 % too long."""

    def run(params, data):
        value, grads = jax.value_and_grad(loss)(params, data)
        return value, {**grads, "w1": grads["w1"] * 1.01}

    return jax.jit(run)


@pytest.mark.parametrize(("wrong", "where"), [(("vmap",), "vmap"), (("jit", "vmap"), "every program")])
def test_the_headline_of_a_wrong_execution_names_program_and_leaf(monkeypatch, wrong, where):
    for name in wrong:
        monkeypatch.setitem(programs.PROGRAMS, name, programs.GradientProgram(name, _off))
    problem = gradbench.Problem(
        init=lambda key: {"w1": jnp.ones(3), "w2": jnp.ones(2)},
        loss=lambda p, d: jnp.sum(p["w1"] ** 2) * jnp.sum(p["w2"] ** 2),
        name="bilinear",
    )
    report = gradbench.check_gradient(problem, programs=["jit", "vmap"], fast=True)
    assert report.culprit == f"float32 under {where}: leaf ['w1']"
    assert report.formula_verdict == "PASS"


def test_a_right_gradient_has_no_culprit_and_idle_leaves_are_named():
    problem = gradbench.Problem(
        init=lambda key: {"w": jnp.ones(2), "mean": jnp.zeros(2)}, loss=lambda p, d: jnp.sum(p["w"] ** 2), name="norm"
    )
    report = gradbench.check_gradient(problem, **ONE)
    assert report.culprit == ""
    assert report.to_json()["idle"] == ["params['mean']"]
    assert str(report).startswith("norm: PASS   (4 parameters")
    assert "warning: no gradient reaches params['mean']" in str(report)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (lambda x: jnp.sum(jnp.sqrt(x)), "nan"),
        (lambda x: jnp.sum(jnp.log(jnp.abs(x + 1))), "-inf"),  # finite at every point nearby
        (lambda x: jnp.sum(x) * jnp.inf, "inf"),
    ],
)
def test_a_loss_that_is_not_finite_at_the_start_fails_and_no_program_is_run(loss, value):
    report = gradbench.check_gradient(loss, jnp.array([-1.0, 2.0]))
    assert report.verdict == "FAIL"
    assert report.culprit == f"the loss is {value} at the start"
    assert (report.rows, report.lesson) == ([], [])
    assert "random numbers" not in str(report)
    assert "execution: INCONCLUSIVE, not run" in repr(report)
    assert exit_code([report]) == 1
    with pytest.raises(AssertionError, match=f"FAIL: {report.culprit}"):
        gradbench.assert_gradient(loss, jnp.array([-1.0, 2.0]))


def test_a_gradient_that_is_infinite_where_the_loss_ends_fails():
    report = gradbench.check_gradient(lambda x: jnp.sum(jnp.sqrt(x)), jnp.zeros(2), **ONE)
    assert report.verdict == "FAIL"
    assert report.culprit == "leaf x is not finite"
    assert "the gradient is inf, the loss not finite nearby" in str(report)
    assert report.lesson == []
