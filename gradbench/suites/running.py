"""Run a suite: ordinary records, one for each group of problems and optimizers, marked with the suite and its
version."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from gradbench.analysis.races.outcomes import suite_words
from gradbench.engine import runner
from gradbench.engine.driver import Watcher
from gradbench.errors import GradbenchError, GradbenchWarning, PlanError, RecordError
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import load_problem
from gradbench.inputs.transfer.sources import difference, sources
from gradbench.machine.devices import each_core_a_device, find_devices
from gradbench.paths import user_path
from gradbench.record.store import Run, load_run, read_info, record_folders
from gradbench.suites.definition import Group, Suite
from gradbench.suites.targets import measured_otherwise, unmeasured

ARCHIVE = Path(__file__).parents[2] / "results" / "archive"  # of a checkout; a wheel has none
Watching = Callable[[], AbstractContextManager[Watcher]]


def run_suite(
    suite: Suite,
    *,
    problems: Sequence[str] = (),
    optimizers: Sequence[Group] = (),
    reduced: bool | None = None,
    device: str | None = None,
    out: str | Path = "results",
    resume: bool = False,
    watching: Watching = lambda: contextlib.nullcontext(Watcher()),
) -> list[Run]:
    """Run a suite, or only these problems and optimizers of it; returns its records, made under `out`.

    With `resume`, a record of the same suite, version, plan, files and data under `out` is taken as it is if complete,
    and resumed if not. `reduced` runs the few steps, trials and seeds that the suite states for a machine without the
    device that it is meant for; if None, only on such a machine, with a GradbenchWarning. Where a run is interrupted,
    its record is the last one returned. Raises PlanError where the suite's targets were measured for other settings,
    and what run_plan raises.
    """
    found: list[Run] = []
    forced = reduced is None and lacks_device(suite, device)
    whole, suite = suite, suite.at(forced or bool(reduced))
    suite.check_problems(problems)
    if forced:
        few = ", ".join(f"{value} {key}" for key, value in whole.reduced.items())
        text = f"{whole.name} is meant for a {whole.meant_for}, which is not here: this is {suite.version}, with {few}"
        warnings.warn(f"{text}, for a look; it does not compare with whole runs", GradbenchWarning, stacklevel=2)
    if said := measured_otherwise(suite):
        raise PlanError(f"{said}: measure it by gradbench suite freeze, or take [[measured]] out to keep it as stated")
    if said := unmeasured(suite, problems):
        warnings.warn(said, GradbenchWarning, stacklevel=2)
    for ruleset, plan in suite.plans(problems, optimizers):
        mark = suite.mark(ruleset)
        plan = dataclasses.replace(plan, device=device)
        with watching() as watcher:
            found.append(record_of(plan, out, mark, resume, watcher))
        if found[-1].info["state"] != "complete":
            break
    return found


def record_of(
    plan: SweepPlan, out: str | Path, mark: dict[str, str] | None, resume: bool, watcher: Watcher | None = None
) -> Run:
    """A plan's record under `out`, which says that it is of the suite `mark`: a new one. With `resume`, the last one
    there of the same plan, suite, files and data, which is gone on with where it is not complete."""
    there = reversed(list(_records(user_path(out)))) if resume else ()
    before = next((path for path, info in there if _is_of(info, plan, mark)), None)
    if before is None:
        return runner.run_plan(plan, out=out, watcher=watcher, suite=mark)
    return runner.resume(before, watcher=watcher)


def _is_of(info: dict[str, Any], plan: SweepPlan, mark: dict[str, str] | None) -> bool:
    try:
        if info.get("suite") != mark or SweepPlan.from_dict(info["plan"]) != plan:
            return False
        began = info.get("sources")  # older records have none
        each_core_a_device()
        return (
            began is None or difference(began, sources(plan, {n: load_problem(n) for n in plan.problems}, ())) is None
        )
    except (GradbenchError, OSError, ImportError):  # another version's plan; or a file is gone, as run_plan will say
        return False


def _records(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The readable records under a folder and their run.json, by name."""
    for path in record_folders(folder):
        with contextlib.suppress(RecordError):
            yield path, read_info(path)


def suite_records(folder: Path) -> list[Path]:
    """The folders of the records under a folder that say which suite they are of, by name."""
    return [path for path, info in _records(folder) if "suite" in info]


def expanded(name: str, find: Callable[[str], Path]) -> list[Path]:
    """The folders of records that a name stands for: all in a folder of records, else the one by `find`."""
    folder = user_path(name)
    inside = [] if os.path.isfile(folder / "run.json") else record_folders(folder)
    return inside or [find(name)]


def of_suite(runs: Sequence[Run], name: str | None) -> Sequence[Run]:
    """The records of a suite, by its name or version; "none" for those of no suite. Raises GradbenchError, which lists
    the suites present, where no record is of that suite, and where `name` is None and they are of several."""
    known: dict[str, list[Run]] = {}
    for run in runs:
        known.setdefault(suite_words(run), []).append(run)
    there = ", ".join(f"{words} ({len(of)}, such as {of[0].id})" for words, of in sorted(known.items()))
    if name is None and len(known) > 1:
        raise GradbenchError(f"records of several suites do not compare: {there}; choose one with --suite, suite=")
    found = [run for words, of in known.items() for run in of if name in (None, words, words.rpartition(" ")[0])]
    if runs and not found:
        raise GradbenchError(f"no record is of suite {name}, but of: {there}")
    return found


def archived(mine: Sequence[Run], folder: Path | None = None) -> list[Run]:
    """The other complete records of the suite and version of `mine[0]`, in its archive: in `folder`, or where
    gradbench's own are. Raises RecordError where `folder` is none."""
    name, version = mine[0].info["suite"]["name"], suite_words(mine[0])
    own = {run.id for run in mine}
    if folder is not None and not os.path.isdir(folder):
        raise RecordError(f"{folder}: no such folder of archived records")
    runs = [load_run(path) for path in suite_records(folder or ARCHIVE / name)]
    return [r for r in runs if suite_words(r) == version and r.info["state"] == "complete" and r.id not in own]


def lacks_device(suite: Suite, device: str | None) -> bool:
    """Whether the suite is meant for another kind of device than the one here, or the one asked for."""
    if suite.meant_for is None:
        return False
    try:
        return find_devices(device)[0].platform != suite.meant_for
    except PlanError:
        return True
