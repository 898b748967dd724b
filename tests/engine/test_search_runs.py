"""Searches and budgets in the engine: what they find, what they record, and that they go on where they were."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from conftest import StopAfter

import gradbench
from gradbench.engine import compiling
from gradbench.errors import PlanError
from gradbench.inputs.plan import SweepPlan

BOWL = {"problems": ("quadratic_bowl[dim=10]",), "optimizers": ("sgd",), "learning_rates": "1e-3:10:25", "steps": 200}


def run_of(out, **settings):
    return gradbench.run_plan(SweepPlan(**BOWL | {"seeds": 1, "timing": "none"} | settings), out=out)


@pytest.mark.parametrize("search", ["refine", "optuna", "halving"])
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


@pytest.mark.parametrize("search", ["refine", "optuna", "halving"])
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
