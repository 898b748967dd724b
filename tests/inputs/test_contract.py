"""What a problem may say of keys, state, metrics and held-out data, and the line that refuses the rest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradbench
from gradbench.errors import ProblemError
from gradbench.inputs.problem import check_batch, idle_leaves, load_problem

DATA = {"x": np.arange(15.0).reshape(5, 3)}
STATE = {"init": lambda key: (jnp.ones(3), {"mean": jnp.zeros(3), "count": 0}), "stateful": True}


def square(params, data):
    return jnp.mean((data["x"] @ params) ** 2)


def made(loss=square, init=lambda key: jnp.ones(3), **facts):
    return gradbench.Problem(init, loss, DATA, examples=5, **facts)


def averaging(params, state, data):
    return square(params, data), {"mean": state["mean"] + params, "count": state["count"] + 1}


FAULTS = {
    "a holdout of other names": (made(holdout={"y": DATA["x"]}), "holdout is"),
    "of another width": (made(holdout={"x": np.ones((5, 2))}), r"holdout\['x'\] is float of shape \(rows, 2\)"),
    "of whole numbers": (made(holdout={"x": np.ones((5, 3), int)}), r"holdout\['x'\] is int64"),
    "not finite": (made(holdout={"x": np.full((5, 3), np.nan)}), r"holdout\['x'\] is not finite"),
    "metrics that are no dict": (made(metrics=[square]), "metrics is a list"),
    "no functions": (made(metrics={"mse": 1.0}), r"metrics\['mse'\] is a float"),
    "of no name": (made(metrics={"a b": square}), "metrics has the name 'a b'"),
    "no scalars": (made(metrics={"each": lambda p, d: p}), r"the metric 'each' must be a scalar, got shape \(3,\)"),
    "that raise": (
        made(metrics={"mse": lambda p, d: d["y"]}),
        "evaluated on train, the loss or a metric raised KeyError",
    ),
    "maximised, misspelt": (
        made(metrics={"mse": square}, maximise=("msee",)),
        "maximise has 'msee', did you mean 'mse'",
    ),
    "auxiliary that is no scalar": (made(lambda p, d: (square(p, d), {"w": p})), "the auxiliary 'w' must be a scalar"),
    "of the loss's name": (made(lambda p, d: (square(p, d), {"loss": 1.0})), "the auxiliary 'loss' has the name of"),
    "that is no dict": (made(lambda p, d: (square(p, d), 1.0)), r"must return a scalar or \(loss, \{name: scalar\}\)"),
    "three results": (made(lambda p, d: (square(p, d), {}, {})), "got a tuple of 3"),
    "no state from init": (made(averaging, stateful=True), r"init\(key\) must return \(params, state\)"),
    "no state back": (made(lambda p, s, d: square(p, d), **STATE), r"must return \(loss, state\)"),
    "another state back": (made(lambda p, s, d: (square(p, d), p), **STATE), "the loss returned the state"),
    "another shape": (
        made(lambda p, s, d: (square(p, d), s | {"mean": p[:2]}), **STATE),
        r"state\['mean'\] is float32 of shape \(3,\) from init, but the loss returned float32 of shape \(2,\)",
    ),
    "another type": (
        made(lambda p, s, d: (square(p, d), s | {"count": s["count"] + 0.5}), **STATE),
        r"state\['count'\] is int32 of shape \(\) from init, but the loss returned float32",
    ),
    "a key as state": (
        made(lambda p, s, d: (square(p, d), s), lambda key: (jnp.ones(3), {"key": key}), stateful=True),
        r"state\['key'\] is of type",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_contract_is_refused_in_one_line(name):
    problem, words = FAULTS[name]
    with pytest.raises(ProblemError, match=words) as caught:
        load_problem(problem)
    assert "\n" not in str(caught.value)


def test_metrics_and_a_holdout_that_a_setting_leaves_out_are_none():
    problem = load_problem(made(metrics=None, holdout=None))
    assert (problem.metrics, problem.objective.metrics) == ({}, {})


def test_an_ordinary_problem_is_its_own_plain_form():
    problem = load_problem(made(holdout={"x": DATA["x"][:2]}, metrics={"mse": square}))
    assert problem.plain is problem
    of = problem.objective
    assert (of.random, of.stateful, of.aux) == (False, False, ())
    assert of.recorded == (("train", "loss"), ("train", "mse"), ("holdout", "loss"), ("holdout", "mse"))


def test_only_a_parameter_without_default_is_a_key():
    assert not load_problem(
        made(lambda params, data, power=2: jnp.mean((data["x"] @ params) ** power))
    ).objective.random
    assert load_problem(made(lambda params, data, key: square(params, data))).objective.random


def test_a_metric_named_loss_is_evaluated_in_its_stead():
    problem = load_problem(made(metrics={"loss": lambda params, data: 2 * square(params, data)}))
    assert problem.objective.recorded == (("train", "loss"),)
    found = problem.objective.evaluation(jnp.ones(3), (), DATA)
    np.testing.assert_allclose(found["loss"], 2 * square(np.ones(3), DATA))


def test_a_loss_is_evaluated_without_a_key_where_it_allows_that():
    def loss(params, data, key):
        return square(params, data) * (1.0 if key is None else jax.random.uniform(key))

    problem = load_problem(made(loss))
    np.testing.assert_allclose(problem.objective.evaluation(jnp.ones(3), (), DATA)["loss"], square(np.ones(3), DATA))
    needs = load_problem(made(lambda params, data, key: square(params, data) * jax.random.uniform(key)))
    assert not needs.objective.takes_no_key
    first, second = (needs.objective.evaluation(jnp.ones(3), (), DATA)["loss"] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_plain_form_keeps_its_key_and_state_when_examples_are_cut(rows):
    """Of a problem whose examples are as many as its state, or its key, has rows."""

    def loss(params, state, data, key):
        noise = jax.random.normal(key, (3,))
        return jnp.mean(data["x"] @ (params + state["mean"] + noise)), averaging(params, state, data)[1]

    problem = gradbench.Problem(STATE["init"], loss, {"x": DATA["x"][:rows]}, examples=rows, stateful=True)
    plain = load_problem(problem).plain
    assert load_problem(plain).plain is plain
    check_batch(problem, 1)
    expected = jnp.mean(DATA["x"][:rows] @ (1 + np.asarray(jax.random.normal(jax.random.key(0), (3,)))))
    np.testing.assert_allclose(plain.loss(jnp.ones(3), plain.data), expected, rtol=1e-5)
    assert idle_leaves(problem) == []


def test_a_state_of_whole_numbers_is_accepted_in_a_process_with_64_bits():
    def loss(params, state, data):
        return jnp.sum(params**2), state + jnp.sum(data > 0)

    problem = gradbench.Problem(lambda key: (jnp.ones(3), jnp.zeros((), int)), loss, np.arange(4.0), stateful=True)
    with jax.enable_x64(True):
        assert gradbench.load_problem(problem).stateful
