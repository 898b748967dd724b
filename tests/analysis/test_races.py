"""Races between optimizers: against closed forms, brute force, and races drawn with a known truth."""

import dataclasses
import itertools
import json
import math
import re

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from sampling import sample
from simulated import BUDGET, outcome, race
from synthetic import make_run

import gradbench
from gradbench.analysis.races.intervals import Estimate, holm, jackknife, mean_of_strata
from gradbench.analysis.races.outcomes import Outcomes, outcomes
from gradbench.analysis.races.races import STEPS, races_of, sentence
from gradbench.analysis.races.text import chosen_text, races_text, tunability_text
from gradbench.analysis.races.tunability import expected_results, subset_weights, tunability_of
from gradbench.errors import GradbenchError, PlanError
from gradbench.suites.ranking import ranks


def twice_as_fast(optimizer, rate):
    """adam reaches every gap in half the steps of sgd, at the same learning rates."""
    return rate * (2 if optimizer == "adam" else 1)


def test_one_stratum_is_students_test():
    values = np.random.default_rng(0).standard_normal(9) + 0.5
    found, scipys = mean_of_strata([values]), scipy.stats.ttest_1samp(values, 0)
    assert found.p_value == pytest.approx(scipys.pvalue)
    assert found.interval() == pytest.approx(tuple(scipys.confidence_interval(0.95)))


def test_two_strata_are_welchs_test():
    """The mean of the means of x and -y is half the difference of the means of x and y."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal(7), 3 * rng.standard_normal(12) + 1
    found, scipys = mean_of_strata([x, -y]), scipy.stats.ttest_ind(x, y, equal_var=False)
    assert found.p_value == pytest.approx(scipys.pvalue)
    assert found.freedom == pytest.approx(scipys.df)
    assert [2 * end for end in found.interval()] == pytest.approx(list(scipys.confidence_interval(0.95)))


def test_strata_of_two_values_claim_no_more_than_they_may_where_one_is_spread_most():
    """Satterthwaite's degrees of freedom gave 8 % here: by chance the wide one's two values are close to each other."""
    rng, count = np.random.default_rng(8), 2500
    drawn = rng.standard_normal((count, 4, 2)) * [[10.0], [1.0], [1.0], [1.0]]
    claims = np.mean([mean_of_strata(strata).p_value < 0.05 for strata in drawn])
    assert abs(claims - 0.05) <= 4 * math.sqrt(0.05 * 0.95 / count)
    uneven = mean_of_strata([np.array([1.0, 3.0]), np.array([0.0, 0.0, 3.0])])
    assert uneven == Estimate(1.5, 1.25, 1.0)  # the halves: (1 + 0) / 2 and (3 + 3) / 2
    halves_agree = mean_of_strata([np.log([10.0, 20.0]), np.log([20.0, 10.0])])
    assert math.isnan(halves_agree.error)
    assert halves_agree.p_value == 1
    assert mean_of_strata([np.array([0.3, 0.3]), np.array([0.1, 0.1])], same=True).error == 0


def test_the_jackknife_of_a_mean_has_its_standard_error():
    values = np.random.default_rng(2).standard_normal(11)
    found = jackknife(11, lambda at: float(values[at].mean()))
    assert found.error == pytest.approx(scipy.stats.sem(values))


def test_holms_p_values():
    """0.01 counts three times, 0.03 twice; 0.04 once, but no less than the one before it."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_what_could_have_been_seen_is_seen_in_four_of_five_cases():
    """The power of Student's test by the noncentral t distribution; the sum of two quantiles is its approximation."""
    of = Estimate(0.0, 0.1, 30.0)
    threshold = scipy.stats.t.ppf(0.975, of.freedom)
    assert scipy.stats.nct.sf(threshold, of.freedom, of.detectable / of.error) == pytest.approx(0.8, abs=0.01)


def test_a_seed_has_no_part_in_the_choice_that_it_is_judged_by():
    made = outcome(np.random.default_rng(3), "p", "a", 12, spread=1.0)
    for seed in range(12):
        steps, gaps = made.steps.copy(), made.gaps.copy()
        steps[:, seed], gaps[:, seed] = steps[::-1, seed], gaps[::-1, seed]
        other = dataclasses.replace(made, steps=steps, gaps=gaps)
        assert other.select().setting[seed] == made.select().setting[seed]


