"""A run goes on, and a report draws, only with the problems, data and optimizers that the run had."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from conftest import StopAfter
from synthetic import make_run

import gradbench
from gradbench.analysis.settings.comparison import compare_text
from gradbench.engine import runner
from gradbench.errors import RecordError
from gradbench.inputs.transfer.sources import fingerprint, recorded_file, recorded_problem, sources
from gradbench.record.store import write_json
from gradbench.reporting.page import write_report
from gradbench.reporting.scenery import landscape_views

pytestmark = pytest.mark.usefixtures("compiled_quickly")
BOWL = """
import jax.numpy as jnp
from gradbench import Problem


def problem(data=None):
    rows = jnp.ones(2) if data is None else __import__("numpy").loadtxt(data)
    return Problem(lambda key: jnp.ones(2), lambda params, rows: jnp.sum(rows * params**2), rows, minimum=0.0)
"""
SGD = "import optax\ndef make(learning_rate):\n    return optax.sgd(learning_rate)\n"


@pytest.fixture
def stopped(sweep, small_blocks, tmp_path, monkeypatch):
    """A run of a user's problem, data and optimizer, stopped before its second pair; and the folder of its files."""
    small_blocks()
    monkeypatch.chdir(tmp_path)
    for name, text in (("bowl.py", BOWL), ("sgd.py", SGD), ("rows.csv", "1.0\n2.0\n")):
        (tmp_path / name).write_text(text)
    plan = gradbench.SweepPlan(("./bowl.py[data=rows.csv]",), ("./sgd.py:make", "sgd"), [0.1], steps=5, timing="none")
    return runner.run_plan(plan, out="results", watcher=StopAfter(2)).path, tmp_path


def test_the_files_and_data_of_a_run_are_in_its_record(stopped):
    path, folder = stopped
    found = json.loads((path / "run.json").read_text())["sources"]
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("bowl.py", "sgd.py")}
    problem = found["problems"]["./bowl.py[data=rows.csv]"]
    assert (problem["file"], problem["sha256"]) == ("./bowl.py", digests["bowl.py"])
    assert found["optimizers"] == {
        "./sgd.py:make": {"file": "./sgd.py", "sha256": digests["sgd.py"]},
        "sgd": {"file": None, "sha256": None},
    }


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("bowl.py", r"bowl\.py has changed since this run began"),
        ("sgd.py", r"sgd\.py has changed since this run began"),
        ("rows.csv", r"the data of \./bowl\.py\[data=rows\.csv\] have changed since this run began"),
    ],
)
def test_resume_refuses_another_problem_data_or_optimizer(stopped, file, words):
    path, folder = stopped
    original = (folder / file).read_text()
    (folder / file).write_text(original.replace("2.0", "3.0").rstrip() + "\n\n")
    with pytest.raises(RecordError, match=words):
        gradbench.resume(path)
    (folder / file).write_text(original)
    assert gradbench.resume(path).info["state"] == "complete"


def test_resume_refuses_a_problem_given_as_an_object(sweep, small_blocks, tmp_path):
    small_blocks()
    mine = dataclasses.replace(gradbench.load_problem("quadratic_bowl[dim=2]"), loss=lambda p, d: 3 * (p @ p))
    plan = gradbench.SweepPlan((mine.name,), ("sgd", "adam"), [0.1], steps=5)
    path = runner.run_plan(plan, out=tmp_path, watcher=StopAfter(2), objects={mine.name: mine}).path
    with pytest.raises(RecordError, match=r"was given as an object.* gradbench run \./mine"):
        gradbench.resume(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"git_commit": "0123abc"}, r"began with gradbench's commit 0123abc"),
        ({"versions": {"numpy": "0.0.1"}}, r"began with numpy 0\.0\.1"),
        ({"versions": {"optax": "0.0.1"}}, r"began with optax 0\.0\.1"),
    ],
)
def test_resume_refuses_other_versions_and_another_commit(stopped, change, words):
    path, _ = stopped
    info = json.loads((path / "run.json").read_text())
    place = info["environment"]
    place |= {key: place[key] | value if key == "versions" else value for key, value in change.items()}
    write_json(info, path / "run.json")
    with pytest.raises(RecordError, match=words):
        gradbench.resume(path)


