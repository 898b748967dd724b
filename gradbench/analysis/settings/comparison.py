"""Records compared: every pair's learning rates side by side, of one record or of several against one reference."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from gradbench.analysis.answers import (
    BESIDE,
    RATES,
    SUMMARY,
    labels,
    pair_notes,
    present,
    rate_row,
    reference_words,
    settings_words,
    summary_row,
    with_notes,
)
from gradbench.analysis.metrics import ByMetric, chosen_metric, columns, metric_notes, metric_row
from gradbench.analysis.points import RateSummary
from gradbench.analysis.settings.effects import Effects
from gradbench.analysis.settings.tables import AXES, axis_notes, axis_rows, family_notes, of_pairs
from gradbench.analysis.summary import PairSummary, changed_problems, check_known, summarise_all
from gradbench.errors import GradbenchError
from gradbench.inputs.transfer.sources import recorded_file
from gradbench.record.store import Run
from gradbench.tables import GO_ON, Column, check_format, render, to_json


class Entry(NamedTuple):
    """A pair of one record; `name` is the record's."""

    name: str
    run: Run
    pair: PairSummary


@dataclasses.dataclass(frozen=True, eq=False)
class RecordComparison:
    """`groups` holds the entries of each pair, one for each record that has it; `notes` are what the tables cannot
    say: problems that are not the same, a grid that ends too early, ties. `by` is the metric, split.name, that pairs
    are judged by beside the loss: the held-out loss where there is one and no other is named."""

    runs: list[Run]
    names: list[str]
    factor: float
    groups: list[list[Entry]]
    notes: list[str]
    by: str | None = None

    @classmethod
    def of(
        cls,
        runs: Iterable[Run],
        factor: float,
        problems: Sequence[str] = (),
        optimizers: Sequence[str] = (),
        by: str | None = None,
    ) -> RecordComparison:
        """Compare all pairs, or only these problems and optimizers. Raises PlanError for a name that no record has,
        GradbenchError where no trial has finished."""
        runs = list(runs)
        for run in runs:
            if run.trials.num_rows == 0:
                raise GradbenchError(f"{run.id}: no trial has finished yet, so there is nothing to compare")
        check_known("problem", problems, [name for run in runs for name in run.plan.problems], len(runs))
        check_known("optimizer", optimizers, [name for run in runs for name in run.plan.optimizers], len(runs))
        names, by = labels(runs), chosen_metric(runs, by)
        groups: dict[tuple[str, str], list[Entry]] = {}
        for name, run, pairs in zip(names, runs, summarise_all(runs, factor)):
            for pair in pairs:
                if (not problems or pair.problem in problems) and (not optimizers or pair.optimizer in optimizers):
                    groups.setdefault((pair.problem, pair.optimizer), []).append(Entry(name, run, pair))
        found = list(groups.values())
        notes = _differences(runs, names) if len(runs) > 1 else []
        for name, run in zip(names, runs):
            pairs = [entry.pair for of in found for entry in of if entry.name == name]
            notes += _record_notes(run, pairs, by, name * (len(runs) > 1))
        return cls(runs, names, factor, found, notes, by)

    @property
    def several(self) -> bool:
        return len(self.runs) > 1

    def summaries(self) -> list[dict[str, Any]]:
        """A row per pair and record."""
        return [
            self._named(name, summary_row(pair, run) | metric_row(run, pair, self.by))
            for of in self.groups
            for name, run, pair in of
        ]

    def rates(self) -> list[list[dict[str, Any]]]:
        """For each row of `summaries` the rows of its learning rates, at every value of its axes."""
        return [
            [self._named(entry.name, row) for row in _rate_rows(entry, self.by, entry.pair.points)]
            for of in self.groups
            for entry in of
        ]

    def _named(self, name: str, row: dict[str, Any]) -> dict[str, Any]:
        return {"record": name} | row if self.several else row

    def text(self, output_format: str, summary_only: bool = False) -> str:
        """Learning rates side by side, one row per pair, and the notes. json has all three; csv the learning rates, or
        with `summary_only` the pairs."""
        check_format(output_format)
        if output_format == "json":
            return self._json(summary_only)
        if output_format == "csv":
            rows = self.summaries() if summary_only else [row for rows in self.rates() for row in rows]
            return render(rows, (), "csv")
        blocks = [] if summary_only else [self._group(of, output_format) for of in self.groups]
        for name, _, pair, found in self._with_axes():
            title = f"{name * self.several} axes of {pair.problem} × {pair.optimizer}".strip()
            blocks.append(render(axis_rows(pair, found), AXES, output_format, title))
        record = "" if self.several else f"{self.runs[0].id} ({self.runs[0].info['state']}): "
        title = f"{record}in the good range every seed is within {self.factor:g}× of the best"
        rows = self.summaries()
        blocks.append(render(rows, [*present(SUMMARY, rows), *columns(self.by)], output_format, title))
        return with_notes(blocks, self.notes, output_format)

    def _with_axes(self) -> Iterator[tuple[str, Run, PairSummary, Effects]]:
        """The entries whose optimizer has axes beside the learning rate, with their effects."""
        for name, run, pair in (entry for of in self.groups for entry in of):
            for _, found in of_pairs([pair]):
                yield name, run, pair, found

    def axes(self) -> list[dict[str, Any]]:
        """One row per axis of every pair that has axes beside the learning rate."""
        return [self._named(name, row) for name, _, pair, found in self._with_axes() for row in axis_rows(pair, found)]

    def _json(self, summary_only: bool) -> str:
        pairs = self.summaries()
        if not summary_only:
            pairs = [pair | {"rates": rates} for pair, rates in zip(pairs, self.rates())]
        records = [{"record": run.id, "state": run.info["state"]} for run in self.runs]
        named = {"records": [{"name": name} | record for name, record in zip(self.names, records)]}
        head = named if self.several else records[0]
        return to_json(head | {"factor": self.factor, "notes": self.notes, "pairs": pairs, "axes": self.axes()})

    def _group(self, of: list[Entry], output_format: str) -> str:
        """The learning rates of one pair."""
        pair = of[0].pair
        at = f" at {settings_words(pair.settings)}" if pair.settings else ""
        title = f"{pair.problem} × {pair.optimizer}{at}: gaps to {reference_words(pair.reference)}"
        if self.several:
            return render(*_side_by_side(of, self.by), output_format, title)
        rows = _rate_rows(of[0], self.by, pair.rates)
        metric = [] if self.by is None else [Column(self.by, self.by, priority=2)]
        return render(rows, [*present(RATES[:-1], rows), *metric, RATES[-1]], output_format, title)


