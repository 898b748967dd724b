"""Records: atomic, validated, resumable after any kill, and equal to the uninterrupted run's."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import StopAfter, time_little
from quick import child_environment
from sampling import sample
from tampering import change_info, close

import gradbench
from gradbench.engine import events, runner
from gradbench.engine import pair as engine
from gradbench.errors import DamagedError, GradbenchWarning, RecordError, RunError
from gradbench.record import manifest, schema
from gradbench.record.schema import SCHEMAS, SWEPT
from gradbench.record.store import find_run, load_run, write_json

pytestmark = pytest.mark.usefixtures("compiled_quickly")
PLAN = {"optimizers": ["sgd", "adam"], "learning_rates": "1e-3:1.0:12", "seeds": 2, "steps": 60, "timing": "none"}
ONE = PLAN | {"optimizers": ["sgd"]}  # a single pair


def same(left, right) -> bool:
    return all(getattr(left, name).equals(getattr(right, name)) for name in SWEPT)


def test_a_record_has_every_table_with_its_schema(sweep):
    problem = gradbench.load_problem("himmelblau")
    problem = dataclasses.replace(problem, metrics={"again": problem.loss})
    run = sweep(problem, ["sgd"], [1e-3], seeds=2, steps=10, sharpness=True, timing="batched")
    for name, declared in SCHEMAS.items():
        assert pq.read_schema(run.path / f"{name}.parquet").equals(declared, check_metadata=False)
    info = json.loads((run.path / "run.json").read_text())
    assert info["state"] == "complete"
    assert info["plan"] == json.loads(json.dumps(run.plan.to_dict()))
    assert info["environment"]["versions"]["jax"]
    assert sorted(p.name for p in run.path.iterdir()) == [
        "curves.parquet",
        "manifest.json",
        "metrics.parquet",
        "run.json",
        "sharpness.parquet",
        "timings.parquet",
        "trials.parquet",
    ]
    assert same(run, load_run(run.path))
    assert run.sharpness.equals(load_run(run.path).sharpness)


def test_a_record_without_sharpness_has_no_table_of_it_and_older_plans_load(sweep):
    run = sweep("himmelblau", ["sgd"], [1e-3], seeds=1, steps=5)
    assert not (run.path / "sharpness.parquet").exists()
    change_info(run.path, lambda info: info["plan"].pop("sharpness"))  # as written before there was such a setting
    close(run.path)
    assert load_run(run.path).sharpness.num_rows == 0


@pytest.mark.parametrize(
    ("dtype", "stops"), sample([("float32", (0, 3, 8)), ("float32", (1, 5)), ("bfloat16", (0, 1, 3, 5, 8))])
)
def test_an_interrupted_run_resumes_to_the_same_record(sweep, small_blocks, tmp_path, dtype, stops):
    small_blocks()
    plan = gradbench.SweepPlan(("linear_regression",), batch_size=None, dtype=dtype, **PLAN)
    whole = runner.run_plan(plan, out=tmp_path / "whole")
    for questions in stops:
        stopped = runner.run_plan(plan, out=tmp_path / "stopped", watcher=StopAfter(questions))
        assert stopped.info["state"] == "interrupted", questions
        assert stopped.trials.num_rows < whole.trials.num_rows, questions
        resumed = gradbench.resume(stopped.path)
        assert resumed.info["state"] == "complete", questions
        assert same(resumed, whole), questions
        assert not (resumed.path / "parts").exists(), questions


@pytest.mark.thorough
def test_an_optimizer_with_a_random_key_resumes(sweep, small_blocks, tmp_path):
    small_blocks()
    plan = gradbench.SweepPlan(("himmelblau",), ("noisy_sgd",), "1e-3:1e-2:12", steps=60)
    whole = runner.run_plan(plan, out=tmp_path)
    stopped = runner.run_plan(plan, out=tmp_path, watcher=StopAfter(4))
    assert same(gradbench.resume(stopped.path), whole)


@pytest.mark.thorough
def test_an_interrupted_run_resumes_to_the_same_sharpness(sweep, small_blocks, tmp_path):
    small_blocks()
    plan = gradbench.SweepPlan(("himmelblau",), sharpness=True, **PLAN)
    whole = runner.run_plan(plan, out=tmp_path)
    stopped = runner.run_plan(plan, out=tmp_path, watcher=StopAfter(5))
    assert gradbench.resume(stopped.path).sharpness.equals(whole.sharpness)
    assert set(whole.sharpness["optimizer"].to_pylist()) == {"sgd", "adam"}


def test_rows_written_after_the_last_checkpoint_are_not_counted_twice(sweep, small_blocks, tmp_path, monkeypatch):
    small_blocks()
    plan = gradbench.SweepPlan(("himmelblau",), **ONE)
    whole = runner.run_plan(plan, out=tmp_path)
    stopped = runner.run_plan(plan, out=tmp_path, watcher=StopAfter(4))
    checkpoint = stopped.path / "parts" / "0000" / "checkpoint.npz"
    kept = checkpoint.read_bytes()
    again = StopAfter(3)
    gradbench.resume(stopped.path, watcher=again)
    checkpoint.write_bytes(kept)  # as if the kill came between the rows and the checkpoint
    assert same(gradbench.resume(stopped.path), whole)


KILLED = """
import sys
import objectives
import quick
from gradbench import SweepPlan
from gradbench.engine import pair as engine
from gradbench.engine import runner
from gradbench.program.program import Block

