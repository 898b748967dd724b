"""The zoo's losses keep a problem's contract, and a few cheap ones pass in the check and in the engine."""

import jax
import numpy as np
import pytest
from conftest import time_little
from sampling import sample
from zoo import ZOO
from zoo.training import Comparison

from gradbench import check_gradient, load_problem


def test_the_zoo_is_large_and_says_what_each_loss_is():
    assert len(ZOO) >= 60
    assert all(len(entry.description) > 20 and entry.description.endswith(".") for entry in ZOO.values())


@pytest.mark.parametrize("name", sample(ZOO, 40))
def test_a_loss_keeps_the_contract(name):
    problem = load_problem(ZOO[name].problem())
    leaves = jax.tree.leaves(jax.eval_shape(problem.init, jax.random.key(0)))
    assert 3 <= sum(leaf.size for leaf in leaves) <= 3000
    again = ZOO[name].problem()
    for one, other in zip(jax.tree.leaves(problem.data), jax.tree.leaves(again.data), strict=True):
        np.testing.assert_array_equal(one, other)  # the same data at every call


def test_a_cheap_loss_passes_the_check():
    assert check_gradient(ZOO["phase_field"].problem(), fast=True).verdict == "PASS"


@pytest.fixture(scope="module")
def comparison():
    with pytest.MonkeyPatch.context() as patch:
        time_little(patch)
        yield Comparison(ZOO["phase_field"].problem(), "float32")


@pytest.mark.thorough
def test_the_engine_trains_a_cheap_loss_as_plain_optax_does(comparison):
    found = comparison.judge("sgd")
    assert found["verdict"] == "PASS"
    assert 0 < found["engine"] <= 1
    assert found["beyond_horizon"] == 0


@pytest.mark.thorough
def test_a_rate_a_thousandth_too_large_is_beyond_the_bound(comparison):
    rates = comparison.rates("sgd")
    larger = [rate * 1.001 for rate in rates]
    exact, wrong = (np.stack(comparison.exact("sgd", each)) for each in (rates, larger))
    assert comparison.measure(wrong, exact, exact, comparison.spreads("sgd", rates))["engine"] > 1
