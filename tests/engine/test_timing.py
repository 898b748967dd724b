"""Timing: every mode and stage is there, waits for the work, and scales with it."""

from __future__ import annotations

import time

import jax
import pytest

import gradbench
from gradbench.engine import timing


@pytest.mark.thorough
def test_a_run_times_every_mode_and_stage(tmp_path):
    run = gradbench.sweep("linear_regression", ["sgd", "adam"], "0.01:0.1:4", seeds=1, steps=50, out=tmp_path)
    rows = run.timings.to_pylist()
    modes = [(row["optimizer"], row["mode"]) for row in rows]
    assert modes == [
        ("sgd", "solo"),
        ("sgd", "batched"),
        (None, "value"),
        (None, "value_and_grad"),
        ("adam", "solo"),
        ("adam", "batched"),
    ]
    for row in rows:
        stages = [row[f"{stage}_s"] for stage in ("trace", "lower", "compile", "first_run")]
        assert all(seconds > 0 for seconds in stages)
        assert 0 < row["step_s_min"] <= row["step_s_p25"] <= row["step_s_median"] <= row["step_s_p75"]
        assert row["samples"] == len(row["step_s_samples"]) >= timing.SAMPLES
        assert row["trusted"] == (1.9 <= row["doubling"] <= 2.1)
        assert row["flops_per_s"] == pytest.approx(row["flops_per_step"] / row["step_s_median"])
    # Two products of 442 x 11 a gradient and one a value, 2 FLOP a term; XLA counts the smaller operations too.
    product = 2 * 442 * 11
    flops = {(row["optimizer"], row["mode"]): row["flops_per_step"] / row["trials"] for row in rows}
    assert product <= flops[None, "value"] <= 1.3 * product
    assert 2 * product <= flops["sgd", "solo"] <= 1.5 * 2 * product
    assert 2 * product <= flops["sgd", "batched"] <= 1.5 * 2 * product


def test_measure_reports_seconds_a_step_and_checks_the_clock():
    calls = []

    def once(repeats: int) -> float:
        calls.append(repeats)
        return 0.01 * repeats  # ten steps of a millisecond each

    found = timing.measure(once, steps=10)
    assert found["step_s_median"] == pytest.approx(1e-3)
    assert found["doubling"] == pytest.approx(2.0)
    assert found["trusted"]
    assert found["samples"] == timing.SAMPLES
    assert calls.count(2) >= timing.SAMPLES // 3


def test_a_clock_that_does_not_scale_is_not_trusted():
    found = timing.measure(lambda repeats: 0.01, steps=1)
    assert found["doubling"] == pytest.approx(1.0)
    assert not found["trusted"]


def test_slow_steps_get_fewer_samples():
    spent = []

    def once(repeats: int) -> float:
        spent.append(5.0 * repeats)
        return spent[-1]

    assert timing.measure(once, steps=1)["samples"] == 3
    assert sum(spent) < 4 * timing.BUDGET_SECONDS


def test_compile_stages_counts_a_loop_body_once():
    import jax.numpy as jnp

    def loop(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, length=50)[0]

    began = time.perf_counter()
    compiled = timing.compile_stages(jax.jit(loop), jnp.eye(16))
    assert compiled.trace_s + compiled.lower_s + compiled.compile_s <= time.perf_counter() - began
    assert 2 * 16**3 <= compiled.flops < 2 * 2 * 16**3


def test_blocks_fit_the_cache_and_share_large_data(monkeypatch):
    from gradbench.inputs.optimizer import load_optimizer
    from gradbench.inputs.plan import SweepPlan
    from gradbench.inputs.problem import load_problem
    from gradbench.machine.devices import find_devices
    from gradbench.program import block as cost
    from gradbench.program.block import choose_block
    from gradbench.program.program import Trial

    monkeypatch.setattr(cost, "cores", lambda: 1)

    def lanes(name, count=64, steps=400):
        plan = SweepPlan((name,), ("sgd",), f"1e-3:1:{count}", seeds=1, steps=steps)
        trial = Trial.of(load_problem(name), load_optimizer("sgd"), plan)
        return choose_block(trial, find_devices("cpu")[:1], count)

    assert lanes("mlp").lanes == 4  # 1797 rows of activations fill a core's cache, but products like company
    assert lanes("mlp[hidden=128]").lanes == 2
    assert lanes("quadratic_bowl").lanes == 64
    assert lanes("logistic_regression", count=90).lanes == 45  # two equal blocks, not one of 50 and one of 40
    assert lanes("quadratic_bowl", count=10**6, steps=10).lanes > 1000
    large = lanes("linear_regression[examples=20000,features=100]")
    assert 4 <= large.lanes <= 64  # 8 MB of data are read once for all of them
    slow = lanes("mlp[hidden=(512,256)]")
    # 1.8 GFLOP a trial-step (6 x 1797 x (64 x 512 + 512 x 256 + 256 x 10)), 36 ms at the model's rate: 3.5 of two
    # in 0.25 s
    assert (slow.lanes, slow.rows) == (2, 4)
