"""A device that runs out of memory: the block is halved, which the record says, and the numbers are the same."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from sampling import sample

from gradbench.engine import pair
from gradbench.errors import GradbenchWarning, RunError
from gradbench.inputs.optimizer import load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import load_problem
from gradbench.program.block import trial_bytes, work
from gradbench.program.program import Block, Program
from gradbench.program.trial import Trial, numerics

# Windows side by side are nine times the image.
WIDE = """
import jax, jax.numpy as jnp
import gradbench

def problem():
    def loss(kernel, images):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jnp.mean(jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=numbers) ** 2)

    init = lambda key: jax.random.normal(key, (3, 3, 16, 8))
    return gradbench.Problem(init, loss, data=jnp.ones((16, 16, 16, 16)), examples=16)
"""
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
    return sweep("quadratic_bowl[dim=4]", ["sgd"], "1e-3:0.5:8", seeds=1, steps=30, timing="batched", **settings)


@pytest.mark.usefixtures("compiled_quickly")
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


@pytest.mark.thorough
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


@pytest.mark.parametrize("problem", sample(["wide", "mlp", "lstm[hidden=16,length=8]", "cnn"]))
def test_no_trial_takes_more_memory_than_is_reckoned_with(problem, tmp_path):
    """By XLA's own account, for one trial and for three."""
    if problem == "wide":
        problem = str(tmp_path / "wide.py")
        Path(problem).write_text(WIDE)
    plan = SweepPlan((problem,), ("adam",), "1e-3:1:8", seeds=1, steps=10)
    with numerics("float32", "highest"):
        trial = Trial.of(load_problem(problem), load_optimizer("adam"), plan)
        each = trial_bytes(trial, work(trial.compiled_for("cpu").problem, plan, batch=False))
        for lanes in (1, 3):
            block = Block(1, lanes, 4, 1, relayout=trial.kind.relayout(lanes, "cpu"))
            program = Program(trial, block, jax.devices("cpu")[:1])
            taken = program.advance.lower(*program.arguments()).compile().memory_analysis().temp_size_in_bytes
            assert taken <= lanes * each
