"""The answers as a notebook shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradbench.tables import Column, html_table, seconds, span

ANSWERS = (
    Column("problem", "problem", str),
    Column("optimizer", "optimizer", str),
    Column("best_learning_rate", "best learning rate"),
    Column("verdict", "verdict", str),
    Column("steps_to_target", "steps to target"),
    Column("time_to_target_s", "time to target", seconds),
    Column("final_loss", "final loss"),
    Column("good_low", "good range", span, and_key="good_high"),
)


def answers(rows: Sequence[Mapping[str, Any]]) -> str:
    """Summary rows (analysis.answers.summary_row) as HTML, one line per pair."""
    record = (Column("record", "record", str),) if rows and "record" in rows[0] else ()
    return html_table(rows, (*record, *ANSWERS))
