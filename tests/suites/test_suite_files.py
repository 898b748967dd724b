"""A suite's file: what it refuses in one line, and that freezing replaces its targets and nothing else."""

from __future__ import annotations

import tomllib

import pytest

from gradbench.cli.main import invoke
from gradbench.errors import PlanError
from gradbench.suites import freeze
from gradbench.suites.definition import load_suite, suite_from, suite_path
from gradbench.suites.freeze import Measured, with_targets, write_targets

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
    write_targets(path, [MEASURED])
    assert tomllib.loads(path.read_text()) == before | {"targets": {"himmelblau": 1.5}}
    assert [line for line in text.splitlines() if "#" in line and "old" not in line] == [
        line for line in path.read_text().splitlines() if "#" in line and "sgd at" not in line and "freeze" not in line
    ]
    once = path.read_text()
    write_targets(path, [MEASURED])
    assert path.read_text() == once


@pytest.mark.parametrize("text", ["targets = { himmelblau = 3.0 }\n", "targets.himmelblau = 3.0\n"])
def test_targets_that_are_no_table_of_their_own_are_refused_and_the_file_is_left_as_it_is(text, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(text + HEAD + OPTIMIZERS)
    with pytest.raises(PlanError, match=r"tiny\.toml: its targets cannot be replaced"):
        write_targets(path, [MEASURED])
    assert path.read_text() == text + HEAD + OPTIMIZERS


def test_freeze_says_on_stderr_what_it_measures(tmp_path, capsys, monkeypatch):
    path = tmp_path / "tiny.toml"
    path.write_text('references = ["sgd"]\n' + HEAD + OPTIMIZERS)
    monkeypatch.setattr(freeze.runner, "run_plan", lambda *_, **__: None)
    monkeypatch.setattr(freeze, "target_of", lambda *_: MEASURED)
    assert invoke(["suite", "freeze", str(path)]) == 0
    assert capsys.readouterr().err == "measuring himmelblau × sgd\n"


def test_a_built_in_suite_keeps_its_text_when_its_own_targets_are_written():
    suite = load_suite("core-1")
    found = [Measured(name, target, suite.holdout.get(name), "sgd", 0.1) for name, target in suite.targets.items()]
    words = [line.partition(" #")[0] for line in suite_path("core-1").read_text().splitlines()]
    assert [line.partition(" #")[0] for line in with_targets(suite_path("core-1"), found).splitlines()] == words


@pytest.mark.parametrize(("name", "kind"), [("cuda", "gpu"), ("rocm", "gpu"), ("tpu", "tpu")])
def test_a_suite_is_meant_for_a_kind_of_device_by_any_of_its_names(name, kind):
    assert suite_from(VALUES | {"meant_for": name}, "a.toml", "a").meant_for == kind


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reduced", 3),
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
