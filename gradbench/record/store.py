"""A run on disk: `run.json` and Parquet tables, written atomically, never overwritten, read back validated.

While a run goes on, its finished rows and its checkpoint are in `parts/`; the tables are joined from it at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from gradbench.errors import DamagedError, GradbenchError, GradbenchWarning, RecordError, RunError, one_line
from gradbench.failures import FORESEEN, keep_traceback
from gradbench.files import utc_now, write_json, write_tables
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.transfer import sources
from gradbench.machine.locks import NoLocks, held, hold
from gradbench.paths import user_path
from gradbench.record import manifest
from gradbench.record.parts import PairStore, read_table
from gradbench.record.schema import (
    SCHEMA_VERSION,
    SCHEMAS,
    TABLES,
    schema_of,
)

LOG = logging.getLogger(__name__)
LOCK = ".lock"  # held by the process that writes the run
STATES = ("running", "complete", "interrupted")


class RunWriter:
    """A run being made in its folder. Held by one process at a time: raises RecordError where another one writes it."""

    def __init__(self, path: Path, info: dict[str, Any]):
        self.path, self.info = path, info
        try:
            self._lock = (path / LOCK).open("w")
        except OSError as error:
            raise RecordError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            alone = hold(self._lock)
        except NoLocks as error:  # a run is nearly always written by one process: it goes on, and says so
            text = f"{path}: cannot be locked ({error}); no other process may write this run meanwhile"
            warnings.warn(text, GradbenchWarning, stacklevel=3)
            alone = True
        if not alone:
            self._lock.close()
            raise RecordError(f"{path}: another process is writing this run")

    @classmethod
    def create(cls, out: str | Path, plan: SweepPlan, environment: dict[str, Any]) -> RunWriter:
        """Make a new folder under `out`. Raises RecordError where it cannot be written."""
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
        path = user_path(out) / name
        try:
            path.mkdir(parents=True)
            info: dict[str, Any] = {
                "schema_version": SCHEMA_VERSION,
                "id": name,
                "state": "running",
                "started": utc_now(),
            }
            info |= {"ended": None, "plan": plan.to_dict(), "environment": environment, "blocks": {}}
            writer = cls(path, info)
        except OSError as error:
            raise RecordError(f"{out}: cannot make a results folder here: {error.strerror}") from error
        writer.save_info()
        return writer

    @classmethod
    def resume(cls, path: Path) -> RunWriter:
        return cls(path, read_info(path))

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """After an error the run is marked "interrupted"; the traceback of an unforeseen error is kept in it."""
        if error is not None:
            if isinstance(error, Exception) and not isinstance(error, FORESEEN):
                keep_traceback(error, self.path)
            if self.info["state"] == "running":
                with contextlib.suppress(RunError):  # such as a full disk: the first error is the one raised
                    self.interrupt()
        self._lock.close()

    def save_info(self) -> None:
        write_json(self.info, self.path / "run.json")

    def pair(self, number: int) -> PairStore:
        return PairStore(self.path / "parts" / f"{number:04d}", self.axes)

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The plan's axes, each a column of the trials."""
        return SweepPlan.from_dict(self.info["plan"]).axis_names

    def complete(self, pairs: int) -> bool:
        return all(self.pair(number).complete for number in range(pairs))

    def interrupt(self) -> None:
        self.info |= {"state": "interrupted", "ended": utc_now()}
        self.save_info()

    def finish(
        self,
        add_roofline: Callable[[list[dict]], list[dict]] = list,
        judge: Callable[[int, pa.Table], pa.Table] = lambda number, trials: trials,
    ) -> None:
        """Join the parts into the tables; only then is the run complete. `add_roofline(rows)` returns the rows of
        timings.parquet with its roofline columns, `judge(number, trials)` a pair's trials with final verdicts."""
        for name in _files(self.info):
            tables = _by_pair(self.path, name, self.axes)
            if name == "trials":
                tables = (judge(number, table) for number, table in enumerate(tables))
            if name == "timings":
                rows = [row for table in tables for row in table.to_pylist()]
                tables = [pa.Table.from_pylist(add_roofline(rows), schema=SCHEMAS[name])]
            write_tables(tables, schema_of(name, self.axes), self.path / f"{name}.parquet")
        self.info |= {"state": "complete", "ended": utc_now(), "manifest": True}
        manifest.close(self.path, [f"{name}.parquet" for name in _files(self.info)], self.info)
        self.save_info()
        shutil.rmtree(self.path / "parts", ignore_errors=True)
        self._lock.close()  # Windows removes no open file
        (self.path / LOCK).unlink(missing_ok=True)


def _files(info: dict[str, Any]) -> list[str]:
    """The tables that a run leaves: sharpness where the plan asks for it, metrics where a problem records some."""
    records = any(facts.get("recorded") for facts in info.get("problems", {}).values())
    absent = {"sharpness": not info["plan"].get("sharpness"), "metrics": not records}
    return [name for name in TABLES if not absent.get(name)]


def _by_pair(path: Path, name: str, axes: Sequence[str]) -> Iterator[pa.Table]:
    """Each pair's rows of a table, in the order of the pairs."""
    return (PairStore(folder, axes).read(name) for folder in sorted(path.glob("parts/*")))


