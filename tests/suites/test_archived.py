"""results/archive/core-1: who is in it, of which version, how small it is, and that its numbers come again."""

import pytest

from gradbench.archive.verify import verify_run
from gradbench.record.manifest import changed_files
from gradbench.record.store import load_run
from gradbench.suites.definition import load_suite
from gradbench.suites.running import ARCHIVE, suite_records

CORE = load_suite("core-1")
RECORDS = suite_records(ARCHIVE / CORE.name)


def test_at_least_20_optimizers_are_archived_on_every_problem_of_this_version():
    found = {}
    for path in RECORDS:
        run = load_run(path)
        assert run.info["suite"]["sha256"] == CORE.sha256
        assert run.info["state"] == "complete"
        assert run.info["environment"]["cpu_model"]
        assert changed_files(path, run.info) == {}
        for problem, optimizer in run.plan.pairs:
            found.setdefault(optimizer, set()).add(problem)
    assert len(found) >= 20
    assert set(map(frozenset, found.values())) == {frozenset(CORE.all_problems)}


def test_the_archive_is_small():
    assert sum(file.stat().st_size for path in RECORDS for file in path.iterdir()) < 10_000_000


@pytest.mark.thorough
@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_archived_trials_come_again(path):
    assert verify_run(load_run(path), sample=1, seed=0).holds
