"""What the pairs of a run leave in `parts/` while it goes on; and a table of a record, read with its types checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradbench.errors import DamagedError, RecordError, one_line
from gradbench.files import write_json, write_table, writing
from gradbench.record.schema import COUNT, FIRST_REVISION, SCHEMAS, SWEPT, TEXT, Column, columns_of, schema_of


class UnitRows:
    """Like PairStore, but for some of a pair's trials and in memory: the rows of a unit, to be sent to the main
    process."""

    keeps_checkpoints = False

    def __init__(self, axes: Sequence[str] = ()) -> None:
        self.axes = axes
        self.tables = {name: schema_of(name, axes).empty_table() for name in SWEPT}

    def append(self, new: dict[str, dict[str, np.ndarray]], problem: str, optimizer: str) -> None:
        for name, columns in new.items():
            if columns:
                table = _table(columns_of(name, self.axes), columns, problem, optimizer)
                self.tables[name] = pa.concat_tables([self.tables[name], table])

    def restore(self) -> None:
        """There is nothing to go on from."""

    def checkpoint(self, arrays: dict[str, np.ndarray]) -> None:
        """Keeps none: a unit that is lost is run again."""


class PairStore:
    """What one pair leaves in `parts/` while its sweep goes on."""

    keeps_checkpoints = True

    def __init__(self, folder: Path, axes: Sequence[str] = ()):
        self.folder, self.axes = folder, axes
        folder.mkdir(parents=True, exist_ok=True)
        self.parts = 0

    def append(self, new: dict[str, dict[str, np.ndarray]], problem: str, optimizer: str) -> None:
        """Add rows of the tables in SWEPT, by name: numpy arrays (N,), by column; never is -1, unknown is NaN."""
        for name, columns in new.items():
            if columns:
                write_table(
                    _table(columns_of(name, self.axes), columns, problem, optimizer), self._part(name, self.parts)
                )
        self.parts += any(new.values())

    def _part(self, name: str, number: int) -> Path:
        return self.folder / f"{name}-{number:06d}.parquet"

    def checkpoint(self, arrays: dict[str, np.ndarray]) -> None:
        with writing(self.folder / "checkpoint.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, parts=np.int64(self.parts), **arrays)
            file.flush()

    @property
    def has_checkpoint(self) -> bool:
        return (self.folder / "checkpoint.npz").is_file()

    def restore(self) -> dict[str, np.ndarray] | None:
        """The last checkpoint, or None; deletes the parts written after it. Raises RecordError if it is damaged."""
        path = self.folder / "checkpoint.npz"
        arrays: dict[str, np.ndarray] | None = None
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as stored:
                    arrays = dict(stored)
            except Exception as error:
                raise RecordError(f"{path}: damaged checkpoint: {one_line(error)}") from error
        self.parts = 0 if arrays is None else int(arrays.pop("parts"))
        for name in SWEPT:
            for part in self.folder.glob(f"{name}-*.parquet"):
                if int(part.stem.split("-")[1]) >= self.parts:
                    part.unlink()
        return arrays

    def clear(self) -> None:
        """Forget all rows and the checkpoint."""
        (self.folder / "checkpoint.npz").unlink(missing_ok=True)
        self.restore()

    def add_unit(self, number: int, tables: dict[str, pa.Table]) -> None:
        """Keep the rows of a unit. Its trials, by which it counts as done, are written last."""
        for name in reversed(SWEPT):
            if name == "trials" or len(tables[name]):
                write_table(tables[name], self._part(name, number), last=name == "trials")

    def units_done(self) -> set[int]:
        """The numbers of the units whose rows are kept."""
        return {int(part.stem.split("-")[1]) for part in self.folder.glob("trials-*.parquet")}

    def save(self, name: str, rows: list[dict[str, Any]]) -> None:
        """All of the pair's rows of `timings` or `sharpness`."""
        write_table(pa.Table.from_pylist(rows, schema=SCHEMAS[name]), self.folder / f"{name}.parquet")

    def has(self, name: str) -> bool:
        """Whether the rows of `timings` or `sharpness` are saved."""
        return (self.folder / f"{name}.parquet").is_file()

    def read(self, name: str) -> pa.Table:
        """One of the tables, as far as it is written, sorted by trial and step. Raises RecordError, as read_table."""
        parts = [read_table(part, name, self.axes) for part in sorted(self.folder.glob(f"{name}*.parquet"))]
        table = pa.concat_tables([schema_of(name, self.axes).empty_table(), *parts])
        order = [column for column in ("trial", "step", "split", "name") if column in table.column_names]
        return table.sort_by([(column, "ascending") for column in order]) if name in SWEPT else table

    def end_sweep(self) -> None:
        write_json({"parts": self.parts}, self.folder / "swept.json")
        (self.folder / "checkpoint.npz").unlink(missing_ok=True)

    @property
    def swept(self) -> bool:
        """Whether all trials are finished and written; the pair may still have to be timed."""
        return (self.folder / "swept.json").is_file()

    def finish(self) -> None:
        write_json({}, self.folder / "complete.json")

    @property
    def complete(self) -> bool:
        return (self.folder / "complete.json").is_file()


def _table(declared: Sequence[Column], columns: dict[str, np.ndarray], problem: str, optimizer: str) -> pa.Table:
    count = len(columns["trial"])
    arrays = []
    for column in declared:
        if column.name in ("problem", "optimizer"):
            text = problem if column.name == "problem" else optimizer
            arrays.append(pa.repeat(text, count).cast(TEXT))
            continue
        if column.name not in columns:  # an axis of another optimizer
            arrays.append(pa.nulls(count, column.kind))
            continue
        values = np.asarray(columns[column.name])
        if column.kind == TEXT:
            arrays.append(pa.array(values.astype(object), TEXT))
        elif column.kind == COUNT:  # "never" is -1 on the device and null on disk
            arrays.append(pa.array(values.astype(np.int64), mask=values < 0))
        else:
            unknown = np.isnan(values) if column.unknown_is_null else None
            arrays.append(pa.array(values.astype(np.float64), mask=unknown))
    return pa.Table.from_arrays(arrays, names=[column.name for column in declared])


def read_table(path: Path, name: str, axes: Sequence[str] = ()) -> pa.Table:
    """One table of a record, whose plan has these axes; columns that came after the record's version are null. Raises
    DamagedError where it is missing or a column's type is wrong, RecordError where it may not be read."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except PermissionError as error:
        raise RecordError(f"{path}: {error.strerror}") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedError(f"{path}: missing or damaged: {one_line(error)}") from error
    for column in columns_of(name, axes):
        if column.name not in table.column_names and column.since != FIRST_REVISION:
            table = table.append_column(column.name, pa.nulls(len(table), column.kind))
        if column.name not in table.column_names:
            raise DamagedError(f"{path}: has no column {column.name!r}")
        found = table.schema.field(column.name).type
        if found != column.kind:
            raise DamagedError(f"{path}: column {column.name!r} is {found}, should be {column.kind}")
        if not column.nullable and table[column.name].null_count:
            raise DamagedError(f"{path}: column {column.name!r} has empty cells")
    return table.select(schema_of(name, axes).names).replace_schema_metadata(None)
