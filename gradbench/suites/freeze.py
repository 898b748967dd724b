"""The targets of a suite, measured by one rule and written into its file.

The rule. The suite's reference optimizers (four by convention) run all of its problems: the settings that the suite
tries, at HALF of the suite's steps, with `seeds` seeds. A trial's result is the lowest loss that it reaches; of a
problem with held-out data, the lowest held-out loss among its recorded points. A setting's result is the median over
its seeds, infinite where one diverged, and an optimizer's the best over its settings. The target comes from the best of
the optimizers: the median over the seeds of the training loss where that result was reached. It is rounded up to four
digits, and where the minimum is known it is no lower than the plan's relative target above that, so that no target
lies in rounding. So the best reference reaches it in half of the suite's steps, and others have twice as long.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradbench.analysis.metrics import HELD_OUT, recorded
from gradbench.analysis.summary import rows_where
from gradbench.analysis.verdicts import floats
from gradbench.engine.driver import Watcher
from gradbench.errors import GradbenchWarning, PlanError, RunError
from gradbench.record.store import Run
from gradbench.suites.definition import Suite, load_suite, suite_path
from gradbench.suites.running import lacks_device, record_of
from gradbench.suites.targets import Measured, measured_under, with_targets, write_targets

POINTS = 40  # of a trial's curve, at which held-out losses are known


def freeze(
    name: str | Path,
    seeds: int,
    watcher: Watcher | None = None,
    say: Callable[[str], None] = lambda text: None,
    reduced: bool = False,
    *,
    out: str | Path,
    resume: bool = False,
    problems: Sequence[str] = (),
) -> list[Measured] | None:
    """Measure a suite's targets, or those of its reduced runs, or only of these problems, and write them into its file:
    a new version of it.

    The references' records are kept in `out`; with `resume` those that are there are taken, or gone on with. None where
    the watcher stopped it: nothing is written then. Raises PlanError for a suite without references, RunError where no
    reference gets anywhere on a problem. A GradbenchWarning where the device is not here that the suite is meant for,
    and it is not to be reduced.
    """
    whole, path = load_suite(name), suite_path(name)
    suite = whole.at(reduced)
    if not suite.references:
        raise PlanError(f"{suite.name}: has no references = [...], the optimizers that targets are measured by")
    if lacks_device(suite, None):
        text = f"{suite.name} is meant for a {suite.meant_for}, which is not here: its targets will take long"
        warnings.warn(f"{text}; --reduced measures those of its reduced runs", GradbenchWarning, stacklevel=2)
    suite.check_problems(problems)
    asked = tuple(problem for problem in suite.all_problems if not problems or problem in problems)
    under = measured_under(suite, seeds, asked)
    with_targets(path, suite, [], under, reduced)  # whether they can be written, before hours of measuring
    found = list(measure(suite, asked, seeds, watcher, say, out, resume))
    if len(found) < len(asked):
        return None
    write_targets(path, suite, found, under, reduced)
    load_suite(name)
    return found


def measure(
    suite: Suite,
    problems: Sequence[str],
    seeds: int,
    watcher: Watcher | None,
    say: Callable[[str], None],
    out: str | Path,
    resume: bool,
) -> Iterator[Measured]:
    """The targets of these problems of a suite, group by group, as far as the watcher does not stop it."""
    groups = suite.groups_of(suite.references)
    for of_problems in suite.problems:
        specs = [spec for spec in of_problems.specs if spec in problems]
        runs = []
        for group in groups if specs else ():
            say(f"measuring {', '.join(specs)} × {group.specs[0]}")
            [(_, plan)] = suite.plans(specs, (group,))
            settings = {"steps": max(1, plan.steps // 2), "seeds": seeds, "record_points": POINTS}
            plan = dataclasses.replace(plan, **settings, targets=None, timing="none")
            runs.append(record_of(plan, out, None, resume, watcher))
            if runs[-1].info["state"] != "complete":
                return
        for problem in specs:
            yield target_of(problem, runs)


def target_of(problem: str, runs: list[Run]) -> Measured:
    """The target that records of references give for a problem, by the rule above."""
    best: tuple[float, Measured] | None = None
    for run in runs:
        trials = rows_where(run.trials, {"problem": problem})
        result, training = _results(run, trials, problem)
        rates = trials["learning_rate"].to_numpy()
        for rate in np.unique(rates):
            at = rates == rate
            value = float(np.median(result[at])) if np.isfinite(result[at]).all() else math.inf
            if value < (best[0] if best else math.inf):
                holdout = value if _held_out(run, problem) else None
                loss = _bounded(float(np.median(training[at])), trials, run.plan.target)
                best = value, Measured(problem, loss, holdout, run.plan.optimizers[0], float(rate))
    if best is None:
        raise RunError(f"{problem}: no reference optimizer has a setting at which no seed diverges")
    return best[1]


def _held_out(run: Run, problem: str) -> bool:
    return HELD_OUT in recorded(run, problem)


def _results(run: Run, trials: pa.Table, problem: str) -> tuple[np.ndarray, np.ndarray]:
    """Each trial's result and the training loss there, (T,), infinite where it diverged."""
    result = training = floats(trials, "best_loss")
    if _held_out(run, problem):
        result, training = _lowest_held_out(run.metrics, trials)
    diverged = np.asarray(trials["verdict"]) == "diverged"
    return np.where(diverged | np.isnan(result), np.inf, result), np.where(diverged, np.inf, training)


def _lowest_held_out(metrics: pa.Table, trials: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The lowest held-out loss of each trial, and the training loss at the same recorded point."""
    of_loss = metrics.filter((pc.field("name") == "loss") & pc.field("trial").isin(trials["trial"].combine_chunks()))
    sides = [
        of_loss.filter(pc.field("split") == split).sort_by([("trial", "ascending"), ("step", "ascending")])
        for split in ("holdout", "train")
    ]
    held, trained = (floats(side, "value") for side in sides)
    number = sides[0]["trial"].to_numpy()
    order = np.lexsort((np.where(np.isfinite(held), held, np.inf), number))
    first = order[np.unique(number[order], return_index=True)[1]]
    place = np.searchsorted(number[first], trials["trial"].to_numpy())
    return held[first][place], trained[first][place]


def _bounded(loss: float, trials: pa.Table, gap: float) -> float:
    """A target rounded up, and above a known minimum by the relative gap at the least."""
    minimum = next((value.as_py() for value in trials["minimum"].drop_null()[:1]), None)
    if minimum is not None:
        initial = float(np.median(floats(trials, "initial_loss")))
        loss = max(loss, minimum + gap * (initial - minimum))
    digit = 10.0 ** (math.floor(math.log10(abs(loss))) - 3) if loss else 1.0
    return float(f"{math.ceil(loss / digit - 1e-9) * digit:.4g}")
