"""The manifest that closes a record: a sha256 of each of its files, so that one that is changed afterwards is found.

It shows that files were changed, not who changed them: whoever changes a record can write a manifest too. Against that
helps the manifest's own digest, published elsewhere; and a replay finds numbers that no trial gives (gradbench verify).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from gradbench.errors import DamagedError, RecordError, one_line
from gradbench.files import json_bytes, write_json
from gradbench.inputs.transfer.sources import digest

NAME = "manifest.json"


def close(path: Path, tables: Iterable[str], info: dict[str, Any]) -> None:
    """Write the manifest of a record in the folder `path`: of its files `tables`, and of the run.json that is to be
    written of `info` next, so that no record is complete without its manifest."""
    digests = {name: digest(path / name) for name in tables} | {"run.json": sha256(json_bytes(info)).hexdigest()}
    write_json({"sha256": dict(sorted(digests.items()))}, path / NAME)


def changed_files(path: Path, info: dict[str, Any]) -> dict[str, str] | None:
    """A sentence for each file of a record, by name, that is changed or missing by its manifest; None for a record that
    never had one: incomplete, or older than manifests. `info` is its run.json, which says whether it has one. Raises
    DamagedError for a manifest that cannot be read, RecordError for files that may not be read."""
    file = path / NAME
    if info["state"] != "complete":
        return None
    if not file.is_file():
        return {NAME: f"its manifest ({NAME}) is gone"} if info.get("manifest") else None
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
        expected = whole.get("sha256") if isinstance(whole, dict) else None
        if not isinstance(expected, dict) or "run.json" not in expected:
            raise DamagedError(f"{file}: damaged: it has no digests of a record's files")
        found = {name: digest(path / name) if (path / name).is_file() else None for name in expected}
    except PermissionError as error:
        raise RecordError(f"{error.filename}: {error.strerror}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{file}: damaged: {one_line(error)}") from error
    changed = [name for name, of in expected.items() if found[name] != of]
    return {n: f"{n} is {'changed' if found[n] else 'missing'} since the record was closed" for n in changed}


def record_digest(path: Path) -> str | None:
    """The sha256 of the manifest, which stands for the whole record; None where there is none."""
    return digest(path / NAME) if (path / NAME).is_file() else None
