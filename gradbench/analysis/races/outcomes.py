"""What a record says of an optimizer on a problem, by setting and seed, where each seed's setting is chosen without
it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from gradbench.analysis.points import best_of_seeds
from gradbench.analysis.summary import (
    by_dtype,
    check_known,
    common_references,
    name_among,
    problem_trials,
    references,
    resolution,
    rows_where,
)
from gradbench.analysis.verdicts import EPSILON, floats, relative_gaps
from gradbench.errors import GradbenchError
from gradbench.record.schema import SCHEMAS
from gradbench.record.store import Run

GROUPS = 5  # of the seeds; a seed is judged at the setting that is best on the others of its group
EVERYWHERE = ("dtype", "precision")  # must be equal in records that are compared
ON_A_PROBLEM = ("steps", "batch_size", "target")  # and these where they share a problem
BUDGET = ("design", "seeds")  # and these in one ruleset of a suite


class Selected(NamedTuple):
    """Each seed of a pair at the setting chosen without it: the settings' numbers, the seeds' groups, log steps and log
    gaps, whether the target was reached, all (S,); and whether at these settings all seeds make the same run."""

    setting: np.ndarray
    group: np.ndarray
    steps: np.ndarray
    gaps: np.ndarray
    reached: np.ndarray
    same: bool = False

    @property
    def units(self) -> np.ndarray:
        """The independent unit of each seed, (S,): its group; or itself, where all have chosen the same setting."""
        return np.arange(len(self.group)) if np.ptp(self.setting) == 0 else self.group


@dataclass(frozen=True, eq=False)
class Outcomes:
    """An optimizer on a problem: arrays (settings R, seeds S) over the seeds that every setting has.

    log_steps: of the first step that reaches the target, cut off at the trial's number of steps where it does not, so
        that a ratio is a lower bound. Means of these are restricted means (Royston and Parmar, BMC Medical Research
        Methodology 13, 2013).
    log_gaps: of the gap at the end, cut off above at 1, the first gap, and below at the resolution.
    same: of each setting (R,) whether all seeds make the same run, so that nothing in it is random.
    """

    problem: str
    optimizer: str
    rates: np.ndarray  # (R,)
    alone: bool  # whether the settings differ in the learning rate only
    seeds: np.ndarray  # (S,)
    steps: np.ndarray
    gaps: np.ndarray
    log_steps: np.ndarray
    log_gaps: np.ndarray
    same: np.ndarray | None = None

    @classmethod
    def of(
        cls, trials: pa.Table, problem: str, optimizer: str, gaps: np.ndarray, cut: int, floor: float, dtype: str
    ) -> Outcomes:
        """`gaps` are the trials' relative gaps at the end, `cut` the steps of a trial."""
        axes = ["learning_rate", *(name for name in trials.column_names if _is_axis(trials, name))]
        values = np.stack([trials[name].to_numpy(zero_copy_only=False).astype(float) for name in axes])
        settings, row = np.unique(values, axis=1, return_inverse=True)
        seeds, column = np.unique(trials["seed"].to_numpy(), return_inverse=True)
        taken = floats(trials, "steps_to_target")
        table = np.full((4, settings.shape[1], len(seeds)), np.nan)
        reached = np.where(np.isnan(taken) | np.isinf(gaps), np.inf, taken)
        table[:, row.ravel(), column] = reached, gaps, floats(trials, "initial_loss"), floats(trials, "final_loss")
        whole = ~np.isnan(table[:2]).any(axis=(0, 1))
        steps, ends, *losses = table[:, :, whole]
        # Two slots of a program may round otherwise, and a run carries that on: half of the digits agree.
        digits = math.sqrt(EPSILON[dtype])
        same = [np.isclose(of, of[:, :1], rtol=digits, atol=0, equal_nan=True).all(axis=1) for of in losses]
        logs = np.log(np.clip(steps, 1, cut)), np.log(np.clip(ends, floor, 1))
        alone = len(axes) == 1
        return cls(problem, optimizer, settings[0], alone, seeds[whole], steps, ends, *logs, np.all(same, axis=0))

    def best(self, seeds: np.ndarray) -> int:
        """The setting that is best on these seeds, by PairSummary.best's rule; the first where none works."""
        return best_of_seeds(self.steps[:, seeds], self.gaps[:, seeds]) or 0

    @property
    def exact(self) -> bool:
        """Whether at every setting all seeds make the same run."""
        return self.same is not None and bool(self.same.all())

    @property
    def groups(self) -> np.ndarray:
        """The group of each seed, (S,): GROUPS of them, or fewer, so that each has two seeds."""
        count = max(1, min(GROUPS, len(self.seeds) // 2))
        return np.arange(len(self.seeds)) * count // len(self.seeds)

    @functools.cached_property
    def selected(self) -> Selected:
        """`select` by the usual groups, found once."""
        return self.select()

    def select(self, groups: np.ndarray | None = None) -> Selected:
        """Every seed at the setting that is best on the other seeds of its group, (S,); a single seed, on itself.

        So groups are independent, and the spread between them includes how the choice of a setting varies. If a seed
        were judged at the best of all the others, all would share that choice and intervals would be too short
        (Bengio and Grandvalet, No unbiased estimator of the variance of K-fold cross-validation, JMLR 5, 2004).
        """
        groups, place = self.groups if groups is None else groups, np.arange(len(self.seeds))
        others = [np.flatnonzero((groups == groups[seed]) & (place != seed)) for seed in place]
        chosen = np.array([self.best(of if len(of) else place) for of in others])
        at = chosen, place
        same = self.same is not None and bool(self.same[chosen].all())
        return Selected(chosen, groups, self.log_steps[at], self.log_gaps[at], np.isfinite(self.steps[at]), same)


def check_comparable(runs: Sequence[Run]) -> None:
    """GradbenchError, which names two records, where they were not run alike: in another dtype or precision, as another
    version of a suite, on a shared problem to another length or target, or, in one ruleset of a suite, with another
    budget of tuning."""
    firsts: dict[Any, Run] = {}
    for run in runs:
        pairs: list[tuple[str, Any, Any, Run]] = [("suite", suite_words(runs[0]), suite_words(run), runs[0])]
        pairs += [(key, getattr(runs[0].plan, key), getattr(run.plan, key), runs[0]) for key in EVERYWHERE]
        ruleset = run.info.get("suite", {}).get("ruleset")
        for problem in run.plan.problems:
            first = firsts.setdefault(problem, run)
            pairs += [(key, getattr(first.plan, key), getattr(run.plan, key), first) for key in ON_A_PROBLEM]
            pairs.append((f"the target loss of {problem}", first.plan.solved(problem), run.plan.solved(problem), first))
            first = firsts.setdefault((problem, ruleset), run)
            if ruleset:
                pairs += [(key, getattr(first.plan, key), getattr(run.plan, key), first) for key in BUDGET]
        for key, a, b, first in pairs:
            if a != b:
                raise GradbenchError(f"{first.id} and {run.id} do not compare: {key} is {a} and {b}")


def suite_words(run: Run) -> str:
    """The suite and version that a record is of."""
    mark = run.info.get("suite")
    return f"{mark['name']} {mark['sha256'][:8]}" if mark else "none"


def _is_axis(trials: pa.Table, name: str) -> bool:
    """Whether a column is an axis of the trials' optimizer: axes of other optimizers are null."""
    return name not in SCHEMAS["trials"].names and trials[name].null_count == 0


def outcomes(
    runs: Sequence[Run],
    problems: Sequence[str] = (),
    optimizers: Sequence[str] = (),
    against: Run | None = None,
) -> dict[str, dict[str, Outcomes]]:
    """optimizer -> problem -> Outcomes, from one record or several with one target; of these problems and optimizers,
    or of all.

    With several records an optimizer's name has the record's place in it; `optimizers` may be without. References and
    resolutions are of the records or of `against`, a part of the one record. Raises PlanError for a name that no record
    has, GradbenchError where records cannot be compared, or no trial has finished.
    """
    check_comparable(runs)
    names = {
        (place, of): name_among(runs, place, of) for place, run in enumerate(runs, 1) for of in run.plan.optimizers
    }
    check_known("problem", problems, [problem for run in runs for problem in run.plan.problems], len(runs))
    check_known(
        "optimizer", optimizers, [name for (_, spec), named in names.items() for name in (spec, named)], len(runs)
    )
    to = common_references([against] if against else runs)
    found: dict[str, dict[str, Outcomes]] = {}
    for place, run in enumerate(runs, 1):
        for problem in references(run):
            if (problems and problem not in problems) or problem not in to:
                continue
            trials = problem_trials(run, problem, to[problem])
            told_apart_by = problem_trials(against, problem, to[problem]) if against else trials
            parts = by_dtype(run.plan, told_apart_by)
            floors = {dtype: resolution(part, to[problem], dtype) for dtype, part in parts}
            for optimizer in run.plan.optimizers:
                name = names[place, optimizer]
                if optimizers and optimizer not in optimizers and name not in optimizers:
                    continue
                rows = rows_where(trials, {"optimizer": optimizer})
                if len(rows):
                    gaps, dtype = relative_gaps(rows, to[problem]), run.plan.of(optimizer).dtype
                    of = Outcomes.of(rows, problem, name, gaps, run.plan.steps, floors[dtype], dtype)
                    if len(of.seeds):
                        found.setdefault(name, {})[problem] = of
    if not found:
        raise GradbenchError(f"{', '.join(run.id for run in runs)}: no trial has finished yet")
    return found
