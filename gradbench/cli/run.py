"""`gradbench run`: its options are SweepPlan's fields."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from gradbench.cli.app import INTERRUPTED, TABLES, Out, Quiet, Tables, note, show, whole, whole_or_several
from gradbench.errors import PlanError
from gradbench.failures import printing_to_stderr
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.settings import GROUPS, NO_OPTIONS
from gradbench.inputs.specs.axis import OF_PLAN
from gradbench.inputs.transfer.written import read_config

if typing.TYPE_CHECKING:
    from gradbench.library.activity import Activity
    from gradbench.record.store import Run


_GROUPS = {first: Group.create_ordered(name) for first, name in GROUPS.items()}
_SWEPT, _SEARCHED, _TRIAL, *_ = _GROUPS.values()


def _option(field: dataclasses.Field[Any], kind: Any, group: Group) -> tuple[str, Any, Any]:
    """A field of the plan as an option that is None where it is not given."""
    kinds = typing.get_args(kind) or (kind,)
    flag = "--" + field.name.replace("_", "-")
    shown = "yes" if field.default is True else str(field.default)
    hidden = field.default is False or not isinstance(field.default, str | int | float)
    text = field.metadata["text"] + ("" if hidden else f" [default: {shown}]")
    parameter = Parameter(name=field.metadata["flags"] or flag, help=text, group=group)
    if int in kinds:
        converter = whole_or_several if field.name in OF_PLAN else whole
        return field.name, Annotated[int | None, parameter, Parameter(converter=converter)], None
    if kind is bool:
        negative = Parameter(negative=f"--no-{flag[2:]}" if field.default else "")
        return field.name, Annotated[bool | None, parameter, negative], None
    one_text = str in kinds and typing.get_origin(kind) is not tuple
    return field.name, Annotated[(str if one_text else kind) | None, parameter], None  # ty: ignore[invalid-type-form]


def _settings() -> type:
    """The plan's fields but those that have no option."""
    kinds = typing.get_type_hints(SweepPlan)
    options, group = [], _SWEPT
    for field in dataclasses.fields(SweepPlan):
        group = _GROUPS.get(field.name, group)
        if field.name not in NO_OPTIONS:
            options.append(_option(field, kinds[field.name], group))
    made = dataclasses.make_dataclass("Settings", options, frozen=True)
    made.__module__ = __name__  # cyclopts would take a class of the module `types` as a single value
    return made


if typing.TYPE_CHECKING:

    @dataclasses.dataclass(frozen=True)
    class Settings:
        """The settings of a plan given on the command line."""
else:
    Settings = _settings()
_NOTHING = Settings()
LENGTHS = {"steps", "epochs"}  # two ways to say how long a trial is


