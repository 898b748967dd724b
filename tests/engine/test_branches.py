"""Decays that branch off one stable run: the numbers of runs apart, for the steps of the trunk and its branches."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pyarrow.compute as pc
import pytest
from conftest import StopAfter
from sampling import sample

import gradbench
from gradbench.engine import units
from gradbench.engine.runner import Watcher
from gradbench.engine.slots.branches import shared
from gradbench.inputs.plan import SweepPlan
from gradbench.machine.workers import Alone

pytestmark = pytest.mark.usefixtures("compiled_quickly")
APART = {"budget": "1000trials"}  # with a budget every trial runs from its start


def plan_of(problem="quadratic_bowl[dim=3]", optimizer="momentum", **settings):
    spec = f"{optimizer}[schedule=wsd,stable=8|20|30,cooldown=0.1|0.4]"
    given = {"learning_rates": (0.01, 0.1, 100.0), "seeds": 1, "steps": 42, "timing": "none"}
    return SweepPlan((problem,), (spec,), **given | settings)


class Steps(Watcher):
    def chunk(self, progress):
        self.last = progress


def run_of(plan, out, watcher=None):
    return gradbench.run_plan(plan, out=out, watcher=watcher or Watcher())


@pytest.mark.parametrize(
    "settings",
    sample(
        [
            {"problem": "linear_regression", "batch_size": 128},  # observed every third step: falls end between rows
            {"dtype": "bfloat16", "stop_at_target": True},
            {},
            {"problem": "mlp[hidden=4]", "optimizer": "adam"},
        ]
    ),
)
def test_branches_are_the_trials_that_run_from_their_start(tmp_path, small_blocks, settings):
    small_blocks(lanes=2, rows=5)
    together, apart = (run_of(plan_of(**settings, **how), tmp_path) for how in ({}, APART))
    assert together.trials.equals(apart.trials)
    assert together.curves.equals(apart.curves)
    ran = together.trials.filter(np.asarray(together.trials["learning_rate"]) < 1)
    if not settings.get("stop_at_target"):  # each ends where its rate has come down to 0
        cooled = np.ceil(0.999 * ran["stable"].to_numpy() * ran["cooldown"].to_numpy())
        assert ran["steps_run"].to_pylist() == (ran["stable"].to_numpy() + cooled).tolist()


@pytest.mark.thorough
def test_metrics_of_branches_are_those_of_trials_from_their_start_and_reach_their_ends(tmp_path, small_blocks):
    small_blocks(lanes=2, rows=3)
    data = {"x": np.linspace(-1, 1, 16)}
    objects = {
        "line": gradbench.Problem(
            lambda key: jnp.ones(()),
            lambda w, data: jnp.mean((w * data["x"] - data["x"]) ** 2 + w),
            data=data,
            examples=16,
            holdout=data,
            metrics={"slope": lambda w, data: w},
            name="line",
        )
    }
    plans = [plan_of("line", learning_rates=(0.1,), batch_size=4, record_points=6, **how) for how in ({}, APART)]
    together, apart = (gradbench.run_plan(plan, out=tmp_path, objects=objects) for plan in plans)
    assert together.metrics.equals(apart.metrics)
    for row in together.trials.to_pylist():
        steps = together.metrics.filter(pc.field("trial") == row["trial"])["step"].to_numpy()
        assert (steps.max(), len(np.unique(steps))) == (row["steps_run"], len(steps) // 4)  # loss and slope, of both


@pytest.mark.thorough
def test_a_branch_ends_where_a_run_of_its_length_does(tmp_path, small_blocks):
    small_blocks(lanes=2, rows=5)
    run, point = run_of(plan_of(), tmp_path), {"learning_rate": 0.1, "stable": 8, "cooldown": 0.4}
    [problem], spec = run.plan.problems, "momentum[schedule=wsd]"
    short = SweepPlan((problem,), (spec,), seeds=1, timing="none", design=[point], steps=12)  # 8 + 0.4 × 8, whole
    [alone] = run_of(short, tmp_path).trials.to_pylist()
    [row] = [row for row in run.trials.to_pylist() if row | point == row]
    assert (row["final_loss"], row["steps_run"]) == (alone["final_loss"], 12)


def test_what_is_shared_is_computed_once(tmp_path, small_blocks):
    small_blocks(lanes=2, rows=5)
    steps, rates = Steps(), (0.01, 0.1)
    run = run_of(plan_of(learning_rates=rates, retire=False), tmp_path, steps)
    # A trunk of 42 steps; 30 | 0.1 goes on from 30 to 33, 20 from 20 to 22 and 28, 8 from 5, a chunk's start, to 9, 12.
    assert steps.last.trial_steps == len(rates) * (42 + 3 + 2 + 8 + 4 + 7) == steps.last.total_steps
    assert (steps.last.done, steps.last.trials, steps.last.steps_left) == (12, 12, 0)
    assert run.trials.num_rows == 12
    apart = Steps()
    run_of(plan_of(learning_rates=rates, retire=False, **APART), tmp_path, apart)
    assert apart.last.trial_steps == len(rates) * (9 + 12 + 22 + 28 + 33 + 42)


@pytest.mark.thorough
@pytest.mark.parametrize("questions", [4, 9])  # when branches are due and wait for slots
def test_a_stopped_run_goes_on_with_its_branches(tmp_path, small_blocks, questions):
    small_blocks(lanes=1, rows=5, devices=2)
    plan = plan_of(seeds=2)
    whole = run_of(plan, tmp_path / "whole")
    stopped = run_of(plan, tmp_path / "stopped", StopAfter(questions))
    assert stopped.info["state"] == "interrupted"
    steps = Steps()
    resumed = gradbench.resume(stopped.path, watcher=steps)
    assert resumed.trials.equals(whole.trials)
    assert resumed.curves.equals(whole.curves)
    assert steps.last.trial_steps <= steps.last.total_steps


def test_units_share_what_each_has_and_leave_the_same_record(tmp_path, small_blocks, monkeypatch):
    small_blocks(lanes=2, rows=5)
    monkeypatch.setattr(units, "unit_trials", lambda *_: 7)  # of 18 trials, whose branches lie in other units too
    whole = run_of(plan_of(), tmp_path)
    by_units = gradbench.run_plan(plan_of(), out=tmp_path, executor=Alone())
    assert by_units.trials.equals(whole.trials)
    assert by_units.curves.equals(whole.curves)


def test_a_branch_is_replayed_from_its_start(tmp_path, small_blocks):
    small_blocks(lanes=2, rows=5)
    assert gradbench.verify(run_of(plan_of(), tmp_path), 18, seed=1).holds


def test_trials_that_differ_in_nothing_but_their_fall_share_the_one_that_falls_last():
    settings = {
        "b1": np.array([0.9, 0.9, 0.9, 0.8, 0.9]),
        "stable": np.array([10.0, 40, 25, 10, 40]),
        "learning_rate": np.ones(5),
    }
    trunk, begin = shared(settings, np.zeros(5, np.int64), settings["stable"].astype(int), chunk=20)
    assert trunk.tolist() == [0, 1, 1, 3, 1]  # the first parts before a chunk is over, the fourth has another b1
    assert begin.tolist() == [0, 0, 20, 0, 40]
