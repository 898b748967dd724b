"""What a record says twice: whether it agrees with its manifest, its plan and its own tables. Nothing is run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradbench.analysis.summary import by_dtype, references, rows_where
from gradbench.analysis.verdicts import floats, judged, verdicts
from gradbench.archive.again import recorded_block
from gradbench.engine.slots.points import curve_points, wanted_rows
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.specs.searches import ASKING, RANGE_TEST
from gradbench.record.manifest import changed_files
from gradbench.record.schema import COUNT, NUMBER, TRIALS
from gradbench.record.store import Run
from gradbench.search.queue import designed, reasons

SHOWN = 3  # trials that a fault names


def faults(run: Run) -> list[str]:
    """Sentences, one for each thing that contradicts another; empty where all agree. Every trial is looked at."""
    found = list((changed_files(run.path, run.info) or {}).values())
    complete = run.info["state"] == "complete"
    if missing := list(_against_plan(run, complete)):
        return found + missing  # what follows goes by the trials' numbers
    return [*found, *_curves(run), *_verdicts(run), *_timings(run)]


def _named(what: str, trials: np.ndarray) -> Iterator[str]:
    """One sentence on these trials, if there are any."""
    if len(trials):
        more = f" and {len(trials) - SHOWN:,} more" if len(trials) > SHOWN else ""
        yield f"trial{'s' * (len(trials) > 1)} {', '.join(map(str, trials[:SHOWN].tolist()))}{more}: {what}"


def _against_plan(run: Run, complete: bool) -> Iterator[str]:
    """Every trial of the plan is there once, as the plan has it."""
    number = run.trials["trial"].to_numpy()
    there = np.bincount(number[(number >= 0) & (number < run.plan.trials)], minlength=run.plan.trials)
    yield from _named("not of the plan", number[(number < 0) | (number >= run.plan.trials)])
    yield from _named("there more than once", np.flatnonzero(there > 1))
    if complete and not _by_a_search(run.plan):
        yield from _named(
            "of the plan, and not in the record", np.flatnonzero((there == 0) & _expected(run, there > 0))
        )
    known = run.trials.filter(pa.array((number >= 0) & (number < run.plan.trials)))
    number = known["trial"].to_numpy()
    columns = planned_columns(run, number)
    for name, planned in columns.items():
        here = np.asarray(known[name])
        same = _same(floats(known, name), planned) if planned.dtype == float else here == planned
        yield from _named(f"the {name} is not the plan's", number[~same])
    why = np.asarray(known["tried"])
    if not _by_a_search(run.plan) and known["tried"].null_count < len(why):  # an older record has none
        yield from _named("tried is not what the plan gives", number[why != _why(run.plan, columns["seed"])])


def _by_a_search(plan: SweepPlan) -> bool:
    """Whether a plan's trials are known only as a search asks for them."""
    return plan.searching is not None and plan.searching.kind in ASKING


def _in_seconds(plan: SweepPlan) -> bool:
    """Whether a plan has a budget of time, which gives up the trials that run when it ends."""
    return plan.allowed is not None and plan.allowed.unit == "seconds"


def _expected(run: Run, there: np.ndarray) -> np.ndarray:
    """Of each of the plan's trials, whether a complete record that has those `there`, bool (N,), has to have it: all;
    of a race those of the rounds up to its last; with a budget of trials or steps the first ones of each pair, which
    begin in their order and all end; none with one of seconds."""
    plan, budget = run.plan, run.plan.allowed
    if _in_seconds(plan):
        return np.zeros(plan.trials, bool)
    if plan.until is not None:
        last = int(np.max(run.trials["seed"].to_numpy(), initial=-1))
        end = next((end for end in plan.round_ends if end > last), 0)
        return np.concatenate([designed(plan, optimizer)[1] < end for _, optimizer in plan.pairs])
    if budget is None:
        return np.ones(plan.trials, bool)
    expected = np.zeros(plan.trials, bool)
    for (_, optimizer), first in zip(plan.pairs, plan.first_trials):
        of_pair = there[first : first + plan.trials_of(optimizer)]
        least = math.floor(budget.amount / (1 if budget.unit == "trials" else plan.of(optimizer).steps))
        begun = max(least, int(np.max(np.flatnonzero(of_pair), initial=-1)) + 1)
        expected[first : first + min(begun, len(of_pair))] = True
    return expected


def _why(plan: SweepPlan, seeds: np.ndarray) -> np.ndarray:
    """Why the trials of these seeds are tried, (N,), of a plan whose trials no search asks for."""
    if plan.until is not None:
        return np.array(reasons(plan, seeds), object)
    return np.full(len(seeds), "range test" if plan.searching and plan.searching.kind == RANGE_TEST else None, object)


def planned_columns(run: Run, number: np.ndarray) -> dict[str, np.ndarray]:
    """What the plan says of the trials of these numbers, by column."""
    plan, pair = run.plan, run.plan.pair_of(number)
    problems, optimizers = (np.array(names, object)[pair] for names in zip(*plan.pairs))
    columns = {name: np.full(len(number), np.nan) for name in (*plan.axis_names, "learning_rate")}
    seeds = np.zeros(len(number), np.int64)
    if _by_a_search(plan):
        return {"problem": problems, "optimizer": optimizers}
    for of in np.unique(pair).tolist():
        at = pair == of
        settings, every = designed(plan, plan.pairs[of][1])
        place = number[at] - plan.first_trials[of]
        for name, values in settings.items():
            columns[name][at] = values[place]
        seeds[at] = every[place]
    return {"problem": problems, "optimizer": optimizers, **columns, "seed": seeds}


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a == b) | (np.isnan(a) & np.isnan(b))


