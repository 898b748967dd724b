"""What the page and the figures draw, as plain rows: a record's answers and its curves, thinned to fit a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from gradbench.analysis.answers import labels, pair_notes, pair_sentence
from gradbench.analysis.metrics import HELD_OUT, ByMetric, metric_notes, recorded
from gradbench.analysis.points import RateSummary
from gradbench.analysis.profiles import measured_rate
from gradbench.analysis.summary import PairSummary, pair_trials, problem_trials, rows_where, summarise_all
from gradbench.analysis.verdicts import Reference, relative_gaps
from gradbench.errors import GradbenchError
from gradbench.record.store import Run
from gradbench.reporting.heatmap import settings_map
from gradbench.tables import GO_ON, number
from gradbench.theory.quadratic import predicted_rate

CURVE_VALUES = 120_000  # in all curves on a page, about 8 bytes each
METRIC_VALUES = 120_000  # in all metrics' curves
CURVE_POINTS = 60  # per curve
RATE_ROWS = 6_000  # learning rates on a page, over all pairs
FLOOR = 1e-16  # where a gap of 0 is drawn on a log axis


def short(value: float | None, digits: int = 4) -> float | None:
    """Rounded to `digits` significant digits; None for NaN, infinity and None."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def short_rate(value: float) -> float | None:
    """Rounded to enough digits to tell ten thousand learning rates apart."""
    return short(value, 7)


