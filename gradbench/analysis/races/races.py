"""Every two optimizers of a record side by side: "adam reaches the target 1.8× sooner than sgd (95 %: 1.5 to 2.2)".

The number is exp of the mean, over problems and within each over seeds, of log(steps of one / steps of the other), from
the same seed, each optimizer at the learning rate that is best on other seeds. Problems count alike. The interval is
Student's for a mean over strata; it says what other seeds would give on these problems, not what other problems would.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbench.analysis.races.intervals import CONFIDENCE, Estimate, holm, mean_of_strata
from gradbench.analysis.races.outcomes import Held, Outcomes, outcomes
from gradbench.errors import GradbenchError
from gradbench.record.store import Run

STEPS, GAP = "steps to target", "gap at the end"


@dataclass(frozen=True)
class Races:
    """`rows`: a dict for each two optimizers, the one ahead first: faster, slower, what ("steps to target", or where
    neither reaches it anywhere "gap at the end"), ratio (at least 1), low, high (95 %), p_value, p_holm, decided,
    detectable (the ratio that would have been seen with a probability of 80 %), seeds, problems, ahead (problems on
    which the first is), unreached_faster, unreached_slower (shares of runs, which count as the steps of a trial), and
    ratios, by problem. `notes` say how settings were chosen and what was left out."""

    rows: list[dict[str, Any]]
    notes: list[str]

    @property
    def sentences(self) -> list[str]:
        """One for each row."""
        return [sentence(row) for row in self.rows]

    def __str__(self) -> str:
        from gradbench.analysis.races.text import races_text

        return races_text(self, "table")


def races(runs: Sequence[Run], problems: Sequence[str] = (), optimizers: Sequence[str] = ()) -> Races:
    """Of one record, or of several that share their target; of these problems and optimizers, or of all.

    Raises GradbenchError where there are not two optimizers that share a problem.
    """
    return races_of({name: of for name, of in outcomes(runs, problems).items() if not optimizers or name in optimizers})


def races_of(found: dict[str, dict[str, Outcomes]]) -> Races:
    """Of outcomes by optimizer and problem. Raises GradbenchError where no two optimizers share a problem."""
    held = {name: {problem: each.held_out() for problem, each in of.items()} for name, of in found.items()}
    rows: list[dict[str, Any]] = []
    notes = [_choice(found)]
    for a, b in itertools.combinations(found, 2):
        shared = [problem for problem in found[a] if problem in found[b]]
        if shared:
            row, note = _race(a, b, {p: (_of(found[a][p], held[a][p]), _of(found[b][p], held[b][p])) for p in shared})
            rows.append(row)
            notes += [note] if note else []
    if not rows:
        raise GradbenchError(f"no two optimizers share a problem: {', '.join(found) or 'none is left'}")
    for row, adjusted in zip(rows, holm([row["p_value"] for row in rows])):
        row |= {"p_holm": adjusted, "decided": adjusted < 1 - CONFIDENCE}
    return Races(rows, notes)


def _of(outcome: Outcomes, held: Held) -> dict[int, tuple[float, float, bool, int]]:
    """By seed: log steps, log gap, whether the target was reached, the seed's group."""
    values = zip(held.steps.tolist(), held.gaps.tolist(), held.reached.tolist(), held.units.tolist())
    return dict(zip(outcome.seeds.tolist(), values))


