"""What searches ask for, on functions whose lowest point is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradbench.errors import PlanError
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.specs.searches import read_budget, read_search
from gradbench.search.ask_tell import ask_tell
from gradbench.search.asked import scores
from gradbench.search.halving import Rungs
from gradbench.search.queue import Queue, Spending
from gradbench.search.refine import refine


def searched(search, score):
    """(points, scores, seeds) of all that a search asks for, told what `score(**settings)` says."""
    points, told, seeds, asked = [], [], [], next(search)
    while True:
        rows = [dict(zip(asked.settings, values)) for values in zip(*asked.settings.values())]
        values = [score(**row) for row in rows]
        points, told, seeds = points + rows, told + values, seeds + asked.seeds.tolist()
        try:
            asked = search.send(np.array(values))
        except StopIteration:
            return points, told, seeds


@pytest.mark.parametrize("lowest", [3e-5, 0.012, 0.3, 40.0])
@pytest.mark.parametrize("factor", [1.1, 1.02])
def test_refine_knows_the_best_rate_within_its_factor(lowest, factor):
    plan = SweepPlan(optimizers="sgd", learning_rates="1e-4:10:25", search=f"refine:{factor}", seeds=3)
    points, told, seeds = searched(
        refine(plan, "sgd", factor), lambda learning_rate: abs(math.log(learning_rate / lowest))
    )
    best = points[int(np.argmin(told))]["learning_rate"]
    assert max(best / lowest, lowest / best) <= factor * (1 + 1e-5)  # values have six digits
    # 6 of the coarse grid, at most 2 for each halving of half a decade and each move, and 2 with 2 more seeds.
    assert len(points) <= 6 + 2 * math.ceil(math.log2(math.log(10) / 2 / math.log(factor))) + 8 + 4
    assert seeds[-4:] == [1, 2] * 2
    assert set(seeds[:-4]) == {0}


def test_refine_goes_on_to_the_next_best_until_one_works_with_every_seed():
    """Of a landscape of many valleys, such as rastrigin's: where seed 0 does best, the other seeds diverge."""
    plan = SweepPlan(optimizers="sgd", learning_rates="1e-4:10:25", search="refine", seeds=3)
    search = refine(plan, "sgd", 1.1)
    asked, confirmed = next(search), []
    while asked is not None:
        rates = asked.settings["learning_rate"]
        works = (asked.seeds == 0) | (rates < 0.02)
        confirmed += rates[asked.seeds > 0].tolist()
        try:
            asked = search.send(np.where(works, np.abs(np.log(rates / 0.1)), np.inf))
        except StopIteration:
            asked = None
    assert confirmed[0] == pytest.approx(0.1, rel=0.1)
    assert min(confirmed[:-4]) > 0.02
    assert min(confirmed[-4:]) < 0.02  # two points, two seeds


def test_refine_moves_along_every_axis_on_its_own_scale():
    plan = SweepPlan(optimizers="adamw[weight_decay=1e-4:1:5,b1=0.5:0.99:5]", learning_rates="1e-4:10:25", seeds=1)

    def score(learning_rate, weight_decay, b1):
        off = math.log10(learning_rate / 0.02), math.log10(weight_decay / 0.01), math.log10((1 - b1) / 0.05)
        return sum(x * x for x in off)

    [optimizer] = plan.optimizers
    points, told, _ = searched(refine(plan, optimizer, 1.1), score)
    best = points[int(np.argmin(told))]
    assert abs(math.log(best["learning_rate"] / 0.02)) <= math.log(1.1)
    assert abs(math.log10(best["weight_decay"] / 0.01)) <= 4 / 16  # a sixteenth of each range
    assert abs(math.log10((1 - best["b1"]) / 0.05)) <= 1.7 / 16
    assert len(points) < 25 * 5 * 5 / 3  # a third of the grid
    assert len({tuple(point.values()) for point in points}) == len(points)


def test_refine_stays_on_values_where_an_axis_has_no_range():
    plan = SweepPlan(optimizers="adam[b1=0.5|0.8|0.9]", learning_rates=(0.1, 0.2, 0.4), seeds=1)
    [optimizer] = plan.optimizers
    points, told, _ = searched(refine(plan, optimizer, 1.1), lambda learning_rate, b1: abs(learning_rate - 0.2) + b1)
    assert points[int(np.argmin(told))] == {"b1": 0.5, "learning_rate": 0.2}
    assert {point["learning_rate"] for point in points} == {0.1, 0.2, 0.4}


def test_refine_goes_lower_where_everything_diverges():
    plan = SweepPlan(optimizers="sgd", learning_rates="1:1e4:9", seeds=1)
    points, told, _ = searched(
        refine(plan, "sgd", 1.1),
        lambda learning_rate: abs(math.log(learning_rate / 0.01)) if learning_rate < 0.1 else math.inf,
    )
    assert points[int(np.argmin(told))]["learning_rate"] == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_optuna_is_asked_for_points_in_the_ranges_and_answers_alike(sampler):
    pytest.importorskip("optuna")
    plan = SweepPlan(
        optimizers="adam[b2=0.9:0.9999:3,eps=1e-8|1e-4]",
        learning_rates="1e-4:1:9",
        search=f"optuna:{sampler}",
        budget="60trials",
        seeds=2,
    )
    [optimizer] = plan.optimizers

    def score(learning_rate, b2, eps):
        return abs(math.log10(learning_rate / 0.01))

    points, told, seeds = searched(ask_tell(plan, optimizer, sampler), score)
    assert len(points) == 60
    assert seeds == [0, 1] * 30
    assert all(
        1e-4 <= p["learning_rate"] <= 1 and 0.9 <= p["b2"] <= 0.9999 and p["eps"] in (1e-8, 1e-4) for p in points
    )
    again, *_ = searched(ask_tell(plan, optimizer, sampler), score)
    assert again == points
    if sampler == "tpe":
        # The last half is drawn where the first was good: closer to the best than uniform's mean distance of 1.25.
        assert np.mean(told[30:]) < 1.25


