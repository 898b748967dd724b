"""From a record to answers: learning rates side by side, the best one, the safe range, the edge of divergence."""

from __future__ import annotations

import collections
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradbench.errors import GradbenchError
from gradbench.record.store import Run
from gradbench.theory.quadratic import stable_limit

SAFE_FACTOR = 2.0
_USED = ["trial", "problem", "optimizer", "learning_rate", "verdict", "initial_loss", "final_loss", "best_loss"]
_USED += ["minimum", "steps_to_target"]


class Reference(NamedTuple):
    """The loss that a problem's gaps are taken against, and its `kind`: "minimum" where that is known; else "target",
    the loss that the problem states as solved; else "best found", the lowest that any trial of the record reached, that
    of `trial`."""

    kind: str
    loss: float  # NaN where no trial has a finite loss
    trial: int | None = None

    @property
    def words(self) -> str:
        """As a sentence has it."""
        return {"minimum": "the minimum", "target": "the target loss"}.get(self.kind, "the best loss found")


def reference(trials: pa.Table, facts: Mapping[str, Any] | None = None) -> Reference:
    """Of one problem: `trials` are all of the record's, `facts` what run.json says of the problem."""
    minimum = trials["minimum"].drop_null()
    if len(minimum):
        return Reference("minimum", minimum[0].as_py())
    target = (facts or {}).get("target")
    if target is not None:
        return Reference("target", float(target))
    best = trials["best_loss"].to_numpy(zero_copy_only=False).astype(float)
    best = np.where(np.isfinite(best), best, np.inf)
    if not len(best) or np.isinf(best.min()):
        return Reference("best found", math.nan)
    return Reference("best found", float(best.min()), trials["trial"][int(best.argmin())].as_py())


@dataclass(frozen=True)
class RateSummary:
    """One learning rate over its seeds. Gaps are to the pair's reference and relative to the first gap (relative_gaps).
    A diverged trial's gap is infinite."""

    learning_rate: float
    seeds: int
    verdicts: dict[str, int]  # most frequent first
    gap_median: float
    gap_low: float
    gap_high: float
    loss_median: float  # the final loss; not finite where most diverge
    steps_to_target: float | None  # median over seeds; None where half of them or more never reach it
    steps_worst: float  # of the slowest seed; infinite where one never reaches it
    time_to_target_s: float | None  # median steps times the solo step time

    @property
    def verdict(self) -> str:
        """In one word where the seeds agree, else with counts."""
        if len(self.verdicts) == 1:
            return next(iter(self.verdicts))
        return ", ".join(f"{count} {word}" for word, count in self.verdicts.items())


@dataclass(frozen=True)
class PairSummary:
    """One (problem, optimizer) pair of a record.

    best: of the learning rates whose seeds all reach the target, the one with the fewest median steps; failing that,
        of those where most do; failing that, the lowest median final gap without divergence; None if all diverge.
    safe: the unbroken stretch of the grid around the best where every seed is within `factor` of the best's median:
        of its steps to the target, or of its final gap where the best does not reach the target.
    edge: (largest learning rate below, smallest at) which more than half of the seeds diverge; None on a side the
        grid does not have.
    stable_limit: above it theory says a quadratic of the problem's L diverges; None where L or the theory is unknown.
    """

    problem: str
    optimizer: str
    reference: Reference
    rates: list[RateSummary]
    best: RateSummary | None
    safe: tuple[float, float] | None
    edge: tuple[float | None, float | None]
    stable_limit: float | None
    diverged_share: float
    solo_step_s: float | None
    trial_steps_per_s: float | None
    limit: str | None  # what sets the least seconds of a batched step: flops, bytes or launches
    of_limit: float | None  # those seconds / the measured ones

    @property
    def safe_decades(self) -> float | None:
        """Width of the safe range; 0 where only the best itself is safe."""
        return None if self.safe is None else math.log10(self.safe[1] / self.safe[0])


