"""Answers from records whose answer is known: built by hand, and the bowl's."""

from __future__ import annotations

import dataclasses
import json
import math

import jax.numpy as jnp
import pyarrow as pa
import pytest
from synthetic import make_run

import gradbench
from gradbench.analysis.answers import pair_sentence, run_table
from gradbench.analysis.settings.comparison import RecordComparison, compare_text
from gradbench.analysis.summary import summarise, summarise_tables
from gradbench.analysis.verdicts import Reference, reference, relative_gaps
from gradbench.errors import GradbenchError
from gradbench.inputs.plan import SweepPlan
from gradbench.record.schema import SCHEMAS
from gradbench.theory.quadratic import stable_limit

TIMINGS, TRIALS = SCHEMAS["timings"], SCHEMAS["trials"]
PLAN = SweepPlan(problems=("p",), optimizers=("sgd",))


def trials(rows) -> pa.Table:
    """Trials of one pair from (learning rate, seed, verdict, final loss, steps to target)."""
    base = dict.fromkeys(TRIALS.names) | {"problem": "p", "optimizer": "sgd", "initial_loss": 2.0}
    base |= {"minimum": 1.0}
    keys = ("learning_rate", "seed", "verdict", "final_loss", "steps_to_target")
    return pa.Table.from_pylist([base | dict(zip(keys, row)) for row in rows], schema=TRIALS)


def summary(rows, factor=2.0):
    solo = dict.fromkeys(TIMINGS.names) | {
        "problem": "p",
        "optimizer": "sgd",
        "mode": "solo",
        "step_s_median": 1e-3,
    }
    timings = pa.Table.from_pylist([solo], schema=TIMINGS)
    return next(summarise_tables(PLAN, trials(rows), timings, {"p": {"curvature": [0.1, 4.0]}}, factor))


def converged(rate, *steps):
    return [(rate, seed, "converged", 1.00001, s) for seed, s in enumerate(steps)]


def test_the_best_rate_has_all_seeds_and_the_fewest_steps():
    rows = [*converged(0.1, 40, 50, 60), *converged(0.2, 20, 30, 40), *converged(0.4, 10, 10, None)]
    found = summary(rows)
    assert found.best.learning_rate == 0.2
    assert found.best.steps_to_target == 30
    assert found.best.time_to_target_s == pytest.approx(0.030)
    assert found.good == (0.1, 0.2)
    assert found.good_decades == pytest.approx(math.log10(2))
    assert summary(rows, factor=1.5).good == (0.2, 0.2)


def test_the_good_range_does_not_jump_a_gap():
    rows = [*converged(0.1, 20), *converged(0.2, 500), *converged(0.4, 10), *converged(0.8, 19)]
    assert summary(rows).good == (0.4, 0.8)


def test_without_the_target_the_lowest_gap_is_best():
    rows = [(0.1, 0, "slow", 1.5, None), (0.2, 0, "slow", 1.2, None), (0.4, 0, "diverged", 9e9, None)]
    found = summary(rows)
    assert found.best.learning_rate == 0.2
    assert found.best.gap_median == pytest.approx(0.2)
    assert found.edge == (0.2, 0.4)
    assert found.diverged_share == pytest.approx(1 / 3)
    assert found.stable_limit == 0.5


def test_where_all_diverge_there_is_no_best():
    found = summary([(0.1, 0, "diverged", math.inf, None), (0.2, 0, "diverged", math.nan, None)])
    assert found.best is None
    assert found.good is None
    assert found.edge == (None, 0.1)


def test_rates_come_ascending_whatever_the_plan_s_order():
    found = summary([*converged(0.4, 10), *converged(0.1, 30), *converged(0.2, 20)])
    assert [rate.learning_rate for rate in found.rates] == [0.1, 0.2, 0.4]


def test_gaps_are_relative_and_infinite_where_diverged():
    rows = [(0.1, 0, "slow", 1.25, None), (0.1, 1, "diverged", 1.0, None), (0.1, 2, "slow", 0.999, None)]
    assert relative_gaps(trials(rows)).tolist() == [0.25, math.inf, 0.0]


def unknown(*losses: tuple[float, float, float]) -> pa.Table:
    """Trials of a problem of unknown minimum from (initial loss, final loss, best loss)."""
    base = dict.fromkeys(TRIALS.names) | {
        "problem": "p",
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "verdict": "slow",
    }
    keys = ("initial_loss", "final_loss", "best_loss")
    rows = [base | {"trial": 7 + i, "seed": i} | dict(zip(keys, row)) for i, row in enumerate(losses)]
    return pa.Table.from_pylist(rows, schema=TRIALS)


