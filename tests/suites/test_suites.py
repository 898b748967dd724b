"""Suites: what their files may say, their versions, the plans and records that come of them, their targets."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
from conftest import StopAfter
from synthetic import make_run

from gradbench.archive.verify import verify_run
from gradbench.cli.main import invoke
from gradbench.engine import runner
from gradbench.errors import GradbenchError, GradbenchWarning, PlanError
from gradbench.inputs.built_in import problem_names
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import load_problem
from gradbench.inputs.transfer.sources import sources, with_data
from gradbench.record.schema import SCHEMA_VERSION
from gradbench.suites import freeze as freezing
from gradbench.suites.definition import SELF_TUNING, TUNED, built_in_suites, chosen_groups, load_suite, suite_from
from gradbench.suites.entries import entries
from gradbench.suites.running import record_of, run_suite, suite_records

TINY = """
name = "tiny"
seeds = 2
timing = "none"
record_points = 2
learning_rates = "1e-3:1"
references = ["sgd"]

[[problems]]
specs = ["quadratic_bowl[dim=2]", "himmelblau"]
steps = 20
trials = 3

[[optimizers]]
specs = ["sgd", "momentum"]
learning_rates = "1e-3:0.1"

[[optimizers]]
ruleset = "self-tuning"
specs = ["dog"]
learning_rate = 1.0
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def test_the_built_in_suites_can_be_read_and_core_1_has_every_built_in_problem():
    assert built_in_suites() == ["core-1", "deep-1", "quick"]
    core = load_suite("core-1")
    assert sorted(spec.partition("[")[0] for spec in core.all_problems) == problem_names()
    assert set(core.targets) == set(core.all_problems)


def test_a_suite_draws_the_trials_of_each_optimizer_from_its_own_space(tiny):
    plans = dict(load_suite(tiny).plans())
    tuned, untuned = plans[TUNED], plans[SELF_TUNING]
    assert tuned.design == "random:3"
    rates = tuned.points("sgd")["learning_rate"]
    assert len(rates) == 3
    assert ((rates >= 1e-3) & (rates <= 0.1)).all()
    assert untuned.trials_of("dog") == untuned.seeds  # one trial with each seed, nothing set


def test_fewer_trials_are_the_first_of_more():
    """So that the best of 5 is what somebody with 5 trials would have got of the same draw."""
    values = {"problems": [{"specs": ["himmelblau"], "trials": 5}], "optimizers": [{"specs": ["sgd"]}]}
    values["optimizers"][0]["learning_rates"] = "1e-3:1"
    [(_, five)] = suite_from(values, "five", "five").plans()
    values["problems"][0]["trials"] = 2
    [(_, two)] = suite_from(values, "two", "two").plans()
    np.testing.assert_allclose(two.points("sgd")["learning_rate"], five.points("sgd")["learning_rate"][:2])


def test_a_version_changes_with_what_is_run_and_not_with_words(tiny):
    before = load_suite(tiny).sha256
    tiny.write_text("# a comment\n" + TINY)
    assert load_suite(tiny).sha256 == before
    for old, new in (("steps = 20", "steps = 21"), ("1e-3:0.1", "1e-3:0.2"), ("seeds = 2", "seeds = 3")):
        tiny.write_text(TINY.replace(old, new))
        assert load_suite(tiny).sha256 != before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 20", "stepz = 20", "did you mean 'steps'"),
        ("seeds = 2", "sedes = 2", "did you mean 'seeds'"),
        ("1e-3:0.1", "1e-3", "low:high"),
        ("1e-3:0.1", "1:1e-3", "low below high"),
        ('"self-tuning"', '"self"', "did you mean 'self-tuning'"),
        ("learning_rate = 1.0", "", "need learning_rate"),
        ('["sgd"]', '["adam"]', "references: no tuned optimizer 'adam'"),
        ('references = ["sgd"]', 'design = "grid"', "design is not a setting of a suite"),
        ("trials = 3", "trials = 0", "whole number"),
        ("[[problems]]", "[problems]", "need at least one \\[\\[problems\\]\\]"),
    ],
)
def test_what_is_wrong_with_a_suite_is_one_line(tiny, old, new, message):
    tiny.write_text(TINY.replace(old, new))
    with pytest.raises(PlanError, match=message):
        load_suite(tiny)


