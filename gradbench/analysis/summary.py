"""From a record to answers: learning rates side by side, the best one, the good range, the edge of divergence."""

from __future__ import annotations

import collections
import functools
import json
import math
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradbench.analysis.points import RateSummary, best_point, edge_of, good_stretch, median_of, ties_of
from gradbench.analysis.verdicts import (
    Reference,
    common,
    end_losses,
    floats,
    judged,
    reference,
    relative_gaps,
    rounding_floor,
)
from gradbench.errors import GradbenchError, OptimizerError, PlanError, nearest
from gradbench.inputs.plan import SweepPlan, steps_per_epoch
from gradbench.inputs.specs.axis import concrete
from gradbench.inputs.specs.schedules import risen
from gradbench.record.store import Run
from gradbench.theory.quadratic import stable_limit

GOOD_FACTOR = 2.0
_USED = ["trial", "problem", "optimizer", "learning_rate", "verdict", "initial_loss", "final_loss", "best_loss"]
_USED += ["minimum", "steps_to_target", "smoothed_loss"]


@dataclass(frozen=True)
class PairSummary:
    """One (problem, optimizer) pair of a record.

    points: every combination that was tried of a learning rate and values of the pair's axes; `rates`: those with the
        best's values of the axes, `settings`; all points where the pair has no axes.
    best: of the points whose seeds all reach the target, the one with the fewest median steps; failing that,
        of those where most do; failing that, the lowest median gap at the end without divergence. None where none
        works (each diverges, or ends no lower than it began), and for a range test, whose rate rises.
    ties: the other points that do as well: as many steps, and gaps that differ by less than `floor`.
    good: the unbroken stretch of the grid around the best where every seed reaches the target in at most `factor` times
        the best's median steps, or ends under `floor` (not if gaps are to a target loss). Where the best does not reach
        the target: where every seed ends within `factor` times the best's gap (or the floor), and has lowered the loss
        by at least 1/factor of what the best has.
    edge: (largest learning rate below, smallest at) which more than half of the seeds diverge; None on a side the
        grid does not have.
    stable_limit: the rate above which, by theory, a quadratic of the problem's L diverges; None where L or the theory
        is unknown.
    """

    problem: str
    optimizer: str
    reference: Reference
    floor: float  # resolution()
    rates: list[RateSummary]
    best: RateSummary | None
    ties: list[RateSummary]
    good: tuple[float, float] | None
    edge: tuple[float | None, float | None]
    stable_limit: float | None
    diverged_share: float
    initial_loss: float  # median
    solo_step_s: float | None
    trial_steps_per_s: float | None
    limit: str | None  # what sets the least seconds of a batched step: flops, bytes or launches
    of_limit: float | None  # those seconds / the measured ones
    epoch: int | None = None  # updates per epoch, with minibatches
    points: Sequence[RateSummary] = ()
    settings: Mapping[str, float] = field(default_factory=dict)

    @property
    def at(self) -> str:
        """The optimizer's spec with the values of its axes that `rates` have."""
        return concrete(self.optimizer, self.settings, OptimizerError)

    @property
    def good_decades(self) -> float | None:
        """Width of the good range; 0 where only the best itself is in it."""
        return None if self.good is None else math.log10(self.good[1] / self.good[0])

    @property
    def open_end(self) -> str | None:
        """The end of the grid at which the best lies, "lowest" or "highest": better ones may lie beyond. None where it
        lies at neither, or does no better than a learning rate inside."""
        if self.best is None or len(self.rates) < 2:
            return None
        best = [self.best, *self.ties]
        ends = {"lowest": self.rates[0], "highest": self.rates[-1]}
        at = [name for name, end in ends.items() if end in best]
        return at[0] if len(best) == len(at) == 1 else None

    def beyond(self, end: str) -> str:
        """Two decades of learning rates beyond an end of the grid, with its spacing, as --lr takes them."""
        low, high = self.rates[0].learning_rate, self.rates[-1].learning_rate
        count = 1 + max(4, round(2 * (len(self.rates) - 1) / math.log10(high / low))) if high > low else 5
        return f"{high:g}:{high * 100:g}:{count}" if end == "highest" else f"{low / 100:g}:{low:g}:{count}"


