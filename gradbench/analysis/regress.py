"""Is a new record worse than older ones? Step times by a rank test over samples, convergence by one over trials."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbench.analysis.summary import changed_problems, problem_trials, references, summarise, trials_of
from gradbench.analysis.verdicts import Reference, common, floats, relative_gaps
from gradbench.errors import GradbenchError
from gradbench.record.store import Run
from gradbench.tables import Column, check_format, note_lines, number, render, seconds, to_json

CHANCE = 0.05  # false positives per row by the test alone; the floor lets far fewer through
SAME_PLACE = ("platform", "device_kind", "device_count", "cpu_model", "cpu_cores")
SAME_STEP = ("batch_size", "dtype", "precision")
SAME_TARGET = ("batch_size", "dtype", "precision", "target", "steps")


@dataclass(frozen=True)
class Comparison:
    """Records compared. `rows` are dicts: problem, optimizer, what, old, new, ratio (new/old), p_value (of "no worse"),
    samples, verdict ("slower", "worse", "faster", "better", "same", "unsure", "missing", "added"), hint (what would
    settle an unsure one); `notes` say what was not compared and why, and what changed between the records."""

    rows: list[dict[str, Any]]
    notes: list[str]
    max_slowdown: float
    allow_missing: bool = False

    @property
    def failures(self) -> int:
        """How many rows are regressions."""
        bad = ("slower", "worse") if self.allow_missing else ("slower", "worse", "missing", "added")
        return sum(row["verdict"] in bad for row in self.rows)

    @property
    def regressed(self) -> bool:
        return self.failures > 0

    def __str__(self) -> str:
        return regress_text(self, "table")


def compare_runs(
    old: Run | Sequence[Run], new: Run, max_slowdown: float = 1.10, allow_missing: bool = False
) -> Comparison:
    """Compare what a new record shares with an old one, or with the median of several.

    slower: the median *and* the smallest of the new step times are over `max_slowdown` times the old ones, a one-sided
        Mann-Whitney test (Annals of Mathematical Statistics 18, 1947) over the samples is significant, and both hold in
        both of a pair's modes, solo and batched (or value and value_and_grad), which are timed apart: other work seldom
        disturbs both. Records also differ from process to process, which samples of one process cannot show: with four
        timings or more their ratios' own spread (3 × 1.4826 × the median absolute deviation) must be exceeded as well.
        What passes the floor but not the rest is "unsure", which is no regression.
    worse: over the trials (learning rate, seed) that all have, the median ratio of steps to the target is over
        `max_slowdown`, and a one-sided Wilcoxon signed-rank test (Biometrics Bulletin 1, 1945) is significant. Where no
        trial reaches it, the same for the gaps at the end, and for those at the old best learning rate, which are
        shown. A trial that no longer reaches the target counts as worse than any that does.
    missing, added: a pair that only the old records have, or only the new one; a regression unless `allow_missing`.
    Tests are at 5 % per row; it is mainly the floor, which both ratios must pass, that excludes noise.

    Raises GradbenchError where nothing can be compared.
    """
    if not 1 <= max_slowdown < math.inf:
        raise GradbenchError(f"max_slowdown: need a number of at least 1, such as 1.10, got {max_slowdown}")
    olds = [old] if isinstance(old, Run) else list(old)
    notes = changed_problems([*olds, new])
    rows = _time_rows(olds, new, notes) + _convergence_rows(olds, new, notes)
    if not rows:
        shared = set.intersection(*(set(run.plan.pairs) for run in [*olds, new]))
        notes = notes if shared else ["they share no problem and optimizer", *notes]
        why = f": {'; '.join(notes or ['no learning rate and seed that all have'])}"
        raise GradbenchError(f"{', '.join(run.id for run in [*olds, new])}: nothing can be compared{why}")
    agreements = [_agreement(row, rows) for row in rows]
    rows = [_judged(row, max_slowdown, *agreed) for row, agreed in zip(rows, agreements)]
    changes = [_changes(*pair) for pair in zip(olds, [*olds[1:], new])]
    return Comparison([*rows, *_unpaired(olds, new)], [*notes, *filter(None, changes)], max_slowdown, allow_missing)


def _unpaired(olds: Sequence[Run], new: Run) -> list[dict[str, Any]]:
    """A row for each pair that only the old records have, or only the new one."""
    before, after = set.intersection(*(set(run.plan.pairs) for run in olds)), set(new.plan.pairs)
    rows = []
    for word, only in (("missing", before - after), ("added", after - set().union(*(run.plan.pairs for run in olds)))):
        for problem, optimizer in sorted(only):
            empty = {"old": None, "new": None, "ratio": None, "samples": 0, "p_value": None}
            hint = "allowed by --allow-missing"
            rows.append(
                {"problem": problem, "optimizer": optimizer, "what": "pair"} | empty | {"verdict": word, "hint": hint}
            )
    return rows


def _changes(before: Run, after: Run) -> str:
    """What changed in the next record's environment, in words; "" if nothing."""

    def facts(run: Run) -> dict[str, Any]:
        environment = run.info["environment"]
        versions = environment.get("versions", {})
        return {**versions, "git commit": environment.get("git_commit"), "flags": environment.get("flags")}

    a, b = facts(before), facts(after)
    changed = [f"{key} {a.get(key)} → {b.get(key)}" for key in {**a, **b} if a.get(key) != b.get(key)]
    return f"from {before.id} to {after.id}: {', '.join(changed)}" if changed else ""


