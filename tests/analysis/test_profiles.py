"""Profiles on records and tables whose answers are worked out by hand."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
from synthetic import make_run

from gradbench.analysis import profiles
from gradbench.analysis.summary import summarise
from gradbench.errors import GradbenchError


def test_performance_profile_of_three_problems_by_hand():
    found = profiles.performance_profile({"a": [1.0, 4.0, math.inf], "b": [2.0, 2.0, math.inf]})
    ratios, a = found["a"]
    np.testing.assert_array_equal(ratios, [1.0, 2.0])
    np.testing.assert_allclose(a, [1 / 3, 2 / 3])  # best of one, within 2 of another, nobody solves the third
    np.testing.assert_allclose(found["b"][1], [1 / 3, 2 / 3])


def test_performance_profile_needs_the_same_problems():
    with pytest.raises(GradbenchError, match="performance profile"):
        profiles.performance_profile({})


def test_ecdf_counts_what_is_never_reached():
    at, share = profiles.ecdf_over_targets([3.0, 1.0, 3.0, math.inf])
    np.testing.assert_array_equal(at, [1.0, 3.0])
    np.testing.assert_array_equal(share, [0.25, 0.75])


def test_measured_rate_of_an_exact_decay():
    steps = np.arange(0, 100, 7)
    assert profiles.measured_rate(steps, 0.93**steps) == pytest.approx(0.93, rel=1e-12)


def test_measured_rate_looks_at_the_tail():
    steps = np.arange(200)
    gaps = 0.99**steps + 100 * 0.5**steps  # by the last half the fast part is 1e-26
    assert profiles.measured_rate(steps, gaps) == pytest.approx(0.99, rel=1e-12)


def test_measured_rate_ends_where_the_gap_underflows():
    steps = np.arange(3000)
    gaps = np.where(steps < 600, 0.5**steps, 0.0)
    assert profiles.measured_rate(steps, gaps) == pytest.approx(0.5, rel=1e-12)


def test_measured_rate_of_too_little_is_unknown():
    assert math.isnan(profiles.measured_rate([0, 1], [1.0, 0.0]))


def test_the_interval_of_an_undisputed_best_is_that_point():
    trials = make_run((0.01, 0.1, 1.0), seeds=5, optimizers=["sgd"]).trials
    assert profiles.best_rate_interval(trials) == (1.0, 1.0, 1.0)


def test_the_interval_covers_the_rates_that_seeds_dispute():
    """Three of five seeds favour 0.1 and two favour 1: a resample has a majority for 1 with probability 0.317."""
    trials = make_run((0.01, 0.1, 1.0), seeds=5, optimizers=["sgd"]).trials
    rate, seed = trials["learning_rate"].to_numpy(), trials["seed"].to_numpy()
    loss = np.where(rate == 0.01, 0.9, np.where((rate == 0.1) == (seed < 3), 0.1, 0.5))
    trials = trials.set_column(trials.column_names.index("final_loss"), "final_loss", [loss])
    never = pa.nulls(trials.num_rows, pa.int64())
    trials = trials.set_column(trials.column_names.index("steps_to_target"), "steps_to_target", never)
    assert profiles.best_rate_interval(trials) == (0.1, 0.1, 1.0)


def test_the_interval_is_of_the_best_that_compare_names():
    """At 0.1 the target is reached first, at 1 the final gap is lower: the best is by steps to the target."""
    run = make_run((0.1, 1.0), seeds=3, optimizers=["sgd"], decay=lambda optimizer, rate: 0.5 if rate < 1 else 0.4)
    trials = run.trials.set_column(
        run.trials.column_names.index("final_loss"), "final_loss", [1e-9 / run.trials["learning_rate"].to_numpy()]
    )
    assert summarise(run)[0].best.learning_rate == 0.1
    assert profiles.best_rate_interval(trials) == (0.1, 0.1, 0.1)


def test_no_interval_where_all_diverge():
    trials = make_run(optimizers=["sgd"], decay=lambda optimizer, rate: -1.0).trials
    assert profiles.best_rate_interval(trials) is None


def test_profile_rows_of_a_record_with_a_known_order():
    run = make_run(decay=lambda optimizer, rate: rate * (2 if optimizer == "adam" else 1))
    rows = profiles.profile_rows([run])
    at_one = {row["solver"]: row["share"] for row in rows if row["ratio"] == 1.0}
    assert at_one == {"adam": 1.0, "sgd": 0.0}


def test_ecdf_rows_reach_every_target_of_a_converging_record():
    rows = profiles.ecdf_rows([make_run()])
    assert {row["solver"]: row["share"] for row in rows} == {"sgd": 1.0, "adam": 1.0}  # the last row of each


def test_profiles_in_seconds_count_what_a_step_costs():
    """adam takes half of sgd's steps and ten times its seconds per step."""
    run = make_run(decay=lambda optimizer, rate: rate * (2 if optimizer == "adam" else 1))
    slow = [
        row | {"step_s_median": row["step_s_median"] * (10 if row["optimizer"] == "adam" else 1)}
        for row in run.timings.to_pylist()
    ]
    run = dataclasses.replace(run, timings=pa.Table.from_pylist(slow, schema=run.timings.schema))
    at_one = lambda rows: {row["solver"]: row["share"] for row in rows if row["ratio"] == 1.0}  # noqa: E731
    assert at_one(profiles.profile_rows([run])) == {"adam": 1.0, "sgd": 0.0}
    assert at_one(profiles.profile_rows([run], seconds=True)) == {"adam": 0.0, "sgd": 1.0}
    firsts = {row["solver"]: row["cost"] for row in reversed(profiles.ecdf_rows([run], seconds=True)) if row["cost"]}
    # the gap exp(-rate × step) is under 0.1 at step 3 for sgd at 1, and at step 2 for adam; a step takes 1.04 ms
    assert firsts == pytest.approx({"sgd": 3 * 1.04e-3, "adam": 2 * 1.04e-2})
