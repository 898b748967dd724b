"""What gradbench raises. The library raises; the command line turns each into one line and an exit code."""

from __future__ import annotations

import difflib
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path


class GradbenchError(Exception):
    """Base of everything gradbench raises on purpose. `exit_code` is what the command line returns."""

    exit_code = 2


class ProblemError(GradbenchError):
    """A problem could not be found, loaded, or does not keep the contract of a problem file."""


class OptimizerError(GradbenchError):
    """An optimizer spec could not be read, or the optimizer cannot be swept over learning rates."""


class PlanError(GradbenchError):
    """A plan asks for something impossible: a reversed range, zero steps, a device that is not there."""


class RecordError(GradbenchError):
    """A record on disk is missing, damaged, or written by a newer gradbench."""


class DamagedError(RecordError):
    """A record's files are not what a record has: cut short, changed, or gone. To verify it is to be told no."""


class RunError(GradbenchError):
    """The run itself failed after its input had been accepted."""

    exit_code = 3


class GradbenchWarning(UserWarning):
    """Something goes on that its user should know of."""


def one_line(error: BaseException) -> str:
    """The first line of what an exception says, and the next where that only begins there, with its type when it says
    nothing; of one that quotes a traceback, as that of a failing callback does, the last line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    line = lines[-1 if "Traceback" in lines[0] else 0] if lines else type(error).__name__
    if line.endswith(("differ:", "differ.")) and len(lines) > 1:  # JAX of the types of a loop or of branches
        line = f"{line} {lines[1]}"
    return " ".join(line.split())


# What would do instead, by JAX's errors of code that wants the value of an array that has none yet.
_OF_TRACERS = {
    "TracerArrayConversionError": "; a traced array is for jax.numpy, not for numpy",
    "TracerBoolConversionError": "; what is traced is tested by jnp.where or jax.lax.cond, not by `if`",
    "TracerIntegerConversionError": "; what is traced can index an array of jax.numpy, no list and no range",
    "ConcretizationTypeError": "; what is traced has no value yet: no float() or int() of it",
}


def error_text(error: BaseException) -> str:
    """An exception's type and line, where in a user's own code it was raised, and for some of JAX's what would do."""
    line, place = one_line(error)[:300], user_line(error)
    text = line if line == type(error).__name__ else f"{type(error).__name__}: {line}"
    return (f"{text} ({place})" if place else text) + _OF_TRACERS.get(type(error).__name__, "")


_LIBRARIES = (str(Path(__file__).parent), sysconfig.get_path("stdlib"), "<frozen")


def user_line(error: BaseException) -> str:
    """`file:line` of the innermost frame that lies in a user's file, neither gradbench's nor an installed package's;
    empty where there is none. Files below the working directory are named from there."""
    frames = reversed(list(traceback.walk_tb(error.__traceback__)))
    return next(filter(None, (users_place(frame.f_code.co_filename, line) for frame, line in frames)), "")


def users_place(file: str, line: int | None) -> str:
    """`file:line` where the file is a user's; else the empty string. See `user_line`."""
    if file.startswith(_LIBRARIES) or "site-packages" in file or "dist-packages" in file:
        return ""
    path = Path(file)
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else file}:{line}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A ", did you mean 'x'?" for the known name nearest to `name`, or the empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""
