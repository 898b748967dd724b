"""What an optimizer reaches at a budget of tuning, and what it loses at a wrong learning rate.

Tunability: k settings are drawn at random from those of a record and run with one seed; the one that does best is
judged on the other seeds. The expected result is exact, over all subsets of k settings: a setting whose run is the
i-th best of N is the best of C(N - i, k - 1) of the C(N, k) subsets (an unbiased U-statistic: Hoeffding, Annals of
Mathematical Statistics 19, 1948; Dodge, Gururangan, Card, Schwartz and Smith, Show Your Work, EMNLP 2019, draw with
replacement, which is biased: Tang, Lee, Xin, Liu, Yu and Lin, ACL 2020), averaged over the choosing seeds. The
interval leaves out each seed in turn (jackknife).

Robustness: the factor in steps (or in the gap at the end) of half and of twice the learning rate that a seed's group
chooses, on that seed; between two learning rates of the grid log steps are interpolated in log learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbench.analysis.races.intervals import CONFIDENCE, Estimate, jackknife, mean_of_strata, without_rounding
from gradbench.analysis.races.outcomes import Outcomes, outcomes
from gradbench.analysis.races.races import GAP, STEPS, unit_means
from gradbench.record.store import Run

BUDGETS = (1, 2, 3, 5, 10, 20, 50, 100)  # trials of tuning, as far as there are so many settings
FACTORS = (0.5, 2.0)  # of the best learning rate


@dataclass(frozen=True)
class Tunability:
    """curves: a dict for each problem (None is all of them), number of tuning `trials` and optimizer: what (steps to
        target, or where nobody reaches it gap at the end), value (the geometric mean over problems), low, high (95 %),
        wins (whether it is the lowest there), clear (and significantly so, against each other one).
    robustness: a dict for each problem and optimizer: half, half_low, half_high, twice, ...: factors of the value at
        the best learning rate, above 1 worse; None beyond the grid, and where that does not reach the target.
    """

    curves: list[dict[str, Any]]
    robustness: list[dict[str, Any]]
    notes: list[str]

    def __str__(self) -> str:
        from gradbench.analysis.races.text import tunability_text

        return tunability_text(self, "table")


def tunability(runs: Sequence[Run], problems: Sequence[str] = (), optimizers: Sequence[str] = ()) -> Tunability:
    """The tunability in one record, or in several with one target; of these problems and optimizers, or of all."""
    return tunability_of(outcomes(runs, problems, optimizers))


def tunability_of(found: Mapping[str, Mapping[str, Outcomes]]) -> Tunability:
    """The tunability of outcomes by optimizer and problem."""
    problems = list(dict.fromkeys(problem for of in found.values() for problem in of))
    what = {problem: _what([of[problem] for of in found.values() if problem in of]) for problem in problems}
    shared = [problem for problem in problems if all(problem in of for of in found.values())]
    notes = ["the settings tried are those of the record: a wider or denser grid is another budget"]
    curves: list[dict[str, Any]] = []
    for kind in (STEPS, GAP):
        together = [problem for problem in shared if what[problem] == kind]
        if len(together) > 1:
            curves += _curves(found, together, kind, None)
    for problem in problems:
        of = {name: by for name, by in found.items() if problem in by}
        curves += _curves(of, [problem], what[problem], problem)
    rows = [_robustness(by[problem], what[problem]) for by in found.values() for problem in by]
    if min(len(of.seeds) for by in found.values() for of in by.values()) == 1:
        notes.append("one seed both chooses and judges: values are too good; add --seeds")
    stepped = [of for by in found.values() for of in by.values() if what[of.problem] == STEPS]
    if not all(np.isfinite(of.steps).all() for of in stepped):
        notes.append(
            "a run that does not reach the target counts as having taken all its steps: such values are lower bounds"
        )
    return Tunability(curves, rows, notes)


def _what(of: Sequence[Outcomes]) -> str:
    """What a problem's trials are judged by: steps, where any reaches the target."""
    return STEPS if any(np.isfinite(each.steps).any() for each in of) else GAP


def _values(of: Outcomes, what: str) -> np.ndarray:
    return of.log_steps if what == STEPS else of.log_gaps


def subset_weights(count: int, trials: int) -> np.ndarray:
    """The probability that the i-th best of `count` is the best of a random subset of `trials` of them, (count,)."""
    weights = [math.comb(count - i, trials - 1) for i in range(1, count + 1)]
    return np.array([weight / math.comb(count, trials) for weight in weights])