def test_a_target_of_no_problem_of_the_suite_is_refused(tiny):
    tiny.write_text(TINY + '[targets]\n"himmelblaw" = 1.0\n')
    with pytest.raises(PlanError, match="did you mean 'himmelblau'"):
        load_suite(tiny)


def test_an_optimizer_that_is_not_named_has_the_suite_s_space_or_the_given_one(tiny):
    suite = load_suite(tiny)
    [known, new] = chosen_groups(suite, ["momentum", "adam"], TUNED, None)
    assert known.settings["learning_rates"] == "1e-3:0.1"
    assert new.settings["learning_rates"] == "1e-3:1"
    [other] = chosen_groups(suite, ["momentum[nesterov=true]"], TUNED, None)  # a setting of one that it names
    assert other.settings["learning_rates"] == "1e-3:0.1"
    [given] = chosen_groups(suite, ["adam"], TUNED, "1e-5:1e-2")
    assert given.settings["learning_rates"] == "1e-5:1e-2"


def test_self_tuning_takes_the_optimizer_s_own_rate(tiny):
    suite = load_suite(tiny)
    [group] = chosen_groups(suite, ["schedule_free_adamw"], SELF_TUNING, None)
    assert group.settings["learning_rate"] == 0.0025  # optax's default
    with pytest.raises(PlanError, match="no default learning rate"):
        chosen_groups(suite, ["adam"], SELF_TUNING, None)


@pytest.mark.usefixtures("compiled_quickly")
def test_a_suite_is_run_as_ordinary_records_that_resume_and_verify(tiny, tmp_path):
    tiny.write_text(TINY + '[targets]\n"himmelblau" = 30.0\n')
    suite, out = load_suite(tiny), tmp_path / "records"
    groups = chosen_groups(suite, ["sgd"], TUNED, None)
    [run] = run_suite(suite, optimizers=groups, problems=["himmelblau"], out=out)
    assert run.info["suite"] == {"name": "tiny", "sha256": suite.sha256, "ruleset": TUNED}
    assert run.plan.solved("himmelblau") == 30.0
    at = run.trials.to_pylist()
    assert all((row["steps_to_target"] is not None) == (row["best_loss"] <= 30.0) for row in at)
    assert verify_run(run, sample=3).holds

    [again] = run_suite(suite, optimizers=groups, problems=["himmelblau"], out=out, resume=True)
    assert again.id == run.id
    assert suite_records(out) == [run.path]


@pytest.mark.usefixtures("compiled_quickly")
def test_a_suite_for_another_device_is_reduced_says_so_and_compares_with_no_whole_run(tiny):
    tiny.write_text(TINY.replace('references = ["sgd"]', 'meant_for = "tpu"') + "[reduced]\nsteps = 3\ntrials = 2\n")
    suite = load_suite(tiny)
    groups = chosen_groups(suite, ["sgd"], TUNED, None)
    with pytest.warns(GradbenchWarning, match="tiny is meant for a tpu, which is not here"):
        [few] = run_suite(suite, optimizers=groups, problems=["himmelblau"], out=tiny.parent / "r")
    assert (few.plan.steps, few.plan.design) == (3, "random:2")
    assert few.info["suite"] == {"name": "tiny reduced", "sha256": suite.few.sha256, "ruleset": TUNED}
    [whole] = run_suite(suite, optimizers=groups, problems=["himmelblau"], reduced=False, out=tiny.parent / "r")
    with pytest.raises(GradbenchError, match="suite is tiny reduced"):
        entries([few, whole])