class Aloud(runner.Watcher):
    def chunk(self, progress):
        print("chunk", flush=True)

engine.CHECKPOINT_SECONDS = 0.0
runner.choose_block = lambda *_: Block(1, 20, 300, 1)  # the same chunks on any machine
quick.time_little()
plan = SweepPlan((objectives.__file__,), ("sgd", "adam"), "1e-3:1.0:40", steps=1500)  # state, keys and metrics
if sys.argv[2] == "run":
    runner.run_plan(plan, out=sys.argv[1], watcher=Aloud())
else:
    runner.resume("latest", results=sys.argv[1], watcher=Aloud())
"""


@pytest.mark.thorough
def test_killed_runs_resume_to_the_same_record(tmp_path):
    def start(folder, how):
        command = [sys.executable, "-c", KILLED, str(folder), how]
        with log.open("a") as errors:  # a pipe that nobody reads would fill, and the process wait for ever
            pipe = subprocess.PIPE
            return subprocess.Popen(command, stdout=pipe, stderr=errors, text=True, env=child_environment())

    log = tmp_path / "errors.txt"
    chunks, _ = start(tmp_path / "whole", "run").communicate()
    generator, out, chunks = random.Random(0), tmp_path / "killed", len(chunks.splitlines())
    assert chunks > 12, log.read_text()
    for kill in range(3):
        with start(out, "resume" if kill else "run") as process:
            # Counted, not timed, so that each kill finds work under way on any machine: at most half of it is done.
            for _ in range(generator.randint(1, chunks // 6)):
                process.stdout.readline()
            time.sleep(generator.uniform(0, 0.02))  # and anywhere inside a chunk
            process.kill()
        assert process.returncode == -signal.SIGKILL
    process = start(out, "resume")
    process.communicate()
    assert process.returncode == 0, log.read_text()
    whole = load_run("latest", tmp_path / "whole")
    assert whole.metrics.num_rows
    assert same(load_run("latest", out), whole)


def test_resume_refuses_another_machine_or_version(sweep, small_blocks, tmp_path):
    small_blocks()
    stopped = runner.run_plan(gradbench.SweepPlan(("beale",), **ONE), out=tmp_path, watcher=StopAfter(1))
    info = json.loads((stopped.path / "run.json").read_text())
    info["environment"]["versions"]["jax"] = "0.0.1"
    write_json(info, stopped.path / "run.json")
    with pytest.raises(RecordError, match=r"began with jax 0\.0\.1"):
        gradbench.resume(stopped.path)


def test_two_processes_cannot_write_one_run(sweep, small_blocks, tmp_path):
    small_blocks()
    stopped = runner.run_plan(gradbench.SweepPlan(("beale",), **ONE), out=tmp_path, watcher=StopAfter(1))
    with runner.RunWriter.resume(stopped.path), pytest.raises(RecordError, match="another process"):
        gradbench.resume(stopped.path)


@pytest.mark.parametrize("error", [ValueError("a fault of ours"), KeyboardInterrupt(), RunError("known")])
def test_a_run_that_fails_is_interrupted_not_running(sweep, small_blocks, tmp_path, error):
    class Failing(runner.Watcher):
        def chunk(self, progress):
            raise error

    small_blocks()
    with pytest.raises(type(error)) as caught:
        runner.run_plan(gradbench.SweepPlan(("beale",), **ONE), out=tmp_path / "results", watcher=Failing())
    [path] = (tmp_path / "results").iterdir()
    assert json.loads((path / "run.json").read_text())["state"] == "interrupted"
    kept = list(path.glob("traceback-*.txt"))
    assert len(kept) == isinstance(error, ValueError)  # of what nobody foresaw
    if kept:
        assert "ValueError: a fault of ours" in kept[0].read_text()
        assert caught.value.__notes__ == [f"the traceback is in {kept[0]}"]
    assert gradbench.resume(path).info["state"] == "complete"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        time_little(monkeypatch)
        return gradbench.sweep("beale", ["sgd"], [1e-3], seeds=1, steps=5, out=tmp_path_factory.mktemp("made"))


@pytest.fixture
def record(made, tmp_path):
    """A record of this test's own, to be damaged."""
    return load_run(shutil.copytree(made.path, tmp_path / "results" / made.id))


