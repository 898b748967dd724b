"""The targets in a suite's file: what they were measured under, whether that still holds, and how they are written.

`[[measured]]` says, for some problems, what a target hangs on: the rule, the settings below, and the references with
their search spaces; and a digest of that, so that it is not edited along with them. It is no part of a suite's version,
which has all of it already.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradbench.errors import PlanError
from gradbench.files import writing
from gradbench.inputs.specs.spec import parse_spec
from gradbench.suites.definition import OF_TARGETS, Group, Suite

RULE = 1  # of suites/freeze.py: a new number where targets are measured otherwise
_INFORMS = {"specs", "seeds", "sha256"}  # of [[measured]]: whose targets, over how many seeds, and its digest
SETTINGS = ("dtype", "precision", "steps", "batch_size", "target")  # of a plan


@dataclass(frozen=True)
class Measured:
    """A problem's target, the optimizer and the learning rate that reached it, and the held-out loss there, if any."""

    problem: str
    target: float
    holdout: float | None
    optimizer: str
    learning_rate: float


def conditions(suite: Suite, of_problems: Group) -> dict[str, Any]:
    """What the targets of a group of problems hang on, as TOML takes it."""
    _, plan = next(suite.plans(of_problems.specs))
    settings = {key: getattr(plan, key) for key in SETTINGS}
    spaces = {group.specs[0]: group.settings["learning_rates"] for group in suite.groups_of(suite.references)}
    found = {"rule": RULE, **settings, "trials": of_problems.settings["trials"], "references": spaces}
    return {key: list(of) if isinstance(of, tuple) else of for key, of in found.items() if of is not None}


def measured_under(suite: Suite, seeds: int, problems: Sequence[str]) -> list[dict[str, Any]]:
    """The [[measured]] tables once the targets of these problems are measured, over so many seeds: theirs and, as they
    are, those of the others."""
    others = [spec for spec in suite.all_problems if spec not in problems]
    tables = [{**of, "specs": [spec for spec in of["specs"] if spec in others]} for of in suite.measured]
    for of_problems in suite.problems:
        now = {"seeds": seeds, **conditions(suite, of_problems)}
        specs = [spec for spec in of_problems.specs if spec in problems]
        tables.append({"specs": specs, **now, "sha256": _digest(now)})
    found: list[dict[str, Any]] = []
    for table in tables:
        alike = [of for of in found if {**of, "specs": []} == {**table, "specs": []}]
        if alike:
            alike[0]["specs"] = [spec for spec in suite.all_problems if spec in alike[0]["specs"] + table["specs"]]
        elif table["specs"]:
            found.append(table)
    return found


def _digest(of: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]


def measured_otherwise(suite: Suite) -> str | None:
    """A sentence on targets that were measured under other conditions than the suite's, None if there are none. Of
    targets that no [[measured]] speaks for, which somebody has stated, nothing is said."""
    for of_problems in suite.problems:
        now = conditions(suite, of_problems)
        for table in suite.measured:
            shared = [spec for spec in of_problems.specs if spec in table["specs"] and spec in suite.targets]
            if shared and table.get("sha256") != _digest({"seeds": table.get("seeds"), **now}):
                keys = [key for key in {**now, **table} if key not in _INFORMS and table.get(key) != now.get(key)]
                words = ", ".join(f"{key} {_words(table, key)}, now {_words(now, key)}" for key in keys)
                words = words or "its [[measured]] has been edited, too"
                return f"{suite.name}: the target of {shared[0]} was measured for other settings ({words})"
    return None


def unmeasured(suite: Suite, problems: Sequence[str] = ()) -> str | None:
    """A sentence on the problems, of these or of all, that have no target though there is a rule to measure them by."""
    asked = problems or suite.all_problems
    without = [name for name in asked if suite.references and name not in suite.targets]
    which = "all problems" if len(without) == len(asked) else ", ".join(without)
    takes = f", which takes a {suite.meant_for}" if suite.meant_for else ""
    text = f"{suite.name}: the targets of {which} have not been measured{takes}: the problems' own stand there"
    return text if without else None


