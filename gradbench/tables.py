"""Tables for people and machines: table, json, csv, markdown."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradbench.errors import PlanError, nearest

FORMATS = ("table", "json", "csv", "markdown")


def check_format(name: str) -> str:
    """The format's name, or PlanError with the nearest known one."""
    if name not in FORMATS:
        raise PlanError(f"--format: no {name!r}{nearest(name, FORMATS)} ({', '.join(FORMATS)})")
    return name


def number(value: Any) -> str:
    """Three significant digits; a dash for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def seconds(value: float | None) -> str:
    """A duration in the unit that suits it."""
    if value is None:
        return "–"
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


@dataclass(frozen=True)
class Column:
    """A key of the rows, its heading for people, and how people read its values."""

    key: str
    heading: str
    show: Callable[[Any], str] = number


def render(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], output_format: str, title: str = "") -> str:
    """The rows as text. json and csv hold every key of the rows, unrounded; table and markdown the columns."""
    check_format(output_format)
    if output_format == "json":
        return to_json(list(rows))
    if output_format == "csv":
        return _csv(rows)
    cells = [[column.show(row.get(column.key)) for column in columns] for row in rows]
    headings = [column.heading for column in columns]
    right = [column.show in (number, percent, seconds) for column in columns]
    return (
        _markdown(headings, cells, right, title)
        if output_format == "markdown"
        else _table(headings, cells, right, title)
    )


def to_json(value: Any) -> str:
    """Strict JSON: a non-finite number, which JSON has no word for, is null."""

    def finite(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {key: finite(entry) for key, entry in item.items()}
        if isinstance(item, list | tuple):
            return [finite(entry) for entry in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(finite(value), indent=2, ensure_ascii=False)


def html_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """The columns of the rows for a notebook: HTML without scripts, which any front end and a saved notebook shows."""
    head = "".join(f"<th>{html.escape(column.heading)}</th>" for column in columns)
    lines = ([html.escape(column.show(row.get(column.key))) for column in columns] for row in rows)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _markdown(headings: list[str], cells: list[list[str]], right: list[bool], title: str) -> str:
    lines = [f"**{title}**", ""] if title else []
    lines.append("| " + " | ".join(headings) + " |")
    lines.append("|" + "|".join(" ---: " if r else " --- " for r in right) + "|")
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    return "\n".join(lines)


def _table(headings: list[str], cells: list[list[str]], right: list[bool], title: str) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, r in zip(headings, right):
        table.add_column(heading, justify="right" if r else "left", no_wrap=r, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    text = io.StringIO()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 220
    Console(file=text, width=width, no_color=True, force_jupyter=False).print(table)  # in a notebook too
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip("\n").split("\n"))
