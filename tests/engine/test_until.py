"""Seeds added until a race is decided: which trials are made, what is recorded, and that it goes on where it was."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import StopAfter, compile_quickly
from sampling import sample

import gradbench
from gradbench.archive.verify import verify_run
from gradbench.cli.main import invoke
from gradbench.engine.driver import Watcher
from gradbench.inputs.plan import SweepPlan
from gradbench.program import block
from gradbench.record.schema import SWEPT

RACE = {"problems": ("quadratic_bowl[dim=2]",), "learning_rates": (0.1,), "steps": 20, "timing": "none"}
EQUALS = RACE | {"until": "adam<adamw[weight_decay=0]", "seeds": 13}  # which takes the same steps


@pytest.fixture(scope="module", autouse=True)
def small_units():
    with pytest.MonkeyPatch.context() as patched:
        compile_quickly(patched)
        patched.setattr(block, "UNIT_SECONDS", 0.0)  # a block is the least
        yield


@pytest.fixture(scope="module")
def equals(tmp_path_factory):
    return gradbench.run_plan(SweepPlan(**EQUALS), out=tmp_path_factory.mktemp("equals"))


def same(run, other) -> bool:
    return all(getattr(run, name).equals(getattr(other, name)) for name in SWEPT)


def test_a_clear_race_ends_after_the_fewest_seeds(tmp_path):
    run = gradbench.sweep(**RACE | {"learning_rates": (0.01, 0.1)}, until="sgd<momentum", out=tmp_path)
    assert run.plan.optimizers == ("sgd", "momentum")
    assert sorted(set(run.trials["seed"].to_pylist())) == list(range(14))
    assert run.trials.num_rows == 2 * 2 * 14
    assert set(run.trials["tried"].to_pylist()) == {"the fewest seeds that can decide sgd<momentum"}
    [row] = gradbench.races(run).rows
    assert (row["faster"], row["decided"]) == ("sgd", True)


def test_a_race_of_equals_ends_with_its_seeds_and_says_why_each_was_tried(equals):
    first = equals.trials.slice(0, 13)
    assert equals.trials.num_rows == 26
    assert first["seed"].to_pylist() == list(range(13))
    words = [
        "the fewest seeds that can decide {}",
        "{} was not decided after 7 seeds",
        "{} was not decided after 11 seeds",
    ]
    why = [words[0]] * 7 + [words[1]] * 4 + [words[2]] * 2
    assert first["tried"].to_pylist() == [text.format(EQUALS["until"]) for text in why]
    assert not gradbench.races(equals).rows[0]["decided"]


@pytest.mark.parametrize("questions", sample([5, 1]))
def test_a_race_that_was_stopped_goes_on_to_the_same_record(tmp_path, equals, questions):
    stopped = gradbench.run_plan(equals.plan, out=tmp_path, watcher=StopAfter(questions))
    assert stopped.info["state"] == "interrupted"
    assert 0 < stopped.trials.num_rows < equals.trials.num_rows
    assert same(gradbench.resume(stopped.path), equals)


@pytest.mark.thorough
def test_workers_make_the_same_record(tmp_path, equals):
    with ThreadPoolExecutor(1) as workers:
        assert same(gradbench.run_plan(equals.plan, out=tmp_path, executor=workers), equals)


def test_one_is_told_after_how_many_seeds_it_goes_on(tmp_path):
    said = []

    class Listening(Watcher):
        def looked(self, words):
            said.append(words)

    gradbench.run_plan(SweepPlan(**EQUALS), out=tmp_path, watcher=Listening())
    assert said == [f"{EQUALS['until']} not decided after {seeds} seeds" for seeds in (7, 11)]


def test_optimizers_and_problems_of_this_process_race_too(tmp_path):
    def bowl():
        return gradbench.load_problem("quadratic_bowl[dim=2]")

    def slower(learning_rate):
        import optax

        return optax.sgd(learning_rate / 2)

    run = gradbench.sweep(
        bowl, ["sgd", {"slower": slower}], 0.1, until="sgd<slower", steps=20, timing="none", out=tmp_path
    )
    assert gradbench.races(run).rows[0]["faster"] == "sgd"
    assert run.trials.num_rows == 14


def test_a_budget_of_trials_is_of_a_pair_and_one_of_time_ends_between_seeds(tmp_path):
    by_trials = gradbench.run_plan(SweepPlan(**EQUALS | {"budget": "11trials"}), out=tmp_path)
    assert by_trials.trials.num_rows == 2 * 11
    in_no_time = gradbench.run_plan(SweepPlan(**EQUALS | {"budget": "1e-9s"}), out=tmp_path)
    assert in_no_time.info["state"] == "complete"
    assert in_no_time.trials.num_rows == 0


@pytest.mark.thorough
def test_verify_holds_a_race_and_finds_a_seed_that_was_dropped(equals):
    assert verify_run(equals, sample=1, seed=0).holds
    without = dataclasses.replace(equals, trials=equals.trials.filter(equals.trials["trial"].to_numpy() != 3))
    faults = " ".join(verify_run(without, sample=1, seed=0).faults)
    assert "trial 3: of the plan, and not in the record" in faults


@pytest.mark.parametrize(
    ("arguments", "code"),
    sample(
        [
            (["--until", "momentum<sgd"], 1),
            (["--until", EQUALS["until"], "--seeds", "7"], 0),
            (["--until", EQUALS["until"], "--seeds", "7", "--strict"], 1),
            (["--until", "sgd<momentum"], 0),
        ],
        3,
    ),
)
def test_the_exit_code_is_the_answer(tmp_path, capsys, arguments, code):
    common = [*RACE["problems"], "--lr", "0.1", "--steps", "20", "--timing", "none", "--quiet", "--out", str(tmp_path)]
    assert invoke(["run", *common, *arguments]) == code
    out = capsys.readouterr().out
    assert ("no difference shown" in out) == ("adam" in arguments[1])
