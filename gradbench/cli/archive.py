"""The verbs for records that are made, verify, export, history and board; and suite, whose records are made to be
compared."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.types import ExistingDirectory

from gradbench.cli.app import INTERRUPTED, TABLES, Out, Quiet, Results, Tables, note, show, whole
from gradbench.failures import printing_to_stderr

if typing.TYPE_CHECKING:
    from gradbench.library.activity import Activity
    from gradbench.record.store import Run
    from gradbench.suites.definition import Suite

AGAIN = "the same command and --resume"
suite = App(name="suite", help="Frozen suites of problems, search spaces, budgets and targets (docs/suites.md).")
Specs = Annotated[tuple[str, ...], Parameter(name=["--optimizer", "-o"])]


def verify(
    record: str = "latest",
    *,
    sample: Annotated[int, Parameter(converter=whole)] = 20,
    seed: Annotated[int | None, Parameter(converter=whole)] = None,
    own_files: bool = False,
    by: str | None = None,
    results: Results = Path("results"),
    quiet: Quiet = False,
    output: Tables = TABLES,
) -> int:
    """Is a record true? Its files and tables agree, and trials drawn at random give the same again. Exit 1 if not.

    A record whose files cannot be read gives exit 1 too; a name or folder that is no record is bad input, exit 2.

    Parameters
    ----------
    record
        Its folder, its id, or latest.
    sample
        How many trials to run again, at most.
    seed
        The seed of the draw, to repeat it. [default: a new one, which is printed]
    own_files
        Also replay problems and optimizers in files that the record names, which runs those files.
    by
        Who verifies, for the board: kept with the answer in the record's verified.json. [default: the login name]
    """
    from gradbench.archive.verified import keep
    from gradbench.archive.verify import verify_run, verify_text
    from gradbench.errors import GradbenchError
    from gradbench.library.activity import Activity
    from gradbench.machine.cache import use_cache
    from gradbench.record.store import find_run
    from gradbench.tables import check_format

    check_format(output.chosen)
    path = find_run(record, results)
    with Activity(quiet) as activity:
        activity.say("starting JAX")
        use_cache()
        found = verify_run(path, sample, seed, own_files, say=activity.say)
    if not found.trials and output.chosen == "csv":  # it cannot be read: a table, of which there is no row
        note(verify_text(found, "table"))
    else:
        show(verify_text(found, output.chosen))
    if not found.trials:
        return 1
    try:
        keep(path, found, by)
    except GradbenchError as error:  # a record that can only be read, or a damaged verified.json
        note(f"the result is not saved: {error}")
    return 0 if found.holds else 1


def export(
    record: str = "latest",
    *,
    to: str,
    into: Annotated[Path | None, Parameter(name=["--into", "--out"])] = None,
    best: bool = False,
    results: Annotated[Path, Parameter(name="--results", help="Where records are kept.")] = Path("results"),
    quiet: Quiet = False,
) -> int:
    """A record for other tools, on disk: csv, or each trial as a run of tensorboard, wandb (offline) or mlflow.

    Parameters
    ----------
    record
        Its folder, its id, or latest.
    to
        csv, tensorboard, wandb or mlflow; all but csv need that package.
    into
        A new folder to write. [default: exports/<id>-<tool>]
    best
        Only the trials at each pair's best learning rate.
    """
    from gradbench.archive.export import export as write
    from gradbench.library.activity import Activity
    from gradbench.record.store import load_run

    with Activity(quiet) as activity:
        run = load_run(record, results)
        activity.say(f"writing for {to}")
        folder, command = write(run, to, into, best)
    show(str(folder))
    if not quiet:
        note(f"look at it with: {command}")
    return 0


def history(results: Results = Path("results"), *, quiet: Quiet = False, output: Tables = TABLES) -> int:
    """Steps to the target and step times over all records of a folder, and where they changed."""
    from gradbench.archive.history import history as follow
    from gradbench.archive.history import history_text, load_runs
    from gradbench.library.activity import Activity
    from gradbench.tables import check_format

    check_format(output.chosen)
    with Activity(quiet) as activity:
        activity.say("reading the records")
        found = follow(*load_runs(results))
    show(history_text(found, output.chosen))
    return 0


@suite.command(name="list")
def suite_list(*, output: Tables = TABLES) -> int:
    """The suites that come with gradbench."""
    from gradbench.suites.text import list_text

    show(list_text(output.chosen))
    return 0


@suite.command(name="show")
def suite_show(name: str, *, reduced: bool = False, output: Tables = TABLES) -> int:
    """What a suite runs: its problems with steps and targets, its optimizers with their search spaces.

    Parameters
    ----------
    name
        A built-in suite, such as core-1, or a .toml file.
    reduced
        As it is run where the device is not that it is meant for.
    """
    from gradbench.suites.text import show_text

    show(show_text(name, output.chosen, reduced))
    return 0


@suite.command(name="run")
def suite_run(
    name: str,
    *,
    optimizer: Specs = (),
    problem: tuple[str, ...] = (),
    ruleset: str = "tuned",
    lr: str | None = None,
    reduced: bool = False,
    device: str | None = None,
    resume: bool = False,
    archive: ExistingDirectory | None = None,
    out: Out = Path("results"),
    quiet: Quiet = False,
    output: Tables = TABLES,
) -> int:
    """Run a suite, or an optimizer on it, and say where it stands among the archived records.

    Parameters
    ----------
    name
        A built-in suite, such as core-1, or a .toml file.
    optimizer
        Only these, also such that the suite does not name: an optimizer's spec, or ./mine.py:make; repeat for more.
    problem
        Only these of its problems; repeat for more.
    ruleset
        Of the optimizers given: tuned (settings drawn from a search space) or self-tuning (one trial, nothing set).
    lr
        The search space of those given, low:high; self-tuning, their one rate. [default: the suite's, or their own]
    reduced
        At the steps, trials and seeds that the suite states for a machine without the device that it is meant for.
    device
        cpu, gpu (also cuda or rocm) or tpu; JAX's choice if not given.
    resume
        Take the records of this suite that are there, go on with one that was interrupted, and make the others.
    archive
        The folder of the records to compare with. [default: results/archive/NAME of a checkout]
    """
    from gradbench.library.activity import Activity
    from gradbench.suites.definition import load_suite
    from gradbench.tables import check_format

    check_format(output.chosen)
    chosen = load_suite(name)
    settings = {"problems": problem, "reduced": reduced or None, "device": device, "out": out, "resume": resume}
    with Activity(quiet) as activity:
        runs = _run(activity, chosen, (optimizer, ruleset, lr), settings)
        if runs[-1].info["state"] != "complete":
            return INTERRUPTED
        activity.say("comparing")
        from gradbench.suites.running import archived
        from gradbench.suites.text import result_text

        text = result_text(runs, archived(runs, archive), output.chosen)
    show(text)
    if not quiet:
        note("records: " + " ".join(str(run.path) for run in runs))
    return 0


def _run(
    activity: Activity, of: Suite, optimizers: tuple[Sequence[str], str, str | None], settings: Mapping[str, Any]
) -> list[Run]:
    """Run a suite by run_suite's `settings`; its optimizers are given as specs, their ruleset and their --lr."""
    activity.say("starting JAX")
    from gradbench.cli.progress import watching
    from gradbench.machine.cache import use_cache
    from gradbench.suites.definition import chosen_groups
    from gradbench.suites.running import run_suite

    use_cache()
    with printing_to_stderr():
        groups = chosen_groups(of, *optimizers)
        return run_suite(of, optimizers=groups, **settings, watching=lambda: watching(activity, AGAIN))


@suite.command(name="freeze")
def suite_freeze(
    name: str,
    *,
    problem: tuple[str, ...] = (),
    seeds: Annotated[int, Parameter(converter=whole)] = 20,
    reduced: bool = False,
    resume: bool = False,
    out: Path = Path("results/freeze"),
    quiet: Quiet = False,
    output: Tables = TABLES,
) -> int:
    """Measure a suite's targets by its reference optimizers, and write them into its file: a new version of it.

    Parameters
    ----------
    name
        A .toml file, or a built-in suite of a checkout.
    problem
        Only the targets of these of its problems, the others stay; repeat for more.
    seeds
        Of which the target is the median.
    reduced
        The targets of its reduced runs.
    resume
        Take the references' records that are there, go on with one that was interrupted, and make the others.
    out
        Where the references' records are kept.
    """
    from gradbench.cli.progress import watching
    from gradbench.library.activity import Activity
    from gradbench.machine.cache import use_cache
    from gradbench.suites.freeze import freeze
    from gradbench.suites.text import frozen_text
    from gradbench.tables import check_format

    check_format(output.chosen)
    with Activity(quiet) as activity, watching(activity, AGAIN) as watcher, printing_to_stderr():
        use_cache()
        found = freeze(name, seeds, watcher, activity.print, reduced, out=out, resume=resume, problems=problem)
    if found is None:
        note("not all is measured: nothing is written")
        return INTERRUPTED
    show(frozen_text(found, output.chosen))
    return 0


def board(
    *records: str,
    out: Path = Path("board.html"),
    suite: str | None = None,
    results: Annotated[Path, Parameter(help="Where records are kept.")] = Path("results"),
    quiet: Quiet = False,
) -> int:
    """One offline page of many records, of any machines: who ranks where, how sure, at which budget and cost.

    Parameters
    ----------
    records
        Folders, ids or latest (the default); a folder of records stands for all of them.
    out
        The page to write; it replaces a board, and no other file.
    suite
        Only those of this suite, such as core-1 (or "core-1 6e61710d", a version of it), or none.
    """
    from gradbench.library.activity import Activity
    from gradbench.record.store import find_run, load_run
    from gradbench.suites.running import expanded, of_suite

    with Activity(quiet) as activity:
        activity.say("reading the records")
        runs = [
            load_run(path)
            for name in records or ("latest",)
            for path in expanded(name, lambda one: find_run(one, results))
        ]
        activity.say("comparing")
        from gradbench.reporting.board import write_board

        written = write_board(of_suite(runs, suite), out)
    show(str(written))
    return 0