def _words(of: Mapping[str, Any], key: str) -> str:
    value = of.get(key, "none")
    if isinstance(value, Mapping):
        return " ".join(f"{name} {space}" for name, space in value.items()) or "none"
    return str(value)


def write_targets(
    path: Path, suite: Suite, found: Sequence[Measured], under: Sequence[Mapping[str, Any]], reduced: bool
) -> None:
    """Replace these targets of a suite, or of its reduced runs, in its file, and nothing else.

    Raises PlanError where they are written in another way than as tables of their own.
    """
    text = with_targets(path, suite, found, under, reduced)
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def with_targets(
    path: Path, suite: Suite, found: Sequence[Measured], under: Sequence[Mapping[str, Any]], reduced: bool
) -> str:
    """A suite's file with these targets, the suite's for its other problems, and what they were measured `under`, in
    the place of the tables that it has or at its end."""
    text = path.read_text(encoding="utf-8")
    within = "reduced." if reduced else ""
    new = {one.problem: one for one in found}
    targets = dict(suite.targets) | {name: one.target for name, one in new.items()}
    held = {name: loss for name, loss in suite.holdout.items() if name not in new}
    held |= {name: float(f"{one.holdout:.4g}") for name, one in new.items() if one.holdout is not None}
    targets, held = ({name: of[name] for name in suite.all_problems if name in of} for of in (targets, held))
    before = "\n".join(of.group() for of in _tables(within, ["targets"]).finditer(text))
    lines = [f"[{within}targets] # training losses, measured: gradbench suite freeze"]
    for name, loss in targets.items():
        if name in new:
            comment = f" # {new[name].optimizer} at {new[name].learning_rate:.3g}"
        else:
            kept = re.search(rf"^\s*[\"']?{re.escape(_key(name)[1:-1])}[\"']?\s*=[^#\n]*(#.*)$", before, re.MULTILINE)
            comment = f" {kept.group(1)}" if kept else ""
        lines.append(f"{_key(name)} = {loss!r}{comment}")
    if held:
        lines += ["", f"[{within}holdout] # the held-out losses that those come from"]
        lines += [f"{_key(problem)} = {loss!r}" for problem, loss in held.items()]
    for table in under:
        lines += ["", f"[[{within}measured]] # what those targets hang on"]
        lines += [f"{key} = {_value(of)}" for key, of in table.items()]
    tables = iter(["\n\n" + "\n".join(lines)])
    made, count = _tables(within).subn(lambda _: next(tables, ""), text)
    made = (made if count else text.rstrip() + next(tables)).strip("\n") + "\n"
    content = tomllib.loads(text)
    place = content["reduced"] if reduced else content
    for name in OF_TARGETS:
        place.pop(name, None)
    place |= {"targets": targets, **({"holdout": held} if held else {})}
    place |= {"measured": [dict(table) for table in under]} if under else {}
    with contextlib.suppress(tomllib.TOMLDecodeError):
        if tomllib.loads(made) == content:
            return made
    raise PlanError(f"{path}: its targets cannot be replaced; write [{within}targets] and the like as tables")


def _tables(within: str, names: Sequence[str] = OF_TARGETS) -> re.Pattern[str]:
    """A table of one of these names with the blank lines before it, up to its last key: comments behind that are the
    next's."""
    name = re.escape(within) + rf"([\"']?)(?:{'|'.join(names)})\1"
    body = r".*(?:\n(?:[ \t]*(?:#.*)?\n)*[ \t]*[^\s\[#].*)*"
    return re.compile(rf"\s*^[ \t]*\[\[?[ \t]*{name}[ \t]*\]\]?{body}", re.MULTILINE)


def _value(of: Any) -> str:
    if isinstance(of, Mapping):
        return "{ " + ", ".join(f"{_key(name)} = {_value(value)}" for name, value in of.items()) + " }"
    if isinstance(of, list):
        line = f"[{', '.join(map(_value, of))}]"
        return line if len(line) < 100 else "[\n" + "".join(f"    {_value(one)},\n" for one in of) + "]"
    return json.dumps(of)


def _key(problem: str) -> str:
    parse_spec(problem, PlanError)
    return '"' + problem.replace("\\", "\\\\").replace('"', '\\"') + '"'