def run(
    *problems: str,
    settings: Annotated[Settings, Parameter(name="*")] = _NOTHING,
    epochs: Annotated[int | None, Parameter(converter=whole, group=_TRIAL)] = None,
    every: Annotated[bool, Parameter(name="--all", group=_SWEPT)] = False,
    config: Path | None = None,
    resume: str | None = None,
    cluster: str | None = None,
    unit_timeout: float | None = None,
    strict: Annotated[bool, Parameter(group=_SEARCHED)] = False,
    out: Out = Path("results"),
    quiet: Quiet = False,
    output: Tables = TABLES,
) -> int:
    """Sweep learning rates and seeds, and record convergence and timing.

    With no problem: quadratic_bowl, linear_regression, logistic_regression and mlp, with sgd, momentum and adam.

    Parameters
    ----------
    problems
        Names with settings, such as "mlp[hidden=64]", groups, such as @networks, or files, such as ./mine.py; see
        gradbench list.
    epochs
        Passes through the data, instead of --steps: examples // batch size steps each, or one with all the data.
    every
        Every built-in problem, as @all.
    config
        A TOML file with these settings, by their names here or in run.json; options given here win.
    resume
        Go on with an interrupted run: its folder, its id, or latest.
    cluster
        Where workers run it: a Dask scheduler, tcp://host:8786 or tls://host:8786; local:4, that many processes here;
        or slurm:FILE.toml. It changes no number; see docs/scale.md.
    unit_timeout
        Seconds after which a worker that is still running one unit of work is taken to hang, and is ended.
    strict
        With --until: exit 1 also where it is not decided.
    """
    from gradbench.library.activity import Activity
    from gradbench.tables import check_format

    check_format(output.chosen)
    if every and problems:
        raise PlanError("--all runs every built-in problem; give no problem beside it")
    problems = ("@all",) if every else problems
    given: dict[str, Any] = {"problems": problems} if problems else {}
    given |= {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
    given |= {} if epochs is None else {"epochs": epochs}
    if resume is not None and (given or config):
        raise PlanError("--resume goes on with a run's own plan; give no problem or option beside it")
    with Activity(quiet) as activity:
        record, began = _made(activity, config, given, resume, strict, out, (cluster, unit_timeout))
    complete = record.info["state"] == "complete"
    try:
        _show(record, output.chosen)
    finally:  # where the record is, even if stdout is full
        if complete and not quiet:
            note(f"record: {record.path}" + ("" if began else " (complete: nothing was left to run)"))
    return _exit_code(record, strict) if complete else INTERRUPTED


def _made(
    activity: Activity,
    config: Path | None,
    given: dict[str, Any],
    resume: str | None,
    strict: bool,
    out: Path,
    workers: tuple[str | None, float | None],
) -> tuple[Run, bool]:
    """(the record of a new or resumed run, whether anything was left to run)."""
    activity.say("starting JAX")
    from gradbench.cli.progress import watching
    from gradbench.engine import runner
    from gradbench.machine.cache import use_cache
    from gradbench.record.store import load_run

    use_cache()
    with watching(activity) as watcher, printing_to_stderr():
        plan = None if resume is not None else _plan(config, given)
        if strict and (plan or load_run(str(resume), out).plan).until is None:
            raise PlanError("--strict is for --until: only its races can end undecided")
        with _workers(*workers, plan) as executor:
            by: dict[str, Any] = {"watcher": watcher, "executor": executor, "unit_timeout": workers[1]}
            if plan is None:
                record = runner.resume(str(resume), results=out, **by)
            else:
                record = runner.run_plan(plan, out=out, **by)
    return record, watcher.path is not None


def _show(record: Run, output_format: str) -> None:
    from gradbench.analysis.answers import run_table
    from gradbench.analysis.races.text import race_text

    show("\n".join(filter(None, [run_table(record, output_format), race_text(record, output_format)])))


def _exit_code(record: Run, strict: bool) -> int:
    """1 where the race of --until was decided for the other optimizer or, with `strict`, not decided; else 0."""
    from gradbench.analysis.races.records import answer

    if record.plan.until is None:
        return 0
    wins = answer(record)
    return int(wins is False or (strict and wins is None))


def _workers(cluster: str | None, timeout: float | None, plan: SweepPlan | None) -> AbstractContextManager[Any]:
    """A context of the workers that --cluster names; of None without it: this process runs the plan."""
    if timeout is not None and (cluster is None or not timeout > 0):
        raise PlanError(f"--unit-timeout: {timeout:g}: need seconds above 0, of the units that --cluster's workers run")
    if cluster is None:
        return contextlib.nullcontext()
    from gradbench.machine.cluster import connect

    return connect(cluster, plan.device if plan else None)


def _plan(config: Path | None, given: dict[str, Any]) -> SweepPlan:
    """The file's settings and those given, which win, as a plan; epochs are turned into steps."""
    chosen = read_config(config) if config else {}
    if given.keys() & LENGTHS:
        chosen = {name: value for name, value in chosen.items() if name not in LENGTHS}
    chosen, where = chosen | given, str(config) if config and not given else "run"
    if "epochs" not in chosen:
        return SweepPlan.from_dict(chosen, where=where)
    from gradbench.library.given import plan_of_epochs

    return plan_of_epochs(chosen, where=where)
