"""The verdict on an answer where its band says little or nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.gradients.execution.judge import judge
from gradbench.gradients.formula import noise
from gradbench.gradients.rounding.band import Spread
from gradbench.gradients.rounding.numbers.formats import format_of

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


def test_near_the_end_of_float64s_range_samples_that_leave_it_accuse_nobody():
    """The norm of such a leaf overflowed, so that what its scale may be off by was not a number, and no error is below
    that."""
    numbers = np.array([-1.02e308, -1.24e308, 1.01e308, 0.0])
    nan = np.where(numbers, np.nan, 0.0)
    spread = Spread([numbers], [nan], [np.nan], [np.nan], False, False, False, (), ())
    found = judge([numbers * (1 + 2.0**-52)], [numbers], spread, ["value"], format_of("float64"))
    assert (found.verdict, found.off) == ("INCONCLUSIVE", 0.0)


def test_large_numbers_beside_one_that_overflows_are_judged_by_their_norm():
    """The squares of deviations above 1e154 overflowed, so that the norm was infinite, and nothing decided."""
    numbers = np.array([1e200, -2e200, np.inf])
    spread = Spread([numbers], [np.array([1e184, 2e184, np.nan])], [np.nan], [np.nan], False, False, False, (), ())
    found = judge([numbers], [numbers], spread, ["value"], format_of("float64"))
    assert found.verdict == "PASS"
    assert found.resolves < 1e-14
