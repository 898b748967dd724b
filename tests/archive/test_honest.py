"""An honest record holds wherever in its program a trial is run again, and where rounding moves an end or a verdict."""

import math

import pytest

import gradbench
from gradbench.archive import verify as module
from gradbench.archive.cells import Cell, Judge

ALL = 1000  # a sample of every trial


@pytest.mark.thorough
def test_a_trial_out_of_the_last_lanes_holds_to_the_bit_though_others_round_otherwise(sweep, small_blocks):
    """XLA:CPU computes lanes 20 and 21 of 22 apart, and fuses other products into their sums."""
    small_blocks(lanes=22, rows=41)
    run = sweep("rosenbrock", ["momentum"], "1e-4:1e-3:22", seeds=2, steps=40, timing="none")
    for seed in range(4):
        found = module.verify_run(run, sample=5, seed=seed)
        assert {row["result"] for row in found.rows} == {"bit for bit"}, seed
    found = module.verify_run(run, sample=44)  # the last lanes of one device are not those of the other
    assert found.holds


def test_a_trial_of_more_devices_than_are_here_is_judged_within_the_bound(sweep, small_blocks, monkeypatch):
    small_blocks(lanes=3, rows=41, devices=2)
    run = sweep("rosenbrock", ["sgd"], [1e-4, 1e-3], seeds=3, steps=10, timing="none")
    real = module.find_devices
    monkeypatch.setattr(module, "find_devices", lambda *given: real(*given)[:1])
    found = gradbench.verify(run, sample=ALL)
    assert found.holds
    assert "replayed elsewhere: devices 2 → 1" in found.notes


@pytest.mark.thorough
def test_a_trial_that_a_worker_with_one_device_ran_holds_to_the_bit(sweep, small_blocks):
    """The driver's block has two devices; XLA:CPU evaluates these metrics by other kernels in a program for one."""
    small_blocks(lanes=9, rows=21, devices=1)
    run = sweep("heat_rod_pinn[width=8]", ["adam"], "1e-3:1:6", seeds=2, steps=20, timing="none")
    run.info["blocks"]["heat_rod_pinn[width=8] × adam"]["devices"] = 2
    found = gradbench.verify(run, sample=4)
    assert {row["result"] for row in found.rows} == {"bit for bit"}


def ended(*steps):
    """The cells of a trial that diverges at a step, of each twin one."""
    points = {Cell("loss", 0): (1.0,) * len(steps)} | {Cell("loss", step): (math.inf,) for step in steps}
    return points | {Cell("steps_run"): steps}


@pytest.mark.parametrize(("twins", "outside"), [((25, 26, 28, 27, 25, 24, 25, 27), 0), ((26,) * 8, 3)])
def test_where_rounding_moves_the_end_of_a_trial_its_last_point_moves_too(twins, outside):
    judge = Judge.of(ended(24), ended(26), ended(*twins), noise=1e-7, stride=1, drawn=40)
    assert len(judge.outside) == outside  # or the end itself and both last points


@pytest.mark.parametrize(("twins", "outside"), [(("slow", "stalled") * 4, 0), (("stalled",) * 8, 1)])
def test_where_rounding_moves_a_verdict_it_is_no_accusation(twins, outside):
    """Only some twins have it; the other numbers are the same but for rounding, which the verdict follows from."""
    before, here, shaken = (
        {Cell("verdict"): of, Cell("loss", 0): (1.0,) * len(of)} for of in (("slow",), ("stalled",), twins)
    )
    assert len(Judge.of(before, here, shaken, noise=1e-7, stride=1, drawn=40).outside) == outside
