"""Writes whole files or none: under a temporary name, on disk, then renamed. And where the user's cache is."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradbench.errors import RunError, one_line


@contextlib.contextmanager
def writing(path: Path, last: bool = True) -> Generator[Path]:
    """A temporary name beside `path` that becomes `path`, on disk, if nothing goes wrong, and is removed otherwise; of
    a symbolic link, such as /dev/stdout, what it leads to is replaced. Of several in one folder the names are on disk
    with the `last`."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        if last and hasattr(os, "O_DIRECTORY"):  # Windows opens no folder
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or one_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):  # the name is too long, or the folder gone: what is raised says so
            temporary.unlink(missing_ok=True)


def write_table(table: pa.Table, path: Path, last: bool = True) -> None:
    write_tables([table], table.schema, path, last)


def write_tables(tables: Iterable[pa.Table], schema: pa.Schema, path: Path, last: bool = True) -> None:
    """One file of several tables, one after another, so that only one need be in memory. `last`: see `writing`."""
    with writing(path, last) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def write_json(value: Any, path: Path) -> None:
    with writing(path) as temporary:
        temporary.write_bytes(json_bytes(value))


def utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def user_folder() -> Path | None:
    """Our folder in the user's cache, which may not be there yet; None without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradbench"
    except RuntimeError:
        return None