_summaries: weakref.WeakKeyDictionary[Run, dict[Any, list[PairSummary]]] = weakref.WeakKeyDictionary()
_references: weakref.WeakKeyDictionary[Run, dict[str, Reference]] = weakref.WeakKeyDictionary()
_judged: weakref.WeakKeyDictionary[Run, dict[Any, pa.Table]] = weakref.WeakKeyDictionary()


def references(run: Run) -> dict[str, Reference]:
    """The reference loss of each problem that has trials, by name."""
    if run not in _references:
        facts = run.info.get("problems", {})
        parts = {name: rows_where(run.trials, {"problem": name}) for name in run.plan.problems}
        _references[run] = {
            name: _reference_of(run.plan, part, facts.get(name)) for name, part in parts.items() if len(part)
        }
    return _references[run]


def _reference_of(plan: SweepPlan, trials: pa.Table, facts: Mapping[str, Any] | None) -> Reference:
    """The reference of one problem's trials, common to all dtypes; each checks a stated minimum by its own rounding."""
    found = [reference(part, facts, dtype) for dtype, part in by_dtype(plan, trials)]
    return common(sorted(found, key=lambda of: -1 if of.trial is None else of.trial))  # of equals the first trial


def by_dtype(plan: SweepPlan, trials: pa.Table) -> list[tuple[str, pa.Table]]:
    """(dtype, its trials) for each dtype of a plan that has trials; all trials together if there are none."""
    if len(plan.dtypes) == 1:
        return [(plan.dtypes[0], trials)]
    optimizers = {dtype: [name for name in plan.optimizers if plan.of(name).dtype == dtype] for dtype in plan.dtypes}
    parts = [(dtype, trials.filter(pc.field("optimizer").isin(names))) for dtype, names in optimizers.items()]
    return [(dtype, part) for dtype, part in parts if len(part)] or [(plan.dtype, trials)]


def rows_where(table: pa.Table, values: Mapping[str, Any]) -> pa.Table:
    """The rows that have these values in these columns. By a mask: for a pair's few rows pyarrow would spend most time
    on planning an expression."""
    masks = (pc.call_function("equal", [table[name], pa.scalar(value)]) for name, value in values.items())
    return table.filter(functools.reduce(lambda one, other: pc.call_function("and", [one, other]), masks))


def trials_of(trials: pa.Table, problem: str, optimizer: str) -> pa.Table:
    """The trials of one pair."""
    return rows_where(trials, {"problem": problem, "optimizer": optimizer})


def common_references(runs: Sequence[Run]) -> dict[str, Reference]:
    """As `references`, with one reference for all records that have the problem."""
    found = [references(run) for run in runs]
    names = dict.fromkeys(name for of in found for name in of)
    return {name: common(of[name] for of in found if name in of) for name in names}


def name_among(runs: Sequence[Run], place: int, optimizer: str) -> str:
    """The name of an optimizer of the record at `place` (from 1) among several records."""
    return optimizer if len(runs) == 1 else f"{optimizer} (run {place})"


def check_known(what: str, given: Sequence[str], known: Sequence[str], records: int) -> None:
    """PlanError for a problem or an optimizer, `what`, that no record has."""
    for name in given:
        if name not in known:
            here = "this record" if records == 1 else "these records"
            raise PlanError(f"no {what} {name!r} in {here}{nearest(name, known)} ({', '.join(dict.fromkeys(known))})")


def summarise_all(runs: Sequence[Run], factor: float = GOOD_FACTOR) -> list[list[PairSummary]]:
    """Each record's summaries, with one reference for all records that have a problem."""
    to = common_references(runs)
    return [summarise(run, factor, {name: to[name] for name in references(run)}) for run in runs]


