"""How optimizers rank among others on a suite, per problem and over all, and why: time, steps, range, tuning."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradbench.analysis.races.outcomes import suite_words
from gradbench.analysis.races.races import GAP, STEPS
from gradbench.analysis.races.tunability import tunability_of
from gradbench.record.store import Run
from gradbench.suites.definition import short_names
from gradbench.suites.entries import Entry, by_name, entries
from gradbench.suites.ranking import Ranked, ranks
from gradbench.tables import (
    Column,
    check_format,
    note_lines,
    number,
    percent,
    render,
    seconds,
    sentence_lines,
    to_json,
)

BESIDE_OTHERS = ("rank", "rank_low", "rank_high", "distance", "best", "best_value")  # keys of a standing's rows


MAKES_ARCHIVE = (
    "to compare: suite run without -o, with --out FOLDER, runs the suite's own optimizers; --archive FOLDER reads them"
)


@dataclass(frozen=True)
class Standing:
    """rows: for each optimizer asked for one dict over all problems (problem is None) and one per problem: the fields
        of ranking.Ranked, ruleset, best (the first-ranked optimizer), best_value, and on a problem learning_rate,
        good_low, good_high, good_decades (decades of learning rate), holdout (loss), trial_step_s (seconds), device;
        what compares it with others is None where there are none (of is 1).
    sentences: the reasons. notes: what was compared.
    """

    rows: list[dict[str, Any]]
    sentences: list[str]
    notes: list[str]

    def __str__(self) -> str:
        return standing_text(self, "table")


def standing(mine: Sequence[Run], others: Sequence[Run], archived: bool = True) -> Standing:
    """Rank the optimizers of these records among those and the `others`, on the problems that they have run;
    `archived`: whether the others are their suite's archive, for the notes. Raises GradbenchError, which names the
    records, where two do not compare."""
    own = {run.id for run in mine}
    problems = {problem for run in mine for problem in run.plan.problems}
    found = [entry for entry in entries([*mine, *others]) if entry.problem in problems]
    rows: list[dict[str, Any]] = []
    said: list[str] = []
    for ruleset in dict.fromkeys(entry.ruleset for entry in found if entry.run.id in own):
        table = ranks(by_name(found, ruleset))
        of_ruleset = [entry for entry in found if entry.ruleset == ruleset]
        for name in dict.fromkeys(entry.name for entry in of_ruleset if entry.run.id in own):
            rows += _rows(name, ruleset, table, of_ruleset)
            said += _why(name, table, of_ruleset)
    return Standing(rows, said, _notes(mine, others, archived, alone=all(row["of"] == 1 for row in rows)))


def _rows(name: str, ruleset: str, table: Sequence[Ranked], found: Sequence[Entry]) -> list[dict[str, Any]]:
    by_problem = {entry.problem: entry for entry in found if entry.name == name}
    rows = []
    for place in sorted((of for of in table if of.optimizer == name), key=lambda of: of.problem is not None):
        first = next(of for of in table if of.problem == place.problem and of.rank == 1)
        row = {"ruleset": ruleset, **vars(place), "best": first.optimizer, "best_value": first.value}
        del row["comparisons"]
        if place.of == 1:  # there is no rank among one
            row |= dict.fromkeys(BESIDE_OTHERS if place.problem else (*BESIDE_OTHERS, "value", "low", "high"))
        rows.append(row | (_of_pair(by_problem[place.problem]) if place.problem else {}))
    return rows


def _of_pair(entry: Entry) -> dict[str, Any]:
    pair = entry.summary
    good = pair.good or (None, None)
    return {
        "learning_rate": pair.best and pair.best.learning_rate,
        "good_low": good[0],
        "good_high": good[1],
        "good_decades": pair.good_decades,
        "holdout": entry.holdout,
        "trial_step_s": entry.trial_step_s,
        "device": entry.device,
    }


def _why(name: str, table: Sequence[Ranked], found: Sequence[Entry]) -> list[str]:
    """The sentences on one optimizer."""
    if len({entry.name for entry in found}) == 1:
        return []
    said = []
    if over_all := next((of for of in table if of.optimizer == name and of.problem is None), None):
        first = next(of for of in table if of.problem is None and of.rank == 1)
        ahead = "ahead of all" if over_all.rank == 1 else f"{first.optimizer} needs {number(first.value)}×"
        said.append(
            f"{name}: rank {_place(over_all)} of {over_all.of} over {_problems(over_all.problems)}; steps: "
            f"{number(over_all.value)}× those of the best on each ({ahead}), target reached by "
            f"{percent(over_all.reached)} of the seeds"
        )
        said += [f"{name}: {text}" for text in [_beside(over_all)] if text]
    said += [f"{name}: {text}" for text in (_range(name, found), _time(name, found), _tuning(name, found)) if text]
    return said


def _problems(count: int) -> str:
    return f"{count} problem{'s' * (count != 1)}"


def _place(of: Ranked) -> str:
    return f"{of.rank} (95 %: {of.rank_low} to {of.rank_high})"


def _beside(of: Ranked) -> str:
    """The others from which it is shown to differ, each with the ratio of steps of the slower to the faster, or of gaps
    where neither reaches a target."""
    shown = sorted(
        (one.ratio, other, " the gap" * (one.what == GAP)) for other, one in of.comparisons.items() if one.shown
    )
    behind = ", ".join(f"{other} ({number(1 / ratio)}×{what})" for ratio, other, what in reversed(shown) if ratio < 1)
    ahead = ", ".join(f"{other} ({number(ratio)}×{what})" for ratio, other, what in shown if ratio > 1)
    said = [f"behind {behind}" if behind else "", f"ahead of {ahead}" if ahead else ""]
    alike = len(of.comparisons) - len(shown)
    said.append(f"no difference shown to {alike} other{'s' * (alike != 1)}" if alike else "")
    return f"seed by seed: {'; '.join(filter(None, said))}" if of.comparisons else ""


def _range(name: str, found: Sequence[Entry]) -> str:
    """The width of the good range of learning rates, beside the others'."""
    widths: dict[str, list[float]] = {}
    for entry in found:
        if len(entry.outcomes.rates) > 1:
            widths.setdefault(entry.name, []).append(entry.summary.good_decades or 0.0)
    if name not in widths:
        return ""
    middle = {of: statistics.median(values) for of, values in widths.items()}
    wider = sum(value > middle[name] for value in middle.values())
    beside = f"{wider} of {len(middle) - 1} others have a wider one"
    return f"range: the good range is {number(middle[name])} decades wide (median over problems); {beside}"


