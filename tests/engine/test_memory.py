"""A device that runs out of memory: the block is halved, which the record says, and the numbers are the same."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from gradbench.engine import pair
from gradbench.errors import GradbenchWarning, RunError

NO_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")


@pytest.fixture
def small_device(monkeypatch):
    """Runs out of memory with more than two trials at a time."""
    chunk = pair.PairSweep._chunk

    def limited(self):
        if self.program.block.lanes > 2:
            raise NO_MEMORY
        chunk(self)

    monkeypatch.setattr(pair.PairSweep, "_chunk", limited)


def swept(sweep, **settings):
    return sweep("quadratic_bowl[dim=4]", ["sgd"], "1e-3:0.5:8", seeds=1, steps=30, **settings)


def test_the_block_is_halved_until_it_fits(sweep, small_blocks, small_device):
    small_blocks(devices=1, lanes=8)
    with pytest.warns(GradbenchWarning, match="no memory for") as told:
        run = swept(sweep)
    assert [str(w.message).split("going on with ")[1] for w in told] == ["4", "2"]
    [block] = run.info["blocks"].values()
    assert (block["lanes"], run.info["state"]) == (2, "complete")
    closed = [(1 - 2 * rate * np.geomspace(0.01, 1, 4)) ** 30 for rate in run.trials["learning_rate"].to_pylist()]
    expected = [np.sum(np.geomspace(0.01, 1, 4) * x**2) for x in closed]
    np.testing.assert_allclose(run.trials["final_loss"], expected, rtol=30 * 4 * 2.0**-23)
    assert run.timings["trials"].to_pylist() == [2]


def test_one_trial_at_a_time_that_does_not_fit_is_an_error(sweep, small_blocks, monkeypatch):
    small_blocks(devices=1, lanes=1)

    def full(self):
        raise NO_MEMORY

    monkeypatch.setattr(pair.PairSweep, "_chunk", full)
    with pytest.raises(RunError, match="RESOURCE_EXHAUSTED"):
        swept(sweep)


def test_another_error_is_none_of_memory(sweep, small_blocks, monkeypatch):
    small_blocks(devices=1, lanes=8)

    def broken(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(pair.PairSweep, "_chunk", broken)
    with pytest.raises(RunError, match="something else"):
        swept(sweep)
