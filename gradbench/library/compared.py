"""Records compared, as an object: rows for a program, text and a table for a person."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from gradbench.analysis.settings.comparison import RecordComparison
from gradbench.library import show
from gradbench.record.store import Run
from gradbench.tables import to_json


@dataclass(frozen=True, eq=False)
class RunComparison:
    """What `gradbench compare` finds: str() is its text.

    pairs: a dict for each pair (and record, where there are several, by the key `record`): its best learning rate,
        verdict, steps and seconds to the target, loss and gap there, the good range, where it diverges.
    rates: a dict for each of their learning rates, with `problem` and `optimizer`.
    notes: sentences on what the numbers alone do not say, such as a best learning rate at the end of the grid.

    A number that is not finite, as the gap of a diverged trial, is None.
    """

    pairs: list[dict[str, Any]]
    rates: list[dict[str, Any]]
    notes: list[str]
    text: str

    @classmethod
    def of(
        cls, runs: Sequence[Run], factor: float, problems: Sequence[str], optimizers: Sequence[str], by: str | None
    ) -> RunComparison:
        found = RecordComparison.of(runs, factor, problems, optimizers, by)
        pairs, rates = (json.loads(to_json(rows)) for rows in (found.summaries(), list(chain(*found.rates()))))
        return cls(pairs, rates, found.notes, found.text("table"))

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"RunComparison: {len(self.pairs)} pairs, {len(self.rates)} learning rates; print() shows them"

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return show.answers(self.pairs) + (f"<ul>{notes}</ul>" if notes else "")
