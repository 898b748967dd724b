"""A pair's steps to the target and step time over many records, and where they changed.

What counts as a change is what gradbench regress says of a record beside the median of up to BASELINE earlier ones
since the last change: slower, faster, worse or better, by its tests and its floor. One such record alone may be an
accident of its machine; a change is confirmed when the next record says the same against the same earlier ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradbench.analysis.regress import SAME_PLACE, SAME_TARGET, compare_runs
from gradbench.analysis.summary import changed_problems, summarise
from gradbench.errors import GradbenchError, RecordError
from gradbench.paths import user_path
from gradbench.record.store import Run, load_run, record_folders
from gradbench.tables import Column, check_format, note_lines, number, render, seconds, to_json

BASELINE = 5
CHANGES = ("slower", "faster", "worse", "better")
STEPS, TIME = "steps to target", "step time, "  # and the mode, as regress has them
_BARS = "▁▂▃▄▅▆▇█"

Key = tuple[str, str, str]  # problem, optimizer, what


@dataclass(frozen=True)
class Change:
    """At a record: "slower", "faster", "worse" or "better" than before, by a ratio; `confirmed` by the next record."""

    run: Run
    verdict: str
    ratio: float
    confirmed: bool

    def __str__(self) -> str:
        commit = (self.run.info["environment"].get("git_commit") or self.run.id)[:12]
        if self.ratio in (0, math.inf):  # of steps to a target that only the records on one side reach
            times = "reached now" if self.ratio == 0 else "not reached any more"
        else:
            times = f"{number(max(self.ratio, 1 / self.ratio))}× {self.verdict}"
        words = f"{times} since {self.run.info['started'][:10]} ({commit})"
        return words if self.confirmed else f"{words}, so far one record"


@dataclass
class _Series:
    """One number over the records so far: since the last change those it is held against, and one that differs."""

    since: list[Run] = field(default_factory=list)
    differs: tuple[Run, str, float] | None = None
    changes: list[Change] = field(default_factory=list)


@dataclass(frozen=True)
class History:
    """points: a dict for each record and number: record, started, git_commit, device, problem, optimizer, what, value,
        change (or None).
    rows: a dict for each number: records, first, last, ratio (last / first), values, changes (sentences).
    notes: records that were left out, and why; problems that are not the same in all."""

    points: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    notes: list[str]

    def __str__(self) -> str:
        return history_text(self, "table")


def load_runs(results: str | Path) -> tuple[list[Run], list[str]]:
    """Every complete record of a folder, the oldest first, and notes on those that are not read. Raises RecordError
    where there is none."""
    folder, runs, notes = user_path(results), [], []
    for path in record_folders(folder):
        try:
            run = load_run(path)
        except RecordError as error:
            notes.append(f"left out: {error}")
            continue
        if run.info["state"] == "complete":
            runs.append(run)
        else:
            notes.append(f"left out: {run.id} is {run.info['state']}")
    if not runs:
        raise RecordError(f"{folder}: there are no complete records here")
    return sorted(runs, key=lambda run: (run.info["started"], run.id)), notes


def history(runs: Sequence[Run], notes: Sequence[str] = ()) -> History:
    """Of these records, the oldest first. Those of one device and one plan's settings are held against each other."""
    lanes: dict[tuple, list[Run]] = {}
    for run in runs:
        lanes.setdefault(_lane(run), []).append(run)
    points: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for lane in lanes.values():
        values = [_values(run) for run in lane]
        found = _changes(lane, values)
        device = lane[0].info["environment"].get("device_kind")
        for key in dict.fromkeys(key for of in values for key in of):
            changes = found[key].changes
            told = {change.run.id: str(change) for change in changes}
            series = [(run, of[key]) for run, of in zip(lane, values) if key in of]
            named = dict(zip(("problem", "optimizer", "what"), key)) | {"device": device}
            points += [_point(run, told) | named | {"value": value} for run, value in series]
            rows.append(named | _row([value for _, value in series], changes))
    said = [] if rows else ["no pair has steps to a target or step times"]
    changed = dict.fromkeys(note for lane in lanes.values() for note in changed_problems(lane))
    return History(points, rows, [*notes, *said, *changed])


def _lane(run: Run) -> tuple:
    """What records that are held against each other share."""
    return (
        *(str(run.info["environment"].get(key)) for key in SAME_PLACE),
        *(getattr(run.plan, key) for key in SAME_TARGET),
    )