def test_the_reference_is_the_minimum_else_the_target_else_the_best_loss_found():
    found = unknown((2.0, -1.0, -3.0), (2.0, -2.0, -4.0), (2.0, math.inf, math.nan))
    assert reference(trials(converged(0.1, 20)), {"target": 5.0}) == Reference("minimum", 1.0)
    assert reference(found, {"target": -1.0}) == Reference("target", -1.0)
    assert reference(found, {"target": None}) == reference(found) == Reference("best found", -4.0, 8)
    assert math.isnan(reference(unknown((2.0, math.nan, math.inf))).loss)


def test_gaps_of_losses_below_zero_are_to_the_best_loss_found():
    # sum(p**2) - 100 from ones(2): the first gap to the best, -100, is 2
    found = unknown((-98.0, -99.0, -99.0), (-98.0, -100.0, -100.0), (-98.0, -97.0, -98.0))
    assert relative_gaps(found).tolist() == [0.5, 0.0, 1.5]


def test_gaps_to_a_target_go_below_zero_and_a_start_at_the_reference_is_no_fault():
    rows = unknown((2.0, 0.5, 0.5), (2.0, 0.0, 0.0), (1.0, 0.5, 0.5), (1.0, 1.0, 1.0), (1.0, 1.5, 1.0))
    assert relative_gaps(rows, Reference("target", 1.0)).tolist() == [-0.5, -1.0, 0.0, 0.0, math.inf]


def test_every_table_and_sentence_says_what_gaps_are_to(sweep):
    problem = gradbench.Problem(lambda key: jnp.ones(2), lambda p, _: jnp.sum(p**2) - 100, name="below")
    run = sweep(problem, ["sgd", "adam"], [0.001, 0.1], seeds=1, steps=200, dtype="float64")
    # sgd at 0.1 multiplies p by 0.8 a step: by step 200 the loss is -100 + 2 × 0.8**400, which rounds to -100
    best = run.trials.to_pylist()[1]["trial"]
    table = compare_text(run, "markdown", 2.0)
    assert f"below × sgd: gaps to the best loss found, -100 (trial {best})" in table
    assert "| best found |" in run_table(run, "markdown")
    [sgd, adam] = json.loads(compare_text(run, "json", 2.0))["pairs"]
    assert (sgd["reference"], sgd["reference_loss"], sgd["reference_trial"]) == ("best found", -100.0, best)
    assert sgd["final_gap"] == 0.0
    # 0.998**200 of the distance is left, and its square of the gap
    assert sgd["rates"][0]["gap_median"] == pytest.approx(0.998**400, rel=1e-10)
    assert 0 < adam["rates"][0]["gap_median"] < 1
    sentence = "below × sgd: best at learning rate 0.1, the highest tried, where it ends at loss -100, from -98"
    assert pair_sentence(summarise(run)[0]) == sentence  # no verdict: the next pair may find a lower loss
    assert pair_sentence(summarise(run)[0], alone=True) == sentence.replace(": best", ": by itself best")


@pytest.mark.parametrize(
    ("spec", "limit"),
    [
        ("sgd", 0.5),
        ("momentum", 0.95),
        ("sgd[momentum=0.5]", 0.75),
        ("nesterov", 2 * 1.9 / (2.8 * 4)),
        ("adam", None),
        ("sgd[schedule=cosine]", None),
    ],
)
def test_stable_limits(spec, limit):
    assert stable_limit(spec, 4.0) == (limit if limit is None else pytest.approx(limit))


def test_a_factor_below_one_is_refused():
    with pytest.raises(GradbenchError, match="factor"):
        summary(converged(0.1, 5), factor=0.5)


def test_an_interrupted_record_says_of_how_many_trials_its_tables_are():
    run = make_run()
    run = dataclasses.replace(run, info=run.info | {"state": "interrupted"}, trials=run.trials.slice(0, 4))
    [note] = [note for note in RecordComparison.of([run], 2.0, (), (), None).notes if "finished" in note]
    assert (
        note == f"4 of 18 trials have finished: the tables are of these; go on with: gradbench run --resume {run.path}"
    )
    assert "have finished" not in compare_text(make_run(), "table", 2.0)
