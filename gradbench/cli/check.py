"""The `check` verb: runs the check or its self-test, prints, writes a record, returns the exit code."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.cells import cell_len

from gradbench.cli.app import note, show
from gradbench.errors import PlanError
from gradbench.failures import printing_to_stderr
from gradbench.gradients import self_test as planted
from gradbench.gradients.check import check_gradient
from gradbench.gradients.functions.report import REPRODUCE
from gradbench.inputs.built_in import without_groups
from gradbench.inputs.problem import load_problem
from gradbench.inputs.settings import DEFAULT_PROBLEMS
from gradbench.inputs.specs.checks import DTYPES
from gradbench.library.activity import Activity
from gradbench.machine.devices import devices_to_check
from gradbench.machine.environment import environment
from gradbench.record.store import utc_now, write_json
from gradbench.tables import PROSE, Column, check_format, render, terminal_width, to_json, wrap

FOR_PEOPLE = ("table", "wide")


def run_check(
    problems: Sequence[Any] = (),
    *,
    dtypes: Sequence[str] = ("float32",),
    device: str | None = None,
    fast: bool = False,
    strict: bool = False,
    self_test: bool = False,
    output_format: str = "table",
    out: str | Path | None = "results",
    note: Callable[[str], None] = note,
    activity: Activity | None = None,
    **settings: Any,
) -> int:
    """Check `problems` (the four of the project if there are none). Data goes to stdout, notes to `note`, and
    `activity` shows what is being done. `settings` are the others of check_gradient.

    Writes `<out>/check/<UTC time>-<id>.json` unless `out` is None. Returns 1 if a gradient is wrong (with `strict` also
    if a verdict is INCONCLUSIVE; with `self_test` if a miss is unexplained or there is a false alarm), else 0. Raises
    GradbenchError for bad input.
    """
    check_format(output_format)
    activity = activity or Activity(quiet=True)
    devices_to_check(device)  # before the problems are loaded: it may be misspelt
    if self_test and problems:
        raise PlanError("self-test: it plants its faults in a network of its own; give no problem")
    if self_test:
        note("planting faults; this takes a few minutes" if not fast else "planting faults ...")
        result = planted.self_test(dtypes or DTYPES, device=device, fast=fast)
        document = {"kind": "self-test", "rates": result.rates(), "findings": result.table()}
        with activity.paused():
            if output_format in FOR_PEOPLE:
                print_report(result, output_format)
            else:
                print_rows(result.table(), output_format, document)
        write_record(out, document, note)
        return int(not result.passed)
    named = [name for given in problems or DEFAULT_PROBLEMS for name in _named(given)]
    # All are loaded before any is checked, so that a misspelt last name costs no report.
    with printing_to_stderr():
        loaded = [(load_problem(problem), isinstance(problem, str)) for problem in named]
    reports = []
    for problem, from_spec in loaded:
        note(f"checking {problem.name} ...")
        with printing_to_stderr():
            report = check_gradient(problem, dtype=dtypes, device=device, fast=fast, **settings)
        report.from_spec = from_spec
        reports.append(report)
        if output_format in FOR_PEOPLE:
            with activity.paused():
                print_report(report, output_format)
    rows = [line for report in reports for line in report.table()]
    if output_format not in FOR_PEOPLE:
        print_rows(rows, output_format, [report.to_json() for report in reports])
    write_record(out, {"kind": "check", "checks": [report.to_json() for report in reports]}, note)
    return exit_code(reports, strict)


def _named(problem: Any) -> Sequence[Any]:
    """The problems of a group, or the one that is given."""
    return without_groups([problem]) if isinstance(problem, str) else [problem]


def print_report(report: Any, output_format: str) -> None:
    """Print a report for people, wrapped to the terminal."""
    show(_wrapped(report, output_format))


def print_rows(rows: list[dict[str, Any]], output_format: str, document: Any) -> None:
    """Print for programs: `rows` as csv or markdown, `document` as json."""
    show(_render(rows, output_format, document))


def exit_code(reports: Sequence[Any], strict: bool = False) -> int:
    """1 if any report FAILs (or is INCONCLUSIVE, with `strict`), else 0."""
    wrong = {"FAIL", "INCONCLUSIVE"} if strict else {"FAIL"}
    return int(any(report.verdict in wrong for report in reports))


def _render(rows: list[dict[str, Any]], output_format: str, document: Any) -> str:
    if output_format == "json":
        return to_json(document)
    return render(rows, [Column(key, key) for key in rows[0]], output_format)


def _wrapped(report: Any, output_format: str) -> str:
    """A report whose lines fit the terminal: a continuation is indented to the row's last column, or to the line's
    start; a command stays on one line, to be copied."""
    width = terminal_width() if output_format == "table" else None
    lines = []
    for line in str(report).splitlines():
        if width is None or cell_len(line) <= width:
            lines.append(line)
            continue
        indent, column = len(line) - len(line.lstrip()), line.rfind("  ") + 2
        margin = column if indent < column <= width - PROSE else indent + 4
        start, reproduce, command = line.partition(REPRODUCE)
        if reproduce:
            lines += [(start + reproduce).rstrip(), " " * margin + command]
            continue
        first, *rest = wrap(line[margin:], width - margin)
        lines += [line[:margin] + first, *(" " * margin + text for text in rest)]
    return "\n".join(lines)


def write_record(out: str | Path | None, document: dict[str, Any], note: Callable[[str], None]) -> None:
    """Write the record of a check, whole or not at all, under a new name. Raises PlanError where `out` cannot be
    written."""
    if out is None:
        return
    folder = Path(out) / "check"
    path = folder / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}.json"
    head = {"schema": 1, "written": utc_now(), "environment": environment(jax.devices(), "of each check")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f"out={out}: cannot write the record: {error.strerror}") from error
    write_json(json.loads(to_json(head | document)), path)
    note(f"record: {path}")
