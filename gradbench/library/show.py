"""What a notebook shows, as HTML without scripts: any front end, and a saved notebook, has it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from gradbench.tables import Column, seconds

ANSWERS = (
    Column("problem", "problem", str),
    Column("optimizer", "optimizer", str),
    Column("best_learning_rate", "best learning rate"),
    Column("verdict", "verdict", str),
    Column("steps_to_target", "steps to target"),
    Column("time_to_target_s", "time to target", seconds),
    Column("final_loss", "final loss"),
    Column("good_range", "good range", str),
)


def answers(rows: Sequence[Mapping[str, Any]]) -> str:
    """The answers of summary rows (answers.summary_row), one line per pair."""
    record = (Column("record", "record", str),) if rows and "record" in rows[0] else ()
    return table(rows, (*record, *ANSWERS))


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """Rows as an HTML table, by the columns that people read."""
    head = "".join(f"<th>{html.escape(column.heading)}</th>" for column in columns)
    cells = ([html.escape(column.show(row.get(column.key))) for column in columns] for row in rows)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