def test_a_queue_goes_on_where_the_scores_of_all_it_asked_for_are_known():
    plan = SweepPlan(optimizers="sgd", learning_rates="1e-2:1:5", search="refine", seeds=1)
    queue, other = Queue(plan, "sgd"), Queue(plan, "sgd")
    coarse = len(queue)
    assert not queue.ask(dict.fromkeys(range(coarse - 1), 1.0))
    known = {trial: abs(math.log(rate / 0.3)) for trial, rate in enumerate(queue.settings["learning_rate"])}
    assert queue.ask(known)
    assert len(queue) > coarse
    other.replay(known)
    np.testing.assert_array_equal(other.settings["learning_rate"], queue.settings["learning_rate"])
    assert queue.why[:coarse] == ["coarse grid"] * coarse
    design = Queue(SweepPlan(optimizers="sgd", learning_rates=(0.1, 1.0), seeds=2), "sgd")
    assert design.seeds.tolist() == [0, 1, 0, 1]
    assert not design.ask({})


def test_at_a_rung_the_best_part_goes_on():
    rungs = Rungs([10, 30], eta=3)
    before, after = np.zeros(6, int), np.full(6, 10)
    rung = rungs.crossed(before, after)
    assert rung.tolist() == [0] * 6
    left = rungs.stopped(rung, np.array([5.0, 1.0, 3.0, np.nan, 2.0, np.inf]))
    assert left.tolist() == [True, False, True, True, False, True]  # 2 of 6 go on
    # Those that come later are compared with all before: 3 of 7 would be 2.33, so the third best stays.
    assert rungs.stopped(np.array([0]), np.array([2.5])).tolist() == [False]
    assert rungs.stopped(np.array([0]), np.array([2.6])).tolist() == [True]
    assert rungs.crossed(np.array([10, 29, 30]), np.array([29, 30, 40])).tolist() == [-1, 1, -1]
    other = Rungs([10, 30], eta=3)
    other.restore(rungs.arrays())
    assert (
        other.stopped(np.array([0]), np.array([2.55])).tolist()
        == rungs.stopped(np.array([0]), np.array([2.55])).tolist()
    )


def test_a_score_is_lower_the_sooner_the_target_is_reached_and_the_lower_the_end():
    columns = {
        "initial_loss": [1.0] * 6,
        "final_loss": [0.0, 0.0, 0.3, 0.5, 1.5, math.nan],
        "smoothed_loss": [math.nan] * 6,
        "steps_to_target": [10, 50, -1, math.nan, 3, -1],
    }
    assert scores(columns, 0.0, 100).tolist() == [-0.9, -0.5, 0.3, 0.5, math.inf, math.inf]
    assert scores(columns, math.nan, 100)[2:4].tolist() == [0.3, 0.5]


def test_a_lucky_last_loss_of_a_noisy_trial_does_not_win():
    columns = {"initial_loss": [1.0] * 3, "final_loss": [0.01, 0.2, math.inf], "smoothed_loss": [0.4, 0.3, 0.3]}
    columns["steps_to_target"] = [-1] * 3
    assert scores(columns, math.nan, 100).tolist() == [0.4, 0.3, math.inf]


def test_a_budget_leaves_room_for_what_it_pays():
    plan = SweepPlan(optimizers="sgd", steps=100)
    assert Spending(SweepPlan(budget="10trials")).room(begun=7, trial_steps=0, steps_left=0) == 3
    spending = Spending(SweepPlan(steps=100, budget="1000steps"))
    assert spending.room(begun=0, trial_steps=300, steps_left=250) == 4
    assert spending.room(begun=0, trial_steps=2000, steps_left=0) == 0
    assert Spending(SweepPlan(budget="2s")).over(2.1)
    assert not Spending(plan).over(1e9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("refin", "did you mean 'refine'"),
        ("refine:1", "a factor above 1"),
        ("halving:1", "a whole number"),
        ("optuna:magic", "one of tpe"),
        ("range-test:2", "takes no argument"),
    ],
)
def test_a_bad_search_gets_one_line(text, words):
    with pytest.raises(PlanError, match=words):
        read_search(text)
    with pytest.raises(PlanError, match="search"):
        SweepPlan(search=text)


@pytest.mark.parametrize("text", ["60", "s", "-1s", "1e6 stepps", "0trials", "infs"])
def test_a_bad_budget_gets_one_line(text):
    with pytest.raises(PlanError, match="such as 60s, 1e6steps or 500trials"):
        read_budget(text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"search": "refine", "design": "random:8"}, "chooses its own points"),
        ({"search": "halving", "optimizers": "adam[schedule=cosine]"}, "before a schedule has ended"),
        ({"search": "range-test", "optimizers": "adam[schedule=cosine]"}, "cannot have a schedule"),
        ({"search": "range-test", "learning_rates": 0.1}, "the lowest and the highest"),
        ({"search": "range-test", "design": "random:8"}, "chooses its own points"),
    ],
)
def test_a_search_that_cannot_be_is_refused(settings, words):
    with pytest.raises(PlanError, match=words):
        SweepPlan(**settings)
