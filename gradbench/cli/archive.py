"""The verbs for records that are made: verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gradbench.cli.app import TABLES, Quiet, Results, Tables, show, whole


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