def judged_trials(run: Run, to: Mapping[str, Reference] | None = None) -> pa.Table:
    """A record's trials, with verdicts and steps to the target by these references (its own by default)."""
    to = references(run) if to is None else to
    known = _judged.setdefault(run, {})
    key = tuple(sorted(to.items()))
    if key not in known:
        at_end = run.info.get("references", {})  # a complete record's trials have verdicts by these already
        anew = [name for name, of in to.items() if at_end.get(name) != of.to_dict()]
        trials = run.trials
        if anew:
            parts = [trials.filter(~pc.field("problem").isin(anew))]
            parts += [
                judged(part, run.curves, to[name], run.plan.target, dtype)
                for name in anew
                for dtype, part in by_dtype(run.plan, trials.filter(pc.field("problem") == name))
                if len(part)
            ]
            trials = pa.concat_tables(parts).sort_by("trial")
        known[key] = trials
    return known[key]


def problem_trials(run: Run, problem: str, to: Reference) -> pa.Table:
    """The trials of a problem, judged against a reference."""
    return rows_where(judged_trials(run, references(run) | {problem: to}), {"problem": problem})


def pair_trials(run: Run, pair: PairSummary) -> pa.Table:
    """The trials of one pair at the learning rates in `pair.rates`, with verdicts by its reference."""
    return at_settings(problem_trials(run, pair.problem, pair.reference), pair)


def at_settings(trials: pa.Table, pair: PairSummary) -> pa.Table:
    """The trials of a pair at the values of its axes that `pair.rates` have."""
    return rows_where(trials, {"problem": pair.problem, "optimizer": pair.optimizer, **pair.settings})


def summarise(run: Run, factor: float = GOOD_FACTOR, to: Mapping[str, Reference] | None = None) -> list[PairSummary]:
    """Summaries of every pair of a record that has trials, in the plan's order; cached per record, factor and
    references (`to`, the record's own by default). Raises GradbenchError for a factor below 1."""
    to = references(run) if to is None else to
    known = _summaries.setdefault(run, {})
    key = factor, tuple(sorted(to.items()))
    if key not in known:
        facts = run.info.get("problems", {})
        known[key] = list(summarise_tables(run.plan, judged_trials(run, to), run.timings, facts, factor, to))
    return known[key]


def changed_problems(runs: Iterable[Run]) -> list[str]:
    """A sentence for each name by which these records mean different problems: other files, or other data."""
    digests = [(run.info.get("sources") or {}).get("problems", {}) for run in runs]
    return [
        f"{problem} is not the same problem in these records"
        for problem in dict.fromkeys(name for of in digests for name in of)
        if len({json.dumps(of[problem], sort_keys=True) for of in digests if problem in of}) > 1
    ]