@pytest.mark.parametrize(("seeds", "problems", "spread"), sample([(6, 1, 0.3), (10, 3, 0.8)]))
def test_intervals_hold_the_truth_and_equals_are_seldom_told_apart(seeds, problems, spread):
    """tests/benchmarks/race_coverage.py does it 10,000 times; here the binomial's 4 sigma are allowed."""
    rng, count = np.random.default_rng(4), 150
    claims = 0
    for _ in range(count):
        found = races_of(race(rng, seeds, problems, [1.0, 1.0, 1.0], spread=spread))
        claims += any(row["decided"] for row in found.rows)
    assert claims / count <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / count)

    logs = []
    for _ in range(count):
        [row] = races_of(race(rng, seeds, problems, [1.5, 1.0], spread=spread)).rows
        ends = np.log([row[key] for key in ("ratio", "low", "high")])
        logs.append(sorted(ends if row["faster"] == "a" else -ends))
    low, middle, high = np.array(logs).T
    truth = middle.mean()
    assert np.mean((low <= truth) & (truth <= high)) >= 0.95 - 4 * math.sqrt(0.05 * 0.95 / count)


def test_twice_as_fast_is_a_ratio_of_two():
    run = make_run([0.001, 0.01, 0.1], seeds=8, problems=["a", "b"], decay=twice_as_fast, steps=1000)
    [row] = gradbench.races(run).rows
    assert (row["faster"], row["slower"], row["what"], row["ahead"]) == ("adam", "sgd", STEPS, 2)
    assert row["ratio"] == pytest.approx(2, rel=0.025)  # steps are rounded up: one of at least 43
    assert row["decided"]


def test_runs_that_do_not_reach_the_target_make_the_ratio_a_least_one():
    """sgd needs 9210 steps of 100: adam, 10 times as fast as it at 0.1, needs 92."""
    run = make_run([0.1], seeds=6, decay=lambda optimizer, rate: rate if optimizer == "adam" else rate / 100)
    [row] = gradbench.races(run).rows
    assert row["unreached_slower"] == 1
    assert row["ratio"] == pytest.approx(100 / 91, rel=0.03)
    assert "at least" in sentence(row)
    assert any("does not reach the target" in note for note in gradbench.tunability(run).notes)


def test_optimizers_that_both_diverge_end_alike():
    [row] = gradbench.races(make_run([0.1], seeds=6, decay=lambda optimizer, rate: -rate)).rows
    assert "no difference shown (both end alike, " in sentence(row)


def test_where_nobody_reaches_the_target_gaps_are_compared():
    run = make_run([0.01], seeds=6, decay=lambda optimizer, rate: rate * (2 if optimizer == "adam" else 1))
    [row] = gradbench.races(run).rows
    assert row["what"] == "gap at the end"
    assert row["ratio"] == pytest.approx(math.e, rel=0.05)  # exp(-2) against exp(-1), times 1.00 to 1.05 by seed


def test_equals_are_said_to_be_no_different_and_what_would_have_been_seen():
    rng = np.random.default_rng(5)
    [said] = races_of(race(rng, 10, 3, [1.0, 1.0])).sentences
    assert re.match(r"(\w+) and (\w+): no difference shown \(\2 takes [\d.]+× the steps, 95 %: ", said)
    assert "would have been seen" in said


def test_one_seed_has_no_interval_and_no_claim():
    run = make_run(seeds=1, decay=twice_as_fast, steps=1000)
    found = gradbench.races(run)
    assert found.rows[0]["low"] is None
    assert not found.rows[0]["decided"]
    assert "one seed" in found.notes[0]


def test_records_of_other_targets_and_single_optimizers_are_refused():
    with pytest.raises(GradbenchError, match="do not compare: steps is 100 and 200"):
        gradbench.races(make_run(), make_run(steps=200))
    with pytest.raises(GradbenchError, match="no two optimizers share a problem: sgd"):
        gradbench.races(make_run(), optimizers=["sgd"])
    with pytest.raises(PlanError, match="one at a time"):
        chosen_text([make_run()], "table", True, True)


def test_two_records_race_optimizer_by_optimizer():
    found = gradbench.races(make_run(optimizers=["sgd"]), make_run(optimizers=["sgd"]))
    assert {found.rows[0]["faster"], found.rows[0]["slower"]} == {"sgd (run 1)", "sgd (run 2)"}
    assert found.rows[0]["ratio"] == 1