@pytest.mark.thorough
@pytest.mark.usefixtures("compiled_quickly")
def test_freeze_writes_targets_that_the_references_reach_in_half_of_the_steps(tiny, capsys):
    before = load_suite(tiny).sha256
    assert invoke(["suite", "freeze", str(tiny), "--seeds", "2", "--format", "json", "--quiet"]) == 0
    rows = json.loads(capsys.readouterr().out)
    suite = load_suite(tiny)
    assert suite.sha256 != before
    assert suite.targets == {row["problem"]: row["target"] for row in rows}
    [run] = run_suite(suite, optimizers=chosen_groups(suite, ["sgd"], TUNED, None), out=tiny.parent / "r")
    for problem in suite.all_problems:
        steps = [row["steps_to_target"] for row in run.trials.to_pylist() if row["problem"] == problem]
        assert min(step for step in steps if step is not None) <= 10


@pytest.mark.usefixtures("compiled_quickly")
def test_a_freeze_that_is_stopped_writes_nothing_and_goes_on(tiny, tmp_path):
    tiny.write_text(TINY.replace("trials = 3", "trials = 2"))
    out, text = tmp_path / "records", tiny.read_text()
    assert freezing.freeze(tiny, 2, StopAfter(3), out=out) is None
    assert tiny.read_text() == text
    [half] = sorted(out.iterdir())
    found = freezing.freeze(tiny, 2, out=out, resume=True)
    assert sorted(out.iterdir()) == [half]
    assert load_suite(tiny).targets == {one.problem: one.target for one in found}


