"""The `check` verb: runs the check or its self-test, prints, writes a record, returns the exit code."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import platform
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradbench.errors import PlanError, nearest
from gradbench.gradients import self_test as planted
from gradbench.gradients.check import check_gradient
from gradbench.gradients.formats import DTYPES
from gradbench.gradients.report import CheckReport

DEFAULT_PROBLEMS = ("quadratic_bowl", "linear_regression", "logistic_regression", "mlp")
FORMATS = ("table", "json", "csv", "markdown")


def run_check(
    problems: Sequence[Any] = (),
    *,
    dtypes: Sequence[str] = ("float32",),
    precision: str = "highest",
    device: str | None = None,
    fast: bool = False,
    strict: bool = False,
    programs: Sequence[str] | None = None,
    seed: int = 0,
    self_test: bool = False,
    output_format: str = "table",
    out: str | Path | None = "results",
    note: Callable[[str], None] | None = None,
) -> int:
    """Check `problems` (the four of the project where there are none). Data goes to stdout, notes to stderr.

    Writes `<out>/check/<UTC time>-<id>.json` unless `out` is None. Returns 1 if a gradient is wrong (with `strict`
    also if a verdict is INCONCLUSIVE; with `self_test` if a miss is unexplained or an alarm false), else 0.
    Raises GradbenchError for bad input.
    """
    tell = note or (lambda text: print(text, file=sys.stderr, flush=True))
    if output_format not in FORMATS:
        close = nearest(output_format, FORMATS)
        raise PlanError(f"format={output_format}: need one of {', '.join(FORMATS)}{close}")
    if self_test:
        return _run_self_test(dtypes, device, fast, output_format, out, tell)
    reports = []
    for problem in problems or DEFAULT_PROBLEMS:
        tell(f"checking {problem if isinstance(problem, str) else problem.name} ...")
        report = check_gradient(
            problem, dtype=dtypes, precision=precision, device=device, fast=fast, programs=programs, seed=seed
        )
        reports.append(report)
        if output_format == "table":
            print(report, flush=True)
    rows = [line for report in reports for line in report.table()]
    if output_format != "table":
        print(_render(rows, output_format, [report.to_json() for report in reports]))
    _write(out, {"kind": "check", "checks": [report.to_json() for report in reports]}, tell)
    return exit_code(reports, strict)


def exit_code(reports: Sequence[CheckReport], strict: bool = False) -> int:
    """1 if any report FAILs (or is INCONCLUSIVE, with `strict`), else 0."""
    wrong = {"FAIL", "INCONCLUSIVE"} if strict else {"FAIL"}
    return int(any(report.verdict in wrong for report in reports))


def _run_self_test(dtypes, device, fast, output_format, out, tell) -> int:
    tell("planting faults; this takes a few minutes" if not fast else "planting faults ...")
    result = planted.self_test(dtypes or DTYPES, device=device, fast=fast)
    document = {"kind": "self-test", "rates": result.rates(), "findings": result.table()}
    print(result if output_format == "table" else _render(result.table(), output_format, document))
    _write(out, document, tell)
    return int(not result.passed)


def _render(rows: list[dict[str, Any]], output_format: str, document: Any) -> str:
    if output_format == "json":
        return json.dumps(_finite(document), indent=2)
    header = list(rows[0])
    if output_format == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().rstrip("\n")
    cells = [[_cell(row[key]) for key in header] for row in rows]
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: those become strings."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and value - value != 0 else value


def environment() -> dict[str, Any]:
    """Versions and devices, for a record."""
    import jax
    import jaxlib
    import numpy

    import gradbench

    return {
        "gradbench": gradbench.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": numpy.__version__,
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()],
        "cores": os.cpu_count(),
    }


def _write(out: str | Path | None, document: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Written under a temporary name and renamed, never over an older record."""
    if out is None:
        return
    now = datetime.datetime.now(datetime.UTC)
    folder = Path(out) / "check"
    path = folder / f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}.json"
    text = json.dumps(_finite({"schema": 1, "written": now.isoformat(), **environment(), **document}), indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.rename(path)
    except OSError as error:
        raise PlanError(f"out={out}: cannot write the record: {error.strerror}") from error
    tell(f"record: {path}")