def brute_force(of: Outcomes, trials: int) -> float:
    """Every subset of settings, every seed that chooses, every other seed that judges."""
    count, seeds = of.log_steps.shape
    found = []
    for chosen in itertools.combinations(range(count), trials):
        for seed in range(seeds):
            best = min(chosen, key=lambda setting: (of.log_steps[setting, seed], of.log_gaps[setting, seed]))
            found += [of.log_steps[best, other] for other in range(seeds) if other != seed]
    return math.exp(np.mean(found))


@pytest.mark.parametrize("trials", [1, 2, 3, 7])
def test_tunability_is_brute_force_over_every_subset(trials):
    made = outcome(np.random.default_rng(6), "p", "a", 4, spread=0.6)
    rows = tunability_of({"a": {"p": made}}).curves
    [row] = [row for row in rows if row["trials"] == trials]
    assert row["value"] == pytest.approx(brute_force(made, trials))


def test_a_subset_of_one_has_no_favourite_and_one_of_all_has_the_best():
    assert subset_weights(5, 1) == pytest.approx([0.2] * 5)
    assert subset_weights(5, 5) == pytest.approx([1, 0, 0, 0, 0])
    assert subset_weights(40, 7).sum() == pytest.approx(1)


def test_tunability_intervals_hold_the_truth():
    rng, count = np.random.default_rng(7), 300
    values, ends = [], []
    for _ in range(count):
        rows = tunability_of({"a": {"p": outcome(rng, "p", "a", 10, spread=0.4)}}).curves
        [row] = [row for row in rows if row["trials"] == 3]
        values.append(math.log(row["value"]))
        ends.append((math.log(row["low"]), math.log(row["high"])))
    truth = np.mean(values)
    inside = np.mean([low <= truth <= high for low, high in ends])
    assert inside >= 0.95 - 4 * math.sqrt(0.05 * 0.95 / count)


def test_a_wide_optimum_wins_with_few_trials_and_a_low_one_with_many():
    rng = np.random.default_rng(8)
    wide = outcome(rng, "p", "wide", 10, spread=0.01, curvature=0.02, level=4.3)
    low = outcome(rng, "p", "low", 10, spread=0.01, curvature=0.8, level=3.0)
    rows = tunability_of({"wide": {"p": wide}, "low": {"p": low}}).curves
    wins = {row["trials"]: row["optimizer"] for row in rows if row["wins"]}
    assert (wins[1], wins[7]) == ("wide", "low")
    assert all(row["clear"] for row in rows if row["wins"] and row["trials"] in (1, 7))


def test_robustness_is_what_half_and_twice_the_rate_cost():
    """Twice as many steps at half the rate: the time of exponential decay; the grid ends at the best."""
    run = make_run([0.1, 0.2, 0.4], seeds=4, optimizers=["sgd"], steps=1000)
    [row] = gradbench.tunability(run).robustness
    assert row["half"] == pytest.approx(2, rel=0.05)
    assert row["twice"] is None


def test_expected_results_never_leave_the_cut():
    made = outcome(np.random.default_rng(9), "p", "a", 3, level=9.0)
    assert np.exp(expected_results(made, STEPS, 2)) == pytest.approx(np.full((3, 3), BUDGET))


@pytest.mark.parametrize("output_format", ["table", "markdown", "csv", "json"])
def test_every_format_has_the_numbers(output_format):
    run = make_run(seeds=6, decay=twice_as_fast, steps=1000)
    races, tuned = gradbench.races(run), gradbench.tunability(run)
    text = races_text(races, output_format)
    assert "adam" in text
    if output_format == "json":
        assert json.loads(text)["races"][0]["ratio"] == races.rows[0]["ratio"]
        assert json.loads(tunability_text(tuned, "json"))["tunability"] == tuned.curves
    elif output_format != "csv":
        assert races.sentences[0] in text
        assert "half" in tunability_text(tuned, output_format)


