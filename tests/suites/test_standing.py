"""Ranks with their intervals, and where an optimizer stands among others."""

import dataclasses

import numpy as np
import pytest
from synthetic import make_run

from gradbench.analysis.races.outcomes import Outcomes
from gradbench.errors import GradbenchError
from gradbench.suites.definition import SELF_TUNING, TUNED
from gradbench.suites.entries import FAMILIES, OWN, by_name, entries, family_of
from gradbench.suites.ranking import ranks
from gradbench.suites.standing import BESIDE_OTHERS, MAKES_ARCHIVE, standing, standing_text

SPEED = {"sgd": 1.0, "momentum": 2.0, "adam": 4.0}


def faster(optimizer, rate, **_):
    return rate * SPEED.get(optimizer, 3.0)


def suite_run(optimizers, suite="a", ruleset=TUNED, identifier="20260101T000000Z-abcdef", **settings):
    run = make_run([0.05, 0.1], optimizers=optimizers, decay=faster, seeds=6, identifier=identifier, **settings)
    return dataclasses.replace(run, info=run.info | {"suite": {"name": "s", "sha256": suite * 64, "ruleset": ruleset}})


def test_ranks_and_distances_are_those_of_the_steps():
    run = suite_run(["sgd", "adam", "momentum"], problems=["quadratic_bowl", "rosenbrock"])
    table = ranks(by_name(entries([run]), TUNED))
    for problem in ("quadratic_bowl", "rosenbrock", None):
        rows = [row for row in table if row.problem == problem]
        assert [(row.optimizer, row.rank) for row in rows] == [("adam", 1), ("momentum", 2), ("sgd", 3)]
    # Steps to 1e-4 are ceil(ln(1e4) / (0.1 speed (1 + seed / 100))) at the best rate.
    seeds = 1 + np.arange(6) / 100
    steps = {name: np.log(np.ceil(np.log(1e4) / (0.1 * speed * seeds))).mean() for name, speed in SPEED.items()}
    at = {row.optimizer: row for row in table if row.problem == "quadratic_bowl"}
    for name, expected in steps.items():
        assert at[name].value == pytest.approx(np.exp(expected))
        assert at[name].distance == pytest.approx(np.exp(expected - steps["adam"]))
    over_all = {row.optimizer: row for row in table if row.problem is None}
    assert over_all["sgd"].distance == pytest.approx(at["sgd"].distance)  # the same on both problems


def test_each_pair_s_settings_are_chosen_once(monkeypatch):
    chosen, select = [], Outcomes.select
    monkeypatch.setattr(Outcomes, "select", lambda of, *groups: chosen.append(of) or select(of, *groups))
    ranks(by_name(entries([suite_run(["sgd", "adam", "momentum"])]), TUNED))
    assert len(chosen) == 3


def test_a_rank_is_as_sure_as_the_differences_that_are_shown():
    noise = np.random.default_rng(0).normal(size=1000)

    def decay(optimizer, rate, **_):
        number = int(rate * 1e6) % 1000
        return rate * (4.0 if optimizer == "adam" else 1.0) * np.exp(0.01 * noise[number])

    run = make_run([0.1], optimizers=["sgd", "rmsprop", "adam"], decay=decay, seeds=6)
    places = {row.optimizer: row for row in ranks(by_name(entries([run]), SELF_TUNING)) if row.problem is None}
    assert (places["adam"].rank_low, places["adam"].rank_high) == (1, 1)  # 4 times as fast, on each seed
    assert {(places[name].rank_low, places[name].rank_high) for name in ("sgd", "rmsprop")} == {(2, 3)}  # alike


def test_two_may_differ_for_sure_though_the_intervals_of_their_ranks_meet():
    noise, speed = np.random.default_rng(0), {"adam": 2.0, "rmsprop": 1.4, "sgd": 1.0}

    def decay(optimizer, rate, **_):
        return rate * speed[optimizer] * (noise.lognormal() if optimizer == "rmsprop" else 1.0)

    run = make_run([0.2], optimizers=["sgd", "rmsprop", "adam"], decay=decay, seeds=6)
    places = {row.optimizer: row for row in ranks(by_name(entries([run]), SELF_TUNING)) if row.problem is None}
    adam, sgd = places["adam"], places["sgd"]
    assert (adam.rank_high, sgd.rank_low) == (2, 2)  # rmsprop may be anywhere
    assert not any(of.shown for of in places["rmsprop"].comparisons.values())
    ratio = adam.comparisons["sgd"]
    assert ratio.shown
    assert ratio.low <= ratio.ratio <= ratio.high
    assert ratio.low > 1
    assert ratio.ratio == pytest.approx(2, rel=0.05)  # whole steps
    assert sgd.comparisons["adam"].ratio == pytest.approx(1 / ratio.ratio)
    assert sgd.comparisons["adam"].high == pytest.approx(1 / ratio.low)


def test_where_nobody_reaches_the_target_gaps_at_the_end_are_ranked_and_left_out_over_all():
    run = make_run([0.01], optimizers=["sgd", "adam"], decay=faster, seeds=4, steps=100)  # exp(-4) at the most
    table = ranks(by_name(entries([run]), SELF_TUNING))
    assert [(row.optimizer, row.what) for row in table] == [("adam", "gap at the end"), ("sgd", "gap at the end")]