def _time(name: str, found: Sequence[Entry]) -> str:
    """What a step costs beside the cheapest optimizer on the same kind of device."""
    mine = [entry for entry in found if entry.name == name and entry.trial_step_s]
    ratios = []
    for entry in mine:
        alike = [of.trial_step_s for of in found if (of.problem, of.device) == (entry.problem, entry.device)]
        ratios.append((entry.trial_step_s or 0.0) / min(filter(None, alike)))
    if not ratios:
        return ""
    return (
        f"time: a step takes {number(statistics.median(ratios))}× the cheapest optimizer's (median, {mine[0].device})"
    )


def _tuning(name: str, found: Sequence[Entry]) -> str:
    """The rank after each of several budgets of tuning trials."""
    problems = {entry.problem for entry in found if entry.name == name}
    tables = {entry.ruleset: by_name(found, entry.ruleset) for entry in found}
    [table] = tables.values()
    whole = {of: by for of, by in table.items() if problems <= by.keys() and len(next(iter(by.values())).rates) > 1}
    if name not in whole:
        return ""
    curves = tunability_of({of: {p: by[p] for p in problems} for of, by in whole.items()}).curves
    rows = [row for row in curves if row["what"] == STEPS and (row["problem"] is None or len(problems) == 1)]
    said = []
    for trials in dict.fromkeys(row["trials"] for row in rows):
        value = {row["optimizer"]: row["value"] for row in rows if row["trials"] == trials}
        said.append(f"{1 + sum(other < value[name] for other in value.values())} after {trials}")
    return f"tuning: of {len(whole)}, rank {', '.join(said)} trial{'s' * (len(said) != 1)}" if said else ""


def _notes(mine: Sequence[Run], others: Sequence[Run], archived: bool, alone: bool) -> list[str]:
    suite = f"{suite_words(mine[0])}: " if mine[0].info.get("suite") else ""
    if not others:
        none = "there are no archived records of this version of the suite" if suite else "no other record is given"
        said = f"{suite}nobody to compare with: {none}" if alone else f"{suite}{none}: compared with no other"
        return [said, *([MAKES_ARCHIVE] if suite and alone else [])]
    records = f"{len(others)} {'archived ' * archived}record{'s' * (len(others) != 1)}"
    return [f"{suite}compared with {records} in {others[0].path.parent}"]


COLUMNS = (
    Column("optimizer", "optimizer", str),
    Column("problem", "problem", str),
    Column("rank", "rank", priority=1),
    Column("ranks", "95 %", str, 3, "ranks that the differences shown leave possible"),
    Column(
        "distance", "× best", about="steps to the target (where nobody reaches it the gap at the end) over the best's"
    ),
    Column(
        "steps", "steps", priority=2, about="to the target, geometric mean over seeds; ≥ where some do not reach it"
    ),
    Column("best", "the best", str, 2),
    Column("best_steps", "its steps", priority=4),
    Column("learning_rate", "best lr", priority=5),
    Column("good_decades", "decades", priority=4, about="the width of the good range"),
    Column("holdout", "held-out", priority=6, about="loss at the end"),
    Column("trial_step_s", "a step", seconds, 5, "of a trial, all together"),
)


def standing_text(found: Standing, output_format: str) -> str:
    """For people or machines; table and markdown end with the sentences and the notes."""
    check_format(output_format)
    if output_format == "json":
        return to_json({"rows": found.rows, "sentences": found.sentences, "notes": found.notes})
    if output_format == "csv":
        return render(found.rows, (), "csv")
    short = short_names({row["problem"]: None for row in found.rows if row["problem"]})
    text = render([_shown(row, short) for row in found.rows], COLUMNS, output_format)
    blocks = [[text], sentence_lines(found.sentences, output_format), note_lines(found.notes, output_format)]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def _shown(row: dict[str, Any], short: Mapping[str, str]) -> dict[str, Any]:
    on_steps = row["problem"] is not None and row["what"] == STEPS
    least = "" if row["reached"] == 1 else "≥ "
    alone = row["rank"] is None
    return row | {
        "problem": short.get(row["problem"], "all"),
        "ranks": "–" if alone else f"{row['rank_low']} … {row['rank_high']}",
        "steps": f"{least}{number(float(row['value']))}" if on_steps else "–",
        "best": row["best"] or "–",
        "best_steps": number(float(row["best_value"])) if on_steps and not alone else "–",
    }
