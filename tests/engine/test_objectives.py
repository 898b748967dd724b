"""Losses with keys, state, auxiliary scalars, metrics and held-out data: trajectories and records."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import StopAfter
from sklearn.metrics import accuracy_score, log_loss

import gradbench
from gradbench.engine import runner
from gradbench.errors import GradbenchError
from gradbench.inputs.problem import cast
from gradbench.program.minibatch import batch_rows
from gradbench.program.program import initialise
from gradbench.program.trial import order_key
from gradbench.theory.replay import replay

EXAMPLES, CLASSES = 24, 3


def arrays(rows, seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 4))
    return {"x": x, "y": np.argmax(x[:, :CLASSES] + generator.normal(size=(rows, CLASSES)), axis=1)}


def logits(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def accuracy(params, *state_and_data):
    *state, data = state_and_data
    x = (data["x"] - state[0]["mean"]) if state else data["x"]
    return jnp.mean(jnp.argmax(logits(params, x), axis=1) == data["y"])


def cross_entropy(scores, data):
    return optax.softmax_cross_entropy_with_integer_labels(scores, data["y"]).mean()


def network(key):
    first, second = jax.random.split(key)
    return {"w": jax.random.normal(first, (4, 5)) / 2, "v": jax.random.normal(second, (5, CLASSES)) / 2}


def with_dropout(params, data, key):
    """Dropout of the inputs; none without a key."""
    keep = 1.0 if key is None else jax.random.bernoulli(key, 0.8, data["x"].shape) / 0.8
    return cross_entropy(logits(params, data["x"] * keep), data)


def with_state(params, state, data):
    """A running mean of the inputs, as of BatchNorm, and the weights' average, as of an EMA; and a count."""
    mean = 0.9 * state["mean"] + 0.1 * jnp.mean(data["x"], axis=0)
    after = {
        "mean": jax.lax.stop_gradient(mean),
        "ema": 0.9 * state["ema"] + 0.1 * jax.lax.stop_gradient(params["v"]),
        "count": state["count"] + 1,
    }
    pull = jnp.sum((params["v"] - state["ema"]) ** 2)  # depends on the state it was given
    return cross_entropy(logits(params, data["x"] - mean), data) + 0.1 * pull, after


def with_all(params, state, data, key):
    noise = 0.0 if key is None else 0.1 * jax.random.normal(key, data["x"].shape, data["x"].dtype)
    loss, after = with_state(params, state, data | {"x": data["x"] + noise})
    return loss, after, {"norm": jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)))}


def start_with_state(key):
    params = network(key)
    return params, {"mean": jnp.zeros(4), "ema": params["v"], "count": 0}


PROBLEMS = {
    "dropout": gradbench.Problem(network, with_dropout, arrays(EXAMPLES, 0), examples=EXAMPLES),
    "state": gradbench.Problem(start_with_state, with_state, arrays(EXAMPLES, 0), examples=EXAMPLES, stateful=True),
    "all": gradbench.Problem(
        start_with_state,
        with_all,
        arrays(EXAMPLES, 0),
        examples=EXAMPLES,
        stateful=True,
        holdout=arrays(10, 1),
        metrics={"accuracy": accuracy},
        maximise=("accuracy",),
    ),
}
JUDGED = gradbench.Problem(
    network,
    lambda params, data: cross_entropy(logits(params, data["x"]), data),
    arrays(EXAMPLES, 0),
    examples=EXAMPLES,
    holdout=arrays(10, 1),
    metrics={"accuracy": accuracy},
    maximise=("accuracy",),
)


def plain_loop(problem, rate, steps, seed, batch_size):
    """The losses and states of an ordinary Optax loop in float64: those of all the data at each step."""
    with jax.enable_x64(False):
        drawn = initialise(problem, jax.default_backend())(jnp.array([seed], jnp.uint32))
        drawn = jax.tree.map(lambda leaf: np.asarray(leaf)[0], drawn)
    with jax.enable_x64(True):
        params, state = cast(drawn, "float64") if problem.stateful else (cast(drawn, "float64"), None)
        data = cast(problem.data, "float64")
        made = optax.adam(rate)
        opt_state, order = made.init(params), order_key(np.uint32(seed))
        keys = jax.random.fold_in(jax.random.key(np.uint32(seed)), 2)

        def loss(params, state, data, key):
            arguments = (params, *([state] if problem.stateful else []), data)
            result = problem.loss(*arguments, *([key] if problem.objective.random else []))
            return (result[0], result[1]) if problem.stateful else (result, None)

        @jax.jit
        def step(params, state, opt_state, n):
            key = jax.random.fold_in(keys, n)
            seen = loss(params, state, data, key)[0]
            rows = slice(None) if batch_size is None else batch_rows(n, EXAMPLES, batch_size, order)
            batch = jax.tree.map(lambda leaf: leaf[rows], data)
            (_, after), grads = jax.value_and_grad(loss, has_aux=True)(params, state, batch, key)
            updates, opt_state = made.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), after, opt_state, seen

        losses = []
        for n in range(steps + 1):
            params, state, opt_state, seen = step(params, state, opt_state, np.int32(n))
            losses.append(float(seen))
    return np.array(losses)


def columns(run, name):
    return {key: np.array(values) for key, values in getattr(run, name).to_pydict().items()}


@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("name", PROBLEMS)
def test_trajectories_are_those_of_a_plain_optax_loop(sweep, small_blocks, name, batch_size):
    small_blocks(lanes=2, rows=7)
    rates, steps = [0.003, 0.03], 50
    settings = {"seeds": 2, "steps": steps, "dtype": "float64", "record_points": 99, "batch_size": batch_size}
    run = sweep(PROBLEMS[name], ["adam"], rates, timing="none", **settings)
    curves = columns(run, "curves")
    for trial, (rate, seed) in enumerate(itertools.product(rates, range(2))):
        expected = plain_loop(PROBLEMS[name], rate, steps, seed, batch_size)
        mine = curves["trial"] == trial
        assert mine.sum() == (51 if batch_size is None else 18)
        np.testing.assert_allclose(curves["loss"][mine], expected[curves["step"][mine]], rtol=1e-9)