def summarise_tables(
    plan: SweepPlan,
    trials: pa.Table,
    timings: pa.Table,
    facts: Mapping[str, Mapping[str, Any]],
    factor: float = GOOD_FACTOR,
    to: Mapping[str, Reference] | None = None,
) -> Iterator[PairSummary]:
    """The same from tables; `facts` holds each problem's curvature and target, by name. The references are by default
    those of these trials."""
    if not 1 <= factor < math.inf:
        raise GradbenchError(f"factor: need a number of at least 1, got {factor}")
    times = {(row["problem"], row["optimizer"], row["mode"]): row for row in timings.to_pylist()}
    trials = trials.select([*_USED, *plan.axis_names])  # each pair's trials are copied, of perhaps millions
    floors: dict[tuple[str, str], float] = {}
    for problem, optimizer in plan.pairs:
        of_problem = rows_where(trials, {"problem": problem})
        rows, own = trials_of(of_problem, problem, optimizer), plan.of(optimizer)
        if rows.num_rows == 0:
            continue
        against = to[problem] if to else _reference_of(plan, of_problem, facts.get(problem))
        if (problem, own.dtype) not in floors:
            alike = dict(by_dtype(plan, of_problem))[own.dtype]
            floors[problem, own.dtype] = resolution(alike, against, own.dtype)
        floor = floors[problem, own.dtype]
        solo, batched = (times.get((problem, optimizer, mode)) for mode in ("solo", "batched"))
        solo_step_s = solo["step_s_median"] if solo else None
        points = _points(rows, [axis.name for axis in plan.axes_of(optimizer)], solo_step_s, against)
        best = None if risen(optimizer) else best_point(points)
        settings = (best or min(points, key=lambda point: point.gap_median)).settings
        rates = [point for point in points if point.settings == settings]
        good = good_stretch(rates, best, floor, factor, equal_ends=against.kind != "target")
        curvature = facts.get(problem, {}).get("curvature")
        yield PairSummary(
            problem,
            optimizer,
            against,
            floor,
            rates,
            best,
            ties_of(points, best, floor),
            good and (good[0].learning_rate, good[1].learning_rate),
            (None, None) if risen(optimizer) else edge_of(rates),
            stable_limit(concrete(optimizer, settings, OptimizerError), curvature[1]) if curvature else None,
            diverged_share=float(np.mean(np.asarray(rows["verdict"]) == "diverged")),
            initial_loss=float(np.median(floats(rows, "initial_loss"))),
            solo_step_s=solo_step_s,
            trial_steps_per_s=batched["trials"] / batched["step_s_median"] if batched else None,
            limit=batched["limit"] if batched else None,
            of_limit=batched["of_limit"] if batched else None,
            epoch=epoch_steps(own, facts.get(problem, {})),
            points=points,
            settings=settings,
        )


def epoch_steps(plan: SweepPlan, facts: Mapping[str, Any]) -> int | None:
    """Updates of an epoch of a problem of these facts; None without minibatches."""
    examples = facts.get("examples")
    return steps_per_epoch(examples, plan.batch_size) if examples and plan.batch_size else None


def _points(trials: pa.Table, axes: Sequence[str], solo_step_s: float | None, to: Reference) -> list[RateSummary]:
    """One summary per learning rate and value of each axis, ascending, the learning rate fastest."""
    columns = np.array([trials[name].to_numpy() for name in (*axes, "learning_rate")])
    order = np.lexsort(columns[::-1])
    columns = columns[:, order]
    gaps = relative_gaps(trials, to)[order]
    losses = end_losses(trials)[order]
    steps = floats(trials, "steps_to_target")[order]
    steps = np.where(np.isnan(steps) | np.isinf(gaps), np.inf, steps)  # reaching the target, then diverging: never
    verdicts = np.asarray(trials["verdict"])[order]
    starts = np.flatnonzero(np.append(True, (columns[:, 1:] != columns[:, :-1]).any(axis=0)))
    summaries = []
    for start, end in zip(starts, [*starts[1:], len(order)]):
        *values, rate = columns[:, start].tolist()
        middle = median_of(steps[start:end])
        summaries.append(
            RateSummary(
                rate,
                int(end - start),
                dict(collections.Counter(verdicts[start:end].tolist()).most_common()),
                median_of(gaps[start:end]),
                float(gaps[start:end].min()),
                float(gaps[start:end].max()),
                float(np.median(losses[start:end])),
                middle if math.isfinite(middle) else None,
                float(steps[start:end].max()),
                middle * solo_step_s if math.isfinite(middle) and solo_step_s else None,
                dict(zip(axes, values)),
            )
        )
    return summaries


def resolution(trials: pa.Table, to: Reference, dtype: str) -> float:
    """The relative gap below which a problem's trials count as equal. Over a minimum, that of rounding; another
    reference is the end of a trial or a stated target, so 1 % of the first gap."""
    floor = rounding_floor(trials, to, dtype)
    return floor if to.kind == "minimum" else max(floor, 0.01)


def representative_rates(pair: PairSummary) -> dict[float, str]:
    """Representative learning rates: too small, right, too large, diverging, as far as the pair has them."""
    if pair.best is None:
        smallest = pair.rates[0]
        return {smallest.learning_rate: "diverging" if "diverged" in smallest.verdicts else "too small"}
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
