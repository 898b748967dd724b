"""Means over seeds with their intervals, and the correction for many comparisons.

Sources: Welch, The generalization of Student's problem when several different population variances are involved,
Biometrika 34 (1947), and Satterthwaite, Biometrics Bulletin 2 (1946), for means over strata of unequal variance; Holm,
A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979); Efron and Stein,
The jackknife estimate of variance, Annals of Statistics 9 (1981).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

CONFIDENCE = 0.95
POWER = 0.8  # of the test at `detectable`
# More than rounding makes of a mean of differences of logs, which are below 2^6 and so rounded by at most 2^-47; less
# than the logs of two numbers of steps differ by, which are whole and below 2^30.
ROUNDING = 2.0**-40


class Estimate(NamedTuple):
    """A mean, its standard error, and its degrees of freedom. The error is 0 without randomness, and NaN with too few
    values, or where independent ones are all alike: then `freedom` is how many they are, else NaN too."""

    value: float
    error: float
    freedom: float

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Student's interval; both ends NaN where the error is unknown."""
        half = self._quantile((1 + confidence) / 2) * self.error
        return self.value - half, self.value + half

    @property
    def p_value(self) -> float:
        """Two-sided, of a mean of 0. Where the error is unknown 1, or of n values that are all alike the probability
        that all have one sign, 2^(1 - n)."""
        if math.isnan(self.error):
            return 1.0 if math.isnan(self.freedom) or self.value == 0 else 2.0 ** (1 - self.freedom)
        if self.error == 0:
            return float(self.value == 0)
        return float(2 * _student().sf(abs(self.value) / self.error, self.freedom))

    @property
    def detectable(self) -> float:
        """The smallest mean that a test at 5 % detects with a probability of 80 %; NaN where the error is unknown."""
        return (self._quantile((1 + CONFIDENCE) / 2) + self._quantile(POWER)) * self.error

    def _quantile(self, of: float) -> float:
        return 0.0 if self.error == 0 else float(_student().ppf(of, self.freedom))


def without_rounding(logs: Any) -> Any:
    """Differences of logs, 0 where they are what rounding leaves of equals: log(20 / 14) + log(7 / 10) is 1e-16."""
    return np.where(np.abs(logs) <= ROUNDING, 0.0, logs)[()]


def _student() -> Any:
    """Student's distribution. Imported where it is used, as scipy.stats is everywhere: it takes half a second."""
    from scipy.stats import t

    return t


def mean_of_strata(strata: Sequence[np.ndarray], same: bool = False) -> Estimate:
    """The mean of the strata's means, each stratum (S,) with its own variance; error NaN if any has one value.

    Where all values of each stratum are alike, the error is 0 if all seeds make the `same` run; else it is NaN: runs
    can need as many steps, or not reach the target, by chance.

    Where one has two values only, its variance is too uncertain for Satterthwaite's degrees of freedom. Every stratum
    is then cut into halves, and the error is that of two values, the means over the strata of either half; NaN where
    those agree though the values do not, as whole numbers of steps can: that says nothing of the error.
    """
    counts = np.array([len(of) for of in strata])
    value = float(without_rounding(np.mean([np.mean(of) for of in strata])))
    if counts.min() < 2:
        return Estimate(value, math.nan, math.nan)
    variances = np.array([np.var(of, ddof=1) if np.ptp(of) > ROUNDING else 0.0 for of in strata]) / counts
    total = variances.sum()
    if total == 0:
        return Estimate(value, 0.0, math.inf) if same else Estimate(value, math.nan, float(counts.min()))
    if counts.min() == 2:
        first, second = np.mean([[half.mean() for half in np.array_split(of, 2)] for of in strata], axis=0)
        agree = math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-9 * math.sqrt(total))  # but for rounding
        return Estimate(value, math.nan if agree else abs(float(first - second)) / 2, math.nan if agree else 1.0)
    freedom = total**2 / np.sum(variances**2 / (counts - 1))
    return Estimate(value, math.sqrt(total) / len(strata), float(freedom))


def jackknife(count: int, estimate: Callable[[np.ndarray], float]) -> Estimate:
    """`estimate(indices)` over `count` units, with the jackknife error: each unit is left out in turn."""
    every = np.arange(count)
    value = float(without_rounding(estimate(every)))
    if count < 3:
        return Estimate(value, math.nan, math.nan)
    without = np.array([estimate(np.delete(every, unit)) for unit in every])
    spread = without - without.mean() if np.ptp(without) > ROUNDING else 0 * without
    error = math.sqrt((count - 1) / count * float(np.sum(spread**2)))
    return Estimate(value, error, math.inf if error == 0 else count - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted (Holm) so that a level bounds the probability of any false claim among all."""
    order = np.argsort(p_values)
    adjusted, highest = [1.0] * len(order), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
