"""What verifications have found of a record, kept beside it: `verified.json`, which the board reads.

Its manifest does not cover that file, which comes after it. Each entry has the manifest's digest: it speaks for the
record as it was then.
"""

from __future__ import annotations

import contextlib
import getpass
import json
from collections import Counter
from pathlib import Path
from typing import Any

from gradbench.archive.verify import DIFFERS, EXACT, WITHIN, Verification
from gradbench.errors import RecordError, RunError, one_line
from gradbench.files import write_json
from gradbench.machine.locks import alone_in
from gradbench.record.manifest import record_digest
from gradbench.record.store import Run

NAME = "verified.json"


def keep(path: Path, found: Verification, by: str | None = None) -> dict[str, Any]:
    """Add a verification to the file of the record in the folder `path`; `by` is who verified, by default the login
    name. Returns the entry.

    Raises RunError where the record's folder cannot be written, RecordError where its file is damaged.
    """
    counts = Counter(row["result"] for row in found.rows)
    place = found.facts["place"]
    entry = {
        "at": found.facts["at"],
        "by": by or _login(),
        "holds": found.holds,
        "trials": found.trials,
        "exact": counts[EXACT],
        "within": counts[WITHIN],
        "differ": counts[DIFFERS],
        "faults": len(found.faults),
        "seed": found.seed,
        "device_kind": place.get("device_kind"),
        "versions": place.get("versions"),
        "record_sha256": found.facts["record_sha256"],
    }
    try:
        with alone_in(path):  # two that end at once are both kept
            write_json({"verifications": [*verifications(path), entry]}, path / NAME)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    return entry


def verifications(path: Path) -> list[dict[str, Any]]:
    """What the file of the record in the folder `path` has, oldest first. Raises RecordError where it is damaged."""
    file = path / NAME
    if not file.is_file():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["verifications"]
        if not all(isinstance(entry, dict) and {"at", "by", "holds"} <= entry.keys() for entry in found):
            raise KeyError("verifications")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RecordError(f"{file}: damaged: {one_line(error)}") from error
    return found


def standing_verification(run: Run) -> dict[str, Any] | None:
    """The last verification of the record as it is now; None where it was changed since, or never verified."""
    now = record_digest(run.path)
    return next((of for of in reversed(verifications(run.path)) if now and of.get("record_sha256") == now), None)


def _login() -> str:
    with contextlib.suppress(OSError, KeyError, ImportError):
        return getpass.getuser()
    return "unknown"
