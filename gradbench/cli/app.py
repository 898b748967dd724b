"""What every verb shares: the application, its options of one kind, and where notes go."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import App, Parameter, Token

from gradbench.version import __version__

INTERRUPTED = 130  # what a shell reports for Ctrl-C
app = App(
    name="gradbench",
    help="How optimizers converge over learning rates and seeds, what it costs, and whether gradients are right.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # invoke() says so in our words
    default_parameter=Parameter(negative="", show_default=lambda v: None if v in (None, ()) or v is False else str(v)),
)
Format = Annotated[str, Parameter(name=["--format", "-f"])]


def whole(_type: Any, tokens: Sequence[Token]) -> int:
    """A whole number, also as 1e3. Cyclopts itself would round 1.5."""
    text = tokens[0].value
    try:
        return int(text) if not float(text).is_integer() or "e" not in text.lower() else int(float(text))
    except (ValueError, OverflowError):
        raise ValueError(f"need a whole number, got {text!r}") from None


def note(text: str) -> None:
    """Progress and notes go to stderr; stdout is for data."""
    print(text, file=sys.stderr, flush=True)
