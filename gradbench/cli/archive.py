"""The verbs for records that are made: verify, export and history."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gradbench.cli.app import TABLES, Quiet, Results, Tables, note, show, whole


def verify(
    record: str = "latest",
    *,
    sample: Annotated[int, Parameter(converter=whole)] = 20,
    seed: Annotated[int | None, Parameter(converter=whole)] = None,
    own_files: bool = False,
    results: Results = Path("results"),
    quiet: Quiet = False,
    output: Tables = TABLES,
) -> int:
    """Does a record hold? Its files and tables agree, and trials drawn at random come out again. Exit 1 if not.

    Parameters
    ----------
    record
        Its folder, its id, or latest.
    sample
        Trials to run again; of a smaller record all.
    seed
        Of the draw, to repeat one. [default: a new one, which is printed]
    own_files
        Also replay problems and optimizers in files that the record names, which runs those files.
    """
    from gradbench.archive.verify import verify_run, verify_text
    from gradbench.library.activity import Activity
    from gradbench.machine.cache import use_cache
    from gradbench.record.store import load_run
    from gradbench.tables import check_format

    check_format(output.chosen)
    with Activity(quiet) as activity:
        run = load_run(record, results)
        activity.say("starting JAX")
        use_cache()
        found = verify_run(run, sample, seed, own_files, say=activity.say)
    show(verify_text(found, output.chosen))
    return 0 if found.holds else 1


def export(
    record: str = "latest",
    *,
    to: str,
    into: Path | None = None,
    best: bool = False,
    results: Results = Path("results"),
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
    """Steps to the target and step times over all records of a folder, and since when they are other ones."""
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
