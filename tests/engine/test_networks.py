"""Networks written as people write them: the engine's trajectories are those of a plain loop over a jitted step."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plain import plain_loop
from sampling import sample

import gradbench
from gradbench.program.spread import initialise

STEPS = 50
SMALL = {  # the cheapest to compile first
    "matrix_factorisation": "matrix_factorisation[users=20,items=10,rank=2,ratings=200]",
    "autoencoder": "autoencoder[hidden=6,code=3]",
    "cnn": "cnn[channels=2]",
    "lstm": "lstm[hidden=4,length=6,examples=8]",
    "transformer": "transformer[layers=1,width=8,heads=2,length=6,examples=8]",
}


def momentum(rate):
    return optax.sgd(rate, momentum=0.9)


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize(("batch_size", "name"), sample(itertools.product([None, 4], SMALL)))
def test_trajectories_are_those_of_a_plain_loop(sweep, name, batch_size):
    rates = [0.003, 0.03]
    settings = {"batch_size": batch_size, "record_points": 99, "timing": "none"}
    run = sweep(SMALL[name], ["momentum"], rates, seeds=1, steps=STEPS, dtype="float64", **settings)
    curves = {key: np.array(values) for key, values in run.curves.to_pydict().items()}
    problem = gradbench.load_problem(SMALL[name])
    drawn = initialise(problem, jax.devices()[:1])(jnp.zeros(1, jnp.uint32))
    start = jax.tree.map(lambda leaf: np.asarray(leaf)[0], drawn)
    for trial, rate in enumerate(rates):
        expected = plain_loop(problem, momentum, rate, STEPS, 0, batch_size, start)
        mine = curves["trial"] == trial
        # Sums in another order: 1e-16 of each, which 50 stable steps of a smooth loss do not make a million times more.
        np.testing.assert_allclose(curves["loss"][mine], expected[curves["step"][mine]], rtol=1e-9)