_summaries: weakref.WeakKeyDictionary[Run, dict[float, list[PairSummary]]] = weakref.WeakKeyDictionary()


def summarise(run: Run, factor: float = SAFE_FACTOR) -> list[PairSummary]:
    """Summaries of every pair of a record that has trials, in the plan's order; made once per record and factor."""
    known = _summaries.setdefault(run, {})
    if factor not in known:
        facts = run.info.get("problems", {})
        known[factor] = list(summarise_tables(run.plan.pairs, run.trials, run.timings, facts, factor))
    return known[factor]


def summarise_tables(
    pairs: Sequence[tuple[str, str]],
    trials: pa.Table,
    timings: pa.Table,
    facts: dict[str, dict[str, Any]],
    factor: float = SAFE_FACTOR,
) -> Iterator[PairSummary]:
    """The same from tables; `facts` holds each problem's curvature and target, by name."""
    if not 1 <= factor < math.inf:
        raise GradbenchError(f"factor: need a number of at least 1, got {factor}")
    times = {(row["problem"], row["optimizer"], row["mode"]): row for row in timings.to_pylist()}
    trials = trials.select(_USED)  # of millions of trials, each pair's are copied
    references = {
        problem: reference(trials.filter(pc.field("problem") == problem), facts.get(problem))
        for problem in dict.fromkeys(problem for problem, _ in pairs)
    }
    for problem, optimizer in pairs:
        rows = trials.filter((pc.field("problem") == problem) & (pc.field("optimizer") == optimizer))
        if rows.num_rows == 0:
            continue
        solo, batched = (times.get((problem, optimizer, mode)) for mode in ("solo", "batched"))
        solo_step_s = solo["step_s_median"] if solo else None
        rates = _rates(rows, solo_step_s, references[problem])
        best = _best(rates)
        curvature = facts.get(problem, {}).get("curvature")
        yield PairSummary(
            problem,
            optimizer,
            references[problem],
            rates,
            best,
            _safe(rates, best, factor),
            _edge(rates),
            stable_limit(optimizer, curvature[1]) if curvature else None,
            diverged_share=float(np.mean(np.asarray(rows["verdict"]) == "diverged")),
            solo_step_s=solo_step_s,
            trial_steps_per_s=batched["trials"] / batched["step_s_median"] if batched else None,
            limit=batched["limit"] if batched else None,
            of_limit=batched["of_limit"] if batched else None,
        )


def relative_gaps(trials: pa.Table, to: Reference | None = None) -> np.ndarray:
    """Each trial's final gap over its first, (final_loss - reference) / (initial_loss - reference): float64.

    `to` is by default the reference of these trials. Infinite where a trial diverged, or began at the reference and
    ended above it. Below 0 where it ended below a target loss; 0 at the least over a minimum, of which only rounding
    falls short.
    """
    to = to or reference(trials)
    columns = (trials[name].to_numpy(zero_copy_only=False).astype(float) for name in ("initial_loss", "final_loss"))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        first, last = (losses - to.loss for losses in columns)
        last = np.maximum(last, 0.0) if to.kind == "minimum" else last
        gaps = np.where(first > 0, last / first, np.where(last <= 0, 0.0, np.inf))
    diverged = np.asarray(trials["verdict"]) == "diverged"
    return np.where(diverged | np.isnan(gaps), np.inf, gaps)


