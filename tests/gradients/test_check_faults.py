"""Planted faults: each must be caught, for the right reason, and right gradients left alone."""

import dataclasses
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import sample

import gradbench
from gradbench.gradients import check_gradient, faults
from gradbench.gradients.execution import programs
from gradbench.gradients.execution.execution import MANY_REPEATS, Execution
from gradbench.gradients.execution.expectation import compare_centre
from gradbench.gradients.execution.judge import meaning
from gradbench.gradients.formula import derivative as formula
from gradbench.gradients.formula import directions, oracle
from gradbench.gradients.formula.directions import Loss
from gradbench.program import program as sweep

CPU = jax.devices("cpu")[0]


def check_formula(problem):
    tests, _ = formula.check(problem, oracle.points(problem, "float64", 1)[0], None, 1.0, True)
    return {t.name: t for t in tests}


@functools.cache
def check_planted(name):
    return check_formula(faults.formula_faults()[name])


@pytest.mark.parametrize("name", sample([n for n in faults.formula_faults() if "10^6" not in n], 3))
def test_formula_faults_are_caught_by_differences(name):
    assert check_planted(name)["finite differences"].verdict == "FAIL"


def test_one_wrong_entry_among_a_million_is_caught():
    assert check_planted("one wrong entry among 10^6")["finite differences"].verdict == "FAIL"


@pytest.mark.parametrize("problem", [faults.planted(), faults.million()], ids=["network", "million"])
def test_a_right_formula_passes(problem):
    assert {t.verdict for t in check_formula(problem).values()} == {"PASS"}


def test_a_nan_from_where_is_named():
    test = check_planted("NaN from the double-where trap")["finite differences"]
    assert "nan" in test.finding
    assert "`where`" in test.finding


@pytest.mark.parametrize("trapped", range(3))
def test_leaves_are_not_asked_together_beside_one_that_is_not_finite(monkeypatch, trapped):
    def loss(params, data):
        return sum(
            jnp.sum(jnp.where(x > 0, x, jnp.sqrt(-x)) if number == trapped else x**2) for number, x in enumerate(params)
        )

    asked = []
    monkeypatch.setattr(directions, "_together", lambda *given: asked.append(given))
    test = check_formula(gradbench.Problem(lambda key: [jnp.ones(2)] * 3, loss))["finite differences"]
    assert test.culprit == f"leaf [{trapped}] is not finite"
    assert not asked


def test_a_wrong_custom_rule_is_named():
    assert "tanh" in check_planted("wrong custom_vjp")["suspects"].finding


def test_a_stop_gradient_is_named():
    assert "stop_gradient" in check_planted("stray stop_gradient")["suspects"].finding


def scaled(factors):
    """A loss of as many leaves as factors, by which their gradients are too large."""

    def rule(factor):
        scale = jax.custom_vjp(lambda x: x)
        scale.defvjp(lambda x: (x, None), lambda _, ct: (factor * ct,))
        return scale

    def loss(params, data):
        return sum(jnp.sum(jnp.sin(rule(f)(x)) * k) for k, (f, x) in enumerate(zip(factors, params), 1))

    return gradbench.Problem(lambda key: [jnp.linspace(0.1, k, 3) for k in range(1, len(factors) + 1)], loss)


def test_right_leaves_are_asked_together(monkeypatch):
    asked = []
    slope = Loss.slope
    monkeypatch.setattr(Loss, "slope", lambda *given: asked.append(given[2:4]) or slope(*given))
    found = check_formula(scaled([1.0] * 6))["finite differences"]
    assert (found.verdict, found.finding) == ("PASS", "12 directions agree")
    assert len(asked) == 2  # all leaves along one direction, and an entry of each


@pytest.mark.parametrize("error", [1e-3, 2 * directions.SLOPE_TOLERANCE])
def test_errors_of_two_leaves_do_not_cancel_where_they_are_asked_together(error):
    found = check_formula(scaled([1.0, 1 + error, 1 - error, 1.0]))["finite differences"]
    assert found.verdict == "FAIL"


def test_without_a_band_two_ways_that_disagree_are_not_judged():
    exact = lambda params, data: [1.001 * jax.grad(jnp.sum)(jnp.sin(x)) * jnp.cos(x) for x in params]  # noqa: E731
    found = check_formula(dataclasses.replace(scaled([1.0]), gradient=exact))["analytic gradient"]
    assert found.verdict == "INCONCLUSIVE"
    assert "not known" in found.finding


@pytest.fixture(scope="module")
def network():
    execution = Execution(faults.planted(), "float32", "highest", CPU)
    return execution, execution.reference(oracle.points(execution.problem, "float32", 1)[0])


