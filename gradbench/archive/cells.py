"""A trial's numbers, one by one, and how far apart those of two places may be.

In one place, with one program, every number is the same to the bit. Another place rounds otherwise, and a trial carries
each rounding on: by a factor exp(lambda) a step, where lambda is the trial's Lyapunov exponent (Eckmann and Ruelle,
Reviews of Modern Physics 57, 1985). Where that is positive, differences grow until they are as large as what is
computed: the horizon of predictability (Lorenz, Tellus 21, 1969), beyond which no replay can say anything.

How far it is, is measured on the trial itself: twins of it run with a random relative error of the size of rounding at
every step (archive/again.py). Their distances from the replay, squared and averaged over the twins, are the variance
that rounding makes in each number; two places differ by two such errors. So a number of the record may differ by

    t sqrt(2 mean((twin - replay)^2)) + noise |replay|

with t the quantile of Student's distribution with as many degrees of freedom as there are twins, at which one honest
record in FALSE_ALARM has a single number outside, over all numbers compared (Bonferroni). Counts of steps may differ by
one observation more: the step that reaches a level is rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradbench.archive.again import SHAKEN
from gradbench.record.schema import COUNT, TABLES

FALSE_ALARM = 1e-3
BLURRED = 0.5  # a loss that rounding alone moves by half of itself is beyond the horizon
_KIND = {column.name: column.kind for column in TABLES["trials"]}
_LABELS = ("trial", "problem", "optimizer", "learning_rate", "seed")
SHOWN = 3


class Cell(NamedTuple):
    """A number of a trial: a column of its row, or, at a `step`, of its curve or its metrics."""

    name: str
    step: int | None = None

    def __str__(self) -> str:
        return self.name if self.step is None else f"{self.name} at step {self.step}"


Cells = dict[Cell, tuple[Any, ...]]  # one value, or one of each twin
_END = Cell("steps_run")


def cells(
    tables: Mapping[str, pa.Table], trials: Sequence[int] | np.ndarray, left_out: Sequence[str] = ()
) -> dict[int, Cells]:
    """The numbers of these trials, by trial and cell, but for their labels and the columns `left_out`. Twins share a
    trial's number, and their values a cell. Every not-a-number is the one object math.nan, so that tuples of them are
    equal."""
    found: dict[int, dict[Cell, list[Any]]] = {int(trial): {} for trial in trials}

    def rows(name: str) -> list[dict[str, Any]]:
        return tables[name].filter(pc.field("trial").isin([*found])).to_pylist()

    def add(trial: int, cell: Cell, value: Any) -> None:
        found[trial].setdefault(cell, []).append(math.nan if value != value else value)

    for row in rows("trials"):
        for name in _KIND.keys() - {*_LABELS, *left_out}:
            add(row["trial"], Cell(name), row[name])
    for row in rows("curves"):
        for name in ("loss", "grad_norm"):
            add(row["trial"], Cell(name, row["step"]), row[name])
    for row in rows("metrics"):
        add(row["trial"], Cell(f"{row['split']}.{row['name']}", row["step"]), row["value"])
    return {trial: {cell: tuple(of) for cell, of in by.items()} for trial, by in found.items()}


@dataclass(frozen=True)
class Judge:
    """Of one trial: the cells that are not the replay's, those of them that rounding does not explain, and the first
    recorded step beyond the horizon, None where there is none."""

    unlike: list[Cell]
    outside: list[Cell]
    horizon: int | None

    @classmethod
    def of(cls, before: Cells, here: Cells, twins: Cells, noise: float, stride: int, drawn: int) -> Judge:
        """`before` is of the record and `here` of the replay, both with one value per cell; `noise` is the relative
        rounding of a step, `stride` the steps between two observations, `drawn` how many trials are compared."""
        from scipy.stats import t

        every = sorted(before.keys() | here.keys(), key=lambda cell: (cell.step or 0, cell.name))
        factor = float(t.isf(FALSE_ALARM / (2 * drawn * len(every)), SHAKEN))
        bounds = {cell: _bound(here[cell][0], twins.get(cell, ()), factor, noise) for cell in here}
        blurred = (c.step for c in here if c.name == "loss" and not bounds[c] <= BLURRED * abs(here[c][0]))
        horizon = min((step for step in blurred if step is not None), default=None)
        ends = [of[_END][0] for of in (before, here) if _END in of]

        def explained(cell: Cell) -> bool:
            recorded, replayed = (of.get(cell, (None,))[0] for of in (before, here))
            if horizon is not None and not _is_before(horizon, cell, replayed):
                return True
            if cell.step is not None and (cell in before) != (cell in here):  # one of the two has ended
                return len(set(ends)) == 2 and cell.step >= min(ends) and explained(_END)
            if isinstance(recorded, str):  # a verdict
                return recorded in twins.get(cell, ())
            if not _known(recorded) or not _known(replayed):  # twins that do not agree on that say nothing
                return any(_known(value) != _known(replayed) for value in twins.get(cell, ()))
            slack = bounds[cell] + (stride if _KIND.get(cell.name) == COUNT else 0)
            return abs(recorded - replayed) <= slack

        unlike = [cell for cell in every if before.get(cell) != here.get(cell)]
        return cls(unlike, [cell for cell in unlike if not explained(cell)], horizon)

    def words(self, before: Cells, here: Cells) -> str:
        """The first cells outside the bound, with both values; how many differ, where none is."""
        if not self.outside:
            return f"{len(self.unlike)} number{'s' * (len(self.unlike) != 1)}, by no more than rounding"
        shown = self.outside[:SHOWN]
        said = [f"{cell} is {_word(before.get(cell))}, here {_word(here.get(cell))}" for cell in shown]
        return "; ".join(said) + (f"; and {len(self.outside) - SHOWN} more" if len(self.outside) > SHOWN else "")


def _is_before(horizon: int, cell: Cell, replayed: Any) -> bool:
    """Whether a cell is known before the horizon: the start, a recorded step, or a first step that comes before."""
    if cell.step is not None:
        return cell.step < horizon
    if cell.name in ("initial_loss", "minimum"):
        return True
    counted = _KIND[cell.name] == COUNT and cell.name not in ("best_step", "steps_run")
    return counted and replayed is not None and replayed < horizon


def _known(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def _bound(replayed: Any, twins: Sequence[Any], factor: float, noise: float) -> float:
    """How far a number of the record may be from the replay's; infinite where a twin has none."""
    if len(twins) < SHAKEN or not all(map(_known, (replayed, *twins))):
        return math.inf
    with np.errstate(over="ignore"):
        spread = math.sqrt(2 * float(np.mean((np.asarray(twins, float) - replayed) ** 2)))
    return factor * spread + noise * abs(replayed)


def _word(value: tuple[Any, ...] | None) -> str:
    """A cell's value with every digit: the last may be the one that differs."""
    return "not there" if value is None else "empty" if value[0] is None else str(value[0])
