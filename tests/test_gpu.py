"""What only a GPU can show. Run by themselves where JAX finds one."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from conftest import StopAfter

import gradbench
from gradbench import check_gradient
from gradbench.engine import runner
from gradbench.inputs.optimizer import load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import load_problem
from gradbench.inputs.specs.checks import DTYPES
from gradbench.machine.doctor import product_error
from gradbench.program.program import Block, Program, Trial, numerics

pytestmark = pytest.mark.gpu
DEVICE = "gpu"


def test_float32_products_are_float32_at_the_highest_precision():
    # The mean error of a sum of 256 products is about sqrt(256) units of rounding, 6e-8 each; TF32's unit is 5e-4.
    assert product_error("highest") < 1e-5


def test_tf32_products_are_tf32():
    if float(getattr(jax.devices(DEVICE)[0], "compute_capability", 0)) < 8:
        pytest.skip("TF32 came with compute capability 8.0")
    # Rounding to 11 bits is off by up to 2**-11 of an entry. Over a binade, uniformly, that is 2**-11 / sqrt(3) x 0.72
    # root mean square, twice, independent: 2.9e-4. The products' errors average out like the products themselves.
    assert 1.5e-4 < product_error("tensorfloat32") < 6e-4


@pytest.mark.parametrize("problem", ["quadratic_bowl", "linear_regression", "logistic_regression", "mlp"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_on_the_gpu_is_right(problem, dtype):
    assert check_gradient(problem, dtype=dtype, device=DEVICE, fast=True).passed


def test_a_gradient_of_convolutions_on_the_gpu_is_right():
    """cuDNN gives 1e-9 where the gradient is exactly 0: at the start, in every program."""
    assert check_gradient("cnn", device=DEVICE).passed


def test_a_gradient_in_tf32_is_within_the_band_of_tf32():
    assert check_gradient("logistic_regression", device=DEVICE, precision="tf32", fast=True).passed


@pytest.mark.parametrize("problem", ["quadratic_bowl", "linear_regression", "logistic_regression"])
def test_a_sweep_on_the_gpu_is_the_sweep_on_the_cpu(sweep, problem):
    plan = {"learning_rates": "1e-3:0.1:64", "seeds": 1, "steps": 50, "dtype": "float64", "timing": "batched"}
    gpu, cpu = (sweep(problem, ["momentum"], device=device, **plan) for device in (DEVICE, "cpu"))
    np.testing.assert_allclose(gpu.trials["final_loss"], cpu.trials["final_loss"], rtol=1e-10)
    assert gpu.trials["verdict"].to_pylist() == cpu.trials["verdict"].to_pylist()


@pytest.mark.parametrize("problem", ["mlp", "cnn", "lstm"])
@pytest.mark.usefixtures("compiled_afresh")
def test_two_runs_on_the_gpu_are_identical(sweep, problem):
    """A convolution's derivative and rows added to a table are summed in any order, and kernels chosen by a clock,
    unless the compiler is told otherwise."""
    plan = {"seeds": 1, "steps": 30, "device": DEVICE, "timing": "none"}
    first, second = (sweep(problem, ["adam"], "1e-3:0.1:8", **plan) for _ in range(2))
    assert first.curves.equals(second.curves)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch_size", [None, 64])
def test_an_interrupted_run_on_the_gpu_resumes_bit_for_bit(sweep, small_blocks, tmp_path, dtype, batch_size):
    small_blocks(devices=1)
    plan = {"learning_rates": "1e-3:1.0:12", "seeds": 2, "steps": 60, "dtype": dtype, "batch_size": batch_size}
    plan = SweepPlan(("linear_regression",), ("sgd", "adam"), device=DEVICE, **plan)
    whole = runner.run_plan(plan, out=tmp_path)
    stopped = runner.run_plan(plan, out=tmp_path, watcher=StopAfter(4))
    assert stopped.info["state"] == "interrupted"
    resumed = gradbench.resume(stopped.path)
    assert resumed.trials.equals(whole.trials)
    assert resumed.curves.equals(whole.curves)


@pytest.mark.parametrize("batch_size", [None, 64])
def test_the_host_is_not_asked_between_steps(batch_size):
    """A loop whose length the compiler knows needs no word from the host; and none of its values go there."""
    plan = SweepPlan(("logistic_regression",), ("adam",), "1e-3:0.1:4", batch_size=batch_size, device=DEVICE)
    with numerics("float32", "highest"):
        trial = Trial.of(load_problem("logistic_regression"), load_optimizer("adam"), plan)
        program = Program(trial, Block(1, 4, 7, 1 if batch_size is None else 5), jax.devices(DEVICE))
        seeds, rates = np.zeros(4, np.uint32), program.settings({"learning_rate": np.full(4, 0.01)})
        arguments = rates, program.place(seeds), program.place(np.zeros(4, np.int32)), program.data
        compiled = program.advance.lower(program.start(seeds, rates), *arguments).compile()
        state = program.start(seeds, rates)
        with jax.transfer_guard("disallow"):
            jax.block_until_ready(compiled(state, *arguments))
    loops = [line for line in compiled.as_text().splitlines() if re.search(r"= .* while\(", line)]
    assert loops
    assert all("known_trip_count" in line for line in loops), loops
    assert not re.search(r"\b(infeed|outfeed|send|recv)\(", compiled.as_text())
