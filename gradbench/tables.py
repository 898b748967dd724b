"""Tables for people and machines: table (as wide as the terminal), wide, json, csv, markdown."""

from __future__ import annotations

import csv
import html
import io
import itertools
import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len

from gradbench.errors import PlanError, nearest

FORMATS = ("table", "wide", "json", "csv", "markdown")
GAP = "  "  # between columns
EMPTY = {"–", ""}  # cells that say nothing
PROSE = 24  # cells that a column of prose keeps at least, or its longest word


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


def span(low: float | None, high: float | None) -> str:
    """From one number to another, or the one that both are; a dash for nothing."""
    return "–" if low is None else " … ".join(dict.fromkeys(map(number, (low, high))))


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
    """A key of the rows, its heading for people, and how people read its values; with those of the key `and_key`, as
    the two ends of a range, where there is one.

    Of a table wider than the terminal the column with the largest `priority` leaves first; one of priority 0, such as a
    name, never does. `prose` may be wrapped at its spaces; every other value stays whole on one line. Below the table
    `about` says what the heading means, and `dash` what – does; neither where there is nothing of it. Columns of
    one `group`, as one value of several records, leave together.
    """

    key: str
    heading: str
    show: Callable[..., str] = number
    priority: int = 0
    about: str = ""
    dash: str = ""
    prose: bool = False
    and_key: str = ""
    group: str = ""

    @property
    def right(self) -> bool:
        return self.show in (number, percent, seconds)

    def text(self, row: Mapping[str, Any]) -> str:
        """The row's value as people read it, on one line."""
        keys = (self.key, self.and_key) if self.and_key else (self.key,)
        return "".join(sign if sign.isprintable() else " " for sign in self.show(*map(row.get, keys)))


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; None where it is a pipe or a file, which take any width."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def render(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], output_format: str, title: str = "") -> str:
    """The rows as text: json and csv hold every key of the rows, unrounded; table, wide and markdown the columns.

    A table fits the terminal: headings and prose are wrapped, then columns leave, empty ones first and then by
    priority, with a line that names them; where those of priority 0 alone are too wide each row is a block of lines.
    wide has every column, and so has a table that goes to no terminal.
    """
    check_format(output_format)
    if output_format == "json":
        return to_json(list(rows))
    if output_format == "csv":
        return _csv(rows, columns)
    cells = [[column.text(row) for row in rows] for column in columns]
    if output_format == "markdown":
        return _markdown(columns, cells, title)
    width = None if output_format == "wide" else terminal_width()
    shown = _fitting(columns, cells, width)
    lines = wrap(title, width) if title else []
    if shown is None:
        lines += _blocks(columns, cells, width)
        shown = dict.fromkeys(range(len(columns)), 0)
    else:
        lines += _table([columns[i] for i in shown], [cells[i] for i in shown], list(shown.values()))
    if left_out := [column.heading for i, column in enumerate(columns) if i not in shown]:
        lines += wrap(f"Left out at {width} columns (--wide or --format csv has them): {', '.join(left_out)}.", width)
    if about := list(filter(None, (_about(columns[i], cells[i]) for i in shown))):
        lines += wrap(f"{'; '.join(about)}.", width)
    return "\n".join(lines)


def _about(column: Column, cells: Sequence[str]) -> str:
    """What is to be said of a column of such cells; the empty string for nothing."""
    values = column.about if set(cells) - EMPTY else ""
    dashes = f"– {column.dash}" if column.dash and "–" in cells else ""
    return f"{column.heading}: {', '.join(filter(None, (values, dashes)))}" if values or dashes else ""


def wrap(text: str, width: int | None) -> list[str]:
    """The text in lines of at most `width` cells, broken at its spaces; a longer word stays whole."""
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if line and width is not None and cell_len(joined) > width:
            lines.append(line)
            joined = word
        line = joined
    return [*lines, line]


def sentence_lines(said: Sequence[str], output_format: str) -> list[str]:
    """Sentences below a table, each from a new line, as wide as the terminal."""
    bullet = "- " if output_format == "markdown" else ""
    width = terminal_width() if output_format == "table" else None
    return [line for sentence in said for line in wrap(f"{bullet}{sentence}.", width)]


GO_ON = "; go on with: "  # what follows it in a note is a command


