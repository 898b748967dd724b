"""The reference loss of a trial's gaps, and its verdict: one word for how it ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CHECK_VERDICTS = ("PASS", "INCONCLUSIVE", "FAIL")  # of the gradient check, from best to worst
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
DESCENT = 0.01  # slow: the last quarter lowered the loss by over this share of what was left, or of what was gained
OVERSHOOTS = 0.4  # share of the last quarter's updates that went past the lowest point of their line
OVERSHOOTS_NOISY = 2 / 3  # with minibatches: 1/2 + asin(1/2) / pi, for rate × curvature = 1 along one direction
_COLUMNS = ("initial_loss", "final_loss", "best_loss", "steps_to_target")
_COLUMNS += ("smoothed_loss", "tail_drop", "tail_drop_error", "tail_overshot")


class Reference(NamedTuple):
    """The loss that a problem's gaps are taken against, and its `kind`: "minimum" where that is known; else "target",
    the loss stated as solved; else "best found", the lowest that any trial of the record reached, that of `trial`."""

    kind: str
    loss: float  # NaN where no trial has a finite loss
    trial: int | None = None
    wrong_minimum: float | None = None  # stated, and above a loss that was reached

    @property
    def words(self) -> str:
        """Its kind, for a sentence."""
        return {"minimum": "the minimum", "target": "the target loss"}.get(self.kind, "the best loss found")

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN becomes null."""
        return self._asdict() | {"loss": None if math.isnan(self.loss) else self.loss}


def stated_reference(minimum: float | None, target: float | None) -> Reference:
    """The reference by what is known of a problem before a trial has run; None or NaN is unknown."""
    for kind, loss in (("minimum", minimum), ("target", target)):
        if loss is not None and not math.isnan(loss):
            return Reference(kind, float(loss))
    return Reference("best found", math.nan)


def floats(trials: pa.Table, name: str) -> np.ndarray:
    """A column as float64, NaN where null."""
    return trials[name].to_numpy(zero_copy_only=False).astype(float)


def reference(trials: pa.Table, facts: Mapping[str, Any] | None = None, dtype: str = "float32") -> Reference:
    """The reference of one problem: `trials` are all its trials in the record, `facts` its entry in run.json.

    A stated minimum is dropped if a trial's loss is below it by more than half of the digits of `dtype`.
    """
    lowest = floats(trials, "best_loss")
    lowest = np.where(np.isfinite(lowest), lowest, np.inf)
    at = int(lowest.argmin()) if len(lowest) else None
    found = Reference("best found", math.nan)
    if at is not None and np.isfinite(lowest[at]):
        found = Reference("best found", float(lowest[at]), trials["trial"][at].as_py())
    minimum = next((value.as_py() for value in trials["minimum"].drop_null()[:1]), None)
    if minimum is not None:
        first = floats(trials, "initial_loss") - minimum
        first = np.max(np.abs(first), initial=0.0, where=np.isfinite(first))
        below = minimum - math.sqrt(EPSILON[dtype]) * max(abs(minimum), first)
        return found._replace(wrong_minimum=minimum) if found.loss < below else Reference("minimum", minimum)
    stated = stated_reference(None, (facts or {}).get("target"))
    return found if stated.kind == "best found" else stated


def common(references: Iterable[Reference]) -> Reference:
    """One reference for several pairs or records: the lowest best found if any is of that kind, else the first."""
    references = list(references)
    found = [of for of in references if of.kind == "best found"]
    return min(found, key=lambda of: (math.isnan(of.loss), of.loss)) if found else references[0]


def end_loss(final: np.ndarray, smoothed: np.ndarray) -> np.ndarray:
    """The loss that a trial is judged by: `smoothed` where it is not NaN, else `final`."""
    return np.where(np.isnan(smoothed), final, smoothed)


def end_losses(trials: pa.Table) -> np.ndarray:
    """Each trial's loss at the end, (T,): with minibatches the mean over the last quarter, else the final loss."""
    return end_loss(floats(trials, "final_loss"), floats(trials, "smoothed_loss"))


def relative_gaps(trials: pa.Table, to: Reference | None = None) -> np.ndarray:
    """Each trial's gap at the end over its first, (end_losses - reference) / (initial_loss - reference): float64.

    `to` is by default the reference of these trials. Infinite where a trial diverged, or began at the reference and
    ended above it; 1 where it began and ended at the best loss found. Below 0 where it ended below a target loss; at
    least 0 for a minimum, below which only rounding leads.
    """
    to = to or reference(trials)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        first, last = floats(trials, "initial_loss") - to.loss, end_losses(trials) - to.loss
        last = np.maximum(last, 0.0) if to.kind == "minimum" else last
        at_start = 1.0 if to.kind == "best found" else 0.0  # where nothing lower was found than the start
        gaps = np.where(first > 0, last / first, np.where(last <= 0, at_start, np.inf))
    diverged = np.asarray(trials["verdict"]) == "diverged"
    return np.where(diverged | np.isnan(gaps), np.inf, gaps)


