"""What is kept and said of an unexpected exception: ours, or of a user's code where nothing catches it."""

from __future__ import annotations

import contextlib
import secrets
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import TextIO

from gradbench.errors import GradbenchError, GradbenchWarning, error_text, one_line

_KEPT = "the traceback is in "
FORESEEN = (GradbenchError, KeyboardInterrupt, MemoryError)


def keep_traceback(error: BaseException, folder: Path | None = None) -> str:
    """Write an exception's traceback into a file, in `folder` or else a temporary one, once per exception; a line that
    says where, which is also a note of the exception."""
    for note in getattr(error, "__notes__", ()):
        if note.startswith(_KEPT):
            return note
    name = f"traceback-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}.txt"
    text = "".join(traceback.format_exception(error))
    for place in ([] if folder is None else [folder]) + [Path(tempfile.gettempdir())]:
        try:
            (place / name).write_text(text, encoding="utf-8")
        except OSError:
            continue
        error.add_note(f"{_KEPT}{place / name}")
        return f"{_KEPT}{place / name}"
    return "the traceback could not be written anywhere"


def sentence(error: BaseException) -> str:
    """A failure that nobody foresaw, or a lack of memory, in one line."""
    if isinstance(error, MemoryError):
        return f"out of memory: {one_line(error)}"
    return f"{error_text(error)} (unexpected; {keep_traceback(error)})"


@contextlib.contextmanager
def printing_to_stderr() -> Generator[None, None, None]:
    """What a user's code prints, jax.debug.print in a loss too, goes to stderr: stdout is for data."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            if "jax" in sys.modules:  # callbacks may still be on their way
                with contextlib.suppress(Exception):  # one that raised, which failed the run or nothing
                    sys.modules["jax"].effects_barrier()


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """warnings.showwarning of the command line: ours are one line, without the place in our code."""
    ours = issubclass(category, GradbenchWarning)
    text = f"gradbench: {message}" if ours else warnings.formatwarning(message, category, filename, lineno).rstrip()
    print(text, file=file or sys.stderr, flush=True)
