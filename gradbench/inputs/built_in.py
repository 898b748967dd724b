"""The built-in problems: where their files are, their names and groups, read without running a file or starting JAX."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from gradbench.errors import ProblemError, nearest

GROUPS = ("landscapes", "convex", "networks", "science")


def problems_folder() -> Path:
    """Where the built-in problem files are: inside the package in a wheel, beside it in a checkout."""
    inside = Path(__file__).parents[1] / "problems"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "problems"


def problem_names() -> list[str]:
    """The names of the built-in problems, sorted."""
    return sorted(p.stem for p in problems_folder().glob("*.py") if not p.stem.startswith("_"))


def problem_group(name: str) -> str:
    """The group that the file of a built-in problem declares, `GROUP = "..."`; one of GROUPS."""
    path = problems_folder() / f"{name}.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "GROUP":
            group = ast.literal_eval(node.value)
            if group in GROUPS:
                return group
    raise ProblemError(f'{path}: declares no group; write GROUP = "{GROUPS[0]}", or one of {", ".join(GROUPS[1:])}')


def grouped_names() -> dict[str, list[str]]:
    """The names of the built-in problems by group, in the order of GROUPS."""
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in problem_names():
        groups[problem_group(name)].append(name)
    return groups


def without_groups(specs: Iterable[str]) -> list[str]:
    """Problems' specs with `@networks`, and so on, replaced by the names of that group, and `@all` by those of all.

    Raises ProblemError for a group that there is not.
    """
    found = []
    for spec in specs:
        if not spec.startswith("@"):
            found.append(spec)
            continue
        known = [f"@{group}" for group in ("all", *GROUPS)]
        if spec not in known:
            raise ProblemError(f"no group {spec!r}{nearest(spec, known)} (groups: {', '.join(known)})")
        found += [name for group, names in grouped_names().items() if spec in ("@all", f"@{group}") for name in names]
    return found
