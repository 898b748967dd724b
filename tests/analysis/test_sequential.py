"""The test that may be looked at after any number of seeds: a fair game, exactly; and its records."""

import itertools
import math

import numpy as np
import pytest
from simulated import race
from synthetic import make_run

import gradbench
from gradbench.analysis.races.intervals import POWER
from gradbench.analysis.races.records import InterimAnalysis, Units, answer
from gradbench.analysis.races.sequential import LEVEL, Sequential, detectable, log_fortunes
from gradbench.errors import GradbenchError
from gradbench.inputs.specs.races import FEWEST, round_ends

SIZES = np.random.default_rng(0).gamma(1, 1, 10)


def signed(sizes):
    """The sizes with every combination of signs, (2^N, N)."""
    return sizes * np.array(list(itertools.product((-1, 1), repeat=len(sizes))))


def test_the_fortune_is_one_on_average_whatever_the_sizes():
    """Over the signs, which are fair coins between equals: a martingale."""
    fortunes = np.exp(log_fortunes(signed(SIZES)))
    assert fortunes.mean(axis=0) == pytest.approx(np.ones(len(SIZES)))


def test_no_more_than_5_percent_of_all_signs_are_ever_claimed_a_difference():
    sizes = np.random.default_rng(1).gamma(1, 1, 14)
    assert (log_fortunes(signed(sizes)) >= LEVEL).any(axis=1).mean() <= 0.05


def test_the_fewest_units_are_the_first_that_can_decide():
    """All alike is the most that values can say."""
    [first, *_] = np.flatnonzero(log_fortunes(np.ones(20)) >= LEVEL)
    assert first + 1 == FEWEST
    assert round_ends(1, 100)[0] == FEWEST


def test_zeros_say_nothing():
    assert log_fortunes(np.zeros(9)) == pytest.approx(np.zeros(9))
    assert not Sequential.of(np.zeros(9)).decided


@pytest.mark.parametrize("shift", [0.0, 0.8, -2.0])
def test_what_is_decided_is_what_the_interval_leaves_out(shift):
    for values in np.random.default_rng(2).standard_normal((20, 16)) + shift:
        found = Sequential.of(values)
        assert found.low < found.value < found.high
        assert found.decided == (not found.low <= 0 <= found.high)


def test_an_interval_moves_and_grows_with_the_values():
    values = np.random.default_rng(3).standard_normal(12)
    ends = np.array(Sequential.of(values)[:3])
    assert Sequential.of(5 - 3 * values)[:3] == pytest.approx((5 - 3 * ends)[[0, 2, 1]], abs=1e-4)


def test_before_the_fewest_units_there_is_no_interval():
    found = Sequential.of(np.arange(1.0, FEWEST))
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not found.decided


def test_equal_values_are_their_own_interval():
    assert Sequential.of(np.full(FEWEST, 2.0))[:3] == (2, 2, 2)


@pytest.mark.thorough
def test_intervals_hold_the_truth_where_the_race_stopped():
    """tests/benchmarks/race_sequential.py does it with whole races."""
    rng, count, held = np.random.default_rng(4), 200, 0
    for values in rng.gamma(4, 0.5, (count, 30)) - rng.gamma(4, 0.5, (count, 30)) + 0.7:
        reached = np.flatnonzero(log_fortunes(values) >= LEVEL)
        found = Sequential.of(values[: reached[0] + 1] if len(reached) else values)
        held += found.low <= 0.7 <= found.high
    assert held / count >= 0.95 - 4 * math.sqrt(0.05 * 0.95 / count)


def test_equals_are_seldom_told_apart_at_any_number_of_looks():
    """tests/benchmarks/race_sequential.py does it 10,000 times; here the binomial's 4 sigma are allowed."""
    rng, count = np.random.default_rng(5), 150
    races = [race(rng, 40, 1, [1.0, 1.0], spread=0.5) for _ in range(count)]
    values = np.array([Units.of(list(found.values()), 2, 14).values for found in races])
    claims = (log_fortunes(values) >= LEVEL).any(axis=1).mean()
    assert claims <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / count)


