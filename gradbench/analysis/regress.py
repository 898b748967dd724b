"""Is a new record worse than an old one? Step times by a rank test over samples, convergence by one over trials."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.stats

from gradbench.analysis.summary import Reference, reference, relative_gaps
from gradbench.errors import GradbenchError
from gradbench.record.store import Run
from gradbench.tables import Column, check_format, render, to_json

CHANCE = 0.05  # of one row by chance alone, before the floor, which lets far less through
SAME_PLACE = ("platform", "device_kind", "device_count", "cpu_model", "cpu_cores")
SAME_STEP = ("batch_size", "dtype", "precision")
SAME_TARGET = ("batch_size", "dtype", "precision", "target", "steps")


@dataclass(frozen=True)
class Comparison:
    """What two records share. `rows` are dicts: problem, optimizer, what, old, new, ratio (new/old), p_value (that it
    is no worse), samples, verdict ("slower", "worse", "faster", "better", "same", "unsure"); `notes` say what was not
    compared and why."""

    rows: list[dict[str, Any]]
    notes: list[str]
    max_slowdown: float

    @property
    def regressed(self) -> bool:
        return any(row["verdict"] in ("slower", "worse") for row in self.rows)


def compare_runs(old: Run, new: Run, max_slowdown: float = 1.10) -> Comparison:
    """Compare what the two records share.

    slower: the median *and* the smallest of the new step times are over `max_slowdown` times the old ones, a one-sided
    Mann-Whitney test (Annals of Mathematical Statistics 18, 1947) over the samples says that it is no chance, and so it
    is in both of a pair's modes, solo and batched (value and value_and_grad), which are timed apart: a burst of other
    work seldom meets both. Records also differ from process to process, which samples of one process cannot show: with
    four timings or more their ratios' own spread (3 × 1.4826 × the median absolute deviation) must be exceeded as
    well. What passes the floor but not the rest is "unsure", which is no regression.
    worse: over the trials (learning rate, seed) that both have, the median ratio of steps to the target, or of final
    gaps where no trial of either reaches it, is over `max_slowdown`, and so says a one-sided Wilcoxon signed-rank test
    (Biometrics Bulletin 1, 1945). A trial that no longer gets there counts as worse than any that does.
    Both tests are at 5 % a row; the floor, which both ratios must pass, is what keeps noise out.

    Raises GradbenchError where nothing can be compared.
    """
    if not 1 <= max_slowdown < math.inf:
        raise GradbenchError(f"max_slowdown: need a number of at least 1, such as 1.10, got {max_slowdown}")
    notes: list[str] = []
    rows = _time_rows(old, new, notes) + _convergence_rows(old, new, notes)
    if not rows:
        why = f": {'; '.join(notes)}" if notes else ""
        raise GradbenchError(f"{old.id} and {new.id}: nothing can be compared{why}")
    agreements = [_agreement(row, rows) for row in rows]
    rows = [_judged(row, max_slowdown, *agreed) for row, agreed in zip(rows, agreements)]
    return Comparison(rows, notes, max_slowdown)


def _agreement(row: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[float, float]:
    """(least, most) ratio that a row's claim rests on: of both modes of its pair, after the noise between processes."""
    if not row["what"].startswith("step time"):
        return row["least_ratio"], row["most_ratio"]
    times = [other for other in rows if other["what"].startswith("step time")]
    group = [other for other in times if (other["problem"], other["optimizer"]) == (row["problem"], row["optimizer"])]
    if len(group) < 2:
        return 1.0, 1.0
    noise = 0.0
    if len(times) >= 4:
        noise = 3 * float(scipy.stats.median_abs_deviation([math.log(t["ratio"]) for t in times], scale="normal"))
    least, most = min(t["least_ratio"] for t in group), max(t["most_ratio"] for t in group)
    return (least if math.log(least) > noise else 1.0), (most if math.log(most) < -noise else 1.0)


def _judged(row: dict[str, Any], floor: float, agreed_low: float, agreed_high: float) -> dict[str, Any]:
    low, high = row.pop("least_ratio"), row.pop("most_ratio")
    p_value, better = row.pop("worse_p"), row.pop("better_p")
    time = row["what"].startswith("step time")
    verdict = "same"
    if low > floor:
        verdict = ("slower" if time else "worse") if p_value < CHANCE and agreed_low > floor else "unsure"
    elif high < 1 / floor:
        verdict = ("faster" if time else "better") if better < CHANCE and agreed_high < 1 / floor else "unsure"
    return row | {"p_value": p_value, "verdict": verdict}


def _differing(old: Run, new: Run, environment: tuple[str, ...], plan: tuple[str, ...]) -> list[str]:
    places = old.info["environment"], new.info["environment"]
    plans = old.plan.to_dict(), new.plan.to_dict()
    pairs = [(key, places[0].get(key), places[1].get(key)) for key in environment]
    pairs += [(key, plans[0][key], plans[1][key]) for key in plan]
    return [f"{key} {a} → {b}" for key, a, b in pairs if a != b]


