"""`gradbench run`: its options are SweepPlan's fields."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from gradbench.cli.app import INTERRUPTED, Format, note, whole
from gradbench.errors import PlanError
from gradbench.failures import printing_to_stderr
from gradbench.inputs.plan import SweepPlan, read_config


def _option(field: dataclasses.Field[Any], kind: Any) -> tuple[str, Any, Any]:
    """A field of the plan as an option that is None where it is not given."""
    kinds = typing.get_args(kind) or (kind,)
    flag = "--" + field.name.replace("_", "-")
    shown = "yes" if field.default is True else str(field.default)
    hidden = field.default is False or not isinstance(field.default, str | int | float)
    text = field.metadata["text"] + ("" if hidden else f" [default: {shown}]")
    parameter = Parameter(name=field.metadata["flags"] or flag, help=text)
    if int in kinds:
        return field.name, Annotated[int | None, parameter, Parameter(converter=whole)], None
    if kind is bool:
        negative = Parameter(negative=f"--no-{flag[2:]}" if field.default else "")
        return field.name, Annotated[bool | None, parameter, negative], None
    one_text = str in kinds and typing.get_origin(kind) is not tuple
    return field.name, Annotated[(str if one_text else kind) | None, parameter], None  # ty: ignore[invalid-type-form]


def _settings() -> type:
    """The plan's fields but the problems, which have no option."""
    kinds = typing.get_type_hints(SweepPlan)
    fields = [field for field in dataclasses.fields(SweepPlan) if field.name != "problems"]
    made = dataclasses.make_dataclass("Settings", [_option(field, kinds[field.name]) for field in fields], frozen=True)
    made.__module__ = __name__  # cyclopts takes a class of the module `types` for one value
    return made


if typing.TYPE_CHECKING:

    @dataclasses.dataclass(frozen=True)
    class Settings:
        """What is given of a plan on the command line."""
else:
    Settings = _settings()
_NOTHING = Settings()


def run(
    *problems: str,
    settings: Annotated[Settings, Parameter(name="*")] = _NOTHING,
    config: Path | None = None,
    resume: str | None = None,
    out: Path = Path("results"),
    quiet: bool = False,
    format: Format = "table",
) -> int:
    """Sweep learning rates and seeds, and record convergence and timing.

    With no problem: quadratic_bowl, linear_regression, logistic_regression and mlp, with sgd, momentum and adam.

    Parameters
    ----------
    problems
        Names with settings, such as "mlp[hidden=64]", or files, such as ./mine.py; see gradbench list.
    config
        A TOML file with these settings, by the names that run.json uses; options given here win.
    resume
        Go on with an interrupted run: its folder, its id, or latest.
    out
        Where records are kept.
    quiet
        No progress and no notes.
    format
        Format of the final table: table, json, csv or markdown.
    """
    from gradbench.tables import check_format

    check_format(format)
    given: dict[str, Any] = {"problems": problems} if problems else {}
    given |= {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
    if resume is not None and (given or config):
        raise PlanError("--resume goes on with a run's own plan; give no problem or option beside it")
    from gradbench.cli.progress import watching
    from gradbench.machine.cache import use_cache

    use_cache()
    with watching(quiet) as watcher, printing_to_stderr():
        if resume is not None:
            from gradbench.engine.runner import resume as go_on

            record = go_on(resume, results=out, watcher=watcher)
        else:
            chosen = (read_config(config) if config else {}) | given
            plan = SweepPlan.from_dict(chosen, where=str(config) if config and not given else "run")
            from gradbench.engine.runner import run_plan

            record = run_plan(plan, out=out, watcher=watcher)
    from gradbench.analysis.answers import run_table

    print(run_table(record, format))
    if record.info["state"] != "complete":
        return INTERRUPTED
    if not quiet:
        note(f"record: {record.path}")
    return 0
