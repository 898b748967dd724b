"""How far a run is, drawn where it is watched: as HTML in a notebook, as a bar on a terminal, else as lines."""

from __future__ import annotations

import contextlib
import html
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, Protocol

from gradbench.engine import pair as engine
from gradbench.engine.driver import PairTables, UnitProgress, Watcher
from gradbench.inputs.plan import SweepPlan
from gradbench.record.store import read_info
from gradbench.tables import span

_REDRAW_S = 0.2


class Drawing(Protocol):
    """Where a bar is drawn: `share` of the run is done, `text` says where it is."""

    def draw(self, share: float, text: str) -> None: ...

    def pair_done(self, text: str) -> None: ...

    def close(self) -> None: ...


def rates_words(progress: UnitProgress) -> str:
    """How fast the workers are that have answered; empty where none has."""
    rates = progress.rates.values()
    if not rates:
        return ""
    return f", {len(rates)} workers at {span(min(rates), max(rates))} trial-steps/s each"


class Bar(Watcher):
    """One bar for the whole run; a pair counts as one part of it."""

    def __init__(self, drawing: Drawing):
        self._drawing, self._drawn = drawing, 0.0
        self._pairs, self._number, self._name = 1, 0, ""

    def started(self, path: Path) -> None:
        self._pairs = len(SweepPlan.from_dict(read_info(path)["plan"]).pairs)

    def pair_started(self, number: int, problem: str, optimizer: str) -> None:
        self._number, self._name = number, f"{problem} × {optimizer}"
        self._draw(0.0, "compiling")

    def chunk(self, progress: engine.Progress) -> None:
        if time.monotonic() - self._drawn > _REDRAW_S:
            share = 1 - progress.steps_left / max(progress.total_steps, 1)
            self._draw(share, f"{progress.done:,} of {progress.trials:,} trials done")

    def units(self, progress: UnitProgress) -> None:
        if time.monotonic() - self._drawn > _REDRAW_S:
            self._drawn = time.monotonic()
            left = f", about {progress.seconds_left:.0f} s left" if progress.seconds_left else ""
            text = f"{progress.done:,} of {progress.units:,} units done{rates_words(progress)}{left}"
            self._drawing.draw(progress.done / max(progress.units, 1), text)

    def pair_swept(self, number: int, problem: str, optimizer: str, tables: PairTables) -> None:
        self._draw(1.0, "timing")

    def pair_done(self, number: int, problem: str, optimizer: str, tables: PairTables) -> None:
        self._draw(1.0, "done")
        self._drawing.pair_done(self._text("done"))

    def _draw(self, share: float, state: str) -> None:
        self._drawn = time.monotonic()
        self._drawing.draw((self._number + share) / self._pairs, self._text(state))

    def _text(self, state: str) -> str:
        return f"pair {self._number + 1} of {self._pairs}, {self._name}: {state}"


class _Notebook:
    """An output of the cell, which goes when the run is done. It needs no widgets."""

    def __init__(self) -> None:
        from IPython.display import HTML, display  # ty: ignore[import-not-found]  # there is one in a notebook

        self._html = HTML
        self._handle = display(HTML(""), display_id=True)

    def draw(self, share: float, text: str) -> None:
        bar = f'<progress max="1" value="{share:.3f}"></progress> {html.escape(text)}'
        self._handle.update(self._html(bar))

    def pair_done(self, text: str) -> None: ...

    def close(self) -> None:
        self._handle.update(self._html(""))


class _Terminal:
    def __init__(self) -> None:
        from gradbench.library.activity import Activity  # a library does without Rich until it draws

        self._line = Activity(quiet=False).__enter__()

    def draw(self, share: float, text: str) -> None:
        self._line.say(text, total=1.0, completed=share)

    def pair_done(self, text: str) -> None: ...

    def close(self) -> None:
        self._line.__exit__()


class _Lines:
    def draw(self, share: float, text: str) -> None: ...

    def pair_done(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None: ...


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


@contextlib.contextmanager
def watching(progress: bool | None) -> Generator[Watcher]:
    """A watcher that draws the progress of a run. With None it does in a notebook and at a prompt, where someone waits;
    a program's output stays its own."""
    if not (in_notebook() or hasattr(sys, "ps1") if progress is None else progress):
        yield Watcher()
        return
    drawing: Drawing = _Notebook() if in_notebook() else _Terminal() if sys.stderr.isatty() else _Lines()
    try:
        yield Bar(drawing)
    finally:
        drawing.close()
