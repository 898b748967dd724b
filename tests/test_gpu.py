"""What only a GPU can show. Run by themselves where JAX finds one."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from gradbench import check_gradient
from gradbench.doctor import product_error

pytestmark = pytest.mark.gpu


def test_float32_products_are_float32_at_the_highest_precision():
    # The mean error of a sum of 256 products is about sqrt(256) units of rounding, 6e-8 each; TF32's unit is 5e-4.
    assert product_error("highest") < 1e-5


@pytest.mark.parametrize("problem", ["quadratic_bowl", "linear_regression", "logistic_regression"])
def test_a_sweep_on_the_gpu_is_the_sweep_on_the_cpu(sweep, problem):
    plan = {"learning_rates": (1e-3, 0.1, 64), "seeds": 1, "steps": 50, "dtype": "float64"}
    gpu, cpu = (sweep(problem, ["momentum"], device=device, **plan) for device in ("gpu", "cpu"))
    np.testing.assert_allclose(gpu.trials["final_loss"], cpu.trials["final_loss"], rtol=1e-10)
    assert gpu.trials["verdict"].to_pylist() == cpu.trials["verdict"].to_pylist()


def test_two_runs_on_the_gpu_are_identical(sweep):
    first, second = (sweep("mlp", ["adam"], (1e-3, 0.1, 8), seeds=1, steps=30) for _ in range(2))
    assert first.curves.equals(second.curves)


def test_the_gradient_on_the_gpu_is_right():
    assert check_gradient("mlp", dtype="float32", device="gpu", fast=True).passed
    assert jax.default_backend() == "gpu"