def _values(run: Run) -> dict[Key, float]:
    """Of each pair the steps to the target at its best learning rate, where it is reached, and the time of one step, of
    one trial alone where that was timed, else of all together."""
    found: dict[Key, float] = {}
    times = {(row["problem"], row["optimizer"], row["mode"]): row["step_s_median"] for row in run.timings.to_pylist()}
    for pair in summarise(run):
        if pair.best and pair.best.steps_to_target is not None:
            found[pair.problem, pair.optimizer, STEPS] = pair.best.steps_to_target
        for mode in ("solo", "batched"):
            if (pair.problem, pair.optimizer, mode) in times:
                found[pair.problem, pair.optimizer, TIME + mode] = times[pair.problem, pair.optimizer, mode]
                break
    return found


def _changes(lane: Sequence[Run], values: Sequence[dict[Key, float]]) -> dict[Key, _Series]:
    compared: dict[tuple[str, ...], dict[Key, dict[str, Any]]] = {}

    def rows(before: Sequence[Run], run: Run) -> dict[Key, dict[str, Any]]:
        ids = *(of.id for of in before), run.id
        if ids not in compared:
            compared[ids] = _compared(before, run)
        return compared[ids]

    found: dict[Key, _Series] = {}
    for run, of in zip(lane, values):
        for key in of:
            series = found.setdefault(key, _Series())
            row = rows(series.since[-BASELINE:], run).get(key) if series.since else None
            _take(series, run, row)
    for series in found.values():
        if series.differs:
            series.changes.append(Change(*series.differs, confirmed=False))
    return found


def _take(series: _Series, run: Run, row: dict[str, Any] | None) -> None:
    """One more record, and what regress says of it beside those before."""
    verdict = row["verdict"] if row and row["verdict"] in CHANGES else None
    if row is None or verdict is None:
        series.since.append(run)
        series.differs = None
    elif series.differs and series.differs[1] == verdict:
        series.changes.append(Change(*series.differs, confirmed=True))
        series.since, series.differs = [series.differs[0], run], None
    else:
        series.differs = run, verdict, row["ratio"]


def _compared(before: Sequence[Run], run: Run) -> dict[Key, dict[str, Any]]:
    try:
        rows = compare_runs(before, run).rows
    except GradbenchError:  # nothing that both have
        return {}
    return {(row["problem"], row["optimizer"], row["what"]): row for row in rows}


def _point(run: Run, told: dict[str, str]) -> dict[str, Any]:
    commit = run.info["environment"].get("git_commit")
    return {"record": run.id, "started": run.info["started"], "git_commit": commit, "change": told.get(run.id)}


def _row(values: Sequence[float], changes: Iterable[Change]) -> dict[str, Any]:
    ends = {"records": len(values), "first": values[0], "last": values[-1], "ratio": values[-1] / values[0]}
    return ends | {"values": list(values), "changes": [str(change) for change in changes]}


def bars(values: Sequence[float]) -> str:
    """The values as a line of bars, the lowest to the highest; all of the least height where they are within 5 %."""
    logs = [math.log(value) for value in values]
    low, height = min(logs), max(max(logs) - min(logs), math.log(1.05))
    return "".join(_BARS[round((log - low) / height * (len(_BARS) - 1))] for log in logs)


COLUMNS = (
    Column("problem", "problem", str),
    Column("optimizer", "optimizer", str),
    Column("device", "device", str, 6),
    Column("what", "what", str),
    Column("records", "records", priority=4),
    Column("first", "first", str, 3),
    Column("last", "last", str, 2),
    Column("ratio", "last/first", priority=1),
    Column("trend", "over the records", str, 5),
    Column("changed", "changes", lambda text: text or "–", prose=True),
)
POINTS = tuple(
    Column(key, key)
    for key in ("record", "started", "git_commit", "change", "problem", "optimizer", "what", "device", "value")
)


def history_text(found: History, output_format: str) -> str:
    """A history for people or machines: csv has a row for each record and number, json has it all."""
    check_format(output_format)
    if output_format == "json":
        return to_json({"rows": found.rows, "points": found.points, "notes": found.notes})
    if output_format == "csv":
        return render(found.points, POINTS, "csv")
    shown = []
    for row in found.rows:
        show = seconds if row["what"].startswith(TIME) else number
        text = {"first": show(row["first"]), "last": show(row["last"]), "trend": bars(row["values"][-40:])}
        shown.append(row | text | {"changed": "; ".join(row["changes"])})
    text = render(shown, COLUMNS, output_format)
    notes = note_lines(found.notes, output_format)
    return "\n\n".join(filter(None, [text if shown else "", "\n".join(notes)]))
