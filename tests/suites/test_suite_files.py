"""A suite's file: what it refuses in one line, and that freezing replaces its targets and nothing else."""

from __future__ import annotations

import datetime
import re
import tomllib
import types
from pathlib import Path

import pytest

from gradbench.cli.main import invoke
from gradbench.errors import PlanError
from gradbench.suites import freeze
from gradbench.suites.definition import load_suite, suite_from, suite_path
from gradbench.suites.targets import (
    Measured,
    measured_otherwise,
    measured_under,
    unmeasured,
    with_targets,
    write_targets,
)

HEAD = """\
learning_rates = "1e-3:1" # of what is not named

[[problems]]
specs = ["himmelblau"]
"""
OPTIMIZERS = '[[optimizers]]\nspecs = ["sgd"]\nlearning_rates = "1e-3:1"\n'
TARGETS = '[targets]\n"himmelblau" = 3.0 # old\n\n[holdout]\n"himmelblau" = 4.0\n'
REDUCED = "# where there is no GPU\n[reduced]\nsteps = 3\n"
VALUES = tomllib.loads(HEAD + OPTIMIZERS)
MEASURED = Measured("himmelblau", 1.5, None, "sgd", 0.1)
UNDER = [{"specs": ["himmelblau"], "seeds": 20, "steps": 9, "references": {"sgd": "1e-3:1"}}]


@pytest.mark.parametrize(
    "text",
    [
        HEAD + OPTIMIZERS,
        HEAD + OPTIMIZERS + TARGETS,
        HEAD + TARGETS + REDUCED + OPTIMIZERS,
        HEAD + TARGETS.replace("[targets]", "[ targets ]") + OPTIMIZERS + REDUCED,
        HEAD
        + "[targets]\nhimmelblau = 3.0\n# the optimizers\n"
        + OPTIMIZERS
        + '[ "holdout" ]\nhimmelblau = 4.0\n'
        + REDUCED,
    ],
    ids=["none", "last", "before others", "spaces", "apart"],
)
def test_only_the_tables_of_targets_are_replaced(text, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(text)
    before = {key: value for key, value in tomllib.loads(text).items() if key not in ("targets", "holdout")}
    write_targets(path, load_suite(path), [MEASURED], UNDER, reduced=False)
    assert tomllib.loads(path.read_text()) == before | {"targets": {"himmelblau": 1.5}, "measured": UNDER}
    mine = ("sgd at", "freeze", "hang on")
    assert [line for line in text.splitlines() if "#" in line and "old" not in line] == [
        line for line in path.read_text().splitlines() if "#" in line and not any(word in line for word in mine)
    ]
    once = path.read_text()
    write_targets(path, load_suite(path), [MEASURED], UNDER, reduced=False)
    assert path.read_text() == once


def test_targets_of_reduced_runs_are_written_beside_those_of_whole_ones(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(HEAD + OPTIMIZERS + REDUCED + "\n" + TARGETS)
    before = load_suite(path)
    for _ in range(2):  # the second time in the place of the first
        write_targets(path, load_suite(path).few, [MEASURED], UNDER, reduced=True)
    suite = load_suite(path)
    assert (suite.targets, suite.holdout, suite.measured) == ({"himmelblau": 3.0}, {"himmelblau": 4.0}, ())
    assert suite.sha256 == before.sha256  # whole runs of it are what they were
    assert suite.few.targets == {"himmelblau": 1.5}
    assert suite.few.measured == tuple(UNDER)
    assert suite.few.sha256 not in (before.few.sha256, suite.sha256)
    assert suite.few.name == "tiny reduced"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("steps", 50, "steps 100, now 50"),
        ("batch_size", 8, "batch_size none, now 8"),
        ("trials", 5, "trials 20, now 5"),
    ],
)
def test_targets_that_were_measured_for_other_settings_are_told_by_name(key, value, words):
    suite = load_suite("quick")
    assert measured_otherwise(suite) is None
    content = tomllib.loads(suite_path("quick").read_text())
    content["problems"][0][key] = value
    said = measured_otherwise(suite_from(content, "mine.toml", "mine"))
    assert said == f"quick: the target of quadratic_bowl was measured for other settings ({words})"
    content["measured"][0][key] = value  # as replacing all in a file does
    said = measured_otherwise(suite_from(content, "mine.toml", "mine"))
    assert said.endswith("(its [[measured]] has been edited, too)")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("specs", 3, "specs: need a list of problems, got 3"),
        ("specs", "quadratic_bowl", "specs: need a list of problems, got 'quadratic_bowl'"),
        ("seeds", datetime.date(2026, 1, 1), "seeds: need a whole number"),
        ("odd", datetime.date(2026, 1, 1), "need numbers, texts, lists and tables: Object of type date"),
    ],
)
def test_bad_tables_of_what_was_measured_are_refused_in_a_line(key, value, words):
    content = tomllib.loads(suite_path("quick").read_text())
    content["measured"][0][key] = value
    with pytest.raises(PlanError, match=f"^a.toml: measured: {words}"):
        suite_from(content, "a.toml", "a")


