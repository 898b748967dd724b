"""A plan as text: the command line that runs it, and the TOML file that states it."""

from __future__ import annotations

import dataclasses
import shlex
import tomllib
from pathlib import Path
from typing import Any

from gradbench.errors import PlanError, one_line
from gradbench.inputs.plan import SweepPlan, with_full_names


def command(plan: SweepPlan, **changed: Any) -> str:
    """The command line that runs `plan` with some of its fields changed."""
    plan = dataclasses.replace(plan, **changed)
    words = ["gradbench", "run", *plan.problems]
    for field in dataclasses.fields(plan)[1:]:
        value = getattr(plan, field.name)
        if value == field.default:
            continue
        flag = (field.metadata["flags"] or ("--" + field.name.replace("_", "-"),))[-1]
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif field.name == "optimizers":
            words += [word for spec in value for word in (flag, spec)]
        else:
            words += [flag, ",".join(f"{rate:g}" for rate in value) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)


def read_config(path: str | Path) -> dict[str, Any]:
    """The settings in a TOML file whose keys are SweepPlan's fields, or the command line's options."""
    try:
        with open(path, "rb") as file:
            return with_full_names(tomllib.load(file), str(path))
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: not TOML: {one_line(error)}") from error
