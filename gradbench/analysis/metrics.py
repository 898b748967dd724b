"""What the metrics of a record say of a pair: its learning rates by a metric on held-out data instead of the loss."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbench.analysis.points import with_most_seeds
from gradbench.analysis.summary import PairSummary, pair_trials, rows_where
from gradbench.errors import PlanError, nearest
from gradbench.record.store import Run
from gradbench.tables import Column, number

HELD_OUT = "holdout.loss"
_known: weakref.WeakKeyDictionary[Run, dict[str, np.ndarray]] = weakref.WeakKeyDictionary()


def recorded(run: Run, problem: str) -> list[str]:
    """The metrics that a run has for a problem, each as split.name."""
    return run.info.get("problems", {}).get(problem, {}).get("recorded", [])


def chosen_metric(runs: Iterable[Run], by: str | None) -> str | None:
    """The metric to judge by: `by`, else the held-out loss where any problem has one, else None. Raises PlanError for a
    name that no problem records."""
    known = list(
        dict.fromkeys(name for run in runs for problem in run.plan.problems for name in recorded(run, problem))
    )
    if by is None:
        return HELD_OUT if HELD_OUT in known else None
    if by not in known:
        have = ", ".join(known) or "none; a problem with metrics= or holdout= has some"
        raise PlanError(f"by: no metric {by!r}{nearest(by, known)} (recorded: {have})")
    return by


@dataclass(frozen=True)
class ByMetric:
    """A pair's learning rates by one metric, split.name, at the end of its trials; `more_is_better` says which way.

    values: learning rate -> (median, lowest, highest) over the seeds, where no seed diverged.
    other: the median at the pair's best learning rate of the same metric on the other split; None where there is none.
    """

    name: str
    more_is_better: bool
    values: dict[float, tuple[float, float, float]]
    best: float | None  # among those with the most seeds; of equals the pair's best, else the lowest
    other: float | None

    @classmethod
    def of(cls, run: Run, pair: PairSummary, name: str) -> ByMetric | None:
        """None where the problem does not record it."""
        names = recorded(run, pair.problem)
        if name not in names:
            return None
        short = name.partition(".")[2]
        more = short in run.info["problems"][pair.problem].get("maximise", [])
        values = _at_end(run, pair, name)
        at = pair.best and pair.best.learning_rate
        sign = -1 if more else 1
        compared = values.keys() & {rate.learning_rate for rate in with_most_seeds(pair.rates)}
        order = sorted(compared, key=lambda rate: (sign * values[rate][0], rate != at, rate))
        other = next((known for known in names if known != name and known.partition(".")[2] == short), None)
        beside = _at_end(run, pair, other).get(at) if other and at is not None else None
        return cls(name, more, values, order[0] if order else None, beside and beside[0])

    def row(self, pair: PairSummary) -> dict[str, Any]:
        """The metric's columns in a pair's row. The gap is holdout less train, at the pair's best learning rate."""
        at = self.values.get(pair.best.learning_rate) if pair.best else None
        gap = None if at is None or self.other is None else at[0] - self.other
        if gap is not None and self.name.startswith("train."):
            gap = -gap
        return {
            "by_best_learning_rate": self.best,
            "by_value": self.values[self.best][0] if self.best is not None else None,
            "by_value_at_best": at and at[0],
            "generalisation_gap": gap,
        }

    def note(self, pair: PairSummary) -> str | None:
        """A note if another learning rate than the pair's best is the best by this metric, else None."""
        if self.best is None or pair.best is None or pair.best.learning_rate == self.best:
            return None
        return f"{pair.problem} × {pair.optimizer}: {self._words(self.best, pair)}"

    def sentence(self, pair: PairSummary) -> str:
        """The best learning rate by this metric, whether training says the same, and the gap between the splits."""
        if self.best is None:
            return f"by {self.name} no learning rate is best: none has a finite value for every seed."
        gap = self.row(pair)["generalisation_gap"]
        return f"{self._words(self.best, pair)}{'' if gap is None else f'; there holdout − train is {number(gap)}'}."

    def _words(self, best: float, pair: PairSummary) -> str:
        value = number(self.values[best][0])
        at = pair.best.learning_rate if pair.best else None
        if at == best:
            return f"by {self.name} {number(best)} is the best learning rate as well ({value})"
        there = self.values.get(at) if at is not None else None
        beside = f", {number(there[0])} at the best by training, {number(at)}" if there else ""
        return f"by {self.name} {number(best)} is the best learning rate ({value}{beside})"


def metric_row(run: Run, pair: PairSummary, name: str | None) -> dict[str, Any]:
    """ByMetric.row, all None where the problem does not record the metric; nothing where there is no metric."""
    if name is None:
        return {}
    found = ByMetric.of(run, pair, name)
    nothing = ("by_best_learning_rate", "by_value", "by_value_at_best", "generalisation_gap")
    return {"by": name} | (found.row(pair) if found else dict.fromkeys(nothing))


def metric_notes(run: Run, pairs: Iterable[PairSummary], name: str | None) -> list[str]:
    """ByMetric.note of each pair that has one."""
    found = ((pair, ByMetric.of(run, pair, name)) for pair in pairs if name)
    return [note for pair, of in found if of and (note := of.note(pair))]


def columns(name: str | None) -> tuple[Column, ...]:
    """The columns of metric_row, for people; the first two say the most."""
    if name is None:
        return ()
    return (
        Column("by_value_at_best", name, priority=2, about="at the best lr"),
        Column("by_best_learning_rate", "best lr by it", priority=2, about=f"by {name}"),
        Column("by_value", f"{name} there", priority=4, about="at the best lr by it"),
        Column("generalisation_gap", "holdout − train", priority=5, about="at the best lr"),
    )


def _last(run: Run, name: str) -> np.ndarray:
    """A metric at the last recorded point of each trial, by the trial's number; NaN where it has none. Found once."""
    known = _known.setdefault(run, {})
    if name not in known:
        split, _, short = name.partition(".")
        points = rows_where(run.metrics, {"split": split, "name": short})
        number, value = points["trial"].to_numpy(), points["value"].to_numpy(zero_copy_only=False)
        ends = np.append(number[1:] != number[:-1], True) if len(number) else np.zeros(0, bool)  # sorted by trial, step
        last = np.full(1 + max(run.trials["trial"].to_numpy().max(), number.max(initial=0)), np.nan)
        last[number[ends]] = value[ends]
        known[name] = last
    return known[name]


def _at_end(run: Run, pair: PairSummary, name: str) -> dict[float, tuple[float, float, float]]:
    """The median, lowest and highest over the seeds of a metric at each trial's last recorded point, by the learning
    rates at which it is finite for every seed and none diverged, ascending."""
    trials, last = pair_trials(run, pair), _last(run, name)
    trial, rate = trials["trial"].to_numpy(), trials["learning_rate"].to_numpy()
    end = np.where(np.isfinite(last[trial]) & (np.asarray(trials["verdict"]) != "diverged"), last[trial], np.nan)
    order = np.lexsort((end, rate))  # NaN last of a learning rate
    rates, first, seeds = np.unique(rate[order], return_index=True, return_counts=True)
    low, left, right, high = (end[order][first + at] for at in (0, (seeds - 1) // 2, seeds // 2, seeds - 1))
    rows = np.stack([left / 2 + right / 2, low, high], axis=1)
    return {at: tuple(row) for at, row in zip(rates.tolist(), rows.tolist()) if not np.isnan(row[2])}
