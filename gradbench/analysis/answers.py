"""The answers of a record as text: the table that closes a run, and compare's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradbench.analysis.profiles import best_rate_interval, pair_trials
from gradbench.analysis.summary import PairSummary, RateSummary, summarise
from gradbench.errors import GradbenchError, PlanError, nearest
from gradbench.inputs.sources import recorded_file
from gradbench.record.store import Run
from gradbench.tables import Column, check_format, number, percent, render, seconds, to_json

SUMMARY = (
    Column("problem", "problem", str),
    Column("optimizer", "optimizer", str),
    Column("best_learning_rate", "best lr"),
    Column("best_range", "95 %", str, 6, "where the best rate lies, at 95 % by resampling the seeds"),
    Column("verdict", "verdict", str, 1),
    Column("steps_to_target", "steps to target", priority=2, about="of the median seed, – where it is not reached"),
    Column("time_to_target_s", "time to target", seconds, 4),
    Column("final_gap", "final gap", priority=2),
    Column("reference", "gap to", str, 5),
    Column("safe_range", "safe range", str, 3),
    Column("safe_decades", "decades", priority=7),  # robustness
    Column("edge", "diverges", str, 6),
    Column("stable_limit", "stable limit", priority=7, about="2/L, from theory"),
    Column("diverged_share", "diverged", percent, 6),
    Column("trial_steps_per_s", "trial-steps/s", priority=8),
    Column("of_limit", "of limit", percent, 8, "speed, as a share of what the device allows"),
    Column("limit", "set by", str, 9),
)
RATES = (
    Column("learning_rate", "learning rate"),
    Column("verdict", "verdict", str),
    Column("gap_median", "final gap"),
    Column("gap_low", "lowest", priority=4),
    Column("gap_high", "highest", priority=4),
    Column("steps_to_target", "steps to target", priority=2),
    Column("time_to_target_s", "time to target", seconds, 3),
    Column("mark", "mark", str, 1, prose=True),
)


def summary_row(pair: PairSummary, run: Run | None = None) -> dict[str, Any]:
    """One flat row per pair; the human columns best_range, safe_range and edge are put into words here. best_range, the
    bootstrap interval of the best learning rate, needs the record."""
    interval = best_rate_interval(pair_trials(run, pair.problem, pair.optimizer), to=pair.reference) if run else None
    best, low, high = pair.best, *pair.edge
    between = f"{number(low)} … {number(high)}" if low and high else f"from {number(high)}" if high else "not on grid"
    return {
        "problem": pair.problem,
        "optimizer": pair.optimizer,
        "best_learning_rate": best and best.learning_rate,
        "best_range": " … ".join(dict.fromkeys(map(number, interval[1:]))) if interval else "–",
        "best_low": interval and interval.low,
        "best_high": interval and interval.high,
        "verdict": best.verdict if best else "diverged",
        "steps_to_target": best and best.steps_to_target,
        "time_to_target_s": best and best.time_to_target_s,
        "final_gap": best and best.gap_median,
        **_reference(pair),
        "safe_range": f"{number(pair.safe[0])} … {number(pair.safe[1])}" if pair.safe else "–",
        "safe_low": pair.safe and pair.safe[0],
        "safe_high": pair.safe and pair.safe[1],
        "safe_decades": pair.safe_decades,
        "edge": between,
        "edge_below": low,
        "edge_above": high,
        "stable_limit": pair.stable_limit,
        "diverged_share": pair.diverged_share,
        "solo_step_s": pair.solo_step_s,
        "trial_steps_per_s": pair.trial_steps_per_s,
        "of_limit": pair.of_limit,
        "limit": pair.limit or "–",
    }


def _reference(pair: PairSummary) -> dict[str, Any]:
    to = pair.reference
    return {"reference": to.kind, "reference_loss": to.loss, "reference_trial": to.trial}


def rate_row(rate: RateSummary, pair: PairSummary) -> dict[str, Any]:
    marks = []
    if pair.best is rate:
        marks.append("best")
    elif pair.safe and pair.safe[0] <= rate.learning_rate <= pair.safe[1]:
        marks.append("safe")
    if pair.stable_limit and rate.learning_rate > pair.stable_limit:
        marks.append("above the stable limit")
    return {
        "problem": pair.problem,
        "optimizer": pair.optimizer,
        "learning_rate": rate.learning_rate,
        "verdict": rate.verdict,
        "seeds": rate.seeds,
        "gap_median": rate.gap_median,
        "gap_low": rate.gap_low,
        "gap_high": rate.gap_high,
        **_reference(pair),
        "steps_to_target": rate.steps_to_target,
        "time_to_target_s": rate.time_to_target_s,
        "mark": ", ".join(marks),
    }


def run_table(run: Run, output_format: str) -> str:
    """The table at the end of a run: one line per pair."""
    rows = [summary_row(pair) for pair in summarise(run)]
    if not rows:
        return "no trial has finished yet"
    left_out = ("best_range", "safe_decades", "edge", "stable_limit", "limit")
    narrow = [column for column in SUMMARY if column.key not in left_out]
    return render(rows, narrow, output_format)


def pair_sentence(pair: PairSummary) -> str:
    """What is to be said of a pair as soon as it is done."""
    name = f"{pair.problem} × {pair.optimizer}: "
    if pair.best is None:
        return f"{name}every learning rate diverges"
    if pair.best.steps_to_target is None:
        reached = f"ends at {_end(pair, pair.best)} ({pair.best.verdict})"
    else:
        reached = f"reaches the target in {number(pair.best.steps_to_target)} steps"
        if pair.best.time_to_target_s is not None:
            reached += f", {seconds(pair.best.time_to_target_s)}"
    text = f"{name}best at learning rate {number(pair.best.learning_rate)}, where it {reached}"
    return f"{text}; {percent(pair.diverged_share)} diverge" if pair.diverged_share else text


def _words(pair: PairSummary) -> str:
    """A pair's reference in full."""
    to = pair.reference
    return f"{to.words}, {number(to.loss)}" + ("" if to.trial is None else f" (trial {to.trial})")