def page_data(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything the page shows: `runs`, `optimizers`, `pairs` with their rates and curves (the `winner` of a problem
    is its best by `rank`), `timings`, `sharpness`; and `measures`: how the metrics of each problem that has some are
    drawn. Raises GradbenchError where there is no run, or a run without a finished trial."""
    if not runs:
        raise GradbenchError("report: no record given")
    names = labels(runs)
    found = zip(runs, names, summarise_all(runs))
    summaries = [(run, name, pair) for run, name, pairs in found for pair in pairs]
    if not summaries:
        raise GradbenchError(
            f"{', '.join(run.id for run in runs)}: no trial has finished yet, so there is nothing to report"
        )
    rates = max(2, RATE_ROWS // len(summaries))
    values = CURVE_VALUES // len(summaries)
    floors = {(name, pair.problem): _floor(run, pair) for run, name, pair in summaries}
    pairs = [_pair(run, name, pair, rates, values, floors[name, pair.problem]) for run, name, pair in summaries]
    for made, (run, _, pair) in zip(pairs, summaries):
        trials = [curve.pop("trial") for curve in made["curves"]]
        made |= _metrics(run, pair, made["rates"], trials, METRIC_VALUES // len(summaries))
    for problem in dict.fromkeys(pair["problem"] for pair in pairs):
        of = [i for i, (_, _, pair) in enumerate(summaries) if pair.problem == problem]
        pairs[min(of, key=lambda i: rank(summaries[i][2]))]["winner"] = True
    return {
        "runs": [_run(run, name) for run, name in zip(runs, names)],
        "optimizers": list(dict.fromkeys(optimizer for run in runs for optimizer in run.plan.optimizers)),
        "pairs": pairs,
        "measures": _measures(pairs),
        "timings": [row for run, name in zip(runs, names) for row in timing_rows(run, name)],
        "sharpness": [row for run, name in zip(runs, names) for row in sharpness_rows(run, name)],
    }


def _run(run: Run, name: str) -> dict[str, Any]:
    keys = ("id", "state", "started", "ended", "environment", "plan")
    return {"name": name, "trials": run.trials.num_rows} | {key: run.info.get(key) for key in keys}


def sharpness_rows(run: Run, name: str) -> list[dict[str, Any]]:
    """A record's sharpness along its paths, and the edge of stability."""
    kept = ("sharpness", "error", "edge", "loss")
    return [
        row | {key: short(row[key]) for key in kept} | {"run": name, "learning_rate": short_rate(row["learning_rate"])}
        for row in run.sharpness.to_pylist()
    ]


def _floor(run: Run, pair: PairSummary) -> float:
    """Where a problem's charts draw gaps of 0 and less. Trials reach and pass a reference that is no minimum and then
    end far apart: there the floor is below the least final gap above 0."""
    if pair.reference.kind == "minimum":
        return FLOOR
    gaps = relative_gaps(problem_trials(run, pair.problem, pair.reference), pair.reference)
    above = gaps[(gaps > 0) & np.isfinite(gaps)]
    return max(FLOOR, float(above.min()) / 2) if len(above) else 1e-3


def rate_row(rate: RateSummary, pair: PairSummary, floor: float = FLOOR) -> dict[str, Any]:
    """A learning rate's row on the page: `gap`, `low` and `high` as drawn, not below the floor; `final`, `lowest` and
    `highest` as recorded. A gap is null where it diverged."""
    finite = math.isfinite(rate.gap_median)
    return {
        "learning_rate": short_rate(rate.learning_rate),
        "verdict": next(iter(rate.verdicts)),
        "verdicts": rate.verdict,
        "gap": short(max(rate.gap_median, floor)) if finite else None,
        "low": short(max(rate.gap_low, floor)) if finite else None,
        "high": short(max(rate.gap_high, floor)) if math.isfinite(rate.gap_high) else None,
        "final": short(rate.gap_median),
        "lowest": short(rate.gap_low),
        "highest": short(rate.gap_high),
        "steps": short(rate.steps_to_target),
        "seconds": short(rate.time_to_target_s),
        "best": pair.best is rate,
        "fitted": None,
        "predicted": None,
    }


def _pair(run: Run, name: str, pair: PairSummary, most_rates: int, values: int, floor: float) -> dict[str, Any]:
    kept = _spread(len(pair.rates), most_rates)
    rates = [pair.rates[i] for i in kept]
    if pair.best is not None and pair.best not in rates:
        rates = sorted([*rates, pair.best], key=lambda rate: rate.learning_rate)
    grid, curves = _curves(run, pair, [rate.learning_rate for rate in rates], values, floor)
    rows = [rate_row(rate, pair, floor) for rate in rates]
    _add_decay(run, pair, rows, grid, curves)
    return {
        "run": name,
        "problem": pair.problem,
        "optimizer": pair.optimizer,
        "at": pair.at,
        "winner": False,
        "good": pair.good and [short_rate(end) for end in pair.good],
        "limit": short(pair.stable_limit),
        "limit_is": "stable limit",
        "gap_to": pair.reference.words,
        "step_s": short(pair.solo_step_s),
        "all_rates": len(pair.rates),
        "map": settings_map(pair),
        "epoch": pair.epoch,
        "rates": rows,
        "grid": grid,
        "curves": curves,
    }


def _add_decay(
    run: Run, pair: PairSummary, rows: list[dict[str, Any]], grid: list[int], curves: list[dict[str, Any]]
) -> None:
    """Give each rate `fitted`, the factor per step by which seed 0's gap falls, and `predicted`, theory's on a
    quadratic (of the gap: the square of the distance's); null where there is no theory."""
    curvature = run.info.get("problems", {}).get(pair.problem, {}).get("curvature")
    if pair.stable_limit is None or not curvature:
        return
    for curve in curves:
        if curve["seed"] == 0:
            row = rows[curve["rate"]]
            gaps = [gap if gap and gap > FLOOR else 0.0 for gap in curve["gaps"]]
            row["fitted"] = short(measured_rate(grid[: len(gaps)], gaps), 7)
            rate = predicted_rate(pair.at, row["learning_rate"], *curvature)
            # Where the loss is no quadratic, L is a bound, and rates above theory's limit need not diverge.
            if rate is not None and (rate <= 1 or row["verdict"] == "diverged"):
                row["predicted"] = float(f"{rate**2:.8g}")  # 0.999998 and 1 are not the same


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of 0..count-1, evenly, with both ends."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most)).round()})


def _curves(
    run: Run, pair: PairSummary, rates: list[float], values: int, floor: float
) -> tuple[list[int], list[dict[str, Any]]]:
    """(steps, curves): a curve is a trial's gap at the first of those steps."""
    trials = pair_trials(run, pair)
    points = min(CURVE_POINTS, max(8, values // len(rates)))
    seeds = max(1, values // (points * len(rates)))
    chosen = trials.filter((pc.field("seed") < seeds) & pc.field("learning_rate").isin(rates))
    chosen = chosen.select(["trial", "learning_rate", "seed", "verdict", "initial_loss", "diverged_at"])
    rows = {row["trial"]: row for row in chosen.slice(0, max(1, values // points)).to_pylist()}
    table = run.curves.filter(pc.field("trial").isin(list(rows))).sort_by(
        [("trial", "ascending"), ("step", "ascending")]
    )
    grid, losses = _thinned(*(table[name].to_numpy() for name in ("trial", "step", "loss")), points)
    place = {short_rate(rate): i for i, rate in enumerate(rates)}
    curves = []
    for number_, loss in losses.items():
        row = rows[number_]
        lowest = pair.reference.loss
        with np.errstate(divide="ignore", invalid="ignore"):  # a trial may begin at the reference: gap 0
            gaps = np.maximum((loss - lowest) / (row["initial_loss"] - lowest), floor)
        curves.append(
            {
                "trial": number_,
                "rate": place[short_rate(row["learning_rate"])],
                "seed": row["seed"],
                "verdict": row["verdict"],
                "diverged_at": row["diverged_at"],
                "gaps": [short(gap) for gap in gaps.tolist()],
            }
        )
    return grid, curves


def _thinned(
    trial: np.ndarray, step: np.ndarray, value: np.ndarray, points: int
) -> tuple[list[int], dict[int, np.ndarray]]:
    """(at most `points` of the steps, each trial's values at the first of them, up to its last step); `trial`, `step`
    and `value` are rows sorted by trial and step."""
    grid = np.unique(step)
    grid = grid[_spread(len(grid), points)] if len(grid) else grid
    keep = np.isin(step, grid)
    trial, value = trial[keep], value[keep]
    ids, starts = np.unique(trial, return_index=True)
    return grid.tolist(), dict(zip(ids.tolist(), np.split(value, starts[1:])))


def _metrics(
    run: Run, pair: PairSummary, rates: Sequence[dict[str, Any]], trials: Sequence[int], values: int
) -> dict[str, Any]:
    """A pair's metrics for the page; empty if it records none: the steps `metric_grid`, and `metrics`, by split.name:
    [median, lowest, highest] at the end by rate, the number of the `best` rate, the `curves` of `trials`, and the
    sentence `said`. Where there are too many curves some are left empty."""
    names = recorded(run, pair.problem)
    if not names:
        return {}
    room = values // len(names)
    kept = [trials[i] for i in _spread(len(trials), max(1, room // 8))] if trials else []
    points = min(CURVE_POINTS, max(8, room // max(len(kept), 1)))
    table = run.metrics.filter(pc.field("trial").isin(kept))
    place = {short_rate(rate.learning_rate): rate.learning_rate for rate in pair.rates}
    at = [place[row["learning_rate"]] for row in rates]
    grid: list[int] = []
    made = {}
    for name in names:
        of = ByMetric.of(run, pair, name)
        assert of is not None
        split, _, short_name = name.partition(".")
        rows = rows_where(table, {"split": split, "name": short_name})
        grid, found = _thinned(*(rows[key].to_numpy() for key in ("trial", "step", "value")), points)
        made[name] = {
            "more_is_better": of.more_is_better,
            "values": [[short(value) for value in of.values[rate]] if rate in of.values else None for rate in at],
            "best": next((i for i, rate in enumerate(at) if rate == of.best), None),
            "curves": [[short(value) for value in found.get(trial, np.zeros(0)).tolist()] for trial in trials],
            "said": of.sentence(pair),
        }
    return {"metric_grid": grid, "metrics": made}


def _measures(pairs: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Problem -> metric -> how it is drawn: whether more is better; the range of a curve's axis, from the best value
    met to the worst at the start or the end of a trial that did not diverge; and whether the axis may be logarithmic:
    if the metric falls, over a decade or more."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, problem in dict.fromkeys((name, pair["problem"]) for pair in pairs for name in pair.get("metrics", ())):
        of = [pair["metrics"][name] for pair in pairs if pair["problem"] == problem and name in pair.get("metrics", ())]
        curves = [[value for value in curve if value is not None] for each in of for curve in each["curves"]]
        ends = [value for each in of for values in each["values"] if values for value in values]
        ends += [curve[0] for curve in curves if curve]
        if not ends:  # nothing finite to draw
            continue
        met = [value for curve in curves for value in curve] + ends
        more = of[0]["more_is_better"]
        span = (min(ends), max(met)) if more else (min(met), max(ends))
        log = not more and 0 < 10 * span[0] <= span[1]
        found.setdefault(problem, {})[name] = {"more_is_better": more, "log": log, "range": span}
    return found


def by_metric(pair: dict[str, Any], name: str) -> dict[str, Any]:
    """A pair of the page with a metric in place of the gap, as the page's script makes it too; without rates and curves
    where the metric is not recorded."""
    metric = pair.get("metrics", {}).get(name)
    if metric is None:
        return pair | {"rates": [], "curves": []}
    rates = []
    for i, (rate, values) in enumerate(zip(pair["rates"], metric["values"])):
        middle, low, high = values or (None, None, None)
        drawn = {"gap": middle, "low": low, "high": high, "final": middle, "best": i == metric["best"]}
        rates.append(rate | drawn | {"predicted": None})
    curves = [curve | {"gaps": gaps} for curve, gaps in zip(pair["curves"], metric["curves"])]
    return pair | {"rates": rates, "curves": curves, "grid": pair["metric_grid"]}


def timing_rows(run: Run, name: str) -> list[dict[str, Any]]:
    """A record's timings with the seconds of one trial's step, without the samples; rows of the problem alone come
    first."""
    rows = []
    order = {problem: number for number, problem in enumerate(run.plan.problems)}
    for row in sorted(run.timings.to_pylist(), key=lambda row: (order[row["problem"]], row["optimizer"] is not None)):
        each = {key: row[key] for key in ("problem", "optimizer", "mode", "trials", "trusted", "samples")}
        for key in ("step_s_median", "step_s_p25", "step_s_p75"):
            each[key.replace("step_s_", "")] = row[key] / row["trials"]
        for key in ("trace_s", "lower_s", "compile_s", "first_run_s", "flops_per_s", "compile_cached", "compile_ahead"):
            each[key] = row[key]
        rows.append(each | {"run": name})
    return rows


def answer_sentence(pair: PairSummary) -> str:
    """The pair's answer in one sentence: that of `compare`, with the good range and where it diverges."""
    text = pair_sentence(pair).removeprefix(f"{pair.problem} × ")
    if pair.best is None:
        return f"{text}."
    if pair.good and pair.good[0] < pair.good[1]:
        text += f"; good from {number(pair.good[0])} to {number(pair.good[1])}"
    else:
        text += "; no neighbour on the grid is as good"
    below, above = pair.edge
    if above is None:
        text += "; at no learning rate tried do most seeds diverge"
    elif below is not None:
        text += f"; diverges above {number(below)}"
    return f"{text}."


def rank(pair: PairSummary) -> tuple[float, float, float]:
    """Sorts a problem's pairs: the quickest to the target first, then those that end lowest."""
    if pair.best is None:
        return math.inf, math.inf, math.inf
    time, steps = pair.best.time_to_target_s, pair.best.steps_to_target
    return time or math.inf, math.inf if steps is None else steps, pair.best.gap_median


class Answer(NamedTuple):
    """A problem's answer in one record: the best pair's sentence, the others', and notes."""

    run: str
    problem: str
    best: str
    others: list[str]
    notes: list[str]


def answers(runs: Sequence[Run]) -> list[Answer]:
    """The answer for each problem of each record, grouped by problem."""
    found = []
    for run, name, pairs in zip(runs, labels(runs), summarise_all(runs)):
        for problem in dict.fromkeys(pair.problem for pair in pairs):
            ranked = sorted((pair for pair in pairs if pair.problem == problem), key=rank)
            best, *others = map(answer_sentence, ranked)
            by = HELD_OUT if HELD_OUT in recorded(run, problem) else None
            found_notes = pair_notes(run, ranked) + metric_notes(run, ranked, by)
            notes = [note if GO_ON in note else f"{note}." for note in found_notes]
            found.append(Answer(name, problem, best, others, [target_words(run, problem, ranked[0].reference), *notes]))
    order = list(dict.fromkeys(answer.problem for answer in found))
    return sorted(found, key=lambda answer: order.index(answer.problem))


def target_words(run: Run, problem: str, to: Reference) -> str:
    """What the target is, and what gaps are taken against."""
    gap = f"{run.plan.target:g}"
    if to.kind == "best found":
        found = f"{to.loss:g}, by trial {to.trial}"
        return (
            f"Its minimum is not known, so gaps are to the best loss found, {found}; the target is {gap} of the first."
        )
    if (solved := run.plan.solved(problem)) is not None:
        return f"The target is a loss of {solved:g}; gaps are to {to.words}, {to.loss:g}."
    if to.kind == "minimum":
        return f"The target is {gap} of the first gap to the minimum, {to.loss:g}."
    return f"The target is the loss that the problem counts as solved, {to.loss:g}: gaps are to it."
