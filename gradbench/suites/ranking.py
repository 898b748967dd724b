"""Ranks of optimizers, on each problem and over all, with intervals.

The cost of an optimizer on a problem is the geometric mean over seeds of its steps to the target, each seed at a
setting chosen on the other seeds (analysis/races/outcomes.py); where nobody reaches the target, of the gap at the end.
Over all problems it is the geometric mean of cost / the best one's cost, over those whose target somebody reaches.

A rank's interval (95 %) goes by differences that are shown, not by the costs' own intervals: each optimizer is compared
with every other, paired by seed, with Holm's correction for the number of others; its rank is at best 1 + the number
shown to be ahead of it, and at worst the number of all less those shown to be behind (Mogstad, Romano, Shaikh and
Wilhelm, Inference for Ranks with Applications to Mobility across Neighbourhoods and Academic Achievement across
Countries, Review of Economic Studies 91, 2024).

The intervals of two ranks may overlap though one optimizer is shown to be ahead of the other, since many others may be
like both. Whether two differ is told by `comparisons` alone: the ratio of their steps (of their gaps at the end, where
neither reaches a target), paired by seed, with its interval.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gradbench.analysis.races.intervals import CONFIDENCE, Estimate, holm, mean_of_strata
from gradbench.analysis.races.outcomes import Outcomes, Selected
from gradbench.analysis.races.races import GAP, STEPS, races_of, unit_means
from gradbench.errors import GradbenchError

Table = Mapping[str, Mapping[str, Outcomes]]  # by optimizer and problem


class Comparison(NamedTuple):
    """ratio: another optimizer's cost over this one's, paired by seed and problem; low, high: its 95 % interval, None
    where there is none; shown: whether a difference is shown, after Holm's correction for the number of others;
    what: what the cost is, steps to the target, or the gap at the end where neither reaches it.
    """

    ratio: float
    low: float | None
    high: float | None
    shown: bool
    what: str


@dataclass(frozen=True)
class Ranked:
    """An optimizer's place among `of`, on a problem or over all (`problem` is None).

    value: steps to the target, or gap at the end (`what`); over all, `distance`. low, high: its 95 % interval.
    distance: value / the best one's, 1 at the best; over all the geometric mean over problems.
    reached: the share of seeds that reach the target; over all, of all problems' seeds.
    comparisons: the others with which it shares a problem.
    """

    optimizer: str
    problem: str | None
    what: str
    value: float
    low: float | None
    high: float | None
    distance: float
    reached: float
    rank: int
    rank_low: int
    rank_high: int
    of: int
    problems: int = 1
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)


def ranks(found: Table) -> list[Ranked]:
    """One row per optimizer and problem, then one per optimizer over all problems."""
    problems = list(dict.fromkeys(problem for of in found.values() for problem in of))
    rows = [row for problem in problems for row in _on_problem(found, problem)]
    return rows + _over_all(found, rows)


def _on_problem(found: Table, problem: str) -> list[Ranked]:
    selected = {name: by[problem].selected for name, by in found.items() if problem in by}
    what = STEPS if any(of.reached.any() for of in selected.values()) else GAP
    estimates = {name: _estimate([of], what) for name, of in selected.items()}
    gaps = {name: float(of.gaps.mean()) for name, of in selected.items()}
    order = sorted(selected, key=lambda name: (estimates[name].value, gaps[name]))
    compared = _compared({name: {problem: found[name][problem]} for name in order})
    best = estimates[order[0]].value
    rows = []
    for rank, name in enumerate(order, 1):
        value, low, high = _exponentials(estimates[name])
        reached = float(selected[name].reached.mean())
        distance = math.exp(min(estimates[name].value - best, 700))
        place, comparisons = _ranks_of(compared[name], rank, len(selected)), compared[name]
        rows.append(
            Ranked(
                name, problem, what, value, low, high, distance, reached, rank, *place, len(selected), 1, comparisons
            )
        )
    return rows


def _over_all(found: Table, rows: Sequence[Ranked]) -> list[Ranked]:
    best: dict[str, float] = {}
    for row in rows:
        if row.problem is not None and row.what == STEPS:
            best[row.problem] = min(best.get(row.problem, math.inf), row.value)
    shared = {name: {problem: of for problem, of in by.items() if problem in best} for name, by in found.items()}
    shared = {name: by for name, by in shared.items() if by}
    estimates = {}
    for name, by in shared.items():
        raw = _estimate([of.selected for of in by.values()], STEPS)
        estimates[name] = raw._replace(value=raw.value - float(np.mean([math.log(best[problem]) for problem in by])))
    order = sorted(shared, key=lambda name: estimates[name].value)
    compared = _compared({name: shared[name] for name in order})
    made = []
    for rank, name in enumerate(order, 1):
        value, low, high = _exponentials(estimates[name])
        reached = float(np.concatenate([of.selected.reached for of in shared[name].values()]).mean())
        place, count, comparisons = _ranks_of(compared[name], rank, len(order)), len(shared[name]), compared[name]
        made.append(
            Ranked(name, None, STEPS, value, low, high, value, reached, rank, *place, len(order), count, comparisons)
        )
    return made


def _estimate(of: Sequence[Selected], what: str) -> Estimate:
    """The mean over problems of a log cost, with the error that seeds make."""
    strata = [unit_means(one.steps if what == STEPS else one.gaps, one.units[:, None]) for one in of]
    return mean_of_strata(strata, same=all(one.same for one in of))


def _exponentials(of: Estimate) -> tuple[float, float | None, float | None]:
    low, high = of.interval()
    ends = (None, None) if math.isnan(low) else (math.exp(min(low, 700)), math.exp(min(high, 700)))
    return math.exp(of.value), *ends


def _compared(found: Table) -> dict[str, dict[str, Comparison]]:
    """By optimizer: the others with which it shares a problem."""
    comparisons: dict[str, dict[str, Comparison]] = {name: {} for name in found}
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(GradbenchError):  # no two share a problem
        rows = races_of({name: dict(by) for name, by in found.items()}).rows if len(found) > 1 else []
    for name in found:
        mine = [row for row in rows if name in (row["faster"], row["slower"])]
        for row, p_value in zip(mine, holm([row["p_value"] for row in mine])):
            other, ratio = row["slower"], row["ratio"]  # the slower's / the faster's
            low, high = row["low"], row["high"]
            if name == row["slower"]:
                other, ratio = row["faster"], 1 / ratio
                low, high = (None if end is None else 1 / end for end in (high, low))
            comparisons[name][other] = Comparison(ratio, low, high, p_value < 1 - CONFIDENCE, row["what"])
    return comparisons


def _ranks_of(comparisons: Mapping[str, Comparison], rank: int, of: int) -> tuple[int, int]:
    """The best and the worst rank that the shown differences leave possible."""
    ahead = sum(other.shown and other.ratio < 1 for other in comparisons.values())
    behind = sum(other.shown and other.ratio > 1 for other in comparisons.values())
    return min(1 + ahead, rank), max(of - behind, rank)
