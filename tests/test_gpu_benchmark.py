"""The benchmark of `make gpu` at a small size: on any device, or it says why not; and its kernel is right."""

from __future__ import annotations

import gpu
import gpu_cases as cases
import jax
import jax.numpy as jnp
import kernel
import numpy as np
import pytest

from gradbench.inputs.problem import load_problem

needs_pallas = pytest.mark.skipif(kernel.available() is not None, reason=str(kernel.available()))
CPU = jax.local_devices(backend="cpu")[0]


@pytest.mark.thorough
def test_every_case_is_measured_or_says_why_not(tmp_path):
    saved = []
    rows = gpu.measure(cases.SMALL, CPU, rounds=1, budget=1000.0, save=lambda rows: saved.append(len(rows)))
    found = {row["case"] for row in rows}
    assert found == {"scale", "loops", "unroll", "tiny dots", "lookups", "network", "block", "kernel"}
    of_gpus = dict.fromkeys(
        ["CUDA graph", "not tried out", "any kernels", "any kernels, as written"], "an option of XLA's for GPUs"
    )
    allowed = of_gpus | {"one launch": kernel.available()}
    for row in rows:
        assert row["reason"] == allowed.get(row["variant"]), row
        assert (row["trial_step_s"] is None) == (row["reason"] is not None)
    assert saved == sorted(set(saved))
    assert saved[-1] == len(rows)
    assert gpu.show(rows).count("\n") >= len(rows)


def test_a_variant_that_fails_is_a_row_and_the_others_are_measured():
    def fail():
        raise MemoryError("no room\nat all")

    sides = [
        cases.Variant("good", "p", 2, lambda: (lambda: 0.2, 2, 10)),
        cases.Variant("bad", "p", 2, fail),
        cases.Variant("half as good", "p", 2, lambda: (lambda: 0.4, 2, 10)),
    ]
    good, bad, half = gpu.compare("case", sides, rounds=3, platform="cpu")
    assert bad["reason"] == "MemoryError: no room"
    assert bad["ratio"] is None
    assert good["trial_step_s"] == pytest.approx(0.01)
    assert half["ratio"] == pytest.approx(2.0)


def test_a_series_ends_where_a_call_is_slow():
    sides = [cases.Variant(str(n), "p", n, lambda n=n: (lambda: float(n), n, 1)) for n in (1, 3, 9)]
    rows = gpu.compare("block", sides, rounds=1, platform="cpu")
    assert [row["reason"] is None for row in rows] == [True, True, False]


def test_the_device_overtakes_where_it_stays_ahead():
    rows = [
        {"case": "scale", "platform": "gpu", "problem": "p", "trials": trials, "ratio": ratio}
        for trials, ratio in ((1, 9.0), (4, 0.9), (16, 1.1), (64, 0.5), (256, 0.1))
    ]
    assert gpu.overtaking(rows) == {"p": 64}
    assert gpu.overtaking(rows[:3]) == {"p": None}


@needs_pallas
def test_the_one_launch_kernel_is_the_engines_program():
    problem, rows = load_problem("quadratic_bowl[dim=3]"), 6
    lambdas = [float(value) for value in problem.data]
    call = jax.jit(kernel.many_steps(lambdas, rows, tiles=2, interpret=True))
    ones = jnp.ones((3, 256))
    loss, norm, turned, x, u = map(np.asarray, call(ones, jnp.zeros_like(ones), cases.rates_of(256)))
    expected = cases.xla_losses(problem, 256, rows, CPU)
    assert np.abs(loss - expected).max() < kernel.loss_tolerance(lambdas, rows)
    # the closed form of gradient descent: x = (1 - 2 rate lambda)^n, in float64
    rates, scales = cases.rates_of(256).astype(float), np.array(lambdas)[:, None]
    path = (1 - 2 * rates * scales) ** np.arange(rows + 1)[:, None, None]
    np.testing.assert_allclose(x, path[rows], rtol=4 * rows * 2.0**-24)
    np.testing.assert_allclose(norm, ((2 * scales * path[:rows]) ** 2).sum(axis=1), rtol=(8 * rows + 6) * 2.0**-24)
    np.testing.assert_allclose(u, path[rows] - path[rows - 1], atol=8 * rows * 2.0**-24)
    assert not turned.any()  # rates up to 0.1 of a bowl with L = 2 pass no lowest point


@needs_pallas
def test_the_kernel_lowers_to_mosaic_for_a_gpu():
    call = jax.jit(kernel.many_steps([0.1, 1.0], rows=4, tiles=2, interpret=False))
    state = jnp.ones((2, 256))
    text = call.trace(state, state, jnp.ones(256)).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text
    assert "triton" not in text