def test_two_that_both_miss_the_target_are_told_apart_by_gaps_and_it_says_so():
    def decay(optimizer, rate, seed=0, **_):
        return {"sgd": 0.01, "adam": 0.03, "rmsprop": 0.2}[optimizer] * (1 + seed / 1000)

    run = make_run([0.1], optimizers=["sgd", "adam", "rmsprop"], decay=decay, seeds=6, steps=100)
    places = {row.optimizer: row for row in ranks(by_name(entries([run]), SELF_TUNING)) if row.problem is None}
    assert {name: of.what for name, of in places["adam"].comparisons.items()} == {
        "sgd": "gap at the end",
        "rmsprop": "steps to target",
    }
    said = next(text for text in standing([run], []).sentences if text.startswith("adam: seed by seed"))
    assert "× the gap)" in said.partition("sgd")[2]
    assert "the gap" not in said.partition("rmsprop")[2].partition(")")[0]


def test_records_of_another_version_of_a_suite_are_refused_by_name():
    runs = [suite_run(["sgd"]), suite_run(["adam"], suite="b", identifier="20260102T000000Z-fedcba")]
    with pytest.raises(GradbenchError, match="Z-abcdef and 20260102T000000Z-fedcba do not compare: suite"):
        entries(runs)


def test_records_of_another_dtype_are_refused_by_name():
    run = suite_run(["sgd"])
    other = dataclasses.replace(run, plan=dataclasses.replace(run.plan, dtype="float64"))
    with pytest.raises(GradbenchError, match="do not compare: dtype is float32 and float64"):
        entries([run, other])


def test_another_target_is_refused_only_on_a_problem_that_both_have():
    one, two = suite_run(["sgd"]), suite_run(["sgd"], problems=["rosenbrock"])
    one = dataclasses.replace(one, plan=dataclasses.replace(one.plan, targets={"quadratic_bowl": 0.1}))
    assert len(entries([one, two])) == 2
    two = suite_run(["sgd"], identifier="20260102T000000Z-fedcba")
    with pytest.raises(GradbenchError, match="the target loss of quadratic_bowl is"):
        entries([one, two])


def test_another_budget_of_tuning_is_refused_within_a_ruleset():
    runs = [suite_run(["sgd"]), suite_run(["adam"], design="random:2", identifier="20260102T000000Z-fedcba")]
    with pytest.raises(GradbenchError, match="do not compare: design is grid and random:2"):
        entries(runs)
    untuned = dict(runs[1].info["suite"], ruleset=SELF_TUNING)
    assert len(entries([runs[0], dataclasses.replace(runs[1], info=runs[1].info | {"suite": untuned})])) == 2


def test_an_optimizer_of_two_devices_is_two_and_each_says_which():
    one, two = suite_run(["sgd"]), suite_run(["sgd"], identifier="20260102T000000Z-fedcba")
    place = two.info["environment"] | {"device_kind": "another chip"}
    two = dataclasses.replace(two, info=two.info | {"environment": place})
    assert [entry.name for entry in entries([one, two])] == ["sgd (a chip)", "sgd (another chip)"]


def test_standing_says_rank_steps_range_time_and_tuning():
    found = standing([suite_run(["mine"], identifier="20260102T000000Z-fedcba")], [suite_run(["sgd", "adam"])])
    assert [(row["problem"], row["rank"], row["of"], row["best"]) for row in found.rows] == [
        (None, 2, 3, "adam"),
        ("quadratic_bowl", 2, 3, "adam"),
    ]
    said = " ".join(found.sentences)
    assert "mine: rank 2 (95 %: 2 to 2) of 3 over 1 problem" in said
    for word in (
        "range: ",
        "time: ",
        "tuning: of 3, rank 2 after 1, 2 after 2 trials",
        "behind adam (1.3",
        "of sgd (2.9",
    ):
        assert word in said
    assert "decades" in standing_text(found, "table")


def test_an_optimizer_alone_has_no_rank():
    found = standing([suite_run(["mine"])], [])
    assert found.notes == [
        "s aaaaaaaa: nobody to compare with: there are no archived records of this version of the suite",
        MAKES_ARCHIVE,
    ]
    assert {row[key] for row in found.rows for key in BESIDE_OTHERS} == {None}
    over_all, on_problem = found.rows
    assert over_all["value"] is None
    assert on_problem["value"] > 1  # its steps, which need no other
    said = standing_text(found, "markdown")
    assert "1 … 1" not in said
    assert "mine" not in said.replace("| mine |", "", 2)  # named as the optimizer, not as the best


@pytest.mark.parametrize(
    ("archived", "words"), [(True, "compared with 1 archived record in"), (False, "compared with 1 record in")]
)
def test_what_it_was_compared_with_is_said(archived, words):
    mine = make_run([0.1], optimizers=["mine"], decay=faster, identifier="20260102T000000Z-fedcba")
    found = standing([mine], [make_run([0.1], optimizers=["sgd"], decay=faster)], archived)
    assert found.notes[0].startswith(words)


def test_every_family_has_optimizers_of_optax():
    from gradbench.inputs.optimizer import optimizer_functions

    known = [name for names in FAMILIES.values() for name in names.split()]
    assert sorted(known) == sorted(optimizer_functions())
    assert family_of("adam[b2=0.5]") == "Adam"
    assert family_of("./mine.py:make") == OWN
