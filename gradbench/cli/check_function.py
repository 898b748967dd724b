"""`gradbench check FILE.py:mine --against FILE.py:plain`: loads the functions, checks, prints, writes a record."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradbench.cli import check as problems
from gradbench.errors import GradbenchError, PlanError, ProblemError, error_text, nearest
from gradbench.failures import printing_to_stderr
from gradbench.gradients.functions.check import Check, Inputs
from gradbench.inputs.specs.spec import is_path, load_file
from gradbench.library.activity import Activity
from gradbench.paths import user_path

TORCH = "torch:"  # the prefix of a PyTorch function
_FUNCTION = re.compile(r"([^\[\]]+):(\w+)$")


def is_function(target: str) -> bool:
    """Whether it names a function, FILE.py:name or package.module:name, not a problem."""
    return _FUNCTION.match(target) is not None


def run_check_function(
    targets: Sequence[str],
    *,
    against: str | None,
    args: str | None,
    case: str | None,
    order: int,
    search: int,
    dtypes: Sequence[str],
    precision: str,
    device: str | None,
    fast: bool,
    strict: bool,
    output_format: str,
    out: str | Path | None,
    note: Callable[[str], None],
    activity: Activity,
) -> int:
    """Check the functions, each against `against`. Returns 1 if one is wrong (with `strict` also where a verdict is
    INCONCLUSIVE), else 0. Raises GradbenchError for bad input."""
    modules: dict[str, Any] = {}
    with printing_to_stderr():
        if against and against.startswith(TORCH):
            raise ProblemError(f"{against}: a reference is written with jax.numpy, so that its rounding can be derived")
        reference = load_function(against, modules) if against else None
        loaded = [(target, load_function(target, modules)) for target in targets]
    if not loaded or not all(map(is_function, targets)):
        raise PlanError("name the function that is checked: gradbench check FILE.py:mine --against FILE.py:plain")
    reports = []
    for target, mine in loaded:
        note(f"checking {target} ...")
        inputs = args or _cases(target, against, modules)
        command = _command(target, against, args, precision, device, order)
        with printing_to_stderr():
            check = Check(mine, (), reference, inputs, (target, against or ""), command)
            reports.append(check.run(dtypes or None, precision, device, fast, case, order, search))
        if output_format in problems.FOR_PEOPLE:
            with activity.paused():
                problems.print_report(reports[-1], output_format)
    document = [report.to_json() for report in reports]
    if output_format not in problems.FOR_PEOPLE:
        problems.print_rows([line for report in reports for line in report.table()], output_format, document)
    problems.write_record(out, {"kind": "check-function", "checks": document}, note)
    return problems.exit_code(reports, strict)


def load_function(target: str, modules: dict[str, Any]) -> Callable[..., Any]:
    """The function of FILE.py:name or package.module:name; a PyTorch function after torch:. A file is run once, and
    kept in `modules`. Raises ProblemError where there is no such function."""
    if target.startswith(TORCH):
        from gradbench.gradients.ports.pytorch import TorchFunction

        return TorchFunction(load_function(target.removeprefix(TORCH), modules))
    match = _FUNCTION.match(target)
    if match is None:
        raise ProblemError(f"{target!r}: name a function, as in ./kernel.py:plain")
    place, name = match.groups()
    if place not in modules:
        modules[place] = load_file(user_path(place), ProblemError) if is_path(place) else _module(place)
    function = getattr(modules[place], name, None)
    if not callable(function):
        known = [key for key, value in vars(modules[place]).items() if callable(value) and key[0] != "_"]
        raise ProblemError(f"{place} has no function {name!r}{nearest(name, known)}")
    return function


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except GradbenchError:
        raise
    except Exception as error:
        raise ProblemError(f"{name}: cannot be imported: {error_text(error)}") from error


def _cases(target: str, against: str | None, modules: dict[str, Any]) -> Inputs:
    """The function cases(key) in the function's file, or in the reference's. Raises PlanError without one."""
    for place in filter(None, (target, against)):
        match = _FUNCTION.match(place.removeprefix(TORCH))
        found = getattr(modules[match[1]], "cases", None) if match else None
        if callable(found):
            return found
    raise PlanError(
        f"{target}: its arguments are missing. Give its arrays, --args 'x: f32[n,d], w: f32[d,k]', or write cases(key) "
        "in its file, which returns a tuple of arguments"
    )


def _command(target: str, against: str | None, args: str | None, precision: str, device: str | None, order: int) -> str:
    """The command line that reproduces a finding, up to its dtype and case."""
    options = {"against": against, "args": args, "precision": precision if precision != "highest" else None}
    options |= {"device": device, "order": "2" if order == 2 else None}
    parts = [f"--{name} {shlex.quote(value)}" for name, value in options.items() if value]
    return " ".join(["gradbench check", shlex.quote(target), *parts])
