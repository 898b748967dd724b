"""The command line's verbs as functions. They return objects and raise a GradbenchError where the command line says one
line; they print nothing, but for the progress that is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from gradbench.analysis.races.races import Races
from gradbench.analysis.races.records import races as race
from gradbench.analysis.races.tunability import Tunability
from gradbench.analysis.races.tunability import tunability as tune
from gradbench.analysis.regress import Comparison, compare_runs
from gradbench.analysis.summary import GOOD_FACTOR
from gradbench.archive.export import export as write_export
from gradbench.archive.history import History, load_runs
from gradbench.archive.history import history as follow
from gradbench.archive.verify import Verification, verify_run
from gradbench.engine import runner
from gradbench.engine.driver import Watcher
from gradbench.errors import GradbenchError
from gradbench.inputs.optimizer import Optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem
from gradbench.library.compared import RunComparison
from gradbench.library.given import plan_of_epochs, take_optimizers, take_problems
from gradbench.library.progress import watching
from gradbench.library.run import Run, load_run
from gradbench.machine.devices import each_core_a_device
from gradbench.machine.workers import Workers
from gradbench.record import store
from gradbench.suites.definition import TUNED, chosen_groups, load_suite
from gradbench.suites.running import archived, of_suite
from gradbench.suites.running import run_suite as run_of_suite
from gradbench.suites.standing import Standing
from gradbench.suites.standing import standing as place_among

Record = store.Run | str | Path
"""A record: itself, or its path, its id, or "latest"."""


def sweep(
    problems: Any = SweepPlan.problems,
    optimizers: Any = SweepPlan.optimizers,
    learning_rates: Any = SweepPlan.learning_rates,
    *,
    out: str | Path = "results",
    progress: bool | None = None,
    executor: Executor | Workers | None = None,
    unit_timeout: float | None = None,
    **settings: Any,
) -> Run:
    """Sweep learning rates and seeds over problems and optimizers, and record it under `out`.

    problems: specs, Problem objects, functions that return one, or a list of them.
    optimizers: specs, functions of the learning rate such as optax.adam or functools.partial(optax.adam, b1=0.8),
        {"name": function}, or a list of them. A function that is not optax's is known to this process only: its run
        cannot be resumed in another.
    learning_rates: "low:high:count" (log-spaced), log_range's, or the values: a sequence, an array, or one number.
    progress: whether to draw it; if None, in a notebook and at a prompt only.
    executor: whose workers run it, any of concurrent.futures, such as ProcessPoolExecutor with spawned processes or
        Dask's client.get_executor(); or gradbench.connect("local:4"). The record is that of one process, but for the
        timings, which workers leave out that share their cores. This process writes it.
    unit_timeout: seconds after which a part of a pair that a worker runs is stopped, with that worker's process.
    settings: SweepPlan's other fields, such as seeds=3, steps=1000, dtype="float64"; epochs=5, of the problem's
        examples, in place of steps; or until="adam<sgd", with which seeds are added until it is decided which of the
        two wins: `races` of the run has the answer.

    Raises a GradbenchError for bad input, RunError if the run itself fails.
    """
    each_core_a_device()
    names, objects = take_problems(problems)
    chosen, functions = take_optimizers(optimizers)
    values = {"problems": names, **settings}
    if optimizers is not SweepPlan.optimizers:  # which a plan tells from those that are given
        values["optimizers"] = chosen
    if learning_rates is not SweepPlan.learning_rates:  # which may be given as lr
        values["learning_rates"] = learning_rates
    plan = plan_of_epochs(values, objects) if "epochs" in values else SweepPlan.from_dict(values)
    by: dict[str, Any] = {"executor": executor, "unit_timeout": unit_timeout}
    return run_plan(plan, out=out, objects=objects, functions=functions, progress=progress, **by)


def run_plan(
    plan: SweepPlan,
    *,
    out: str | Path = "results",
    watcher: Watcher | None = None,
    objects: Mapping[str, Problem] | None = None,
    functions: Mapping[str, Optimizer] | None = None,
    progress: bool | None = None,
    executor: Executor | Workers | None = None,
    unit_timeout: float | None = None,
) -> Run:
    """Run a plan and return its record. By the plan's names: `objects` are problems given as objects, `functions`
    optimizers given as functions. `watcher` is told of what happens, instead of drawing the `progress`. `executor` and
    `unit_timeout` are as of `sweep`."""
    given: dict[str, Any] = {"objects": objects, "functions": functions}
    given |= {"executor": executor, "unit_timeout": unit_timeout}
    with _watched(watcher, progress) as by:
        record = runner.run_plan(plan, out=out, watcher=by, **given)
    return Run.of(record, objects)


def resume(
    name: str | Path,
    *,
    results: str | Path = "results",
    watcher: Watcher | None = None,
    progress: bool | None = None,
    executor: Executor | Workers | None = None,
    unit_timeout: float | None = None,
) -> Run:
    """Go on with an interrupted or killed run; a complete one is returned as it is.

    Finished pairs are not rerun and the result is the uninterrupted run's, bit for bit. Raises RecordError where
    that cannot be: other versions, devices, problems, data or optimizers than the run began with, or a problem or
    optimizer that was given as an object, which no other process has. `executor` and `unit_timeout` are as of `sweep`;
    a run may begin with an executor and go on without, or with another one.
    """
    with _watched(watcher, progress) as by:
        run = runner.resume(name, results=results, watcher=by, executor=executor, unit_timeout=unit_timeout)
        return Run.of(run)


def _watched(watcher: Watcher | None, progress: bool | None) -> AbstractContextManager[Watcher]:
    return watching(progress) if watcher is None else contextlib.nullcontext(watcher)


def compare(
    *runs: Record,
    factor: float = GOOD_FACTOR,
    problems: Sequence[str] = (),
    optimizers: Sequence[str] = (),
    by: str | None = None,
    results: str | Path = "results",
) -> RunComparison:
    """Learning rates side by side, of one record or of several with one reference for all; of all their pairs, or of
    these problems and optimizers. A learning rate is good if every seed is within `factor` of the best. `by` is the
    metric to judge by beside the loss, such as "holdout.accuracy"; if None the held-out loss, where there is one."""
    return RunComparison.of(_records(runs, results), factor, _names(problems), _names(optimizers), by)


def regress(
    old: Record | Sequence[Record],
    new: Record,
    *,
    max_slowdown: float = 1.10,
    allow_missing: bool = False,
    results: str | Path = "results",
) -> Comparison:
    """Whether a new record is slower, or converges worse, than an old one or the median of several: `.regressed`,
    `.rows`, `.notes`; str() is a table. Raises GradbenchError where nothing can be compared."""
    olds = [old] if isinstance(old, Record) else list(old)
    return compare_runs(_records(olds, results), _record(new, results), max_slowdown, allow_missing)


def report(
    *runs: Record,
    out: str | Path = "report.html",
    checks: Sequence[str | Path] = (),
    by: str | None = None,
    results: str | Path = "results",
) -> Path:
    """Write one HTML page about one or more records that works offline, and return its path.

    `checks` are records of gradbench check to show; without any, the newest beside the records for their problems. `by`
    is the metric that the page opens with, such as "holdout.accuracy", instead of the gap.
    """
    from gradbench.reporting.page import write_report  # Altair takes half a second

    records = _records(runs, results)
    objects = records[0].objects if len(records) == 1 else {}
    return write_report(records, out, checks, objects, by)


def races(
    *runs: Record,
    problems: Sequence[str] = (),
    optimizers: Sequence[str] = (),
    results: str | Path = "results",
) -> Races:
    """Every two optimizers, of one record or of several with one target: how much sooner one reaches the target, with
    its 95 % interval, and whether that is more than chance: `.rows`, `.sentences`, `.notes`; str() is a table. Each is
    judged at a learning rate that was chosen on other seeds (docs/statistics.md)."""
    return race(_records(runs, results), _names(problems), _names(optimizers))


def tunability(
    *runs: Record,
    problems: Sequence[str] = (),
    optimizers: Sequence[str] = (),
    results: str | Path = "results",
) -> Tunability:
    """What each optimizer is expected to reach after so many random trials of tuning, `.curves`, and what it loses at
    half and twice its best learning rate, `.robustness`; str() is both tables."""
    return tune(_records(runs, results), _names(problems), _names(optimizers))


def verify(
    run: Record,
    sample: int = 20,
    *,
    seed: int | None = None,
    own_files: bool = False,
    results: str | Path = "results",
) -> Verification:
    """Whether a record holds: `.holds`, `.rows`, `.faults`, `.notes`, `.chance(changed trials)`; str() is a table.

    It is held against its manifest, its plan and itself, and `sample` of its trials are run again, drawn by `seed` (a
    new one if None). Problems and optimizers in files that the record names are run only with `own_files`. Raises
    GradbenchError where nothing can be replayed; a record whose files cannot be read does not hold.
    """
    if isinstance(run, str | Path):
        return verify_run(store.find_run(run, results), sample, seed, own_files)
    record = _record(run, results)
    return verify_run(record, sample, seed, own_files, record.objects)


def export(
    run: Record,
    to: str,
    into: str | Path | None = None,
    *,
    best: bool = False,
    results: str | Path = "results",
) -> Path:
    """Write a record for another tool, "csv", "tensorboard", "wandb" (offline) or "mlflow", into a new folder, by
    default exports/<id>-<tool>; its path. `best`: only the trials at each pair's best learning rate."""
    return write_export(_record(run, results), to, into, best)[0]