def test_a_run_of_before_there_were_digests_resumes(stopped):
    path, folder = stopped
    info = json.loads((path / "run.json").read_text())
    del info["sources"]
    write_json(info, path / "run.json")
    (folder / "bowl.py").write_text(BOWL + "\n")
    assert gradbench.resume(path).info["state"] == "complete"


def test_data_have_one_fingerprint_in_one_dtype():
    def prints(*values):
        return {fingerprint({"x": np.array(value)}, "float32") for value in values}

    assert len(prints([1.0, 2.0], np.nextafter([1.0, 2.0], 9))) == 1  # beyond what a float32 run reads
    assert len(prints([1.0, 2.0], [1.0, 2.0001], [[1.0, 2.0]], [1, 2], [1.0], [])) == 6
    assert fingerprint({"x": np.ones(2)}, "float32") != fingerprint({"y": np.ones(2)}, "float32")
    assert fingerprint(np.ones(2), "bfloat16") != fingerprint(np.ones(2), "float16")


def recorded(name: str = "linear_regression[examples=20,features=2]", **change) -> gradbench.Run:
    """A made-up record of a built-in problem whose source is as it is here, but for `change`."""
    run = make_run(problems=[name], optimizers=["sgd"])
    source = sources(run.plan, {name: gradbench.load_problem(name)}, {})["problems"][name]
    return dataclasses.replace(
        run, info=run.info | {"sources": {"problems": {name: source | change}, "optimizers": {}}}
    )


def test_a_problem_of_ours_is_had_again_as_it_was():
    problem, why = recorded_problem(recorded().info, "linear_regression[examples=20,features=2]")
    assert why == ""
    assert problem.examples == 20


def test_a_problem_is_had_again_by_a_plan_that_leaves_its_dtype_out():
    run = recorded()
    plan = {key: value for key, value in run.plan.to_dict().items() if key != "dtype"}
    assert recorded_problem(run.info | {"plan": plan}, run.plan.problems[0])[1] == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": "0" * 64}, "linear_regression.py here is not the file of this run"),
        ({"sha256": None, "file": None}, "was given as an object, which only its own process had"),
        ({"data_sha256": "0" * 64}, "here are not those of this run"),
    ],
)
def test_another_problem_of_the_same_name_is_not_drawn_and_the_page_says_why(tmp_path, change, words):
    run = recorded(**change)
    run.info["problems"][run.plan.problems[0]]["curvature"] = None
    found = landscape_views([run])
    assert [(view.seen, view.ends, view.largest_at_start) for view in found.values()] == [(None, [], None)]
    page = write_report([run], tmp_path / "page.html").read_text()
    assert json.dumps(found[run.plan.problems[0]].missing) in page  # which the page's script shows
    assert words in found[run.plan.problems[0]].missing


def test_a_problem_is_not_drawn_where_another_run_on_the_page_had_another():
    runs = [recorded(), recorded(sha256="0" * 64)]
    [view] = landscape_views(runs).values()
    assert view.missing.startswith("linear_regression.py here is not the file of this run")


def test_a_record_of_before_there_were_digests_is_drawn_as_before():
    run = make_run(problems=["beale"], optimizers=["sgd"], rates=(1e-4, 1e-3))
    run.info["problems"]["beale"]["parameters"] = 2
    assert landscape_views([run])["beale"].seen is not None


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({}, None),
        ({"sha256": "0" * 64}, "linear_regression.py here is not the file of this run"),
        ({"sha256": None, "file": None}, "was given as an object, which only its own process had"),
    ],
)
def test_compare_notes_a_problem_that_is_another_one_here(change, note):
    run = recorded(**change)
    notes = [text for text in json.loads(compare_text(run, "json", 2.0))["notes"] if "tried" not in text]
    assert bool(notes) == (note is not None)
    if note:
        assert note in notes[0]
        assert f"Note: {notes[0]}." in compare_text(run, "markdown", 2.0).splitlines()


def test_a_file_that_is_gone_is_noted(stopped):
    path, folder = stopped
    (folder / "bowl.py").unlink()
    assert recorded_file(gradbench.load_run(path).info, "./bowl.py[data=rows.csv]") == "./bowl.py is not here"
