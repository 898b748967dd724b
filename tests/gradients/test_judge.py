"""The verdict on an answer where its band says little or nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.gradients.execution.judge import judge
from gradbench.gradients.formula import noise
from gradbench.gradients.rounding.band import Spread
from gradbench.gradients.rounding.formats import format_of

FORM = format_of("float32")
POINT = np.linspace(0.1, 0.7, 5).astype(np.float32)


def spread_of(loss):
    trace = jax.make_jaxpr(loss)(POINT)
    return noise.sample(trace, [POINT], "float32", "highest", jax.devices("cpu")[0]).spread


def distance(x):
    """Of x and itself, by the cosine rule: noise takes what is under the root below 0."""
    return jnp.sqrt(jnp.sum(x * x) - 2 * jnp.sum(x * x) + jnp.sum(x * x))


def test_where_the_samples_are_not_numbers_nothing_is_accused():
    spread = spread_of(distance)
    assert np.isnan(spread.sigma[0])
    found = judge([np.float32(3e-4)], [np.float64(0)], spread, ["value"], FORM)
    assert found.off == 0


def test_a_loss_that_cancels_to_0_may_be_another_rounding_of_0_in_the_oracle():
    spread = dataclasses.replace(spread_of(lambda x: jnp.sum(x) - jnp.sum(x)), exact=[np.float64(0)], along=[0.0])
    assert spread.sigma[0] > 0
    got = np.float32(spread.sigma[0])
    assert judge([got], [np.float64(1e-17)], spread, ["value"], FORM).off < 1


def test_a_million_numbers_right_to_the_last_bit_are_right():
    """The sums of beta rounded by more than was allowed for them, and there was no entry that was off to show."""
    numbers = np.arange(2**20) % 7 + 0.1
    spread = Spread([numbers], [np.zeros_like(numbers)], [0.0], [0.0], False, False, False, (), ())
    assert judge([numbers], [numbers], spread, ["value"], format_of("float64")).off == 0