@pytest.mark.usefixtures("compiled_quickly")
def test_seeds_that_all_give_the_same_are_no_interval_and_a_small_ratio_keeps_its_digits(sweep):
    """On the bowl every seed is the same run; 1.0003 is not written as 1."""
    run = sweep("quadratic_bowl[dim=2]", ["sgd", "adam"], (0.05, 0.2), seeds=4, steps=30, timing="none")
    [row] = gradbench.races(run).rows
    assert row["low"] == row["high"] == row["ratio"]
    assert "every seed gives the same" in sentence(row)
    assert "95 %" not in sentence(row)
    row |= {"ratio": 1.000312, "low": 1.0002, "high": 1.0004}
    assert "1.00031×" in sentence(row)
    assert "95 %: 1.0002 to 1.0004" in sentence(row)


def with_steps(run, steps):
    """The record with these steps to the target, by problem and optimizer, of every seed."""
    column = [steps[of] for of in zip(*(run.trials[name].to_pylist() for name in ("problem", "optimizer")))]
    place = run.trials.schema.get_field_index("steps_to_target")
    return dataclasses.replace(
        run, trials=run.trials.set_column(place, "steps_to_target", pa.array(column, pa.int64()))
    )


@pytest.mark.parametrize("until", [None, "adam<sgd"])
def test_equals_are_not_told_apart_by_the_rounding_of_logs(until):
    """7 steps against 10 and 20 against 14 are as many on average, and log(10 / 7) + log(14 / 20) is 1.1e-16."""
    steps = {("a", "adam"): 7, ("a", "sgd"): 10, ("b", "adam"): 20, ("b", "sgd"): 14}
    run = with_steps(make_run([0.1], 8, ["adam", "sgd"], ["a", "b"], until=until), steps)
    [row] = gradbench.races(run).rows
    assert (row["ratio"], row["p_value"], row["decided"]) == (1.0, 1.0, False)
    assert not any(of["clear"] for of in gradbench.tunability(run).curves if of["problem"] is None)


def test_values_that_rounding_tells_apart_have_no_spread():
    values = np.log(50) - np.array([0.0, 4e-16, -4e-16, 0.0])
    assert mean_of_strata([values], same=True).error == 0
    assert jackknife(4, lambda seeds: float(values[seeds].mean())).error == 0


def test_names_that_no_record_has_are_refused_and_an_optimizer_of_two_records_needs_no_number():
    run, other = make_run(decay=twice_as_fast, steps=1000), make_run(steps=1000)
    for find in (gradbench.races, gradbench.tunability):
        with pytest.raises(PlanError, match=r"no problem 'nosuch' in this record \(quadratic_bowl\)"):
            find(run, problems=["nosuch"])
        with pytest.raises(PlanError, match=r"no optimizer 'adan' in this record, did you mean 'adam'\?"):
            find(run, optimizers=["adan"])
    [row] = gradbench.races(run, other, optimizers=["adam"]).rows
    assert (row["faster"], row["slower"]) == ("adam (run 1)", "adam (run 2)")
    assert row == gradbench.races(run, other, optimizers=["adam (run 1)", "adam (run 2)"]).rows[0]


@pytest.mark.parametrize(("seeds", "decided"), [(2, False), (5, False), (6, True)])
def test_seeds_that_need_as_many_steps_by_chance_are_no_certainty(seeds, decided):
    """Runs that end at other losses are others. n signs agree with a probability of 2^(1 - n): 0.5, 0.0625, 0.03125."""
    run = with_steps(
        make_run([0.1], seeds, ["adam", "sgd"]), {("quadratic_bowl", "adam"): 1, ("quadratic_bowl", "sgd"): 2}
    )
    [row] = gradbench.races(run).rows
    assert (row["ratio"], row["low"], row["p_value"]) == (2, None, 2.0 ** (1 - seeds))
    assert row["decided"] is decided
    assert "every seed gives the same" not in sentence(row)
    assert [of["clear"] for of in gradbench.tunability(run).curves] == [decided, False]
    [first, _] = [of for of in ranks(outcomes([run])) if of.problem is None]
    assert (first.rank_low, first.rank_high) == (1, 1 if decided else 2)


def test_equals_whose_steps_are_one_or_two_are_seldom_told_apart():
    """A spread of 0 taken for certainty told them apart in 12 % of races of two seeds."""
    rng, count = np.random.default_rng(3), 4000
    for seeds in (2, 3, 6):
        values = np.log(rng.integers(1, 3, (2, count, seeds)))
        claims = np.mean([mean_of_strata([of]).p_value < 0.05 for of in values[1] - values[0]])
        assert claims <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / count), seeds