def rounding_floor(trials: pa.Table, to: Reference, dtype: str) -> float:
    """The relative gap below which the trials of one problem count as equal: one rounding in `dtype` of the larger of
    the first gap and the reference, over the first gap."""
    first = np.abs(floats(trials, "initial_loss") - to.loss)
    first = first[np.isfinite(first) & (first > 0)]
    typical = float(np.median(first)) if len(first) else 0.0
    return EPSILON[dtype] * max(1.0, abs(to.loss) / typical if typical else 1.0)


def verdicts(trials: Mapping[str, np.ndarray], to: Reference, dtype: str) -> np.ndarray:
    """One verdict per trial, (T,). `trials` has the columns of trials.parquet, NaN where null. The first that holds:

    diverged: the loss became non-finite, rose over 10,000 first gaps above its start, or ended above that, by more than
        half of the digits of `dtype`, of the larger of the loss and its gap;
    converged: it reached the target; where that is relative to the best loss found: it ended within the target, below
        its start, and no longer gained over 1 %;
    overshoots: in the last quarter, at least 40 % of the updates went past the lowest point of their own line; with
        minibatches 2/3, as a smaller share is what the noise of the gradients makes;
    slow: the last quarter lowered the loss by over 1 % of the gap to the reference that was left, or by over 1 % of all
        that had been gained: still going down when the steps ran out. With minibatches that is the slope of
        a line through the losses of all the data over the last half, and has to be more than noise at 99 %;
    stalled: none of these: at a noise floor, at a minimum above the target, or where the gradient vanishes.
    """
    initial, drop, error = (trials[name] for name in ("initial_loss", "tail_drop", "tail_drop_error"))
    smooth = ~np.isnan(trials["smoothed_loss"])
    end = end_loss(trials["final_loss"], trials["smoothed_loss"])
    lowest = np.where(smooth, end, trials["best_loss"])
    with np.errstate(invalid="ignore", over="ignore"):
        first = np.where(to.kind == "best found", 0.0, np.abs(initial - to.loss))
        rise = math.sqrt(EPSILON[dtype]) * np.fmax(np.abs(initial), first)
        at_solution = (to.kind != "best found") & (initial - to.loss <= EPSILON[dtype] * abs(to.loss))
        diverged = ~np.isfinite(end) | ~np.isnan(trials["diverged_at"]) | ((end > initial + rise) & ~at_solution)
        left = np.inf if np.isnan(to.loss) else np.maximum(lowest + drop - to.loss, 0)
        falls = (drop > 0) & (np.isnan(error) | (drop > error))
        gaining = falls & (drop > DESCENT * (initial - lowest))
        slow = gaining | (falls & (drop > DESCENT * left))
    reached = ~np.isnan(trials["steps_to_target"])
    if to.kind == "best found":
        reached &= ~gaining
    overshoots = trials["tail_overshot"] >= np.where(smooth, OVERSHOOTS_NOISY, OVERSHOOTS)
    words = ["diverged", "converged", "overshoots", "slow"]
    return np.select([diverged, reached, overshoots, slow], words, "stalled")


def judged(trials: pa.Table, curves: pa.Table, to: Reference, target: float, dtype: str) -> pa.Table:
    """Trials of one problem with new verdicts and steps to the target, by the reference `to`.

    Where that is the best loss found, the target is `target` of the first gap above it, and the steps are those of the
    first recorded point below that. An old record without the columns that verdicts need keeps its verdicts, except
    for trials that end above their start or reach the best loss found.
    """
    columns = {name: floats(trials, name) for name in (*_COLUMNS, "diverged_at")}
    if to.kind == "best found":
        columns["steps_to_target"] = _steps_to_best_found(trials, curves, columns["initial_loss"], to, target)
    words = verdicts(columns, to, dtype)
    old = np.isnan(columns["tail_overshot"])
    if old.any():
        recorded = np.asarray(trials["verdict"])
        keep = old & ~np.isin(words, ["diverged", "converged"]) & (recorded != "converged")
        words = np.where(keep, recorded, words)
    steps = columns["steps_to_target"]
    if to.kind == "best found":
        steps = np.where(words == "converged", steps, np.nan)  # one that still goes down has not reached its own end
    steps = pa.array(np.nan_to_num(steps, nan=-1).astype(np.int64), mask=np.isnan(steps))
    for name, values in (("verdict", pa.array(words.astype(object), pa.string())), ("steps_to_target", steps)):
        trials = trials.set_column(trials.schema.get_field_index(name), name, values)
    return trials


def _steps_to_best_found(
    trials: pa.Table, curves: pa.Table, initial: np.ndarray, to: Reference, target: float
) -> np.ndarray:
    """The first recorded step of each trial whose loss is within the target, NaN where it does not end there."""
    level = to.loss + target * np.maximum(initial - to.loss, 0)
    steps = np.full(len(trials), np.nan)
    end = end_losses(trials)
    ends = np.flatnonzero((end <= level) & (end < initial))
    if len(ends):
        number = trials["trial"].to_numpy()[ends]
        order = np.argsort(number)
        points = curves.filter(pc.field("trial").isin(pa.array(number)))
        place = ends[order[np.searchsorted(number[order], points["trial"].to_numpy())]]
        under = points["loss"].to_numpy(zero_copy_only=False).astype(float) <= level[place]
        steps[ends] = floats(trials, "steps_run")[ends]
        np.fmin.at(steps, place[under], points["step"].to_numpy()[under])
    return steps