def damage(record, name, table) -> None:
    pq.write_table(table, record.path / name)


def test_a_run_killed_as_it_is_closed_goes_on_and_has_its_manifest(sweep, tmp_path, monkeypatch):
    def closed_and_killed(*arguments, close=manifest.close):
        close(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "close", closed_and_killed)
        with pytest.raises(KeyboardInterrupt):
            sweep("beale", ["sgd"], [1e-3], seeds=1, steps=5, timing="none")
    stopped = load_run("latest", tmp_path / "results")
    assert stopped.info["state"] == "interrupted"
    run = gradbench.resume(stopped.path)
    assert manifest.changed_files(run.path, run.info) == {}


def test_damaged_records_are_refused_in_one_line(record):
    trials = record.path / "trials.parquet"
    original = trials.read_bytes()
    wrong_type = record.trials.set_column(4, "seed", record.trials["seed"].cast(pa.int32()))
    empty = record.trials.set_column(5, "verdict", pa.nulls(1, pa.string()))
    for content, words in (
        (original[: len(original) // 2], "damaged"),
        (b"", "damaged"),
        (None, "missing or damaged"),
        (record.trials.drop_columns(["verdict"]), "no column 'verdict'"),
        (wrong_type, "column 'seed' is int32, should be int64"),
        (empty, "column 'verdict' has empty cells"),
    ):
        if content is None:
            trials.unlink()
        elif isinstance(content, bytes):
            trials.write_bytes(content)
        else:
            damage(record, "trials.parquet", content)
        with pytest.raises(RecordError, match=words) as caught:
            load_run(record.path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "damaged"),
        ("{", "damaged"),
        ("[]", "no schema_version"),
        ('{"schema_version": 99}', "newer gradbench"),
        ('{"schema_version": true}', "no schema_version"),
        ('{"schema_version": 1}', "'id' is missing"),
        ("[" * 100_000, "damaged"),
    ],
)
def test_damaged_run_json_is_refused(record, text, words):
    (record.path / "run.json").write_text(text)
    with pytest.raises(RecordError, match=words):
        load_run(record.path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("state", "weird", "'state' is 'weird', should be running, complete, interrupted"),
        ("problems", 3, "'problems' does not hold"),
        ("problems", {"beale": 3}, "'problems' does not hold"),
        ("problems", {"beale": {"curvature": "x"}}, "'problems' does not hold"),
        ("sources", {"problems": {"beale": 3}, "optimizers": {}}, "'sources' does not hold"),
        ("sources", {"problems": {}}, "'sources' does not hold"),
        ("suite", 3, "'suite' has no name"),
        ("suite", {"name": "core-1"}, "'suite' has no name"),
    ],
)
def test_run_json_that_says_nonsense_is_refused(record, key, value, words):
    info = json.loads((record.path / "run.json").read_text())
    (record.path / "run.json").write_text(json.dumps(info | {key: value}))
    with pytest.raises(RecordError, match=words):
        load_run(record.path)