def history(results: str | Path = "results") -> History:
    """Steps to the target and step times over all records of a folder, and where they changed: `.rows`, `.points`,
    `.notes`; str() is a table."""
    return follow(*load_runs(results))


def run_suite(
    name: str | Path,
    optimizers: Sequence[str] = (),
    *,
    problems: Sequence[str] = (),
    ruleset: str = TUNED,
    learning_rates: str | None = None,
    reduced: bool | None = None,
    device: str | None = None,
    out: str | Path = "results",
    resume: bool = False,
    progress: bool | None = None,
) -> list[Run]:
    """Run a suite, built in or a .toml file, and return its records: of its own optimizers and problems, or of these.

    An optimizer that the suite does not name, such as "./mine.py:make", has the search space `learning_rates`,
    "low:high", or the suite's; self-tuning, one rate or its own default. `resume` and `reduced` are as of `gradbench
    suite run`. Raises PlanError for what the suite has not.
    """
    suite = load_suite(name)
    groups = chosen_groups(suite, _names(optimizers), ruleset, learning_rates)
    settings = {"problems": _names(problems), "optimizers": groups, "reduced": reduced, "device": device}
    runs = run_of_suite(suite, **settings, out=out, resume=resume, watching=lambda: _watched(None, progress))
    return [Run.of(run) for run in runs]


