"""Limits: measured ones are possible, and a step's are the roof that it needs."""

from __future__ import annotations

import dataclasses
import json

import pytest

from gradbench.engine import roofline as limits
from gradbench.engine.roofline import Limits, measure_limits, stored_limits
from gradbench.machine.devices import find_devices

KNOWN = Limits(devices=2, flops_per_s=100.0, bytes_per_s=((10, 50.0), (1000, 20.0)), kernel_s=0.5)


def test_a_step_is_limited_by_the_slowest_of_what_it_needs():
    assert KNOWN.of_step(2, flops=300, moved=0, kernels=1) == (3.0, "flops")
    assert KNOWN.of_step(1, flops=300, moved=0, kernels=1) == (6.0, "flops")  # half the devices, half the rate
    assert KNOWN.of_step(2, flops=300, moved=20 * 200, kernels=1) == (200.0, "bytes")  # 2000 bytes per device: memory
    assert KNOWN.of_step(1, flops=0, moved=100, kernels=1) == (4.0, "bytes")  # 100 bytes stay near
    assert KNOWN.of_step(2, flops=300, moved=0, kernels=8) == (4.0, "launches")


def test_rows_are_judged_by_their_own_devices():
    row = {"devices": 1, "flops_per_step": 100.0, "moved_bytes": 0.0, "kernels_per_step": 0, "step_s_median": 8.0}
    judged = KNOWN.add_roofline(row)
    assert (judged["limit_s"], judged["limit"], judged["of_limit"]) == (2.0, "flops", 0.25)


@pytest.mark.parametrize("dtypes", [("float32",), ("float32", "bfloat16")])
def test_limits_are_read_as_they_are_kept(dtypes):
    """A finished record of one dtype holds its limits alone; one that could not be finished has that form too."""
    kept = json.loads(json.dumps(dataclasses.asdict(KNOWN)))
    info = {"limits": kept if len(dtypes) == 1 else dict.fromkeys(dtypes, kept)}
    found = stored_limits(info, dtypes)
    assert list(found) == list(dtypes)
    assert Limits(**found["float32"]).of_step(2, flops=300, moved=0, kernels=1) == (3.0, "flops")
    assert stored_limits({}, dtypes) == {}


def test_what_is_measured_is_possible(monkeypatch):
    monkeypatch.setattr(limits, "SAMPLES", 2)
    monkeypatch.setattr(limits, "SAMPLE_SECONDS", 0.001)
    found = measure_limits.__wrapped__(tuple(find_devices("cpu")), "float32", "highest")
    assert found.devices == len(find_devices("cpu"))
    assert 1e8 < found.flops_per_s / found.devices < 1e13  # a core makes 64 float32 operations a cycle at the most
    rates = [rate for _, rate in found.bytes_per_s]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 1e8
    assert 0 < found.kernel_s < 1e-4


def test_a_complete_run_says_how_near_its_limit_each_step_came(sweep):
    run = sweep("quadratic_bowl", ["sgd"], [0.1, 0.2], seeds=1, steps=50, timing="batched")
    (row,) = run.timings.to_pylist()
    assert row["limit"] in ("flops", "bytes", "launches")
    assert row["of_limit"] == pytest.approx(row["limit_s"] / row["step_s_median"])
    assert run.info["limits"]["devices"] == run.info["environment"]["device_count"]
    # Of each slot 100 float32 of params and of updates, and a float; all read and written. lambda on each device.
    state = row["trials"] * (2 * 100 * 4 + 4)
    assert row["moved_bytes"] == 2 * state + row["devices"] * 100 * 4
