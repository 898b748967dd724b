"""Suites, their targets and their results as text, for people or machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gradbench.record.store import Run
from gradbench.suites.definition import TUNED, Suite, built_in_suites, load_suite, short_names, suite_path
from gradbench.suites.standing import Standing, standing, standing_text
from gradbench.suites.targets import Measured, measured_otherwise, unmeasured
from gradbench.tables import Column, check_format, note_lines, render, to_json

FEW = 3  # optimizers whose every problem is shown

LIST = (
    Column("suite", "suite", str),
    Column("version", "version", str, 1),
    Column("problems", "problems", priority=2),
    Column("optimizers", "optimizers", priority=2),
    Column("trials", "trials", priority=3),
    Column("about", "about", str, prose=True),
)
PROBLEMS = (
    Column("problem", "problem", str),
    Column("steps", "steps"),
    Column("trials", "trials", priority=1, about="settings that a tuned optimizer has tried"),
    Column("target", "target", about="training loss", dash="the problem's own"),
    Column("holdout", "held-out", priority=2, about="the loss that the target comes from", dash="no such data"),
)
OPTIMIZERS = (
    Column("optimizer", "optimizer", str),
    Column("ruleset", "ruleset", str),
    Column("learning_rates", "learning rates", str),
)
MEASURED = (
    Column("problem", "problem", str),
    Column("target", "target", about="training loss"),
    Column("holdout", "held-out", priority=2, about="the loss that it comes from", dash="no such data"),
    Column("optimizer", "by", str),
    Column("learning_rate", "at", about="the learning rate"),
)


def list_text(output_format: str) -> str:
    """The built-in suites."""
    check_format(output_format)
    suites = [load_suite(name) for name in built_in_suites()]
    return render([_summary(suite) for suite in suites], LIST, output_format)


def _summary(suite: Suite) -> dict[str, Any]:
    counts = {"problems": len(suite.all_problems), "optimizers": len(suite.all_optimizers)}
    counts |= {"trials": sum(plan.trials for _, plan in suite.plans())}
    return {"suite": suite.name, "version": suite.sha256[:8], **counts, "about": suite.about}


def show_text(name: str, output_format: str, reduced: bool = False) -> str:
    """One suite, or that of its reduced runs."""
    check_format(output_format)
    suite = load_suite(name).at(reduced)
    notes = [*_notes(suite), f"a suite of your own begins as a copy of {suite_path(name)}"]
    problems: list[dict[str, Any]] = [
        {"problem": spec, "target": suite.targets.get(spec), "holdout": suite.holdout.get(spec), **group.settings}
        for group in suite.problems
        for spec in group.specs
    ]
    optimizers = [
        {
            "optimizer": spec,
            "ruleset": of["ruleset"],
            "learning_rates": str(of.get("learning_rates", of.get("learning_rate"))),
        }
        for group in suite.optimizers
        for spec in group.specs
        for of in (group.settings,)
    ]
    if output_format == "json":
        return to_json(
            {**_summary(suite), "sha256": suite.sha256, "settings": suite.settings, "reduced": suite.reduced}
            | {"problems": problems, "optimizers": optimizers, "references": suite.references}
            | {"measured": suite.measured, "notes": notes}
        )
    if output_format == "csv":
        return render(problems, (), "csv")
    settings = ", ".join(f"{key} {value}" for key, value in suite.settings.items())
    head = f"{suite.name}: {suite.about}. Version {suite.sha256[:8]}; {settings}."
    short = short_names(suite.all_problems)
    named = [row | {"problem": short[row["problem"]]} for row in problems]
    tables = [render(named, PROBLEMS, output_format, head), render(optimizers, OPTIMIZERS, output_format)]
    tables.append("\n".join(note_lines(notes, output_format)))
    return "\n\n".join(tables)


def _notes(suite: Suite) -> list[str]:
    """Notes on its targets and its reduced runs."""
    said = [measured_otherwise(suite), unmeasured(suite)]
    if suite.references:
        said.append(f"gradbench suite freeze measures targets, by {', '.join(suite.references)}")
    if suite.few:
        few = ", ".join(f"{value} {key}" for key, value in suite.reduced.items())
        where = f"without a {suite.meant_for}, or " * bool(suite.meant_for)
        said.append(f"{where}with --reduced, it runs as {suite.few.version}: {few}")
    return [note for note in said if note]


def frozen_text(found: Sequence[Measured], output_format: str) -> str:
    """The targets that were measured."""
    short = short_names(one.problem for one in found)
    for_people = output_format not in ("json", "csv")
    named = [asdict(one) | ({"problem": short[one.problem]} if for_people else {}) for one in found]
    return render(named, MEASURED, output_format)


def result_text(mine: Sequence[Run], others: Sequence[Run], output_format: str) -> str:
    """How the optimizers of these records rank; for more than FEW, only over all problems."""
    found = standing(mine, others)
    if len({(row["ruleset"], row["optimizer"]) for row in found.rows}) > FEW and output_format in (
        "table",
        "wide",
        "markdown",
    ):
        over_all = [row for row in found.rows if row["problem"] is None]
        over_all.sort(key=lambda row: (row["ruleset"] != TUNED, row["rank"]))
        found = Standing(over_all, [], [*found.notes, "each problem is in --format json and on gradbench board"])
    return standing_text(found, output_format)
