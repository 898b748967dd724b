"""The answers of a record as text: the table that closes a run, and compare's."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradbench.analysis.metrics import chosen_metric, columns, metric_notes, metric_row
from gradbench.analysis.points import RateSummary
from gradbench.analysis.profiles import best_rate_interval
from gradbench.analysis.summary import PairSummary, at_settings, pair_trials, summarise, trials_of
from gradbench.analysis.verdicts import Reference, floats
from gradbench.inputs.specs.schedules import risen
from gradbench.inputs.transfer.sources import given_as_object
from gradbench.inputs.transfer.written import command_of_pair
from gradbench.record.store import Run
from gradbench.tables import GO_ON, Column, note_lines, number, percent, render, seconds, span, to_json
from gradbench.theory.rising import RangeTest, read_rise, risen_rates


def _edge(below: float | None, above: float | None) -> str:
    return "not on grid" if above is None else f"from {number(above)}" if below is None else span(below, above)


SUMMARY = (
    Column("record", "record", str),
    Column("problem", "problem", str),
    Column("optimizer", "optimizer", str),
    Column("best_learning_rate", "best lr"),
    Column("best_settings", "at", lambda words: words or "–", 0, prose=True),
    Column(
        "best_low", "95 %", span, 6, "where the best rate lies, at 95 % by resampling the seeds", and_key="best_high"
    ),
    Column("verdict", "verdict", str, 1),
    Column("suggested_learning_rate", "suggested", about="by a range test"),
    Column(
        "steps_to_target", "steps to target", priority=2, about="of the median seed", dash="where it is not reached"
    ),
    Column("epochs_to_target", "epochs to target", priority=4),
    Column("time_to_target_s", "time to target", seconds, 4),
    Column("final_loss", "final loss", priority=3),
    Column("final_gap", "final gap", priority=2),
    Column("reference", "gap to", str, 5),
    Column("good_low", "good range", span, 3, and_key="good_high"),
    Column("good_decades", "decades", priority=7, about="the width of the good range"),  # robustness
    Column("edge_below", "diverges", _edge, 6, and_key="edge_above"),
    Column("stable_limit", "stable limit", priority=7, about="2/L, from theory"),
    Column("diverged_share", "diverged", percent, 6),
    Column("trial_steps_per_s", "trial-steps/s", priority=8),
    Column("of_limit", "of limit", percent, 8, "speed, as a share of what the device allows"),
    Column("limit", "set by", lambda name: name or "–", 9),
)
RATES = (
    Column("learning_rate", "learning rate"),
    Column("verdict", "verdict", str, prose=True),
    Column("loss_median", "final loss", priority=3),
    Column("gap_median", "final gap"),
    Column("gap_low", "lowest gap", priority=5),
    Column("gap_high", "highest gap", priority=5),
    Column("steps_to_target", "steps to target", priority=3),
    Column("epochs_to_target", "epochs to target", priority=4),
    Column("time_to_target_s", "time to target", seconds, 4),
    Column("mark", "mark", str, 1, prose=True),
)
BESIDE = ("verdict", "loss_median", "gap_median", "steps_to_target")  # of RATES, for each of several records


MAX_TIES = 8  # named in a note


def labels(runs: Sequence[Run]) -> list[str]:
    """A distinct name for each record: its device if all differ, else the end of its id."""
    devices = [f"{run.info['environment'].get('platform', '?')}" for run in runs]
    names = devices if len(set(devices)) == len(runs) else [run.id.rpartition("-")[2] for run in runs]
    return names if len(set(names)) == len(runs) else [f"{name} ({i + 1})" for i, name in enumerate(names)]


def summary_row(pair: PairSummary, run: Run | None = None) -> dict[str, Any]:
    """One flat row per pair: numbers and words, None where there is none. best_low to best_high is the bootstrap
    interval of the best learning rate, which needs `run`; good_low to good_high the good range."""
    interval = best_rate_interval(pair_trials(run, pair), to=pair.reference) if run and pair.best else None
    best, low, high = pair.best, *pair.edge
    return {
        "problem": pair.problem,
        "optimizer": pair.optimizer,
        "best_learning_rate": best and best.learning_rate,
        **({"best_settings": settings_words(pair.settings)} if best and pair.settings else {}),
        **{f"best_{name}": value if best else None for name, value in pair.settings.items()},
        "ties": [rate.learning_rate for rate in pair.ties],
        "open_end": pair.open_end,
        "best_low": interval and interval.low,
        "best_high": interval and interval.high,
        "verdict": best.verdict if best else _without_best(pair),
        **({"suggested_learning_rate": of[0][1].suggested} if run and (of := range_tests(run, pair)) else {}),
        "steps_to_target": best and best.steps_to_target,
        **_epochs(pair, best),
        "time_to_target_s": best and best.time_to_target_s,
        "initial_loss": pair.initial_loss,
        "final_loss": best and best.loss_median,
        "final_gap": best and best.gap_median,
        **_reference(pair),
        "good_low": pair.good and pair.good[0],
        "good_high": pair.good and pair.good[1],
        "good_decades": pair.good_decades,
        "edge_below": low,
        "edge_above": high,
        "stable_limit": pair.stable_limit,
        "diverged_share": pair.diverged_share,
        "solo_step_s": pair.solo_step_s,
        "trial_steps_per_s": pair.trial_steps_per_s,
        "of_limit": pair.of_limit,
        "limit": pair.limit,
    }


def settings_words(settings: Mapping[str, float]) -> str:
    """The values of a pair's axes, as "weight_decay 0.001, b1 0.9"."""
    return ", ".join(f"{name} {number(value)}" for name, value in settings.items())


