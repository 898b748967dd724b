"""Two real processes under jax.distributed share sweeps: the records are those of one process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import time_little
from quick import child_environment

import gradbench
from gradbench.record.store import load_run

PLAN = {"problems": ["himmelblau"], "optimizers": ["sgd", "momentum", "adam"], "learning_rates": "1e-3:1:12"}
PLAN |= {"seeds": 2, "steps": 60}
# Every process runs this: a sweep that only process 0 cannot begin, one whole, one that process 0 stops and both
# resume, one that process 0 stops for good, and one in which process 1 dies with a pair in its hands.
SCRIPT = """
import json, os, sys, time
from pathlib import Path
import jax
rank, port, out, plan = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
import gradbench
import quick
from gradbench.engine import runner
quick.time_little()
plan = gradbench.SweepPlan.from_dict(plan)

class Watcher(runner.Watcher):
    def __init__(self, stop=False, die=False):
        self.stop, self.die, self.mine = stop, die, []
    def started(self, path):
        if self.die and rank == 0:  # process 1 has the first pair to itself
            while not (out / "died").exists():
                time.sleep(0.02)
    def pair_started(self, number, problem, optimizer):
        self.mine.append(number)
        time.sleep(0.2)  # so that neither process takes all
    def chunk(self, progress):
        if self.die and rank == 1:
            (out / "died").touch()
            os._exit(9)
    def should_stop(self):
        return self.stop and rank == 0 and len(self.mine) > 0

def say(what, run, watcher):
    answer = {"path": str(run.path), "state": run.info["state"], "mine": watcher.mine, "rows": len(run.trials)}
    (out / f"{what}-{rank}.json").write_text(json.dumps(answer))

try:
    gradbench.run_plan(plan, out=out if rank else "/dev/null/nowhere")
except gradbench.GradbenchError as error:
    (out / f"failed-{rank}.json").write_text(json.dumps([type(error).__name__, str(error)]))
for what in ("whole", "stopped"):
    watcher = Watcher(stop=what == "stopped")
    run = gradbench.run_plan(plan, out=out, watcher=watcher)
    say(what, run, watcher)
watcher = Watcher()
say("resumed", gradbench.resume("latest" if rank == 0 else "nobody asks", results=out, watcher=watcher), watcher)
watcher = Watcher(stop=True)
say("left", gradbench.run_plan(plan, out=out, watcher=watcher), watcher)
watcher = Watcher(die=True)
say("orphaned", gradbench.run_plan(plan, out=out, watcher=watcher), watcher)
os._exit(0)  # JAX would wait for the dead process
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shared")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", SCRIPT]
    processes = [
        subprocess.Popen(
            [*command, str(rank), port, str(out), json.dumps(PLAN)],
            env=child_environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 9], errors
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> gradbench.Run:
    with pytest.MonkeyPatch.context() as monkeypatch:
        time_little(monkeypatch)
        return gradbench.sweep(**PLAN, out=tmp_path_factory.mktemp("alone"))


def said(shared: Path, what: str) -> list:
    return [json.loads((shared / f"{what}-{rank}.json").read_text()) for rank in range(2)]


def same(run: gradbench.Run, other: gradbench.Run) -> bool:
    return run.trials.equals(other.trials) and run.curves.equals(other.curves)


def test_two_processes_share_the_pairs_and_write_the_record_of_one(shared, alone):
    zero, one = said(shared, "whole")
    assert zero["path"] == one["path"]
    assert zero["state"] == one["state"] == "complete"
    assert sorted(zero["mine"] + one["mine"]) == [0, 1, 2]
    assert zero["mine"]
    assert one["mine"]
    run = load_run(zero["path"])
    assert same(run, alone)
    assert run.info["processes"] == 2
    assert not any(run.timings["trusted"].to_pylist())  # two processes on the same cores
    assert sorted(p.name for p in run.path.iterdir()) == sorted(p.name for p in alone.path.iterdir())


def test_what_process_0_stops_they_resume_together(shared, alone):
    stopped, resumed = said(shared, "stopped"), said(shared, "resumed")
    assert stopped[0]["state"] == "interrupted"
    assert stopped[1]["state"] != "complete"  # process 0 may be resuming already
    assert {answer["path"] for answer in stopped} == {answer["path"] for answer in resumed}
    assert {answer["state"] for answer in resumed} == {"complete"}
    assert same(load_run(resumed[0]["path"]), alone)


def test_one_process_resumes_what_two_began(shared, alone, monkeypatch):
    time_little(monkeypatch)
    left = said(shared, "left")[0]
    assert left["state"] == "interrupted"
    assert left["rows"] < alone.trials.num_rows
    assert same(gradbench.resume(left["path"]), alone)


def test_the_pair_of_a_dead_process_is_taken_over(shared, alone):
    answer = json.loads((shared / "orphaned-0.json").read_text())
    assert sorted(answer["mine"]) == [0, 1, 2]
    assert same(load_run(answer["path"]), alone)


def test_nobody_waits_for_a_run_that_process_0_cannot_begin(shared):
    (kind, text), (other_kind, other_text) = said(shared, "failed")
    assert kind == "RecordError"
    assert other_kind == "RunError"
    assert text in other_text