def expected_results(of: Outcomes, what: str, trials: int) -> np.ndarray:
    """Expected log results (S, S) of the setting that seed s chooses among `trials` random ones, on seed s'."""
    values = _values(of, what)
    weights = subset_weights(len(values), trials)
    results = np.empty((values.shape[1],) * 2)
    for seed in range(values.shape[1]):
        order = np.lexsort((of.log_gaps[:, seed], values[:, seed]))  # a tie in steps goes by the gap
        results[seed] = weights @ values[order]
    return results


def _mean_apart(results: np.ndarray, seeds: np.ndarray) -> float:
    """The mean of `results` (S, S) over pairs of different seeds among `seeds`; of a single seed, its own."""
    part = results[np.ix_(seeds, seeds)]
    if len(seeds) == 1:
        return float(part[0, 0])
    return float((part.sum() - np.trace(part)) / (len(seeds) * (len(seeds) - 1)))


def _curves(
    found: Mapping[str, Mapping[str, Outcomes]], problems: Sequence[str], what: str, name: str | None
) -> list[dict[str, Any]]:
    settings = min(len(of[problem].rates) for of in found.values() for problem in problems)
    rows = []
    for trials in sorted({budget for budget in BUDGETS if budget <= settings} | {settings}):
        results = {
            optimizer: [expected_results(of[problem], what, trials) for problem in problems]
            for optimizer, of in found.items()
        }
        exact = {optimizer: all(found[optimizer][problem].exact for problem in problems) for optimizer in results}
        estimates = {optimizer: _estimate(of, exact[optimizer]) for optimizer, of in results.items()}
        best = min(estimates, key=lambda optimizer: estimates[optimizer].value)
        others = [
            _estimate([a - b for a, b in zip(of, results[best])], exact[o] and exact[best])
            for o, of in results.items()
            if o != best
        ]
        level = (1 - CONFIDENCE) / max(len(others), 1)
        clear = all(of.p_value < level for of in others if _comparable(of)) and all(map(_comparable, others))
        for optimizer, estimate in estimates.items():
            row = {"problem": name, "problems": len(problems), "trials": trials, "optimizer": optimizer, "what": what}
            wins = optimizer == best
            rows.append(row | _exponentials(estimate, "value", "low", "high") | {"wins": wins, "clear": wins and clear})
    return rows


def _comparable(of: Estimate) -> bool:
    return not (math.isnan(of.error) and math.isnan(of.freedom))


def _estimate(results: Sequence[np.ndarray], same: bool) -> Estimate:
    """The mean over problems; for its error each problem's seeds are left out in turn. `same` as of mean_of_strata."""
    parts = [jackknife(len(of), lambda seeds, of=of: _mean_apart(of, seeds)) for of in results]
    value = float(without_rounding(np.mean([of.value for of in parts])))
    variances = np.array([of.error**2 for of in parts])
    if np.isnan(variances).any():
        return Estimate(value, math.nan, math.nan)
    if not variances.any():
        return Estimate(value, 0.0, math.inf) if same else Estimate(value, math.nan, float(min(map(len, results))))
    freedom = variances.sum() ** 2 / np.sum(variances**2 / (np.array([len(of) for of in results]) - 1))
    return Estimate(value, math.sqrt(variances.sum()) / len(parts), float(freedom))


def _exponentials(of: Estimate, *keys: str) -> dict[str, float | None]:
    logs = (of.value, *of.interval())
    return {key: None if math.isnan(log) else math.exp(min(log, 700)) for key, log in zip(keys, logs)}


def _robustness(of: Outcomes, what: str) -> dict[str, Any]:
    """Factors of half and twice the learning rate that each seed's group chooses, on that seed."""
    selected, values = of.selected, _values(of, what)
    row: dict[str, Any] = {"problem": of.problem, "optimizer": of.optimizer, "what": what}
    log_rates, order = np.log(of.rates), np.argsort(of.rates)
    for factor, name in zip(FACTORS, ("half", "twice")):
        at = log_rates[selected.setting] + math.log(factor)
        inside = (at >= log_rates.min() - 1e-9).all() and (at <= log_rates.max() + 1e-9).all()
        lost = Estimate(math.nan, math.nan, math.nan)
        if inside and of.alone and (what == GAP or selected.reached.all()):
            places = enumerate(at)
            moved = np.array([np.interp(x, log_rates[order], values[order, seed]) for seed, x in places])
            change = moved - values[selected.setting, np.arange(len(at))]
            lost = mean_of_strata([unit_means(change, selected.units[:, None])], same=of.exact)
        row |= _exponentials(lost, name, f"{name}_low", f"{name}_high")
    return row
