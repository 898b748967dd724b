"""A plan as it is written: as a command line, and in a TOML file."""

from __future__ import annotations

import dataclasses
import shlex
import tomllib
from pathlib import Path
from typing import Any

from gradbench.errors import PlanError, one_line
from gradbench.inputs.plan import SweepPlan, with_full_names
from gradbench.inputs.settings import NO_OPTIONS, SEEDS, STEPS

IF_NOT_GIVEN = {"seeds": SEEDS, "steps": STEPS}


def command_of_pair(plan: SweepPlan, problem: str, optimizer: str, **changed: Any) -> str:
    """The command line that runs one pair of `plan` with some of its fields changed; of a race's plan, a sweep with the
    usual seeds."""
    alone: dict[str, Any] = {"until": None, "seeds": None} if plan.until else {}
    alone |= {"targets": None, "target_loss": plan.solved(problem)}
    plan = dataclasses.replace(plan, problems=(problem,), optimizers=(optimizer,), **alone, **changed)
    words = ["gradbench", "run", *plan.problems]
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        if field.name in NO_OPTIONS or value == IF_NOT_GIVEN.get(field.name, field.default):
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
