"""The command line of a plan, for those who go on from it."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from gradbench.inputs.plan import NO_OPTIONS, SweepPlan


def command(plan: SweepPlan, **changed: Any) -> str:
    """The command line that runs `plan` with some of its fields changed."""
    plan = dataclasses.replace(plan, **changed)
    words = ["gradbench", "run", *plan.problems]
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        if value == field.default or field.name in NO_OPTIONS:
            continue
        flag = (field.metadata["flags"] or ("--" + field.name.replace("_", "-"),))[-1]
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif field.name == "optimizers":
            words += [word for spec in value for word in (flag, spec)]
        else:
            words += [flag, ",".join(f"{rate:g}" for rate in value) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)