def test_what_would_have_been_seen_is_seen_in_four_of_five_cases():
    """With other signs and orders of the same distances: two samples of the binomial apart, at 4 sigma."""
    rng, looks, count = np.random.default_rng(6), np.array([7, 12, 20]), 400
    values = rng.standard_normal(20)
    middle = detectable(values, looks)
    spread = values - Sequential.of(values).value
    copies = rng.permuted(np.tile(spread, (count, 1)), axis=1) * rng.choice([-1, 1], (count, 20))
    seen = (log_fortunes(copies + middle)[:, looks - 1] >= LEVEL).any(axis=1).mean()
    assert abs(seen - POWER) <= 4 * math.sqrt(POWER * (1 - POWER) * (1 / count + 1 / 200))


def faster(name, times=2):
    return lambda optimizer, rate: rate * (times if optimizer == name else 1)


def test_a_record_says_what_its_seeds_were_added_for():
    run = make_run([0.001, 0.01, 0.1], 14, ["adam", "sgd"], ["a", "b"], faster("adam"), steps=1000, until="adam<sgd")
    found = gradbench.races(run)
    [row] = found.rows
    assert (row["faster"], row["slower"], row["seeds"], row["ahead"]) == ("adam", "sgd", 14, 2)
    assert row["ratio"] == pytest.approx(2, rel=0.025)  # steps are rounded up: one of at least 43
    assert row["low"] <= row["ratio"] <= row["high"]
    assert row["decided"]
    assert "until it was decided" in found.notes[0]
    assert answer(run) is True


def test_the_contrary_is_an_answer_too():
    run = make_run([0.1], 7, ["adam", "sgd"], decay=faster("sgd"), steps=1000, until="adam<sgd")
    assert answer(run) is False


def test_where_nothing_is_decided_it_says_what_would_have_been_seen():
    run = make_run([0.1], 8, ["adam", "sgd"], decay=faster("", 1), steps=1000, until="adam<sgd")
    found = gradbench.races(run)
    assert answer(run) is None
    assert "no difference shown" in found.sentences[0]
    assert "would have been seen" in found.sentences[0]
    assert "all 8 had run" in found.notes[0]


def test_a_look_sees_the_first_seeds_only():
    """Whatever came later: what a loop was told when it went on is what the record says of those seeds."""
    run = make_run([0.01, 0.1], 30, ["adam", "sgd"], decay=faster("adam"), steps=1000, until="adam<sgd")
    assert len(InterimAnalysis(run, 18).units.values) == 9
    assert InterimAnalysis(run, 18).units.values == pytest.approx(InterimAnalysis(run).units.values[:9])


def test_a_unit_that_is_not_whole_is_left_out():
    run = make_run([0.01, 0.1], 16, ["adam", "sgd"], decay=faster("adam"), steps=1000, until="adam<sgd")
    trials = run.trials.to_pylist()
    short = [row for row in trials if (row["optimizer"], row["seed"], row["learning_rate"]) != ("sgd", 3, 0.1)]
    part = make_run([0.01, 0.1], 16, ["adam", "sgd"], until="adam<sgd")
    object.__setattr__(part, "trials", run.trials.from_pylist(short, schema=run.trials.schema))
    assert len(InterimAnalysis(part).units.values) == 7


def test_a_part_of_a_race_is_a_fixed_number_of_seeds_and_says_so():
    run = make_run([0.1], 8, ["adam", "sgd"], ["a", "b"], faster("adam"), steps=1000, until="adam<sgd")
    assert "too short" in gradbench.races(run, problems=["a"]).notes[-1]


def test_without_a_whole_seed_there_is_no_answer():
    run = make_run([0.1], 8, ["adam", "sgd"], until="adam<sgd")
    object.__setattr__(run, "trials", run.trials[:8])
    assert answer(run) is None
    with pytest.raises(GradbenchError, match="no seed has finished yet with both optimizers"):
        gradbench.races(run)