def test_references_that_are_gone_are_said_to_be_none():
    content = tomllib.loads(suite_path("quick").read_text())
    del content["references"]
    assert measured_otherwise(suite_from(content, "a.toml", "a")).endswith(", now none)")


def test_targets_hang_on_the_dtype_and_the_references_space_and_not_on_other_optimizers():
    content = tomllib.loads(suite_path("quick").read_text())
    space = content["optimizers"][0] | {"learning_rates": "1e-2:1"}
    others = {"optimizers": [space, *content["optimizers"][1:]], "dtype": "bfloat16"}
    for key, of in others.items():
        assert measured_otherwise(suite_from(content | {key: of}, "a.toml", "a"))
    more = content["optimizers"] + [{"specs": ["lion"], "learning_rates": "1e-4:1"}]
    assert measured_otherwise(suite_from(content | {"optimizers": more, "seeds": 3}, "a.toml", "a")) is None


def test_a_setting_that_is_taken_out_is_told_too():
    content = tomllib.loads(suite_path("deep-1").read_text())
    del content["problems"][0]["batch_size"]
    assert "batch_size 256, now none" in measured_otherwise(suite_from(content, "a.toml", "a").few)


def test_stated_targets_and_those_of_a_part_of_the_problems_are_nobody_s_measurement():
    content = tomllib.loads(suite_path("quick").read_text())
    fewer = {"problems": [content["problems"][0] | {"specs": ["rosenbrock"]}], "holdout": {}}
    fewer["targets"] = {"rosenbrock": content["targets"]["rosenbrock"]}
    assert measured_otherwise(suite_from(content | fewer, "a.toml", "a")) is None
    content["problems"][0]["steps"] = 50
    del content["measured"]
    assert measured_otherwise(suite_from(content, "a.toml", "a")) is None


