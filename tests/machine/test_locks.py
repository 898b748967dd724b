"""Locks: only another process that holds a file is one, and a system without locks is told apart from it."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from gradbench.errors import GradbenchWarning
from gradbench.inputs.plan import SweepPlan
from gradbench.machine import locks
from gradbench.record import store as record

PLAN = SweepPlan(("beale",), ("sgd",), [1e-3])
REASONS = {errno.ENOLCK: "No locks available", errno.EOPNOTSUPP: "Operation not supported", errno.ENOSYS: "Function"}


def refuse(monkeypatch, number: int) -> None:
    def flock(*_):
        raise OSError(number, REASONS[number])

    monkeypatch.setattr(locks.fcntl, "flock", flock)


def test_a_file_is_held_by_one(tmp_path):
    with (tmp_path / "a").open("w") as one, (tmp_path / "a").open("r+") as other:  # flock knows them apart
        assert locks.hold(one)
        assert not locks.hold(other)


def test_a_run_whose_process_was_killed_is_read_as_interrupted(tmp_path):
    writer = record.RunWriter.create(tmp_path, PLAN, {})
    assert record.load_run(writer.path).info["state"] == "running"
    writer._lock.close()  # as the system does of a process that ends
    assert record.load_run(writer.path).info["state"] == "interrupted"
    assert record.read_info(writer.path)["state"] == "running", "a reader writes nothing"


@pytest.mark.parametrize("number", REASONS)
def test_without_locks_a_run_goes_on_and_says_why(tmp_path, monkeypatch, number):
    refuse(monkeypatch, number)
    with pytest.warns(GradbenchWarning, match=rf"cannot be locked \({REASONS[number]}"):
        writer = record.RunWriter.create(tmp_path, PLAN, {})
    with writer:
        assert record.read_info(writer.path)["state"] == "running"


def test_a_system_without_fcntl_runs_without_locks(tmp_path, monkeypatch):
    code = "import sys; sys.modules['fcntl'] = None; from gradbench.machine import locks; print(locks.fcntl)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "None\n"
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.warns(GradbenchWarning, match="this system has no flock"):
        record.RunWriter.create(tmp_path, PLAN, {}).__exit__(None, None, None)