def runner(loss):
    return programs.PROGRAMS["value_and_grad"].build(loss, None)


@pytest.mark.parametrize("name", sample(faults.execution_faults(), 3))
def test_execution_faults_are_caught_in_float32(network, name):
    execution, reference = network
    assert execution.run(name, runner(faults.execution_faults()[name]), reference).verdict == "FAIL"


def test_the_right_program_passes_and_sees_faults_of_1e_4(network):
    execution, reference = network
    row = execution.run("right", runner(faults.network), reference)
    assert row.verdict == "PASS"
    assert row.resolves < 1e-4


def test_tf32_is_recognised(network):
    execution, reference = network
    row = execution.run("tf32", runner(faults.execution_faults()["TF32 inputs"]), reference)
    assert any("TF32" in note for note in row.notes)


def test_a_wrong_value_is_caught_though_the_gradient_is_right(network):
    execution, reference = network
    right = runner(faults.network)
    row = execution.run("value", lambda p, d: (right(p, d)[0] * 1.001, right(p, d)[1]), reference)
    assert row.verdict == "FAIL"
    assert "the loss is" in row.reason


def test_a_fault_that_comes_and_goes_is_caught_by_repeats(network):
    execution, reference = network
    row = execution.run("sometimes", faults.every(20, runner(faults.network)), reference, repeats=20, most=MANY_REPEATS)
    assert row.verdict == "FAIL"
    assert any("different answers" in note for note in row.notes)


def test_a_finite_number_where_float32_overflows_is_caught():
    execution = Execution(faults.scaled_bowl(3e38 / 2.5), "float32", "highest", CPU)
    reference = execution.reference(oracle.points(execution.problem, "float32", 2)[1])
    right = runner(execution.problem.loss)

    def wrong(params, data):
        value, gradient = right(params, data)
        return value, jnp.where(jnp.isinf(gradient), 0, gradient)

    assert np.isinf(np.asarray(right(*execution.place(reference.point))[1])).any()
    assert execution.run("wrong", wrong, reference).verdict == "FAIL"
    assert execution.run("right", right, reference).verdict != "FAIL"


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_band_that_is_not_finite_never_passes_in_silence(network, broken):
    execution, reference = network
    spread = dataclasses.replace(reference.spread, sigma=[np.full_like(s, broken) for s in reference.spread.sigma])
    doubt = compare_centre(spread, reference.expected, "float32")
    row = execution.run("right", runner(faults.network), dataclasses.replace(reference, spread=spread, doubt=doubt))
    assert row.verdict == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("beta", "words"),
    [(-1.0, "sign"), (2.0, "factor"), (0.0, "blocked"), (96.0, "sum over the 96"), (96 / 95, "n-1"), (1.0, "")],
)
def test_beta_is_explained(beta, words):
    told = meaning(beta, 96, 1e-6)
    assert words in told if words else told == ""


@pytest.mark.thorough
def test_a_wrong_forward_derivative_fails(network):
    execution, reference = network
    right = execution.forward(reference.point, reference)
    assert right.verdict == "PASS"
    compiled = execution.forward_runner
    execution.forward_runner = lambda params, data: compiled(params, data) * 1.001
    assert execution.forward(reference.point, reference).verdict == "FAIL"
    execution.forward_runner = compiled


def test_a_loss_is_traced_in_the_thread_of_the_check():
    """What is configured for one thread alone, such as a kind of random keys, holds for every program."""
    threads = set()

    def loss(params, data):
        threads.add(threading.get_ident())
        return jnp.sum(params**2)

    report = check_gradient(gradbench.Problem(init=lambda key: jnp.ones(3), loss=loss, name="traced"))
    assert {row.verdict for row in report.rows} == {"PASS"}
    assert threads == {threading.get_ident()}


def test_two_programs_that_are_one_are_compiled_once():
    execution = Execution(scaled([1.0]), "float32", "highest", CPU)
    given = execution.place(oracle.points(execution.problem, "float32", 1)[0])
    for name in ("value_and_grad", "has_aux"):
        execution.runner(name, None)(*given)
    assert len(execution._compiled) == 1


def test_the_batched_program_is_the_sweeps_own(network, monkeypatch):
    execution, reference = network
    step = sweep.Trial.step

    def wrong(trial, state, learning_rate, data):
        state, row = step(trial, state, learning_rate, data)
        return state._replace(opt_state=jax.tree.map(lambda g: 1.01 * g, state.opt_state)), row

    monkeypatch.setattr(sweep.Trial, "step", wrong)
    batched = programs.PROGRAMS["batched"].build(execution.problem.loss, None)
    assert execution.run("batched", batched, reference).verdict == "FAIL"