def _race(a: str, b: str, by_problem: dict[str, tuple[dict, dict]]) -> tuple[dict[str, Any], str]:
    """A row, and a note on what was left out of it or the empty string."""
    pairs = {
        problem: np.array([(of_a[seed], of_b[seed]) for seed in of_a if seed in of_b])  # (seeds, 2, 4)
        for problem, (of_a, of_b) in by_problem.items()
    }
    pairs = {problem: of for problem, of in pairs.items() if len(of)}
    reached = {problem: of for problem, of in pairs.items() if of[:, :, 2].any()}
    note = ""
    if reached and len(reached) < len(pairs):
        others = ", ".join(problem for problem in pairs if problem not in reached)
        note = f"{a} and {b}: neither reaches the target on {others}, which is left out"
    what, used = (STEPS, reached) if reached else (GAP, pairs)
    column = 0 if reached else 1
    differences = {problem: of[:, 1, column] - of[:, 0, column] for problem, of in used.items()}
    estimate = mean_of_strata([unit_means(differences[problem], of[:, :, 3]) for problem, of in used.items()])
    unreached = 1 - np.concatenate([of[:, :, 2] for of in used.values()]).mean(axis=0)
    if estimate.value < 0:
        a, b, unreached = b, a, unreached[::-1]
        estimate = estimate._replace(value=-estimate.value)
        differences = {problem: -of for problem, of in differences.items()}
    return {
        "faster": a,
        "slower": b,
        "what": what,
        **_ratios(estimate),
        "seeds": min(map(len, used.values())),
        "problems": len(used),
        "ahead": sum(bool(of.mean() > 0) for of in differences.values()),
        "unreached_faster": float(unreached[0]),
        "unreached_slower": float(unreached[1]),
        "ratios": {problem: math.exp(of.mean()) for problem, of in differences.items()},
    }, note


def unit_means(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Of values (S,) the mean of each independent unit, given both optimizers' (S, 2): seeds where both have each seed
    for itself, else groups, whose numbers are no larger."""
    both = units.min(axis=1)
    return np.array([values[both == unit].mean() for unit in np.unique(both)])


def _ratios(estimate: Estimate) -> dict[str, Any]:
    logs = (estimate.value, *estimate.interval(), estimate.detectable)
    value, low, high, detectable = (None if math.isnan(log) else math.exp(min(log, 700)) for log in logs)
    return {"ratio": value, "low": low, "high": high, "p_value": estimate.p_value, "detectable": detectable}


def _choice(found: dict[str, dict[str, Outcomes]]) -> str:
    every = [outcome for of in found.values() for outcome in of.values()]
    if max(len(of.rates) for of in every) == 1:
        return "one setting each: none was chosen"
    seeds, groups = min(len(of.seeds) for of in every), min(int(of.groups.max()) + 1 for of in every)
    if seeds == 1:
        return "one seed: each optimizer is judged at the learning rate that is best on that same seed; add --seeds"
    if groups == 1:
        chosen = f"a seed is judged at the learning rate that is best on the other {seeds - 1}"
        return f"{chosen}; where they choose differently there is no interval, which takes 4 seeds or more"
    chosen = f"a seed is judged at the learning rate that is best on the others of its group ({groups} groups)"
    return f"{chosen}; intervals are over seeds, on these problems"


def _factor(value: float) -> str:
    """Two digits, and no exponent below a million."""
    return f"{value:.2g}" if value < 100 or value >= 1e6 else f"{value:.0f}"


def sentence(row: dict[str, Any]) -> str:
    """What a row says."""
    ratio = f"{_factor(row['ratio'])}×"
    where = f"{row['seeds']} seed{'s' * (row['seeds'] != 1)}, {row['ahead']} of {row['problems']} problems"
    interval = "" if row["low"] is None else f"95 %: {_factor(row['low'])} to {_factor(row['high'])}, "
    if row["decided"]:
        least = "at least " if row["what"] == STEPS and row["unreached_slower"] > row["unreached_faster"] else ""
        what = f"reaches the target {least}{ratio} sooner than" if row["what"] == STEPS else f"ends {ratio} lower than"
        but = "" if 2 * row["ahead"] > row["problems"] else ", though on no more than half of the problems"
        return f"{row['faster']} {what} {row['slower']}{but} ({interval}{where})"
    seen = "" if row["detectable"] is None else f"; {_factor(row['detectable'])}× would have been seen"
    return f"{row['faster']} and {row['slower']}: no difference shown ({ratio}, {interval}{where}{seen})"