def _agreement(row: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[float, float]:
    """(lowest, highest) ratio on which a row's verdict rests: of both its pair's modes, less the noise of processes."""
    if not row["what"].startswith("step time"):
        return row["least_ratio"], row["most_ratio"]
    times = [other for other in rows if other["what"].startswith("step time")]
    group = [other for other in times if (other["problem"], other["optimizer"]) == (row["problem"], row["optimizer"])]
    if len(group) < 2:
        return 1.0, 1.0
    noise = 0.0
    if len(times) >= 4:
        from scipy.stats import median_abs_deviation

        noise = 3 * float(median_abs_deviation([math.log(t["ratio"]) for t in times], scale="normal"))
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
    hint = ""
    if verdict == "unsure" and time:
        hint = "time both again with nothing else running (--timing full)"
    elif verdict == "unsure":
        hint = f"more --seeds in both: {row['samples']} trials are too few"
    return row | {"p_value": p_value, "verdict": verdict, "hint": hint}


def _differing(old: Run, new: Run, environment: tuple[str, ...], plan: tuple[str, ...]) -> list[str]:
    places = old.info["environment"], new.info["environment"]
    plans = old.plan.to_dict(), new.plan.to_dict()
    pairs = [(key, places[0].get(key), places[1].get(key)) for key in environment]
    pairs += [(key, plans[0][key], plans[1][key]) for key in plan]
    return [f"{key} {a} → {b}" for key, a, b in pairs if a != b]


def _comparable(
    olds: Sequence[Run], new: Run, what: str, environment: tuple[str, ...], plan: tuple[str, ...], notes: list[str]
) -> list[Run]:
    """The old records that the new one can be compared with; why others cannot goes into `notes`."""
    kept = []
    for old in olds:
        differing = _differing(old, new, environment, plan)
        if differing:
            which = f"{old.id}: " if len(olds) > 1 else ""
            notes.append(f"{which}{what} not compared: {', '.join(differing)}")
        else:
            kept.append(old)
    return kept


def _time_rows(olds: Sequence[Run], new: Run, notes: list[str]) -> list[dict[str, Any]]:
    olds = _comparable(olds, new, "step times", SAME_PLACE, SAME_STEP, notes)

    def by_key(run: Run) -> dict[tuple, dict[str, Any]]:
        return {(r["problem"], r["optimizer"], r["mode"], r["trials"]): r for r in run.timings.to_pylist()}

    untimed = [run.id for run in (*olds, new) if run.timings.num_rows == 0]
    if untimed:
        notes.append(f"step times not compared: no timings in {', '.join(untimed)} (--timing full records them)")
        return []
    from scipy.stats import mannwhitneyu

    *before, after = map(by_key, (*olds, new))
    rows = []
    for key in after:
        timings = [table[key] for table in before if key in table]
        if not timings:
            continue
        problem, optimizer, mode, _ = key
        if not all(row["trusted"] for row in (*timings, after[key])):
            why = "a timing is not trusted: something else ran; time it again"
            notes.append(f"{problem} × {optimizer or 'loss'} {mode}: not compared, {why}")
            continue
        parts, b = [np.asarray(row["step_s_samples"], float) for row in timings], after[key]["step_s_samples"]
        a, b = np.concatenate(parts), np.asarray(b, float)
        middle, least = (float(np.median([of(part) for part in parts])) for of in (np.median, np.min))
        ratios = float(np.median(b)) / middle, float(b.min()) / least
        rows.append(
            {
                **_row(problem, optimizer, f"step time, {mode}", middle, float(np.median(b)), len(b)),
                "worse_p": float(mannwhitneyu(b, a, alternative="greater").pvalue),
                "better_p": float(mannwhitneyu(b, a, alternative="less").pvalue),
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


def _convergence_rows(olds: Sequence[Run], new: Run, notes: list[str]) -> list[dict[str, Any]]:
    olds = _comparable(olds, new, "convergence", (), SAME_TARGET, notes)
    rows = []
    for problem, optimizer in new.plan.pairs:
        runs = [run for run in (*olds, new) if problem in references(run)]
        to = [references(run)[problem] for run in runs]
        if new not in runs or len(runs) < 2:
            continue
        if all(of.kind == "best found" for of in to):
            to = [common(to)] * len(to)
        *before, after = (_outcomes(run, problem, optimizer, of) for run, of in zip(runs, to))
        shared = sorted(set(after).intersection(*before))
        if not shared:
            continue
        first, last = (
            np.median([[of[key] for key in shared] for of in before], axis=0),
            np.array([after[k] for k in shared]),
        )
        use = np.isfinite(first[:, 0]) | np.isfinite(last[:, 0])
        if use.any():
            rows.append(_paired(problem, optimizer, "steps to target", first[use, 0], last[use, 0]))
        elif len({of.kind for of in to}) > 1:
            kinds = " → ".join(of.kind for of in to)
            notes.append(f"{problem} × {optimizer}: gaps at the end not compared, to {kinds}")
        else:
            rows += _gap_rows(runs[0], problem, optimizer, to[0], shared, first[:, 1], last[:, 1])
    return rows


def _gap_rows(
    old: Run,
    problem: str,
    optimizer: str,
    to: Reference,
    shared: list[tuple[float, ...]],
    before: np.ndarray,
    after: np.ndarray,
) -> list[dict[str, Any]]:
    """The row of the gaps at the end: tested over all `shared` trials, shown at the old best learning rate."""
    pair = next((p for p in summarise(old) if (p.problem, p.optimizer) == (problem, optimizer)), None)
    use = np.isfinite(before) | np.isfinite(after)
    if pair is None or pair.best is None or not use.any():
        return []
    row = _paired(problem, optimizer, f"gap to {to.kind}, at lr {pair.best.learning_rate:g}", before[use], after[use])
    setting = (*pair.settings.values(), pair.best.learning_rate)
    at = np.array([key[:-1] == setting for key in shared])
    best = _paired(problem, optimizer, row["what"], before[at], after[at]) if at.any() else row
    shown = {key: best[key] for key in ("old", "new", "ratio")}
    least, most = min(row["least_ratio"], best["least_ratio"]), max(row["most_ratio"], best["most_ratio"])
    return [row | shown | {"least_ratio": least, "most_ratio": most}]


def _outcomes(run: Run, problem: str, optimizer: str, to: Reference) -> dict[tuple[float, ...], tuple[float, float]]:
    """(values of the axes, learning rate, seed) -> (steps to the target, gap at the end), infinite for never and for
    diverged."""
    rows = trials_of(problem_trials(run, problem, to), problem, optimizer)
    steps = floats(rows, "steps_to_target")
    steps = np.where(np.isnan(steps), np.inf, steps)
    axes = [axis.name for axis in run.plan.axes_of(optimizer)]
    keys = zip(*(rows[name].to_pylist() for name in (*axes, "learning_rate", "seed")))
    return dict(zip(keys, zip(steps.tolist(), relative_gaps(rows, to).tolist())))


def _paired(problem: str, optimizer: str, what: str, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    from scipy.stats import wilcoxon

    floor = 1.0 if what == "steps to target" else 1e-16
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.log(np.maximum(after, floor)) - np.log(np.maximum(before, floor))
    change = np.nan_to_num(change, nan=0.0, posinf=1e3, neginf=-1e3)  # ranks only: beyond every finite change
    same = not change.any()
    worse, better = (
        1.0 if same else float(wilcoxon(change, alternative=side, method="auto").pvalue) for side in ("greater", "less")
    )
    ratio = math.exp(min(float(np.median(change)), 500.0))
    row = _row(problem, optimizer, what, float(np.median(before)), float(np.median(after)), len(change))
    tests = {"worse_p": worse, "better_p": better, "least_ratio": ratio, "most_ratio": ratio}
    return row | {"ratio": math.inf if ratio > 1e200 else ratio} | tests


def _as_text(row: dict[str, Any]) -> dict[str, Any]:
    """A row for people: times with their unit."""
    show = seconds if row["what"].startswith("step time") else number
    return row | {"old": show(row["old"]), "new": show(row["new"])}


COLUMNS = (
    Column("problem", "problem", str),
    Column("optimizer", "optimizer", lambda name: name or "–", dash="is the loss without one"),
    Column("what", "what", str),
    Column("old", "old", priority=2),
    Column("new", "new", priority=2),
    Column("ratio", "new/old", priority=1, about="above 1 is worse"),
    Column("p_value", "p", priority=3, about="the chance of such samples if nothing got worse"),
    Column("samples", "samples", priority=4, about="timed runs of steps, or trials"),
    Column("verdict", "verdict", str),
    Column("hint", "to settle it", str, 1, prose=True),
)


def regress_text(comparison: Comparison, output_format: str) -> str:
    """A comparison for people or machines: table and markdown end with the notes and the answer, json has it all."""
    check_format(output_format)
    if output_format == "json":
        answer = {"regressed": comparison.regressed, "max_slowdown": comparison.max_slowdown}
        return to_json(answer | {"rows": comparison.rows, "notes": comparison.notes})
    if output_format == "csv":
        return render(comparison.rows, COLUMNS, output_format)
    columns = COLUMNS if any(row["hint"] for row in comparison.rows) else COLUMNS[:-1]
    text = render([_as_text(row) for row in comparison.rows], columns, output_format)
    counts = collections.Counter(row["verdict"] for row in comparison.rows)
    found = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    answer = "regressed" if comparison.regressed else "no regression"
    answer = f"{answer}: {found}, where {comparison.max_slowdown:g}× is allowed"
    if not comparison.allow_missing and counts["missing"] + counts["added"]:
        answer += "; --allow-missing accepts pairs that only one side has"
    return "\n".join([text, "", *note_lines(comparison.notes, output_format), answer])