def test_suite_run_refuses_targets_of_other_steps_and_show_says_so(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text(
        suite_path("quick").read_text().replace("steps = 100\ntrials = 20\n", "steps = 50\ntrials = 20\n", 1)
    )
    assert invoke(["suite", "run", str(path), "--quiet", "--out", str(tmp_path)]) == 2
    assert "steps 100, now 50): measure it by gradbench suite freeze" in capsys.readouterr().err
    assert invoke(["suite", "show", str(path)]) == 0
    assert "steps 100, now 50" in capsys.readouterr().out


def test_the_example_of_the_documentation_is_a_suite_with_every_key(tmp_path, monkeypatch):
    from gradbench.suites import definition

    [text] = re.findall(r"```toml\n(.*?)```", (Path(__file__).parents[2] / "docs" / "suites.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    content = tomllib.loads(text)
    suite = suite_from(content, "mine.toml", "mine")
    assert suite.version.startswith("mine-1 ")
    assert definition._OF_SUITE | {"problems", "optimizers", "reduced", "targets"} <= content.keys()
    assert content["problems"][0].keys() == definition._OF_PROBLEMS
    assert {key for table in content["optimizers"] for key in table} == definition._OF_OPTIMIZERS
    assert content["reduced"].keys() == definition._REDUCED


def test_what_is_not_measured_is_said():
    assert unmeasured(load_suite("core-1")) is None
    suite = suite_from(VALUES | {"references": ["sgd"]}, "a.toml", "a")
    assert unmeasured(suite).startswith("a: the targets of all problems have not been measured:")
    assert unmeasured(suite_from(VALUES, "a.toml", "a")) is None  # there is no rule to measure any by


@pytest.mark.parametrize("text", ["targets = { himmelblau = 3.0 }\n", "targets.himmelblau = 3.0\n"])
def test_targets_that_are_no_table_of_their_own_are_refused_and_the_file_is_left_as_it_is(text, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(text + HEAD + OPTIMIZERS)
    with pytest.raises(PlanError, match=r"tiny\.toml: its targets cannot be replaced"):
        write_targets(path, load_suite(path), [MEASURED], UNDER, reduced=False)
    assert path.read_text() == text + HEAD + OPTIMIZERS


def test_freeze_says_on_stderr_what_it_measures(tmp_path, capsys, monkeypatch):
    path = tmp_path / "tiny.toml"
    path.write_text('references = ["sgd"]\n' + HEAD + OPTIMIZERS)
    monkeypatch.setattr(freeze, "record_of", lambda *_: types.SimpleNamespace(info={"state": "complete"}))
    monkeypatch.setattr(freeze, "target_of", lambda *_: MEASURED)
    assert invoke(["suite", "freeze", str(path)]) == 0
    assert capsys.readouterr().err == "measuring himmelblau × sgd\n"


def test_a_built_in_suite_keeps_its_text_when_its_own_targets_are_written():
    suite = load_suite("core-1")
    found = [Measured(name, target, suite.holdout.get(name), "sgd", 0.1) for name, target in suite.targets.items()]
    under = measured_under(suite, 20, suite.all_problems)
    words = [line.partition(" #")[0] for line in suite_path("core-1").read_text().splitlines()]
    made = with_targets(suite_path("core-1"), suite, found, under, reduced=False)
    assert [line.partition(" #")[0] for line in made.splitlines()] == words


def test_one_problem_is_measured_anew_and_the_others_keep_their_lines(tmp_path):
    path, text = tmp_path / "mine.toml", suite_path("core-1").read_text()
    path.write_text(text)
    suite = load_suite(path)
    name, seeds = next(iter(suite.holdout)), suite.measured[0]["seeds"]
    one = Measured(name, 0.5, 0.625, "sgd", 0.1)
    write_targets(path, suite, [one], measured_under(suite, seeds, [name]), reduced=False)
    changed = set(text.splitlines()) ^ set(path.read_text().splitlines())
    assert len(changed) == 4  # its target and its held-out loss, as they were and as they are
    assert all(line.startswith(f'"{name}" = ') for line in changed)
    assert load_suite(path).targets == dict(suite.targets) | {name: 0.5}
    few = measured_under(suite, seeds + 1, [name])  # of other conditions: a table of its own
    assert [table["seeds"] for table in few if table["specs"] == [name]] == [seeds + 1]
    assert sorted(spec for table in few for spec in table["specs"]) == sorted(suite.all_problems)


def test_conditions_of_problems_that_the_suite_no_longer_has_are_dropped_and_comments_stay_with_their_target(tmp_path):
    path = tmp_path / "tiny.toml"
    text = HEAD.replace('"]', '", "rosenbrock"]') + OPTIMIZERS
    text += "[holdout]\nrosenbrock = 4.0 # held out\n[targets]\n'rosenbrock' = 3.0\n"
    path.write_text(text + '[[measured]]\nspecs = ["mlp", "himmelblau"]\nseeds = 3\n')
    suite = load_suite(path)
    under = measured_under(suite, 2, ["himmelblau"])
    assert [table["specs"] for table in under] == [["himmelblau"]]
    write_targets(path, suite, [MEASURED], under, reduced=False)
    assert '"rosenbrock" = 3.0\n' in path.read_text()


def test_freeze_measures_only_the_problems_asked_for(tmp_path, capsys, monkeypatch):
    path = tmp_path / "tiny.toml"
    path.write_text('references = ["sgd"]\n' + HEAD.replace('"]', '", "rosenbrock"]') + OPTIMIZERS)
    monkeypatch.setattr(freeze, "record_of", lambda *_: types.SimpleNamespace(info={"state": "complete"}))
    monkeypatch.setattr(freeze, "target_of", lambda name, _: Measured(name, 1.5, None, "sgd", 0.1))
    assert invoke(["suite", "freeze", str(path), "--problem", "rosenbrock"]) == 0
    assert "measuring rosenbrock × sgd\n" in capsys.readouterr().err
    suite = load_suite(path)
    assert (dict(suite.targets), suite.measured[0]["specs"]) == ({"rosenbrock": 1.5}, ["rosenbrock"])
    assert unmeasured(suite).startswith("tiny: the targets of himmelblau have not been measured")
    assert invoke(["suite", "freeze", str(path), "--problem", "lstm"]) == 2
    assert "no problem 'lstm'" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "kind"), [("cuda", "gpu"), ("rocm", "gpu"), ("tpu", "tpu")])
def test_a_suite_is_meant_for_a_kind_of_device_by_any_of_its_names(name, kind):
    assert suite_from(VALUES | {"meant_for": name}, "a.toml", "a").meant_for == kind


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reduced", 3),
        ("measured", 3),
        ("measured", [{}]),
        ("references", [1]),
        ("references", "sgd"),
        ("references", {"sgd": 1}),
        ("name", ["x"]),
        ("about", 1),
        ("learning_rates", "a:b"),
        ("learning_rates", "0:1"),
        ("learning_rates", 1),
        ("targets", 1),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_the_file_and_its_key(key, value):
    with pytest.raises(PlanError, match=f"^a.toml: .*{key}"):
        suite_from(VALUES | {key: value}, "a.toml", "a")


def test_a_named_optimizer_without_a_space_of_its_own_is_told_where_it_goes():
    with pytest.raises(PlanError, match=r"^a.toml: sgd: its \[\[optimizers\]\] table needs learning_rates = low:high"):
        suite_from(VALUES | {"optimizers": [{"specs": ["sgd"]}]}, "a.toml", "a")
