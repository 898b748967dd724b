"""Searches and budgets in the engine: what they find, what they record, and that they go on where they were."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow.compute as pc
import pytest
from conftest import StopAfter
from sampling import sample

import gradbench
from gradbench.engine import compiling
from gradbench.errors import PlanError
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.specs.schedules import risen
from gradbench.theory.rising import risen_rates

pytestmark = pytest.mark.usefixtures("compiled_quickly")
BOWL = {"problems": ("quadratic_bowl[dim=10]",), "optimizers": ("sgd",), "learning_rates": "1e-3:10:25", "steps": 200}


def run_of(out, **settings):
    return gradbench.run_plan(SweepPlan(**BOWL | {"seeds": 1, "timing": "none"} | settings), out=out)


@pytest.mark.parametrize("search", sample(["refine", "optuna", "halving"]))
def test_a_search_comes_as_close_to_the_best_as_the_grid_for_less(tmp_path, search):
    if search == "optuna":
        pytest.importorskip("optuna")
    grid = run_of(tmp_path)
    found = run_of(tmp_path, search=search, **({"budget": "24trials"} if search == "optuna" else {}))
    # x is scaled by 1 - rate × curvature: steps to the target are least where the ends of the spectrum meet, and near
    # it they grow no faster than the rate falls: a factor of 1.1 of the rate is one of 1.1 of the steps.
    best = {run.id: run.best()[0].steps_to_target for run in (grid, found)}
    assert best[found.id] <= 1.1 * best[grid.id]
    steps = {run.id: int(np.sum(run.trials["steps_run"])) for run in (grid, found)}
    assert steps[found.id] < steps[grid.id]
    assert (found.trials["tried"].null_count == 0) == (search != "halving")


@pytest.mark.parametrize("search", sample(["halving", "refine", "optuna"]))
def test_a_search_that_was_stopped_goes_on_to_the_same_record(tmp_path, small_blocks, search):
    if search == "optuna":
        pytest.importorskip("optuna")
    small_blocks(lanes=2, rows=7)
    settings = {"search": search, "seeds": 2, "budget": "20trials" if search == "optuna" else None, "steps": 63}
    plan = SweepPlan(**BOWL | {"timing": "none"} | settings)
    whole = gradbench.run_plan(plan, out=tmp_path / "whole")
    stopped = gradbench.run_plan(plan, out=tmp_path / "stopped", watcher=StopAfter(11))
    assert stopped.info["state"] == "interrupted"
    assert 0 < stopped.trials.num_rows < whole.trials.num_rows
    resumed = gradbench.resume(stopped.path)
    assert resumed.trials.equals(whole.trials)
    assert resumed.curves.equals(whole.curves)


def test_halving_stops_the_worse_at_the_rungs_and_compiles_once(tmp_path, monkeypatch):
    programs, compile_program = [], compiling.compile_program
    monkeypatch.setattr(compiling, "compile_program", lambda program: programs.append(1) or compile_program(program))
    run = run_of(tmp_path, search="halving", design="random:81", steps=270)
    taken = np.sort(run.trials["steps_run"].to_numpy())
    finite = run.trials["verdict"].to_numpy(False) != "diverged"
    at, count = np.unique(run.trials["steps_run"].to_numpy()[finite], return_counts=True)
    assert len(programs) == 1
    assert len(taken) == 81
    assert taken.sum() < 81 * 270 / 3
    # At 1 / 9 and 1 / 3 of the steps a third of those that reach it go on; a rung's last row is a step before it.
    assert set(at.tolist()) <= {29, 89, 270}, (at, count)


def test_a_budget_ends_a_sweep_and_the_record_says_what_was_not_run(tmp_path):
    by_trials = run_of(tmp_path, budget="7trials")
    assert by_trials.trials["trial"].to_pylist() == list(range(7))
    by_steps = run_of(tmp_path, budget="1000steps", retire=False)
    assert by_steps.trials.num_rows == 5
    in_no_time = run_of(tmp_path, budget="1e-9s")
    assert in_no_time.trials.num_rows == 0
    assert [run.info["state"] for run in (by_trials, by_steps, in_no_time)] == ["complete"] * 3


def test_without_optuna_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(PlanError, match="Optuna is not installed"):
        run_of(tmp_path / "results", search="optuna")
    assert not (tmp_path / "results").exists()


def test_a_range_test_is_one_trial_a_seed_whose_rate_rises_at_every_step(tmp_path):
    """Of x² from 1 an update at rate r leaves 1 - 2 r of x."""
    settings = {"problems": ("quadratic_bowl[dim=1]",), "learning_rates": "1e-3:0.4:9", "steps": 30, "seeds": 2}
    run = run_of(tmp_path, search="range-test", **settings)
    assert run.trials["tried"].to_pylist() == ["range test"] * 2
    rates = risen_rates(0.4, risen(run.plan.optimizers[0]), 30)
    np.testing.assert_allclose(rates[[0, 15, 29]], [1e-3, 1e-3 * 400 ** (15 / 29), 0.4], rtol=1e-5)
    curve = run.curves.filter(pc.field("trial") == 1)
    expected = np.append(1.0, np.cumprod(1 - 2 * rates) ** 2)[curve["step"].to_numpy()]
    # A step rounds the rate, its product and the difference, and the loss squares what 30 steps add up to; 1 - 2 r is
    # a difference, at r = 0.4 of five times its rounding.
    np.testing.assert_allclose(curve["loss"].to_numpy(), expected, rtol=30 * 2 * 3 * 5 * 2**-24)
    assert gradbench.SweepPlan.from_dict(run.plan.to_dict()) == run.plan


def test_compare_says_what_a_range_test_suggests_and_names_no_best(tmp_path):
    run = run_of(tmp_path, search="range-test", learning_rates="1e-3:100:25")
    [pair] = run.summary()
    found = gradbench.compare(run)
    assert (pair["best_learning_rate"], pair["verdict"]) == (None, "range test")
    step = run.curves["step"].to_numpy()[np.nanargmin(run.curves["loss"].to_numpy())]
    rate = 1e-3 * 1e5 ** (step / 199)
    assert rate > 1  # below 2 / L every part of the bowl's loss falls
    assert pair["suggested_learning_rate"] == float(f"{rate / 10:.2g}")
    assert f"suggested {pair['suggested_learning_rate']:g}, a tenth of the lowest" in str(found)
    assert "tried; go on with" not in str(found)
