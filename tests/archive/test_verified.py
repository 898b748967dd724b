"""verified.json: what a verification keeps beside a record, and what never gets in its way."""

from __future__ import annotations

import threading

import pytest
from synthetic import make_run

from gradbench.archive import verified
from gradbench.archive.verify import Verification
from gradbench.cli.main import invoke
from gradbench.errors import RunError
from gradbench.machine import locks

FACTS = {"place": {}, "at": "2026-01-01T00:00:00Z", "record_sha256": "a"}
FOUND = Verification("a", [], [], [], 1, 1, 0, FACTS)


@pytest.mark.skipif(locks.fcntl is None, reason="this system has no locks")
def test_of_two_verifications_at_once_both_are_kept(tmp_path, monkeypatch):
    run = make_run(identifier=str(tmp_path))
    other = threading.Thread(target=lambda: verified.keep(run.path, FOUND, "you"))
    write = verified.write_json

    def write_late(*arguments):
        monkeypatch.setattr(verified, "write_json", write)
        other.start()
        other.join(0.2)  # without a lock it ends here, and is written over
        write(*arguments)

    monkeypatch.setattr(verified, "write_json", write_late)
    verified.keep(run.path, FOUND, "me")
    other.join()
    assert [entry["by"] for entry in verified.verifications(run.path)] == ["me", "you"]


def test_a_record_that_is_gone_keeps_nothing(tmp_path):
    with pytest.raises(RunError, match="gone"):
        verified.keep(tmp_path / "gone", FOUND)


@pytest.mark.usefixtures("compiled_quickly")
def test_a_damaged_file_changes_no_answer_and_is_said_in_a_line(sweep, capsys):
    run = sweep("himmelblau", ["sgd"], [1e-3], seeds=1, steps=5, timing="none")
    (run.path / verified.NAME).write_text("[]")
    assert invoke(["verify", str(run.path), "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert "holds" in out
    [line] = err.splitlines()
    assert line.startswith("the result is not saved: ")
    assert "damaged" in line