def standing(
    *runs: Record,
    among: Sequence[Record] = (),
    results: str | Path = "results",
) -> Standing:
    """Where the optimizers of these records stand among those of others, on each problem and over all: `.rows`,
    `.sentences`, `.notes`; str() is a table. Without `among`, the others are the archived records of their suite."""
    mine = _records(runs, results)
    if among:
        return place_among(mine, _records(tuple(among), results), archived=False)
    if not mine[0].info.get("suite"):
        raise GradbenchError(f"{mine[0].id}: belongs to no suite; give the records to compare it with, among=")
    return place_among(mine, archived(mine))


def board(
    *runs: Record,
    out: str | Path = "board.html",
    suite: str | None = None,
    results: str | Path = "results",
) -> Path:
    """Write one offline page that ranks the optimizers of these records, or of those of one `suite`, such as "core-1"
    (or "core-1 6e61710d", a version of it), or "none"; its path. Raises GradbenchError for records that do not compare,
    by their names, and where none is of the suite."""
    from gradbench.reporting.board import write_board  # Altair takes half a second

    return write_board(of_suite(_records(runs, results), suite), out)


def _records(runs: Sequence[Record], results: str | Path) -> list[Run]:
    if not runs:
        raise GradbenchError('no record given: a run, its folder, its id, or "latest"')
    return [_record(run, results) for run in runs]


def _record(run: Record, results: str | Path) -> Run:
    if isinstance(run, store.Run):
        return Run.of(run)
    if isinstance(run, str | Path):
        return load_run(run, results)
    raise GradbenchError(f'need a record: a run, its folder, its id, or "latest"; got {type(run).__name__}')


def _names(given: str | Sequence[str]) -> Sequence[str]:
    return (given,) if isinstance(given, str) else given
