"""What `gradbench check` found, for the page: its records named by the caller, else those beside the runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradbench.analysis.verdicts import CHECK_VERDICTS
from gradbench.errors import RecordError
from gradbench.paths import user_path
from gradbench.record.store import Run
from gradbench.tables import number


def check_rows(runs: Sequence[Run], files: Sequence[str | Path] = ()) -> list[dict[str, str]]:
    """A row for each checked formula, and for each dtype, precision and device of its execution: the worst verdict.

    `files` are records of `gradbench check`, all of whose problems are shown. Without any, the newest one beside the
    runs (`check/` in the same results folder) is taken for each of the runs' problems.
    Raises RecordError where a file named is not such a record.
    """
    if files:
        return [row for file in files for row in _rows(*_read(user_path(file)))]
    found: dict[str, list[dict[str, str]]] = {}
    problems = list(dict.fromkeys(problem for run in runs for problem in run.plan.problems))
    folders = dict.fromkeys(run.path.resolve().parent / "check" for run in runs)
    for file in sorted((file for folder in folders for file in folder.glob("*.json")), key=lambda file: file.name):
        try:
            written, checks = _read(file)
        except RecordError:  # the user did not name it, and other files may lie there
            continue
        for check in checks:
            if check["problem"] in problems:
                found[check["problem"]] = _rows(written, [check])
    return [row for problem in problems for row in found.get(problem, [])]


def _read(file: Path) -> tuple[str, list[dict[str, Any]]]:
    """(when it was written, its checks), validated as far as `_rows` relies on them. Raises RecordError."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        checks = document["checks"]
        _rows(document["written"], checks)
    except OSError as error:
        raise RecordError(f"{file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RecordError(f"{file}: not a record of gradbench check (results/check/<time>-<id>.json)") from None
    return document["written"], checks


def _rows(written: str, checks: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    rows = []
    for check in checks:
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for test in check["formula"]:
            if test["name"] != "suspects":  # they only explain another test's FAIL
                said = {"what": test["name"], "verdict": test["verdict"], "said": test["finding"]}
                groups.setdefault(("formula", "float64", "", ""), []).append(said | {"resolves": test["resolves"]})
        for row in check["programs"]:
            said = {"what": row["program"], "verdict": row["verdict"], "said": row["reason"]}
            key = ("execution", row["dtype"], row["precision"], row["device"])
            groups.setdefault(key, []).append(said | {"resolves": row["resolves"]})
        for (part, dtype, precision, device), tests in groups.items():
            worst = max(tests, key=lambda test: CHECK_VERDICTS.index(test["verdict"]))
            sees = [test["resolves"] for test in tests if isinstance(test["resolves"], int | float)]
            passed = f"all {len(tests)}: {', '.join(test['what'] for test in tests)}"
            rows.append(
                {
                    "problem": check["problem"],
                    "verdict": worst["verdict"],
                    "part": part,
                    "dtype": dtype,
                    "precision": precision,
                    "device": device,
                    "would have caught": number(float(max(sees))) if sees else "–",
                    "finding": passed if worst["verdict"] == "PASS" else f"{worst['what']}: {worst['said']}",
                    "checked": written,
                }
            )
    return rows
