"""What the verbs share: the application, common options, and where data and notes go."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter, Token, UnknownOptionError

from gradbench.errors import RunError
from gradbench.version import __version__

INTERRUPTED = 130  # what a shell reports for Ctrl-C
app = App(
    name="gradbench",
    help="How optimizers converge over learning rates and seeds, what it costs, and whether gradients are right.",
    version=__version__,
    version_flags=["--version", "-V"],
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # invoke() says so in our words
    default_parameter=Parameter(negative="", show_default=lambda v: None if v in (None, ()) or v is False else str(v)),
)
app.register_install_completion_command(
    help="Let the shell (bash, zsh, fish) complete verbs and options, by a line in its startup file."
)
# One folder, under either name in every verb (but report, whose --out is the page).
Out = Annotated[Path, Parameter(name=["--out", "--results"], help="Where records are kept.")]
Results = Annotated[Path, Parameter(name=["--results", "--out"], help="Where records are kept.")]
Quiet = Annotated[bool, Parameter(help="No progress and no notes.")]


@dataclass(frozen=True)
class Output:
    """How a verb prints its tables."""

    format: Annotated[str, Parameter(name=["--format", "-f"], help="table, wide, json, csv or markdown.")] = "table"
    wide: Annotated[
        bool,
        Parameter(
            name="--wide",
            help="Every column of a table (--format wide), not only those that fit the terminal; a pipe gets all.",
        ),
    ] = False

    @property
    def chosen(self) -> str:
        """The name of the format."""
        return "wide" if self.wide and self.format == "table" else self.format


Tables = Annotated[Output, Parameter(name="*")]
TABLES = Output()


def whole(_type: Any, tokens: Sequence[Token]) -> int:
    """A whole number, also as 1e3. Cyclopts itself would round 1.5."""
    return _whole(tokens[0].value)


def whole_or_several(_type: Any, tokens: Sequence[Token]) -> int | tuple[int, ...]:
    """Whole numbers with commas."""
    found = tuple(map(_whole, tokens[0].value.split(",")))
    return found if len(found) > 1 else found[0]


def _whole(text: str) -> int:
    try:
        return int(text) if not float(text).is_integer() or "e" not in text.lower() else int(float(text))
    except (ValueError, OverflowError):
        raise ValueError(f"need a whole number, got {text!r}") from None


def note(text: str) -> None:
    """Progress and notes go to stderr; stdout is for data."""
    print(text, file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print data. Raises RunError where stdout cannot be written, such as on a full disk, and BrokenPipeError where its
    reader has gone."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise RunError(f"stdout: cannot be written: {error.strerror}") from error


def discard_stdout() -> None:
    """Drop what stdout still holds: Python would write it at its end, and fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse_error(error: CycloptsError) -> str:
    """What is wrong with a command line, and which --help to read."""
    text = " ".join(str(error).split())
    if isinstance(error, UnknownOptionError):
        given = (error.token.keyword or error.token.value).split("=")[0]
        known = [name[2:] for argument in error.argument_collection for name in argument.names if name[:2] == "--"]
        close = difflib.get_close_matches(given.lstrip("-"), known, n=1)  # every option has the dashes
        text = f"no option {given}" + (f", did you mean --{close[0]}?" if close else "")
    chain = " ".join(["gradbench", *(error.command_chain or ())])
    return f"{text} (see {chain} --help)"