def _epochs(pair: PairSummary, rate: RateSummary | None) -> dict[str, Any]:
    """Steps to the target in epochs; {} without minibatches."""
    if pair.epoch is None:
        return {}
    steps = rate.steps_to_target if rate else None
    return {"epochs_to_target": None if steps is None else steps / pair.epoch}


def present(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns that any row has; where rows have epochs (minibatches), it is said that the loss is smoothed."""
    found = [column for column in columns if any(column.key in row for row in rows)]
    if not any("epochs_to_target" in row for row in rows):
        return found
    about = "with minibatches the mean over the last quarter of the steps"
    return [dataclasses.replace(of, about=about) if of.heading == "final loss" else of for of in found]


def _without_best(pair: PairSummary) -> str:
    return "range test" if risen(pair.optimizer) else f"none works: {_ends(pair)}"


def _ends(pair: PairSummary) -> str:
    """How the trials of a pair end, where no learning rate works."""
    if not math.isfinite(pair.initial_loss):
        return "the loss is not finite at the start"
    if pair.diverged_share == 1:
        return "all diverge"
    if any(point.gap_median == 1 and point.loss_median < pair.initial_loss for point in pair.points):
        return f"none comes nearer to {pair.reference.words}"  # which is so far off that rounding hides what was gained
    seeds = max((point.seeds for point in pair.points), default=1)
    return "none ends below its start" + (" with every seed" if seeds > 1 else "")


def _reference(pair: PairSummary) -> dict[str, Any]:
    to = pair.reference
    return {"reference": to.kind, "reference_loss": to.loss, "reference_trial": to.trial}


def rate_row(rate: RateSummary, pair: PairSummary) -> dict[str, Any]:
    """One flat row per learning rate, with the mark best, a tie, good, or above the stable limit."""
    marks = []
    if pair.best is rate:
        marks.append("best")
    elif rate in pair.ties:
        marks.append(_tie_words(pair))
    elif rate.settings == pair.settings and pair.good and pair.good[0] <= rate.learning_rate <= pair.good[1]:
        marks.append("good")
    if rate.settings == pair.settings and pair.stable_limit and rate.learning_rate > pair.stable_limit:
        marks.append("above the stable limit")
    return {
        "problem": pair.problem,
        "optimizer": pair.optimizer,
        **rate.settings,
        "learning_rate": rate.learning_rate,
        "verdict": rate.verdict,
        "seeds": rate.seeds,
        "loss_median": rate.loss_median,
        "gap_median": rate.gap_median,
        "gap_low": rate.gap_low,
        "gap_high": rate.gap_high,
        **_reference(pair),
        "steps_to_target": rate.steps_to_target,
        **_epochs(pair, rate),
        "time_to_target_s": rate.time_to_target_s,
        "mark": ", ".join(marks),
    }


def run_table(run: Run, output_format: str) -> str:
    """The table at the end of a run: one line per pair, then the notes."""
    pairs, for_machines = summarise(run), output_format in ("json", "csv")
    if not pairs and not for_machines:
        return "no trial has finished yet"
    left_out = ("record", "best_low", "good_decades", "edge_below", "stable_limit", "limit")
    narrow = [column for column in SUMMARY if column.key not in left_out]
    by = chosen_metric([run], None)
    rows = [summary_row(pair) | metric_row(run, pair, by) for pair in pairs]
    text = render(rows, [*present(narrow, rows), *columns(by)[:2]], output_format)
    notes = pair_notes(run, pairs) + metric_notes(run, pairs, by)
    return text if for_machines else with_notes([text], notes, output_format)


def pair_sentence(pair: PairSummary, alone: bool = False) -> str:
    """A pair's result in one sentence, once it is swept. `alone` is of a pair judged before the others of its run: to
    the lowest loss of them all another of its rates may be the best, and that is said."""
    name = f"{pair.problem} × {pair.optimizer}: "
    name += "by itself " if alone and pair.reference.kind == "best found" else ""
    if start := risen(pair.optimizer, pair.settings):
        high = pair.rates[0].learning_rate
        return f"{name}a range test, learning rates from {number(high * start)} to {number(high)}"
    if pair.best is None:
        return f"{name}no learning rate works: {_ends(pair)}"
    best = pair.best
    if pair.reference.kind == "best found":  # the next pair may find a lower loss: neither a gap nor a verdict yet
        reached = f"ends at loss {number(best.loss_median)}, from {number(pair.initial_loss)}"
    elif best.steps_to_target is None:
        reached = f"ends at {number(best.gap_median)} of the first gap to {pair.reference.words} ({best.verdict})"
    else:
        reached = f"reaches the target in {step_words(best.steps_to_target, pair.epoch)}"
        if best.time_to_target_s is not None:
            reached += f", {seconds(best.time_to_target_s)}"
    edge = f", the {pair.open_end} tried," if pair.open_end else ""
    settings = f" ({settings_words(pair.settings)})" if pair.settings else ""
    text = f"{name}best at learning rate {number(best.learning_rate)}{settings}{edge or ','} where it {reached}"
    return f"{text}; {percent(pair.diverged_share)} diverge" if pair.diverged_share else text


def step_words(steps: float, epoch: int | None) -> str:
    """A number of steps in words; with an `epoch` (updates in one) also in epochs."""
    return f"{number(steps)} step{'s' * (steps != 1)}" + (f" ({number(steps / epoch)} epochs)" if epoch else "")


def reference_words(to: Reference) -> str:
    """A reference in full."""
    return f"{to.words}, {number(to.loss)}" + ("" if to.trial is None else f" (trial {to.trial})")


def pair_notes(run: Run, pairs: Sequence[PairSummary], edges: bool = False) -> list[str]:
    """What the tables cannot say: a grid that is too narrow or too high, or too few steps, with the command for more
    (with `edges` also where nothing diverges); ties; a stated minimum that is not the minimum."""
    notes = []
    for name, to in {pair.problem: pair.reference for pair in pairs}.items():
        if to.wrong_minimum is not None:
            stated = f"{name} states the minimum {number(to.wrong_minimum)}, but trial {to.trial} reached"
            notes.append(f"{stated} {number(to.loss)}: gaps are to that")
    for pair in pairs:
        name = f"{pair.problem} × {pair.optimizer}"
        if risen(pair.optimizer):
            notes += [f"{name}: {_range_words(point, found)}" for point, found in range_tests(run, pair)]
            continue
        if run.plan.search or (run.plan.budget and not run.plan.until):
            notes += [f"{name}: {words}" for words in _tried(run, pair)]
        if pair.reference.kind != "best found" and pair.initial_loss <= pair.reference.loss:
            start = f"starts at {number(pair.initial_loss)}, no higher than {pair.reference.words}"
            notes.append(f"{name}: {start}, {number(pair.reference.loss)}: it is reached before the first step")
        if pair.best and pair.ties:
            shown = [_point_words(rate) for rate in pair.ties[:MAX_TIES]]
            shown += [f"{len(pair.ties) - MAX_TIES} more"] * (len(pair.ties) > MAX_TIES)
            rates = ", ".join(shown)
            notes.append(f"{name}: {rates} {'are' if len(pair.ties) > 1 else 'is'} {_tie_words(pair)}")
        if pair.best is None and _starts_without_gradient(run, pair):
            of = "problem" if given_as_object(run.info) else shlex.quote(pair.problem)
            check = f"gradbench.check_gradient({of})" if of == "problem" else f"gradbench check {of}"
            notes.append(f"{name}: the gradient at the start is not a number, at any learning rate{GO_ON}{check}")
        elif beyond := _beyond(run, pair, edges):
            what, changed = beyond
            notes.append(f"{name}: {what}{GO_ON}{_go_on(run, pair, changed)}")
    return notes


def _starts_without_gradient(run: Run, pair: PairSummary) -> bool:
    """Whether the loss is finite at the start of each trial, and the gradient NaN. (An infinite norm may be of a
    gradient whose square is beyond the format.)"""
    numbers = trials_of(run.trials, pair.problem, pair.optimizer)["trial"]
    first = run.curves.filter((pc.field("step") == 0) & pc.field("trial").isin(pa.array(numbers.to_numpy())))
    losses, norms = floats(first, "loss"), floats(first, "grad_norm")
    return first.num_rows > 0 and bool(np.all(np.isfinite(losses) & np.isnan(norms)))


def range_tests(run: Run, pair: PairSummary) -> list[tuple[RateSummary, RangeTest]]:
    """The range test at each point of a pair whose rate rises, over its seeds; empty for other pairs."""
    found, steps = [], run.plan.of(pair.optimizer).steps
    for point in pair.points if risen(pair.optimizer) else ():
        trials = at_settings(run.trials, dataclasses.replace(pair, settings=point.settings))
        numbers = trials["trial"].to_numpy()
        curves = run.curves.filter(pc.field("trial").isin(pa.array(numbers)))
        step = curves["step"].to_numpy()
        kept = np.unique(step)
        losses = np.full((len(numbers), len(kept)), np.nan)
        place = np.searchsorted(numbers, curves["trial"].to_numpy()), np.searchsorted(kept, step)
        losses[place] = floats(curves, "loss")
        rates = risen_rates(point.learning_rate, risen(pair.optimizer, point.settings) or 1.0, steps)
        found.append((point, read_rise(rates[np.minimum(kept, steps - 1)], losses)))
    return found


def _range_words(point: RateSummary, found: RangeTest) -> str:
    at = f"range test at {settings_words(point.settings)}" if point.settings else "range test"
    left = f"has left at {number(found.edge)}" if found.edge else "does not leave"
    return (
        f"{at}: as the learning rate rises the loss is lowest at {number(found.lowest)} and {left}; "
        f"suggested {number(found.suggested)}, a tenth of the lowest"
    )


def _tried(run: Run, pair: PairSummary) -> Iterator[str]:
    """Notes on how much was tried, by a search or within a budget."""
    plan = run.plan
    trials = trials_of(run.trials, pair.problem, pair.optimizer)
    if plan.search:
        whole = dataclasses.replace(plan, search=None, budget=None).trials_of(pair.optimizer)
        share = int(np.sum(trials["steps_run"])) / (whole * plan.of(pair.optimizer).steps)
        points = f"{len(pair.points)} points tried in {trials.num_rows} trials"
        yield f"{plan.search}: {points}, {percent(share)} of the trial-steps of all {whole}"
    elif trials.num_rows < plan.trials_of(pair.optimizer):
        missing = plan.trials_of(pair.optimizer) - trials.num_rows
        yield f"the budget of {plan.budget} left out {missing} of {plan.trials_of(pair.optimizer)} trials"


def _point_words(rate: RateSummary) -> str:
    settings = f" ({settings_words(rate.settings)})" if rate.settings else ""
    return f"{number(rate.learning_rate)}{settings}"


def _tie_words(pair: PairSummary) -> str:
    """How close a tie is: equal up to rounding if gaps are to a minimum, else within a share of the first gap."""
    return "as good as the best" if pair.reference.kind == "minimum" else f"within {percent(pair.floor)} of the best"


def _beyond(run: Run, pair: PairSummary, edges: bool) -> tuple[str, dict[str, Any]] | None:
    """Why the answer may lie beyond what was tried, and the settings of a plan that tries it; None if it does not."""
    lowest = pair.rates[0].verdict
    if len(pair.rates) == 1 and len(pair.points) > 1:  # drawn points, of which no two differ in the rate alone
        return None
    if pair.open_end:
        return f"the best learning rate is the {pair.open_end} tried", {"learning_rates": pair.beyond(pair.open_end)}
    if pair.best is None and lowest in ("diverged", "overshoots") and math.isfinite(pair.initial_loss):
        even = "diverges" if lowest == "diverged" else lowest
        return f"even the lowest learning rate tried {even}", {"learning_rates": pair.beyond("lowest")}
    if pair.best and all(rate.verdicts.keys() <= {"slow", "diverged"} for rate in pair.rates):
        return "every learning rate is still going down, or diverges", {"steps": 10 * run.plan.steps}
    if edges and pair.edge == (pair.rates[-1].learning_rate, None):
        return "at no learning rate tried do most seeds diverge", {"learning_rates": pair.beyond("highest")}
    return None


def _go_on(run: Run, pair: PairSummary, changed: dict[str, Any]) -> str:
    if given_as_object(run.info):
        return ", ".join(f"{name}={to_json(value)}" for name, value in changed.items())
    return command_of_pair(run.plan.of(pair.optimizer), pair.problem, pair.optimizer, **changed)


def with_notes(blocks: Sequence[str], notes: Sequence[str], output_format: str) -> str:
    """Blocks of text, then the notes, separated by empty lines."""
    lines = note_lines(notes, output_format)
    return "\n\n".join([*blocks, *(["\n".join(lines)] if lines else [])])