def test_a_plan_that_is_refused_is_damaged_only_where_the_manifest_says_so(record):
    info = json.loads((record.path / "run.json").read_text())
    (record.path / "run.json").write_text(json.dumps(info | {"plan": info["plan"] | {"steps": 0}}))
    with pytest.raises(DamagedError, match="damaged plan"):
        load_run(record.path)
    (record.path / manifest.NAME).unlink()
    with pytest.raises(RecordError, match="does not take its plan") as caught:
        load_run(record.path)
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize(
    ("name", "words"), [("run.json", "run.json is changed since the record was closed"), (manifest.NAME, "damaged")]
)
def test_a_record_that_was_changed_is_read_with_a_warning(record, name, words):
    with (record.path / name).open("a") as file:
        file.write(" " if name == "run.json" else "}")
    with pytest.warns(GradbenchWarning, match=f"{record.id}.*{words}") as said:
        assert same(load_run(record.path), record)
    assert len(said) == 1


@pytest.mark.parametrize("text", ["[]", '{"sha256": ["run.json"]}', '{"sha256": {}}', "[" * 100_000])
def test_a_manifest_without_digests_is_damaged(tmp_path, text):
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(DamagedError, match=f"{manifest.NAME}: damaged"):
        manifest.changed_files(tmp_path, {"state": "complete"})


def test_a_manifest_that_may_not_be_read_is_not_damaged(record, monkeypatch):
    def refuse(file):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(manifest, "digest", refuse)
    with pytest.raises(RecordError, match="Permission denied") as caught:
        manifest.changed_files(record.path, record.info)
    assert not isinstance(caught.value, DamagedError)


def test_records_are_found_by_path_id_and_latest(record):
    results = record.path.parent
    for name in (record.path, record.id, record.id[:18], record.id[-6:], "latest"):
        assert find_run(name, results) == record.path
    with pytest.raises(RecordError, match="no such record"):
        find_run("20200101T000000Z-000000", results)
    with pytest.raises(RecordError, match="no records here"):
        find_run("latest", results / "nothing")


def test_a_full_disk_leaves_no_half_written_table(tmp_path, monkeypatch):
    from gradbench import files as module

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.pq.ParquetWriter, "write_table", full)
    with pytest.raises(RunError, match="No space left"):
        module.write_table(SCHEMAS["curves"].empty_table(), tmp_path / "curves.parquet")
    assert list(tmp_path.iterdir()) == []


def test_curves_of_a_huge_sweep_keep_fewer_points():
    plan = gradbench.SweepPlan(("beale",), ("sgd",), "1e-3:1:10000", seeds=100)
    assert engine.curve_points(plan) == 5
    assert engine.curve_points(gradbench.SweepPlan()) == 200


def test_the_docs_have_every_column():
    docs = (Path(__file__).parents[2] / "docs" / "record.md").read_text(encoding="utf-8")
    assert docs.endswith(schema.markdown()), "write it anew: python -m gradbench.record.schema"


def test_what_the_engine_sees_of_a_trial_is_what_the_schema_says():
    assert set(schema.EVENT_COLUMNS) <= set(events.Events._fields)
    assert len(schema.TARGET_COLUMNS) == len(schema.TARGETS)


def test_the_latest_of_one_second_is_the_last_written(tmp_path):
    names = ["20260101T000000Z-aaaaaa", "20260101T000000Z-bbbbbb", "20250101T000000Z-cccccc"]
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
        os.utime(tmp_path / name, ns=(0, 10**9 * (10 - number)))
    assert find_run("latest", tmp_path).name == names[0]
    os.utime(tmp_path / names[1], ns=(0, 10**11))
    assert find_run("latest", tmp_path).name == names[1]