def note_lines(notes: Sequence[str], output_format: str) -> list[str]:
    """Notes below a table, in lines that fit the terminal, but for a command: whole on its own line, to be copied."""
    width = terminal_width() if output_format == "table" else None
    lines = []
    for note in notes:
        text, go_on, command = note.partition(GO_ON)
        lines += wrap(f"Note: {text}{GO_ON.rstrip() if go_on else '.'}", width)
        lines += [f"  {command}"] if go_on else []
    return lines


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
    lines = ([html.escape(column.text(row)) for column in columns] for row in rows)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """Of no rows the keys that the columns show."""
    text = io.StringIO()
    keys = dict.fromkeys(key for row in rows or [[column.key for column in columns]] for key in row)
    writer = csv.DictWriter(text, list(keys), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _markdown(columns: Sequence[Column], cells: list[list[str]], title: str) -> str:
    lines = [f"**{title}**", ""] if title else []
    lines.append("| " + " | ".join(column.heading for column in columns) + " |")
    lines.append("|" + "|".join(" ---: " if column.right else " --- " for column in columns) + "|")
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in zip(*cells)]
    return "\n".join(lines)


def _widest(texts: Sequence[str]) -> int:
    return max(map(cell_len, texts), default=0)


def _narrowest(column: Column, cells: list[str]) -> int:
    """The cells a column needs: no word of its heading or its prose is cut, and no value."""
    words = column.heading.split(" ")
    if not column.prose:
        return _widest([*words, *cells])
    return max(_widest([*words, *(word for cell in cells for word in cell.split(" "))]), min(PROSE, _widest(cells)))


def _fitting(columns: Sequence[Column], cells: list[list[str]], width: int | None) -> dict[int, int] | None:
    """The columns that fit, by number, and the cells of each; None if those that may not leave do not fit."""
    natural = [_widest([column.heading, *of]) for column, of in zip(columns, cells)]
    shown = dict(enumerate(natural))
    if width is None:
        return shown
    room = width + len(GAP)
    least = [_narrowest(column, of) for column, of in zip(columns, cells)]
    groups: dict[str, list[int]] = {}
    for i, column in enumerate(columns):
        groups.setdefault(column.group or column.key, []).append(i)

    def leaves(group: list[int]) -> tuple[bool, int, int]:
        priority = columns[group[0]].priority
        return priority > 0 and all(set(cells[i]) <= EMPTY for i in group), priority, group[0]

    leaving = sorted(groups.values(), key=leaves)
    while sum(least[i] + len(GAP) for i in shown) > room:
        group = leaving.pop()
        if columns[group[0]].priority == 0:
            return None
        for i in group:
            del shown[i]
    while sum(of + len(GAP) for of in shown.values()) > room:
        shown[max(shown, key=lambda i: shown[i] - least[i])] -= 1
    return shown


def _table(columns: Sequence[Column], cells: list[list[str]], widths: list[int]) -> list[str]:
    headings = [wrap(column.heading, width) for column, width in zip(columns, widths)]
    height = max(map(len, headings), default=0)
    lines = _beside([[""] * (height - len(lines)) + lines for lines in headings], columns, widths)
    lines.append(GAP.join("─" * width for width in widths))
    for row in zip(*cells):
        parts = [wrap(cell, width) if column.prose else [cell] for column, cell, width in zip(columns, row, widths)]
        lines += _beside(parts, columns, widths)
    return lines


def _beside(parts: list[list[str]], columns: Sequence[Column], widths: list[int]) -> list[str]:
    """The lines of a row whose cells have several."""
    lines = []
    for texts in itertools.zip_longest(*parts, fillvalue=""):
        padding = [" " * (width - cell_len(text)) for text, width in zip(texts, widths)]
        line = [pad + text if column.right else text + pad for column, text, pad in zip(columns, texts, padding)]
        lines.append(GAP.join(line).rstrip())
    return lines


def _blocks(columns: Sequence[Column], cells: list[list[str]], width: int | None) -> list[str]:
    """Each row as lines of heading and value, a value under its heading where both are too wide."""
    margin = _widest([column.heading for column in columns]) + len(GAP)
    lines: list[str] = []
    for row in zip(*cells):
        lines += [""] if lines else []
        for column, cell in zip(columns, row):
            label = column.heading + " " * (margin - cell_len(column.heading))
            if width is None or margin + cell_len(cell) <= width:
                lines.append((label + cell).rstrip())
            else:
                lines += [column.heading, *(wrap(cell, width) if column.prose else [cell])]
    return lines