@pytest.mark.usefixtures("compiled_quickly")
def test_a_record_of_a_problem_file_that_was_edited_is_not_taken_for_the_plan(tiny, tmp_path):
    mine = tmp_path / "mine.py"
    lines = "import gradbench", "def problem():", "    return gradbench.Problem(lambda key: 1.0, lambda x, data: x**2)"
    mine.write_text("\n".join(lines))
    text = TINY.replace('references = ["sgd"]', "")
    tiny.write_text(text.replace('"quadratic_bowl[dim=2]", "himmelblau"', f'"{mine}"'))
    suite, out = load_suite(tiny), tmp_path / "records"
    groups = chosen_groups(suite, ["sgd"], TUNED, None)
    [run] = run_suite(suite, optimizers=groups, out=out)
    mine.write_text(mine.read_text().replace("x**2", "x**4"))
    [again] = run_suite(suite, optimizers=groups, out=out, resume=True)
    assert again.id != run.id


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A plan; what record_of does for it; a function that makes a record of it with other things in its run.json."""
    plan = SweepPlan(("beale",), ("sgd",), "1e-3:0.1:2")
    monkeypatch.setattr(runner, "run_plan", lambda *_, **__: "made anew")
    monkeypatch.setattr(runner, "resume", lambda path, **_: f"taken: {path.name}")

    def keep(name, **changed):
        info = {"schema_version": SCHEMA_VERSION, "id": name, "state": "complete", "started": "", "environment": {}}
        info |= {"blocks": {}, "plan": plan.to_dict()} | changed
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(info))

    return plan, keep


def test_resume_passes_over_a_record_of_a_plan_that_this_version_does_not_take(kept, tmp_path):
    plan, keep = kept
    keep("a")
    keep("b", plan={"setting": "of a newer version"})
    assert record_of(plan, tmp_path, None, resume=True) == "taken: a"


def test_resume_leaves_it_to_the_run_to_say_that_a_problem_file_is_gone(kept, tmp_path):
    plan, keep = kept
    plan = dataclasses.replace(plan, problems=(str(tmp_path / "gone.py"),))
    keep("a", plan=plan.to_dict(), sources={"problems": {}, "optimizers": {}})
    assert record_of(plan, tmp_path, None, resume=True) == "made anew"


def test_resume_takes_a_record_of_the_same_data_and_of_no_other(kept, tmp_path):
    plan, keep = kept
    began = sources(plan, {"beale": load_problem("beale")}, ())
    keep("a", sources=began)
    keep("b", sources=with_data(began, {"beale": "of other data"}))
    assert record_of(plan, tmp_path, None, resume=True) == "taken: a"


def test_resume_takes_a_record_without_sources(kept, tmp_path):
    plan, keep = kept
    keep("a", sources=None)
    assert record_of(plan, tmp_path, None, resume=True) == "taken: a"


def test_resume_looks_in_the_home_folder_where_records_are_made(kept, tmp_path, monkeypatch):
    plan, keep = kept
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    keep("a")
    assert record_of(plan, f"~/{tmp_path.name}", None, resume=True) == "taken: a"


def test_the_target_is_the_median_of_the_best_setting_of_the_best_reference():
    # The lowest loss is exp(-rate (1 + seed / 100) 100): the largest rate that does not diverge is best.
    runs = [
        make_run([0.01, 0.02], optimizers=["sgd"], seeds=3),
        make_run([0.03, 0.04], optimizers=["adam"], seeds=3, decay=lambda _, rate: rate if rate < 0.04 else -rate),
    ]
    found = freezing.target_of("quadratic_bowl", runs)
    assert (found.optimizer, found.learning_rate, found.holdout) == ("adam", 0.03, None)
    assert np.exp(-0.03 * 1.01 * 100) <= found.target <= np.exp(-0.03 * 1.01 * 100) * 1.001


def test_a_target_keeps_above_a_known_minimum():
    run = make_run([1.0], optimizers=["sgd"])  # ends at exp(-100), the minimum is 0
    assert freezing.target_of("quadratic_bowl", [run]).target == run.plan.target


def test_a_target_of_held_out_data_is_the_training_loss_where_the_held_out_one_is_lowest():
    run = make_run([0.01, 0.02], optimizers=["sgd"], seeds=1)
    losses = {0: [(0, 5.0, 5.0), (50, 1.0, 2.0), (100, 0.5, 3.0)], 1: [(0, 5.0, 5.0), (50, 2.0, 4.0), (100, 0.1, 6.0)]}
    rows = [
        {"trial": trial, "step": step, "split": split, "name": "loss", "value": value}
        for trial, points in losses.items()
        for step, train, holdout in points
        for split, value in (("train", train), ("holdout", holdout))
    ]
    facts = {"quadratic_bowl": run.info["problems"]["quadratic_bowl"] | {"recorded": ["train.loss", "holdout.loss"]}}
    metrics = pa.Table.from_pylist(rows, schema=run.metrics.schema)
    trials = run.trials.set_column(run.trials.schema.get_field_index("minimum"), "minimum", pa.nulls(2, pa.float64()))
    run = dataclasses.replace(run, trials=trials, metrics=metrics, info=run.info | {"problems": facts})
    found = freezing.target_of("quadratic_bowl", [run])
    assert (found.learning_rate, found.target, found.holdout) == (0.01, 1.0, 2.0)


def test_no_reference_that_works_is_an_error():
    run = make_run([1.0], optimizers=["sgd"], decay=lambda *_: -1.0)
    with pytest.raises(GradbenchError, match="no reference optimizer has a setting"):
        freezing.target_of("quadratic_bowl", [run])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "core-2"], "no suite 'core-2', did you mean 'core-1'?"),
        (["run", "core-1", "--problem", "beele"], "did you mean 'beale'"),
        (["run", "core-1", "--lr", "1e-3:1"], "name one with -o"),
        (["run", "core-1", "-o", "sgd", "--ruleset", "tunde"], "did you mean 'tuned'"),
        (["run", "core-1", "-o", "sgd", "--lr", "0.1"], "low:high"),
        (["run", "quick", "--reduced"], "no [reduced] table"),
        (["show", "./none.toml"], "No such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(words, message, capsys):
    assert invoke(["suite", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_list_and_show_print_what_there_is(capsys):
    assert invoke(["suite", "list", "--format", "json"]) == 0
    assert [row["suite"] for row in json.loads(capsys.readouterr().out)] == ["core-1", "deep-1", "quick"]
    assert invoke(["suite", "show", "quick", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sha256"] == load_suite("quick").sha256
    assert [row["target"] for row in found["problems"]] == list(load_suite("quick").targets.values())
