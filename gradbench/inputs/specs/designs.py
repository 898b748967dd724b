"""Designs: which combinations of the axes' values are tried, each with every seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from gradbench.errors import PlanError, nearest, one_line
from gradbench.inputs.specs.axis import LOG, Axis
from gradbench.inputs.specs.rates import rate_values
from gradbench.paths import user_path

GRID, RANDOM, SOBOL = "grid", "random", "sobol"
MAX_POINTS = 2**31 - 1
Rows = tuple[Mapping[str, float], ...]  # of a list


def check_design(name: str, value: Any) -> str | Rows:
    """A design as a plan keeps it: `grid`, `random:64`, `sobol:64` (also with a seed behind it, `random:64:7`), or the
    rows of a list, each the learning rate and other settings by name, which may be a CSV or Parquet file."""
    if not isinstance(value, str):
        return _rows(name, value)
    kind, *numbers = value.split(":")
    if kind == GRID and not numbers:
        return value
    if kind in (RANDOM, SOBOL):
        if not 1 <= len(numbers) <= 2 or not all(word.isdecimal() for word in numbers):
            raise PlanError(f"{name}: {value!r} should be {kind}:N or {kind}:N:SEED, such as {kind}:64")
        if not 1 <= int(numbers[0]) <= MAX_POINTS:
            raise PlanError(f"{name}: {value!r}: need at least 1 point")
        return value
    if Path(value).suffix in (".csv", ".parquet"):
        return _rows(name, _read(name, user_path(value)))
    kinds = (GRID, RANDOM, SOBOL)
    raise PlanError(f"{name}: no {kind!r}{nearest(kind, kinds)} (grid, random:N, sobol:N, or a .csv or .parquet file)")


def _read(name: str, path: Path) -> list[dict[str, Any]]:
    import pyarrow.csv
    import pyarrow.parquet

    read = pyarrow.csv.read_csv if path.suffix == ".csv" else pyarrow.parquet.read_table
    try:
        return read(path).to_pylist()
    except OSError as error:
        raise PlanError(f"{name}: {path}: {error.strerror or one_line(error)}") from error
    except pyarrow.ArrowException as error:
        raise PlanError(f"{name}: {path}: {one_line(error)}") from error


def _rows(name: str, value: Any) -> Rows:
    rows = list(value) if isinstance(value, Iterable) else []
    if not rows or not all(isinstance(row, Mapping) and row for row in rows):
        raise PlanError(f"{name}: need grid, random:N, sobol:N, or rows such as {{'learning_rate': 0.1, 'b1': 0.9}}")
    names = list(rows[0])
    if "learning_rate" not in names:
        raise PlanError(f"{name}: the rows have no learning_rate (they have {', '.join(map(str, names))})")
    for number, row in enumerate(rows, 1):
        if row.keys() != rows[0].keys():
            raise PlanError(f"{name}: row {number} has {', '.join(map(str, row))}, the first has {', '.join(names)}")
        for key, cell in row.items():
            if isinstance(cell, bool) or not isinstance(cell, Real) or not math.isfinite(cell):
                raise PlanError(f"{name}: row {number}: {key}={cell!r} should be a finite number")
        if not row["learning_rate"] > 0:
            raise PlanError(f"{name}: row {number}: learning_rate={row['learning_rate']} should be above 0")
    return tuple(
        {key: int(cell) if isinstance(cell, int | np.integer) else float(cell) for key, cell in row.items()}
        for row in rows
    )


def listed(design: str | Rows) -> dict[str, Axis]:
    """The axes of a list: its columns but the learning rate, each with the values that it has."""
    if isinstance(design, str):
        return {}
    names = [name for name in design[0] if name != "learning_rate"]
    return {name: Axis(name, tuple(dict.fromkeys(row[name] for row in design))) for name in names}


def count(design: str | Rows, rates: str | tuple[float, ...], axes: Sequence[Axis]) -> int:
    """How many points a design has of these learning rates and axes."""
    if not isinstance(design, str):
        return len(design)
    if design != GRID:
        return int(design.split(":")[1])
    number = len(rates) if not isinstance(rates, str) else int(rates.split(":")[2])
    return number * math.prod(len(axis.values) for axis in axes)


def points(design: str | Rows, rates: str | tuple[float, ...], axes: Sequence[Axis]) -> dict[str, np.ndarray]:
    """Setting -> its value at every point, float64 (N,); of a grid the learning rate changes fastest."""
    values = rate_values(rates)
    every = (*axes, Axis("learning_rate", tuple(values), LOG if isinstance(rates, str) else None))
    if not isinstance(design, str):
        return {axis.name: np.array([row[axis.name] for row in design], float) for axis in every}
    if design == GRID:
        grids = np.meshgrid(*(np.asarray(axis.values, float) for axis in every), indexing="ij")
        return {axis.name: grid.ravel() for axis, grid in zip(every, grids)}
    shares = _shares(design, len(every))
    return {axis.name: np.array([axis.at(share) for share in column], float) for axis, column in zip(every, shares.T)}


def _shares(design: str, axes: int) -> np.ndarray:
    """(N, axes) in [0, 1)."""
    kind, number, *seed = design.split(":")
    rng = np.random.default_rng(int(seed[0]) if seed else 0)
    if kind == RANDOM:
        return rng.random((int(number), axes))
    from scipy.stats import qmc  # half a second, only for those who ask for it

    sampler = qmc.Sobol(axes, scramble=True, rng=rng)
    whole = sampler.random_base2(math.ceil(math.log2(int(number))))  # a part of them is balanced as well
    return whole[: int(number)]