def _rates(trials: pa.Table, solo_step_s: float | None, to: Reference) -> list[RateSummary]:
    """One summary per learning rate, ascending."""
    learning_rate = trials["learning_rate"].to_numpy()
    order = np.argsort(learning_rate, kind="stable")
    gaps = relative_gaps(trials, to)[order]
    losses = trials["final_loss"].to_numpy(zero_copy_only=False).astype(float)[order]
    steps = trials["steps_to_target"].to_numpy(zero_copy_only=False).astype(float)[order]
    steps = np.where(np.isnan(steps), np.inf, steps)
    verdicts = np.asarray(trials["verdict"])[order]
    values, starts = np.unique(learning_rate[order], return_index=True)
    summaries = []
    for value, start, end in zip(values, starts, [*starts[1:], len(order)]):
        middle = _median(steps[start:end])
        summaries.append(
            RateSummary(
                float(value),
                int(end - start),
                dict(collections.Counter(verdicts[start:end].tolist()).most_common()),
                _median(gaps[start:end]),
                float(gaps[start:end].min()),
                float(gaps[start:end].max()),
                float(np.median(losses[start:end])),
                middle if math.isfinite(middle) else None,
                float(steps[start:end].max()),
                middle * solo_step_s if math.isfinite(middle) and solo_step_s else None,
            )
        )
    return summaries


def _median(values: np.ndarray) -> float:
    """The median, where the middle of two counts as the upper one if that is infinite."""
    low, high = np.sort(values)[[(len(values) - 1) // 2, len(values) // 2]]
    return float(high if math.isinf(high) else (low + high) / 2)


def _best(rates: list[RateSummary]) -> RateSummary | None:
    middle = [math.inf if rate.steps_to_target is None else rate.steps_to_target for rate in rates]
    columns = ([rate.steps_worst for rate in rates], middle, [r.gap_median for r in rates], [r.gap_high for r in rates])
    index = best_index(*map(np.array, columns))
    return None if index is None else rates[index]


def best_index(worst: np.ndarray, middle: np.ndarray, gap_middle: np.ndarray, gap_worst: np.ndarray) -> int | None:
    """Which of R learning rates is best, by PairSummary.best's rule: of the slowest seed's steps to the target, the
    median ones, the median and the worst gap, each (R,) and infinite for never. None where all diverge."""
    for candidates in (np.isfinite(worst), np.isfinite(middle)):
        if candidates.any():
            return int(np.lexsort((gap_middle, np.where(candidates, middle, np.inf)))[0])
    gaps = np.where(np.isfinite(gap_worst), gap_middle, np.inf)
    return int(np.argmin(gaps)) if np.isfinite(gaps).any() else None


def _safe(rates: list[RateSummary], best: RateSummary | None, factor: float) -> tuple[float, float] | None:
    if best is None:
        return None

    def is_safe(rate: RateSummary) -> bool:
        if best.steps_to_target is not None:
            return rate.steps_worst <= factor * best.steps_to_target
        return rate.gap_high <= factor * best.gap_median

    low = high = rates.index(best)
    while low > 0 and is_safe(rates[low - 1]):
        low -= 1
    while high + 1 < len(rates) and is_safe(rates[high + 1]):
        high += 1
    return rates[low].learning_rate, rates[high].learning_rate


def _edge(rates: list[RateSummary]) -> tuple[float | None, float | None]:
    below = None
    for rate in rates:
        if rate.verdicts.get("diverged", 0) * 2 > rate.seeds:
            return below, rate.learning_rate
        below = rate.learning_rate
    return below, None


def representative_rates(pair: PairSummary) -> dict[float, str]:
    """Learning rates that teach: too small, right, too large, diverging, as far as the pair has them."""
    if pair.best is None:
        return {pair.rates[0].learning_rate: "diverging"}
    chosen = {pair.best.learning_rate: "right"}
    small = pair.best.learning_rate / 30
    below = [rate for rate in pair.rates if rate.learning_rate < pair.best.learning_rate]
    if below:
        chosen[min(below, key=lambda rate: abs(math.log(rate.learning_rate / small))).learning_rate] = "too small"
    above = [rate for rate in pair.rates if rate.learning_rate > pair.best.learning_rate]
    staying = [rate for rate in above if "diverged" not in rate.verdicts]
    blown = [rate for rate in above if rate.verdicts.get("diverged", 0) == rate.seeds]
    if staying:
        chosen[staying[-1].learning_rate] = "too large"
    if blown:
        chosen[blown[0].learning_rate] = "diverging"
    return dict(sorted(chosen.items()))
