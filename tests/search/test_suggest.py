"""A learning rate in seconds, where theory knows which is best."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gradbench
from gradbench.cli.main import invoke
from gradbench.errors import GradbenchError
from gradbench.search.suggest import FINER, suggest

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.parametrize("condition", [1, 10])
def test_gradient_descent_on_a_bowl_is_given_the_best_fixed_step(condition):
    found = suggest(f"quadratic_bowl[dim=10,condition={condition}]", "sgd", steps=60)
    # 2 / (L + mu), with L = 2 and mu = L / condition; the rates that are run stand a factor of FINER apart.
    assert abs(np.log(found.learning_rate / (2 / (2 + 2 / condition)))) <= np.log(FINER)
    assert found.stable_limit == pytest.approx(1)
    assert found.edge > found.stable_limit  # a rising rate has a few steps beyond it before it has left
    assert found.losses[min(found.losses, key=found.losses.get)] == min(found.losses.values())


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", ["adam", "momentum", "lion"])
def test_a_suggestion_is_as_good_as_a_sweep_finds(sweep, optimizer):
    found = suggest("linear_regression", optimizer, steps=100)
    run = sweep("linear_regression", optimizer, [found.learning_rate], seeds=1, steps=100, timing="none")
    grid = sweep("linear_regression", optimizer, "1e-3:10:17", seeds=1, steps=100, timing="none")
    at, best = (float(np.nanmin(r.trials["final_loss"].to_numpy())) for r in (run, grid))
    start = run.trials["initial_loss"].to_pylist()[0]
    # Within the grid's good range: its gap at most twice the best's, or told apart from it by 1 % of the first.
    low = grid.trials["minimum"].to_pylist()[0]
    assert at - low <= max(2 * (best - low), 0.01 * (start - low))


def test_minibatches_randomness_and_state_are_taken():
    found = suggest("linear_regression", "sgd", steps=40, batch_size=64)
    assert 0 < found.learning_rate < 1
    assert "linear_regression × sgd: learning rate" in str(found)


def test_the_command_line_and_python_have_it(capsys):
    assert invoke(["suggest", "quadratic_bowl[dim=2]", "-o", "sgd", "--steps", "30", "--format", "json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert row["learning_rate"] == gradbench.suggest("quadratic_bowl[dim=2]", "sgd", steps=30).learning_rate
    assert len(gradbench.SweepPlan(learning_rates=row["range"]).rates) == 13


def test_bad_input_gets_one_line():
    with pytest.raises(GradbenchError, match="has axes"):
        suggest("mlp", "adam[b1=0.5|0.9]")
    with pytest.raises(GradbenchError, match="no optimizer 'adm'"):
        suggest("mlp", "adm")
    assert invoke(["suggest"]) == 2
