"""What every verb shares: the application, its options of one kind, and where data and notes go."""

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
            help="Every column of a table (--format wide), not only those that fit the terminal; so has a pipe.",
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
    """Print data, whole: RunError where stdout takes no more, such as a full disk. A reader that left is no failure."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise RunError(f"stdout: cannot be written: {error.strerror}") from error


def discard_stdout() -> None:
    """Python writes what is left when it ends, and would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse_error(error: CycloptsError) -> str:
    """What is wrong with a command line, and the help that has what is right."""
    text = " ".join(str(error).split())
    if isinstance(error, UnknownOptionError):
        given = (error.token.keyword or error.token.value).split("=")[0]
        known = [name[2:] for argument in error.argument_collection for name in argument.names if name[:2] == "--"]
        close = difflib.get_close_matches(given.lstrip("-"), known, n=1)  # every option has the dashes
        text = f"no option {given}" + (f", did you mean --{close[0]}?" if close else "")
    chain = " ".join(["gradbench", *(error.command_chain or ())])
    return f"{text} (see {chain} --help)"
