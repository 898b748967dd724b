"""Races of records: of every two optimizers, or of the two for which `--until` added seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from gradbench.analysis.races.intervals import without_rounding
from gradbench.analysis.races.outcomes import Outcomes, outcomes
from gradbench.analysis.races.races import Races, differences, judged_by, left_out, paired, races_of, row_of, side
from gradbench.analysis.races.sequential import Sequential, detectable
from gradbench.errors import GradbenchError
from gradbench.inputs.specs.races import unit_seeds
from gradbench.record.store import Run

_FIXED = (
    "seeds were added until a race was decided: intervals of a number of seeds that is fixed are too short for that"
)


def races(runs: Sequence[Run], problems: Sequence[str] = (), optimizers: Sequence[str] = ()) -> Races:
    """The races in one record, or in several with one target; of these problems and optimizers, or of all.

    For a whole record of `--until` it is the test for which its seeds were added. Raises GradbenchError where no two
    optimizers share a problem.
    """
    added = [run for run in runs if run.plan.until]
    if len(runs) == len(added) == 1 and not problems and set(optimizers) in (set(), set(runs[0].plan.optimizers)):
        return InterimAnalysis(runs[0]).races()
    found = races_of(outcomes(runs, problems, optimizers))
    return dataclasses.replace(found, notes=[*found.notes, _FIXED]) if added else found


class Units(NamedTuple):
    """Two optimizers side by side, seed against seed, in units of seeds that share nothing: (seeds, 2, 4) by problem,
    as `paired` has it; what they are judged by, and on which problems; and the units' values (N,), the mean log ratio
    over those problems and the unit's seeds, above 0 where the first one is ahead."""

    pairs: dict[str, np.ndarray]
    what: str
    used: list[str]
    values: np.ndarray

    @classmethod
    def of(cls, sides: Sequence[dict[str, Outcomes]], size: int, first: int) -> Units:
        """From both optimizers' outcomes by problem, in units of `size` seeds; units incomplete anywhere are left out.
        The first `first` seeds determine what is compared, and on which problems."""
        judged = [
            {problem: side(of, of.select(of.seeds // size), of.seeds // size) for problem, of in each.items()}
            for each in sides
        ]
        pairs = paired(judged)
        counts = [np.unique(of[:, 0, 3], return_counts=True) for of in pairs.values()]
        whole = set.intersection(*(set(units[count == size].tolist()) for units, count in counts))
        pairs = {problem: of[np.isin(of[:, 0, 3], list(whole))] for problem, of in pairs.items()}
        what, used = judged_by({problem: of[of[:, 0, 3] < first // size] for problem, of in pairs.items()})
        found = differences(what, {problem: pairs[problem] for problem in used})
        values = np.mean([of.reshape(-1, size).mean(axis=1) for of in found.values()], axis=0)
        return cls(pairs, what, used, without_rounding(values))


@dataclasses.dataclass(frozen=True, eq=False)
class InterimAnalysis:
    """What a record of `--until` says after its first `seeds` seeds, or after all that it has.

    The first round, in which nobody looks, fixes for every look, and whatever the optimizers' names: the reference of
    gaps, the resolution, what is compared and on which problems.
    """

    run: Run
    seeds: int | None = None

    def _part(self, seeds: int) -> Run:
        """The first seeds of the record, judged anew as while it was made: without the references of the whole."""
        info = {name: of for name, of in self.run.info.items() if name != "references"}
        return dataclasses.replace(self.run, info=info, trials=self.run.trials.filter(pc.field("seed") < seeds))

    @cached_property
    def units(self) -> Units:
        """Raises GradbenchError where no unit of seeds has finished everywhere."""
        plan = self.run.plan
        size, first = unit_seeds(plan.settings), plan.round_ends[0]
        found = outcomes([self._part(self.seeds or plan.seeds)], against=self._part(first))
        sides = [found.get(name, {}) for name in plan.optimizers]
        if all(set(of) == set(plan.problems) for of in sides) and len((units := Units.of(sides, size, first)).values):
            return units
        raise GradbenchError(f"{self.run.id}: no seed has finished yet with both optimizers on every problem")

    @property
    def decided(self) -> bool:
        return Sequential.of(self.units.values).decided

    def races(self) -> Races:
        """Its one row, and how it was obtained."""
        plan, (pairs, what, used, values) = self.run.plan, self.units
        found, size = Sequential.of(values), unit_seeds(self.run.plan.settings)
        looks = np.array([end // size for end in plan.round_ends if end // size <= len(values)] or [len(values)])
        logs = (found.value, found.low, found.high, detectable(values, looks))
        row = row_of(*plan.optimizers, what, {problem: pairs[problem] for problem in used}, logs, found.p_value)
        row |= {"p_holm": found.p_value, "decided": found.decided}
        chosen = "one setting each: none was chosen"
        if plan.settings > 1:
            chosen = "seeds go in twos, each judged at the setting that is best on the other one"
        notes = [
            f"seeds were added to {plan.until} until {self._ended(row)}: p and interval hold however often one looked",
            f"{chosen}; intervals are over seeds, on these problems",
        ]
        return Races([row], notes + left_out(*plan.optimizers, pairs, used))

    def _ended(self, row: dict[str, Any]) -> str:
        """When seeds were no longer added, in words."""
        plan, seeds = self.run.plan, row["seeds"]
        if row["decided"]:
            return "it was decided"
        if seeds >= plan.round_ends[-1]:
            return f"all {seeds} had run that were allowed"
        if self.run.info["state"] != "complete":
            return f"the run stopped, after {seeds}"
        return f"the budget of {plan.budget} ended, after {seeds}"


def answer(run: Run) -> bool | None:
    """Whether the first optimizer of a record's `--until` wins; None where that is not decided."""
    try:
        found = Sequential.of(InterimAnalysis(run).units.values)
    except GradbenchError:  # no unit of seeds has finished
        return None
    return found.value > 0 if found.decided else None
