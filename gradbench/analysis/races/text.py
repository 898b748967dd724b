"""Races and tunability as text: tables and sentences for people, rows for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradbench.analysis.races.intervals import POWER
from gradbench.analysis.races.races import STEPS, Races, sentence
from gradbench.analysis.races.records import races
from gradbench.analysis.races.tunability import Tunability, tunability
from gradbench.errors import GradbenchError, PlanError
from gradbench.record.store import Run
from gradbench.tables import Column, check_format, note_lines, number, percent, render, sentence_lines, to_json


def chosen_text(
    runs: Sequence[Run],
    output_format: str,
    with_races: bool,
    with_tunability: bool,
    problems: Sequence[str] = (),
    optimizers: Sequence[str] = (),
) -> str:
    """The races or the tunability, of these problems and optimizers, or of all. Raises PlanError for both at once."""
    check_format(output_format)
    if with_races and with_tunability:
        raise PlanError("--races and --tunability are two tables: one at a time")
    if with_races:
        return races_text(races(runs, problems, optimizers), output_format)
    return tunability_text(tunability(runs, problems, optimizers), output_format)


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{number(low)} … {number(high)}"


COLUMNS = (
    Column("faster", "ahead", str),
    Column("slower", "behind", str),
    Column("what", "in", str, 4),
    Column("ratio", "ratio", about="of the geometric means over problems, each seed against the same seed"),
    Column("low", "95 %", _interval, 1, and_key="high"),
    Column("p_holm", "p", priority=3, about="corrected for the number of rows (Holm)"),
    Column("answer", "answer", str),
    Column(
        "detectable", "seen from", priority=5, about=f"the ratio that is seen with a probability of {percent(POWER)}"
    ),
    Column("seeds", "seeds", priority=6),
    Column("won", "problems", str, 2, "on which the first is ahead"),
    Column("unreached_faster", "unreached", percent, 7, "share of runs, which count as the steps of a trial"),
    Column("unreached_slower", "by the other", percent, 7),
)


def races_text(found: Races, output_format: str) -> str:
    """Races for people or machines: table and markdown end with one sentence per row and the notes; json has it all."""
    check_format(output_format)
    if output_format == "json":
        return to_json({"races": [row | {"sentence": sentence(row)} for row in found.rows], "notes": found.notes})
    if output_format == "csv":
        return render([{key: row[key] for key in row if key != "ratios"} for row in found.rows], (), "csv")
    shown = [row | {"answer": _answer(row), "won": f"{row['ahead']} of {row['problems']}"} for row in found.rows]
    text = render(shown, COLUMNS, output_format)
    return "\n".join(
        [text, "", *sentence_lines(found.sentences, output_format), "", *note_lines(found.notes, output_format)]
    )


def race_text(run: Run, output_format: str) -> str:
    """The sentence and notes of the race of a record of `--until`, for people; "" for other records."""
    if run.plan.until is None or output_format in ("json", "csv"):
        return ""
    try:
        found = races([run])
    except GradbenchError as error:  # a budget ended before there was an answer
        return f"\n{error}"
    return "\n".join(["", *sentence_lines(found.sentences, output_format), "", *note_lines(found.notes, output_format)])


def _answer(row: dict[str, Any]) -> str:
    if not row["decided"]:
        return "no difference shown"
    return "sooner" if row["what"] == STEPS else "lower"


ROBUSTNESS = (
    Column("problem", "problem", str),
    Column("optimizer", "optimizer", str),
    Column("what", "in", str, 4),
    Column(
        "half",
        "at half",
        about="the factor at half the best learning rate, above 1 is worse",
        dash="beyond the grid, or not reached",
    ),
    Column("half_low", "95 %", _interval, 3, and_key="half_high"),
    Column("twice", "at twice", about="likewise"),
    Column("twice_low", "95 %", _interval, 3, and_key="twice_high"),
)


_TRIALS = "of tuning, settings drawn at random and run with one seed; the best one's expected result on other seeds"


def _side_by_side(curves: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Column]]:
    """Rows and columns of one table with a column for each optimizer."""
    rows: dict[Any, dict[str, Any]] = {}
    optimizers = list(dict.fromkeys(row["optimizer"] for row in curves))
    for row in curves:
        key = row["problem"], row["what"], row["trials"]
        problem = row["problem"] or f"all {row['problems']}"
        at = rows.setdefault(key, {"problem": problem, "what": row["what"], "trials": row["trials"]})
        at[row["optimizer"]] = row["value"]
        if row["wins"]:
            at["best"] = row["optimizer"] + ("" if row["clear"] else " (not clearly)")
    columns = [
        Column("problem", "problem", str),
        Column("trials", "trials", about=_TRIALS),
        Column("what", "in", str, 4),
        *(Column(name, name, priority=3) for name in optimizers),
        Column("best", "best", str),
    ]
    return list(rows.values()), columns


def tunability_text(found: Tunability, output_format: str) -> str:
    """For people or machines: both tables and the notes; csv has the curves."""
    check_format(output_format)
    if output_format == "json":
        return to_json({"tunability": found.curves, "robustness": found.robustness, "notes": found.notes})
    if output_format == "csv":
        return render(found.curves, (), "csv")
    tables = [
        render(*_side_by_side(found.curves), output_format, "Expected result after so many trials of tuning"),
        render(found.robustness, ROBUSTNESS, output_format, "What is lost at half and twice the best learning rate"),
    ]
    return "\n\n".join([*tables, "\n".join(note_lines(found.notes, output_format))])
