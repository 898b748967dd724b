"""Networks written as people write them: the engine's trajectories are those of a plain loop over a jitted step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradbench
from gradbench.inputs.problem import cast
from gradbench.program.minibatch import batch_rows
from gradbench.program.spread import initialise
from gradbench.program.trial import order_key

STEPS = 50
SMALL = {
    "cnn": "cnn[channels=2]",
    "lstm": "lstm[hidden=4,length=6,examples=8]",
    "transformer": "transformer[layers=1,width=8,heads=2,length=6,examples=8]",
    "autoencoder": "autoencoder[hidden=6,code=3]",
    "matrix_factorisation": "matrix_factorisation[users=20,items=10,rank=2,ratings=200]",
}


def plain_loop(problem, rate, batch_size):
    """The losses of all the data before each of STEPS steps of Optax's momentum, and after the last, in float64."""
    with jax.enable_x64(False):
        drawn = initialise(problem, jax.devices()[:1])(jnp.zeros(1, jnp.uint32))
        drawn = jax.tree.map(lambda leaf: np.asarray(leaf)[0], drawn)
    with jax.enable_x64(True):
        params, data, made = cast(drawn, "float64"), cast(problem.data, "float64"), optax.sgd(rate, momentum=0.9)

        @jax.jit
        def step(params, opt_state, n):
            rows = batch_rows(n, problem.examples, batch_size, order_key(np.uint32(0))) if batch_size else slice(None)
            batch = jax.tree.map(lambda leaf: leaf[rows], data)
            updates, opt_state = made.update(jax.grad(problem.loss)(params, batch), opt_state)
            return problem.loss(params, data), optax.apply_updates(params, updates), opt_state

        opt_state, losses = made.init(params), []
        for n in range(STEPS + 1):
            loss, params, opt_state = step(params, opt_state, np.int32(n))
            losses.append(float(loss))
        return np.array(losses)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("batch_size", [None, pytest.param(4, marks=pytest.mark.thorough)])
def test_trajectories_are_those_of_a_plain_loop(sweep, name, batch_size):
    rates = [0.003, 0.03]
    settings = {"batch_size": batch_size, "record_points": 99, "timing": "none"}
    run = sweep(SMALL[name], ["momentum"], rates, seeds=1, steps=STEPS, dtype="float64", **settings)
    curves = {key: np.array(values) for key, values in run.curves.to_pydict().items()}
    for trial, rate in enumerate(rates):
        expected = plain_loop(gradbench.load_problem(SMALL[name]), rate, batch_size)
        mine = curves["trial"] == trial
        # Sums in another order: 1e-16 of each, which 50 stable steps of a smooth loss do not make a million times more.
        np.testing.assert_allclose(curves["loss"][mine], expected[curves["step"][mine]], rtol=1e-9)