def _end(pair: PairSummary, best: RateSummary) -> str:
    """Where the best learning rate ends. A pair alone does not know the best loss that the record will find."""
    if pair.reference.kind == "best found":
        return f"loss {number(best.loss_median)}"
    return f"{number(best.gap_median)} of the first gap to {pair.reference.words}"


def compare_text(
    run: Run,
    output_format: str,
    factor: float,
    problems: Sequence[str] = (),
    optimizers: Sequence[str] = (),
    summary_only: bool = False,
) -> str:
    """Every pair's learning rates side by side, then one row per pair, then what is to be noted: a problem that is not,
    here and now, the one of the record. json has all three; csv the learning rates, or with `summary_only` the pairs.
    """
    check_format(output_format)
    for given, known, what in (
        (problems, run.plan.problems, "problem"),
        (optimizers, run.plan.optimizers, "optimizer"),
    ):
        for name in given:
            if name not in known:
                raise PlanError(f"no {what} {name!r} in this record{nearest(name, known)} ({', '.join(known)})")
    if run.trials.num_rows == 0:
        raise GradbenchError(f"{run.id}: no trial has finished yet, so there is nothing to compare")
    pairs = [
        pair
        for pair in summarise(run, factor)
        if (not problems or pair.problem in problems) and (not optimizers or pair.optimizer in optimizers)
    ]
    summaries = [summary_row(pair, run) for pair in pairs]
    rates = [[rate_row(rate, pair) for rate in pair.rates] for pair in pairs]
    notes = [why for name in dict.fromkeys(pair.problem for pair in pairs) if (why := recorded_file(run.info, name))]
    if output_format == "json":
        merged = [s if summary_only else s | {"rates": r} for s, r in zip(summaries, rates)]
        head = {"record": run.id, "state": run.info["state"], "factor": factor, "notes": notes}
        return to_json(head | {"pairs": merged})
    if output_format == "csv":
        return render(summaries if summary_only else [row for rows in rates for row in rows], (), "csv")
    blocks = []
    if not summary_only:
        for pair, rows in zip(pairs, rates):
            title = f"{pair.problem} × {pair.optimizer}: gaps to {_words(pair)}"
            blocks.append(render(rows, RATES, output_format, title))
    title = f"{run.id} ({run.info['state']}): safe is every seed within {factor:g}× of the best, over so many decades"
    blocks.append(render(summaries, SUMMARY, output_format, title))
    return "\n\n".join([*blocks, *(f"Note: {note}." for note in notes)])
