"""Progress of a run on stderr: a bar on a terminal, one line per finished pair everywhere; and Ctrl-C."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gradbench.analysis.answers import pair_sentence
from gradbench.analysis.summary import summarise_tables
from gradbench.engine import pair as engine
from gradbench.engine.runner import PairTables, Watcher
from gradbench.failures import FORESEEN


class TerminalWatcher(Watcher):
    """Draws the bar, prints one sentence per pair. The first Ctrl-C asks for a checkpoint, the second stops at once."""

    def __init__(self, quiet: bool):
        self.quiet, self.stopping = quiet, False
        self.console = Console(file=sys.stderr, quiet=quiet, highlight=False, soft_wrap=True)
        self.path: Path | None = None
        self.bar: Progress | None = None
        self.task: Any = None

    def started(self, path: Path) -> None:
        self.path = path

    def pair_started(self, number: int, problem: str, optimizer: str) -> None:
        if self.console.is_terminal and not self.quiet:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[state]}"))
            self.bar = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, transient=True
            )
            self.task = self.bar.add_task(f"{problem} × {optimizer}", total=None, state="compiling")
            self.bar.start()

    def chunk(self, progress: engine.Progress) -> None:
        if self.bar is not None:
            rate = progress.trial_steps / max(progress.seconds, 1e-9)
            waiting = progress.trials - progress.done - progress.running
            state = f"{progress.running} alive, {progress.done} retired, {waiting} waiting, {rate:.3g} trial-steps/s"
            total = progress.total_steps
            self.bar.update(self.task, total=total, completed=total - progress.steps_left, state=state)

    def pair_swept(self, number: int, problem: str, optimizer: str, tables: PairTables) -> None:
        self.close()
        if not self.quiet:
            for summary in summarise_tables([(problem, optimizer)], tables.trials, tables.timings, tables.facts):
                self.console.print(pair_sentence(summary), markup=False)

    def should_stop(self) -> bool:
        return self.stopping

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


@contextlib.contextmanager
def watching(quiet: bool) -> Generator[TerminalWatcher]:
    """A watcher for one run. After an interruption, or an expected failure, it says how to go on."""
    watcher = TerminalWatcher(quiet)

    def stop(number: int, frame: Any) -> None:
        if watcher.stopping:
            raise KeyboardInterrupt
        watcher.stopping = True

    in_main_thread = threading.current_thread() is threading.main_thread()
    caught = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
    before = [signal.signal(number, stop) for number in caught]
    try:
        yield watcher
    except FORESEEN:
        watcher.stopping = watcher.path is not None
        raise
    finally:
        watcher.close()
        for number, handler in zip(caught, before):
            signal.signal(number, handler)
        if watcher.stopping and watcher.path is not None:
            print(f"stopped; go on with: gradbench run --resume {shlex.quote(str(watcher.path))}", file=sys.stderr)