def compare_text(
    runs: Run | Sequence[Run],
    output_format: str,
    factor: float,
    problems: Sequence[str] = (),
    optimizers: Sequence[str] = (),
    summary_only: bool = False,
    by: str | None = None,
) -> str:
    """RecordComparison.text of one record or of several."""
    check_format(output_format)
    runs = [runs] if isinstance(runs, Run) else runs
    return RecordComparison.of(runs, factor, problems, optimizers, by).text(output_format, summary_only)


def _rate_rows(entry: Entry, by: str | None, of: Sequence[RateSummary]) -> list[dict[str, Any]]:
    """Rows for the points of a pair, with the median of the metric `by` where there is one."""
    rows = [rate_row(rate, entry.pair) for rate in of]
    if by is None:
        return rows
    found = ByMetric.of(entry.run, entry.pair, by)
    for row, rate in zip(rows, of):
        if rate.settings != entry.pair.settings:
            row[by] = None
            continue
        row[by] = found and found.values.get(row["learning_rate"], (None,))[0]
        if found and row["learning_rate"] == found.best:
            row["mark"] = ", ".join(filter(None, (row["mark"], f"best by {by}")))
    return rows


def _record_notes(run: Run, pairs: Sequence[PairSummary], by: str | None, name: str) -> list[str]:
    """The notes on one record, each after its name if it has one."""
    problems = dict.fromkeys(pair.problem for pair in pairs)
    notes = [why for problem in problems if (why := recorded_file(run.info, problem))]
    if run.info["state"] == "interrupted":
        most = "up to " * bool(run.plan.search or run.plan.budget or run.plan.until)
        finished = f"{run.trials.num_rows:,} of {most}{run.plan.trials:,} trials have finished: the tables are of these"
        notes.append(f"{finished}{GO_ON}gradbench run --resume {shlex.quote(str(run.path))}")
    notes += pair_notes(run, pairs, edges=True) + metric_notes(run, pairs, by)
    notes += [note for pair, found in of_pairs(pairs) for note in axis_notes(run, pair, found)]
    notes += family_notes(run, pairs)
    return [f"{name}: {note}" if name else note for note in notes]


def _side_by_side(of: Sequence[Entry], by: str | None) -> tuple[list[dict[str, Any]], list[Column]]:
    """Rows and columns of one table from several records' rows of one pair: one row per learning rate."""
    rows: dict[float, dict[str, Any]] = {}
    beside = [column for column in RATES if column.key in BESIDE] + ([Column(by, by, priority=1)] if by else [])
    for entry in of:
        for row, rate in zip(_rate_rows(entry, by, entry.pair.rates), entry.pair.rates):
            at = rows.setdefault(rate.learning_rate, {"learning_rate": rate.learning_rate})
            at |= {f"{column.key} of {entry.name}": row[column.key] for column in beside}
            at[f"verdict of {entry.name}"] += " (best)" if rate is entry.pair.best else ""
    named = [
        dataclasses.replace(
            column, key=f"{column.key} of {name}", heading=f"{name}: {column.heading}", group=column.key
        )
        for name, *_ in of
        for column in beside
    ]
    empty = {column.key: "–" if column.show is str else None for column in named}
    return [empty | rows[rate] for rate in sorted(rows)], [RATES[0], *named]


def _differences(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Problems of one name that are not the same in all records, and settings that differ."""
    notes = changed_problems(runs)
    plans = [run.plan.to_dict() for run in runs]
    for key in plans[0]:
        values = [plan[key] for plan in plans]
        if key not in ("problems", "optimizers", "learning_rates") and any(value != values[0] for value in values):
            notes.append(f"{key} is " + ", ".join(f"{value} in {name}" for value, name in zip(values, names)))
    return notes
