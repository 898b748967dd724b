"""Every two optimizers of a record side by side: "adam reaches the target 1.8× sooner than sgd (95 %: 1.5 to 2.2)".

The number is exp of the mean, over problems and within each over seeds, of log(steps of one / steps of the other), from
the same seed, each optimizer at the learning rate that is best on other seeds. Problems count alike. The interval is
Student's for a mean over strata; it covers other seeds on these problems, not other problems.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbench.analysis.races.intervals import CONFIDENCE, holm, mean_of_strata
from gradbench.analysis.races.outcomes import Outcomes, Selected
from gradbench.errors import GradbenchError

STEPS, GAP = "steps to target", "gap at the end"


@dataclass(frozen=True)
class Races:
    """`rows`: a dict for each two optimizers, the one ahead first: faster, slower, what ("steps to target", or where
    neither reaches it anywhere "gap at the end"), ratio (at least 1), low, high (95 %), p_value, p_holm, decided,
    detectable (the ratio that would be detected with a probability of 80 %), seeds, problems, ahead (on how many of
    them the first is ahead), unreached_faster, unreached_slower (shares of runs; each counts as a trial's steps), and
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


def races_of(found: dict[str, dict[str, Outcomes]]) -> Races:
    """The races of outcomes by optimizer and problem. Raises GradbenchError where no two share a problem."""
    rows: list[dict[str, Any]] = []
    notes = [_choice(found)]
    for a, b in itertools.combinations(found, 2):
        shared = [problem for problem in found[a] if problem in found[b]]
        if shared:
            sides = [
                {p: side(found[of][p], found[of][p].selected, found[of][p].selected.units) for p in shared}
                for of in (a, b)
            ]
            same = [p for p in shared if found[a][p].selected.same and found[b][p].selected.same]
            row, left = _race(a, b, paired(sides), same)
            rows.append(row)
            notes += left
    if not rows:
        raise GradbenchError(f"no two optimizers share a problem: {', '.join(found) or 'none is left'}")
    for row, adjusted in zip(rows, holm([row["p_value"] for row in rows])):
        row |= {"p_holm": adjusted, "decided": adjusted < 1 - CONFIDENCE}
    return Races(rows, notes)


def side(outcome: Outcomes, selected: Selected, units: np.ndarray) -> dict[int, tuple[float, float, bool, int]]:
    """By seed: log steps, log gap, whether the target was reached, and the seed's unit, of `units` (S,)."""
    values = zip(selected.steps.tolist(), selected.gaps.tolist(), selected.reached.tolist(), units.tolist())
    return dict(zip(outcome.seeds.tolist(), values))


def paired(sides: Sequence[dict[str, dict]]) -> dict[str, np.ndarray]:
    """What `side` says of two optimizers, paired by seed: problem -> (seeds, 2, 4), for the problems that both have."""
    a, b = sides
    pairs = {problem: [(of[seed], b[problem][seed]) for seed in of if seed in b[problem]] for problem, of in a.items()}
    return {problem: np.array(of) for problem, of in pairs.items() if of}


def judged_by(pairs: dict[str, np.ndarray]) -> tuple[str, list[str]]:
    """What two optimizers are compared by, and on which problems: steps, where any of their runs reaches the target;
    if none does anywhere, gaps on all."""
    reached = [problem for problem, of in pairs.items() if of[:, :, 2].any()]
    return (STEPS, reached) if reached else (GAP, list(pairs))


def differences(what: str, pairs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By problem log(of the second / of the first), (seeds,)."""
    column = 0 if what == STEPS else 1
    return {problem: of[:, 1, column] - of[:, 0, column] for problem, of in pairs.items()}


def left_out(a: str, b: str, pairs: dict[str, np.ndarray], used: Sequence[str]) -> list[str]:
    """A note on the problems that are not used, if there are any."""
    others = ", ".join(problem for problem in pairs if problem not in used)
    return [f"{a} and {b}: neither reaches the target on {others}, which is left out"] if others else []


def _race(a: str, b: str, pairs: dict[str, np.ndarray], same: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The row of two optimizers, and notes on what was left out of it. `same`: the problems on which all seeds make the
    same run."""
    what, used = judged_by(pairs)
    found = differences(what, kept := {problem: pairs[problem] for problem in used})
    strata = [unit_means(of, kept[problem][:, :, 3]) for problem, of in found.items()]
    estimate = mean_of_strata(strata, same=set(used) <= set(same))
    logs = (estimate.value, *estimate.interval(), estimate.detectable)
    return row_of(a, b, what, kept, logs, estimate.p_value), left_out(a, b, pairs, used)


def row_of(
    a: str, b: str, what: str, pairs: dict[str, np.ndarray], logs: tuple[float, float, float, float], p_value: float
) -> dict[str, Any]:
    """A row, the one ahead first. `logs` are those of the ratio, its interval's ends, and the detectable ratio; NaN
    where unknown."""
    unreached = 1 - np.concatenate([of[:, :, 2] for of in pairs.values()]).mean(axis=0)
    sign, (value, low, high, seen) = 1, logs
    if value < 0:
        a, b, unreached, sign = b, a, unreached[::-1], -1
        value, low, high = -value, -high, -low
    means = {problem: sign * float(of.mean()) for problem, of in differences(what, pairs).items()}
    value, low, high, seen = (None if math.isnan(log) else math.exp(min(log, 700)) for log in (value, low, high, seen))
    return {
        "faster": a,
        "slower": b,
        "what": what,
        "ratio": value,
        "low": low,
        "high": high,
        "p_value": p_value,
        "detectable": seen,
        "seeds": min(map(len, pairs.values())),
        "problems": len(pairs),
        "ahead": sum(mean > 0 for mean in means.values()),
        "unreached_faster": float(unreached[0]),
        "unreached_slower": float(unreached[1]),
        "ratios": {problem: math.exp(mean) for problem, mean in means.items()},
    }


def unit_means(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Of values (S,) the mean of each independent unit, given both optimizers' (S, 2): seeds where both have each seed
    for itself, else groups, whose numbers are no larger."""
    both = units.min(axis=1)
    return np.array([values[both == unit].mean() for unit in np.unique(both)])


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
    """Two digits (for a ratio near 1, of its excess over 1), and no exponent below a million."""
    if 1 < value < 1.1:
        return f"{1 + float(f'{value - 1:.2g}'):.8g}"
    return f"{value:.2g}" if value < 100 or value >= 1e6 else f"{value:.0f}"


def sentence(row: dict[str, Any]) -> str:
    """What a row says."""
    ratio = f"{_factor(row['ratio'])}×"
    where = f"{row['seeds']} seed{'s' * (row['seeds'] != 1)}, {row['ahead']} of {row['problems']} problems"
    interval = "" if row["low"] is None else f"95 %: {_factor(row['low'])} to {_factor(row['high'])}, "
    if row["low"] is not None and row["low"] == row["high"]:  # nothing in a trial depends on its seed
        interval = "every seed gives the same, so without an interval; "
    if row["decided"]:
        least = "at least " if row["what"] == STEPS and row["unreached_slower"] > row["unreached_faster"] else ""
        what = f"reaches the target {least}{ratio} sooner than" if row["what"] == STEPS else f"ends {ratio} lower than"
        but = "" if 2 * row["ahead"] > row["problems"] else ", though on no more than half of the problems"
        return f"{row['faster']} {what} {row['slower']}{but} ({interval}{where})"
    seen = "" if row["detectable"] is None else f"; {_factor(row['detectable'])}× would have been seen"
    if row["ratio"] == 1:
        more = "both take as many steps" if row["what"] == STEPS else "both end alike"
    else:
        more = f"{row['slower']} " + (f"takes {ratio} the steps" if row["what"] == STEPS else f"ends {ratio} higher")
    return f"{row['faster']} and {row['slower']}: no difference shown ({more}, {interval}{where}{seen})"