def read_info(path: Path) -> dict[str, Any]:
    """run.json, checked as far as every reader relies on it. Raises RecordError, DamagedError where it is damaged."""
    file = path / "run.json"
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{file}: damaged: {one_line(error)}") from error
    version = info.get("schema_version") if isinstance(info, dict) else None
    if type(version) is not int:
        raise RecordError(f"{file}: not a gradbench record: it has no schema_version")
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"{file}: written by a newer gradbench (schema {version}, this one reads up to {SCHEMA_VERSION})"
        )
    expected = {"id": str, "state": str, "plan": dict, "environment": dict, "blocks": dict, "started": str}
    for key, kind in expected.items():
        if not isinstance(info.get(key), kind):
            raise DamagedError(f"{file}: damaged: {key!r} is missing or not a {kind.__name__}")
    if info["state"] not in STATES:
        raise DamagedError(f"{file}: damaged: 'state' is {info['state']!r}, should be {', '.join(STATES)}")
    if not sources.well_formed(info.get("sources")):
        raise DamagedError(f"{file}: damaged: 'sources' does not hold files and digests by problem and optimizer")
    if not _facts_hold(info.get("problems", {})):
        raise DamagedError(f"{file}: damaged: 'problems' does not hold facts by problem, with (mu, L) as curvature")
    mark, keys = info.get("suite"), ("name", "sha256")
    if mark is not None and not (isinstance(mark, dict) and all(isinstance(mark.get(key), str) for key in keys)):
        raise DamagedError(f"{file}: damaged: 'suite' has no name and sha256")
    return info


def _facts_hold(facts: Any) -> bool:
    if not isinstance(facts, dict) or not all(isinstance(of, dict) for of in facts.values()):
        return False
    known = [of["curvature"] for of in facts.values() if of.get("curvature") is not None]
    return all(isinstance(c, list) and len(c) == 2 and all(isinstance(v, int | float) for v in c) for c in known)


@dataclass(frozen=True, eq=False)
class Run:
    """A record: where it is, what was planned, what is in run.json, and the tables (pyarrow).

    `sharpness` is empty unless the plan asked for it, `metrics` unless a problem records some.
    """

    path: Path
    plan: SweepPlan
    info: dict[str, Any]
    trials: pa.Table
    curves: pa.Table
    timings: pa.Table
    sharpness: pa.Table = dataclasses.field(default_factory=SCHEMAS["sharpness"].empty_table)
    metrics: pa.Table = dataclasses.field(default_factory=SCHEMAS["metrics"].empty_table)

    @property
    def id(self) -> str:
        return self.info["id"]


def record_folders(folder: Path) -> list[Path]:
    """The folders of the records in a folder, by name; none where it is no folder."""
    there = os.path.isdir(folder)  # False also of a name that is too long, of which glob raises
    return sorted(file.parent for file in folder.glob("*/run.json")) if there else []


def find_run(name: str | Path, results: str | Path = "results") -> Path:
    """The folder of a record named by its path, its id (or the id's start or end), or `latest`. Raises RecordError
    where none or several match."""
    if not isinstance(name, str | Path):
        raise RecordError(f"need a record's folder, its id, or latest; got {type(name).__name__}")
    results = user_path(results)
    given = user_path(name)
    if os.path.isfile(given / "run.json"):  # False also of a name that is too long
        return given
    if os.path.isdir(given) and str(name) != "latest":
        raise RecordError(f"{given}: not a record: it has no run.json")
    try:
        list(results.iterdir())  # record_folders would find nothing in a folder that cannot be read
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RecordError(f"{results}: cannot be read: {error.strerror}") from error
    # By the second in the name; within one second by when the folder was last written to.
    runs = sorted(record_folders(results), key=lambda path: (path.name[:16], path.stat().st_mtime_ns))
    if str(name) == "latest":
        if not runs:
            raise RecordError(f"{results}: there are no records here yet; make one with gradbench run")
        return runs[-1]
    found = [run for run in runs if run.name.startswith(str(name)) or run.name.endswith(f"-{name}")]
    if len(found) != 1:
        what = f"{len(found)} records match" if found else "no such record"
        raise RecordError(f"{name}: {what} in {results} (a folder, an id, or latest)")
    return found[0]


def load_run(name: str | Path, results: str | Path = "results", *, warn: bool = True) -> Run:
    """Read a record, by path, id or `latest`. An unfinished run has the rows written so far; where nobody is writing
    it any more, as its process was killed, its state is "interrupted".

    Raises RecordError if it is missing, damaged or of a newer schema. Of a file that was changed since the record was
    closed there is a GradbenchWarning, if `warn`.
    """
    path = find_run(name, results)
    LOG.info("reading %s", path)
    info = read_info(path)
    try:
        plan = SweepPlan.from_dict(info["plan"])
    except GradbenchError as error:
        if "run.json" in (manifest.changed_files(path, info) or ()):
            raise DamagedError(f"{path / 'run.json'}: damaged plan: {error}") from error
        raise RecordError(f"{path / 'run.json'}: this version of gradbench does not take its plan: {error}") from error
    if info["state"] == "running" and not held(path / LOCK):
        info = read_info(path)  # it may have ended just now
        info["state"] = "interrupted" if info["state"] == "running" else info["state"]
    complete = info["state"] == "complete"
    if not complete:
        axes = plan.axis_names
        parts = {name: [schema_of(name, axes).empty_table(), *_by_pair(path, name, axes)] for name in TABLES}
        return Run(path, plan, info, **{name: pa.concat_tables(tables) for name, tables in parts.items()})
    tables = {name: read_table(path / f"{name}.parquet", name, plan.axis_names) for name in _files(info)}
    if warn:
        _warn_of_changes(path, info)
    return Run(path, plan, info, **tables)


def _warn_of_changes(path: Path, info: dict[str, Any]) -> None:
    """Of a complete record; a thousandth of what it takes to compare it."""
    try:
        changed = manifest.changed_files(path, info)
        said = f"{path}: {'; '.join(changed.values())}" if changed else None
    except RecordError as error:  # of the manifest: what is read of the record is whole
        said = str(error)
    if said:
        warnings.warn(f"{said} (see gradbench verify)", GradbenchWarning, stacklevel=3)