def _curves(run: Run) -> Iterator[str]:
    """A trial's row and its curve have the same ends and the same best, and the curve every step that is kept."""
    trials = run.trials.sort_by("trial")
    number = trials["trial"].to_numpy()
    if run.info["state"] == "complete" and not _in_seconds(run.plan):  # else trials began a curve and have no row
        strangers = np.setdiff1d(run.curves["trial"].to_numpy(), number)
        yield from _named("the curve is of no trial of the record", strangers)
    curves = run.curves.filter(pc.field("trial").isin(trials["trial"].combine_chunks()))
    curves = curves.sort_by([("trial", "ascending"), ("step", "ascending")])
    owner, step = curves["trial"].to_numpy(), curves["step"].to_numpy()
    loss, norm = floats(curves, "loss"), floats(curves, "grad_norm")
    first, end = (np.searchsorted(owner, number, side) for side in ("left", "right"))
    whole = end > first
    yield from _named("no curve", number[~whole])
    trials, number, first, last = trials.filter(pa.array(whole)), number[whole], first[whole], end[whole] - 1
    ran = trials["steps_run"].to_numpy()

    def differ(what: str, same: np.ndarray) -> Iterator[str]:
        yield from _named(what, number[~same])

    yield from differ("the curve has not the steps that are kept", last + 1 - first == _kept_points(run, number, ran))
    yield from differ("initial_loss is not where the curve begins", _same(loss[first], floats(trials, "initial_loss")))
    yield from differ("steps_run is not where the curve ends", step[last] == ran)
    yield from differ("final_loss is not where the curve ends", _same(loss[last], floats(trials, "final_loss")))
    ends = floats(trials, "final_grad_norm")
    yield from differ("final_grad_norm is not where the curve ends", _same(norm[last], ends))
    lowest = np.minimum.reduceat(np.where(np.isfinite(loss), loss, np.inf), first) if len(first) else loss[:0]
    best = np.nan_to_num(floats(trials, "best_loss"), nan=np.inf)
    yield from differ("best_loss is above the lowest of the curve", best <= lowest)


def _kept_points(run: Run, number: np.ndarray, ran: np.ndarray) -> np.ndarray:
    """How many points the curve of each trial has that ran so many steps."""
    points = np.zeros(len(number), np.int64)
    most = run.info.get("curve_points") or curve_points(run.plan)
    of_pair = run.plan.pair_of(number)
    for pair in np.unique(of_pair).tolist():
        own = run.plan.of(run.plan.pairs[pair][1])
        _, kept = wanted_rows(own, recorded_block(run, *run.plan.pairs[pair]), most)
        at = of_pair == pair
        points[at] = np.searchsorted(kept, ran[at], side="right") + ~np.isin(ran[at], kept)
    return points


def _verdicts(run: Run) -> Iterator[str]:
    """The references, the verdicts and the steps to a best loss found follow from the other columns."""
    known = run.info.get("references")
    if known is None:  # of a record that is not complete, or older: its words are its engine's own
        return
    for problem, to in references(run).items():
        if known.get(problem) != json.loads(json.dumps(to.to_dict())):
            yield f"run.json: the reference of {problem} is {known.get(problem)}, its trials give {to.to_dict()}"
        for dtype, rows in by_dtype(run.plan, rows_where(run.trials, {"problem": problem})):
            if to.kind == "best found":
                anew = judged(rows, run.curves, to, run.plan.target, dtype)
                expected = {name: np.asarray(anew[name]) for name in ("verdict", "steps_to_target")}
            else:
                expected = {"verdict": verdicts(_as_swept(rows, dtype), to, dtype)}
            for name, values in expected.items():
                here = np.asarray(rows[name])
                same = here == values if name == "verdict" else _same(here.astype(float), values.astype(float))
                yield from _named(f"{name} is not what the other columns give", rows["trial"].to_numpy()[~same])


def _as_swept(trials: pa.Table, dtype: str) -> dict[str, np.ndarray]:
    """The columns that a verdict is given by, in the types that the sweep had them in."""
    single = () if dtype == "float64" else ("initial_loss", "final_loss", "best_loss", "tail_overshot")
    wanted = [column.name for column in TRIALS if column.kind in (NUMBER, COUNT)]
    columns = {name: floats(trials, name) for name in wanted}
    return columns | {name: columns[name].astype(np.float32) for name in single}


def _timings(run: Run) -> Iterator[str]:
    """The quartiles of a timing are its samples'. Whether the samples are true no replay can tell."""
    for row in run.timings.to_pylist():
        if samples := row["step_s_samples"]:
            low, middle, high = np.percentile(samples, [25, 50, 75])
            found = {"step_s_p25": low, "step_s_median": middle, "step_s_p75": high, "step_s_min": min(samples)}
            wrong = [name for name, value in found.items() if not math.isclose(row[name], value, rel_tol=1e-9)]
            if wrong:
                name = " × ".join(filter(None, (row["problem"], row["optimizer"])))
                yield f"timings of {name}, {row['mode']}: {', '.join(wrong)} not what the samples give"
