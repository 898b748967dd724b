"""What a verb is doing, on stderr: on a terminal a line from the first second on, gone at the end; else nothing."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Generator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from gradbench.tables import wrap

DELAY_SECONDS = 1.0  # what is done sooner needs no line
LOGGER = logging.getLogger("gradbench")  # at INFO the library tells it what it is doing


class Activity(logging.Handler):
    """The line, for a `with` around what takes long. It says what the main thread logs; what goes on beside it is not
    what is waited for."""

    def __init__(self, quiet: bool):
        super().__init__(logging.INFO)
        self.console = Console(file=sys.stderr, quiet=quiet, highlight=False, soft_wrap=True)
        self.shown = self.console.is_terminal and not quiet
        self.heading = ""
        text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1))
        columns = (SpinnerColumn(), text, BarColumn(10), TimeElapsedColumn(), TimeRemainingColumn(compact=True))
        # What others write on stderr goes above the line; stdout is data, perhaps of a pipe.
        self.line = Progress(*columns, console=self.console, transient=True, redirect_stdout=False, expand=True)
        self.task = self.line.add_task("", total=None)
        self.timer = threading.Timer(DELAY_SECONDS, self.line.start)
        self.timer.daemon = True

    def __enter__(self) -> Activity:
        if self.shown:
            self.level_before = LOGGER.level
            LOGGER.setLevel(logging.INFO)
            LOGGER.addHandler(self)
            self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            self.timer.cancel()
            self.timer.join()
            self.line.stop()
            LOGGER.removeHandler(self)
            LOGGER.setLevel(self.level_before)

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == threading.main_thread().ident:
            self.say(record.getMessage())

    def say(self, text: str, **progress: Any) -> None:
        """Under the heading; `progress` is `total` and `completed`, where they are known."""
        if self.shown:
            self.line.update(self.task, description=f"{self.heading}{text}", **progress)

    def print(self, text: str) -> None:
        """For good, above the line; on a terminal wrapped at spaces."""
        width = self.console.width if self.console.is_terminal else None
        self.console.print("\n".join(wrap(text, width)), markup=False)

    def begin(self, heading: str, text: str = "") -> None:
        """Something else, whose length is not known yet."""
        self.heading = heading
        self.line.remove_task(self.task)
        self.task = self.line.add_task(f"{heading}{text}", total=None)

    @contextlib.contextmanager
    def paused(self) -> Generator[None]:
        """Without the line, so that data may be printed."""
        started = self.line.live.is_started
        self.line.stop()
        yield
        if started:
            self.line.start()