def _time_rows(old: Run, new: Run, notes: list[str]) -> list[dict[str, Any]]:
    differing = _differing(old, new, SAME_PLACE, SAME_STEP)
    if differing:
        notes.append(f"step times not compared: {', '.join(differing)}")
        return []

    if lacking := [run.id for run in (old, new) if not len(run.timings)]:
        notes.append(f"step times not compared: no timings in {' and '.join(lacking)} (run with --timing full)")
        return []

    def by_key(run: Run) -> dict[tuple, dict[str, Any]]:
        rows = run.timings.to_pylist()
        return {(r["problem"], r["optimizer"], r["mode"], r["trials"]): r for r in rows}

    before, after, rows = by_key(old), by_key(new), []
    for key in before.keys() & after.keys():
        problem, optimizer, mode, _ = key
        a, b = (np.asarray(table[key]["step_s_samples"], float) for table in (before, after))
        if not (before[key]["trusted"] and after[key]["trusted"]):
            notes.append(f"{problem} × {optimizer or 'loss'} {mode}: not compared, a timing is not trusted")
            continue
        ratios = float(np.median(b) / np.median(a)), float(b.min() / a.min())
        rows.append(
            {
                **_row(problem, optimizer, f"step time, {mode}", float(np.median(a)), float(np.median(b)), len(b)),
                "worse_p": float(scipy.stats.mannwhitneyu(b, a, alternative="greater").pvalue),
                "better_p": float(scipy.stats.mannwhitneyu(b, a, alternative="less").pvalue),
                "least_ratio": min(ratios),
                "most_ratio": max(ratios),
            }
        )
    return sorted(rows, key=lambda row: (row["problem"], row["optimizer"] or "", row["what"]))


def _row(problem: str, optimizer: str | None, what: str, old: float, new: float, samples: int) -> dict[str, Any]:
    ratio = new / old if old else (math.inf if new else 1.0)
    return {
        "problem": problem,
        "optimizer": optimizer,
        "what": what,
        "old": old,
        "new": new,
        "ratio": ratio,
        "samples": samples,
    }


def _convergence_rows(old: Run, new: Run, notes: list[str]) -> list[dict[str, Any]]:
    differing = _differing(old, new, (), SAME_TARGET)
    if differing:
        notes.append(f"convergence not compared: {', '.join(differing)}")
        return []
    rows = []
    for problem, optimizer in old.plan.pairs:
        to = _references(old, new, problem)
        a, b = (_outcomes(run.trials, problem, optimizer, of) for run, of in zip((old, new), to))
        shared = sorted(a.keys() & b.keys())
        if not shared:
            continue
        for index, what in ((0, "steps to target"), (1, f"final gap to {to[0].kind}")):
            before, after = (np.array([table[key][index] for key in shared]) for table in (a, b))
            use = np.isfinite(before) | np.isfinite(after)
            if index and to[0].kind != to[1].kind:
                notes.append(f"{problem} × {optimizer}: final gaps not compared, to {to[0].kind} → to {to[1].kind}")
            elif use.any():
                rows.append(_paired(problem, optimizer, what, before[use], after[use]))
                break
    return rows


def _references(old: Run, new: Run, problem: str) -> list[Reference]:
    """What the problem's gaps are taken against in the two records: the better of two best losses found in both."""
    found = []
    for run in (old, new):
        trials = run.trials.filter(pc.field("problem") == problem)
        found.append(reference(trials, run.info.get("problems", {}).get(problem)))
    if {of.kind for of in found} == {"best found"}:
        return [min(found, key=lambda of: (math.isnan(of.loss), of.loss))] * 2
    return found


def _outcomes(
    trials: pa.Table, problem: str, optimizer: str, to: Reference
) -> dict[tuple[float, int], tuple[float, float]]:
    """(learning rate, seed) -> (steps to the target, final gap), infinite for never and for diverged."""
    rows = trials.filter((pc.field("problem") == problem) & (pc.field("optimizer") == optimizer))
    steps = rows["steps_to_target"].to_numpy(zero_copy_only=False).astype(float)
    steps = np.where(np.isnan(steps), np.inf, steps)
    keys = zip(rows["learning_rate"].to_pylist(), rows["seed"].to_pylist())
    return dict(zip(keys, zip(steps.tolist(), relative_gaps(rows, to).tolist())))


def _paired(problem: str, optimizer: str, what: str, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    floor = 1.0 if what == "steps to target" else 1e-16
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.log(np.maximum(after, floor)) - np.log(np.maximum(before, floor))
    change = np.nan_to_num(change, nan=0.0, posinf=1e3, neginf=-1e3)  # ranks only: beyond every finite change
    same = not change.any()
    worse, better = (
        1.0 if same else float(scipy.stats.wilcoxon(change, alternative=side, method="approx").pvalue)
        for side in ("greater", "less")
    )
    ratio = math.exp(min(float(np.median(change)), 500.0))
    row = _row(problem, optimizer, what, float(np.median(before)), float(np.median(after)), len(change))
    tests = {"worse_p": worse, "better_p": better, "least_ratio": ratio, "most_ratio": ratio}
    return row | {"ratio": math.inf if ratio > 1e200 else ratio} | tests


COLUMNS = (
    Column("problem", "problem", str),
    Column("optimizer", "optimizer", lambda name: name or "–"),
    Column("what", "what", str),
    Column("old", "old"),
    Column("new", "new"),
    Column("ratio", "new/old"),
    Column("p_value", "p"),
    Column("samples", "samples"),
    Column("verdict", "verdict", str),
)


def regress_text(comparison: Comparison, output_format: str) -> str:
    """A comparison for people or machines: table and markdown end with the notes and the answer, json has it all."""
    check_format(output_format)
    if output_format == "json":
        answer = {"regressed": comparison.regressed, "max_slowdown": comparison.max_slowdown}
        return to_json(answer | {"rows": comparison.rows, "notes": comparison.notes})
    text = render(comparison.rows, COLUMNS, output_format)
    if output_format == "csv":
        return text
    worse = sum(row["verdict"] in ("slower", "worse") for row in comparison.rows)
    answer = f"{worse} regressed" if worse else "no regression"
    answer += f" of {len(comparison.rows)} compared, where {comparison.max_slowdown:g}× is allowed"
    return "\n".join([text, "", *comparison.notes, answer])
