"""A test that may be evaluated after every seed: does one optimizer win, with seeds added until that is decided?

Each unit of seeds gives one value: the mean, over problems and its seeds, of log(steps of one / steps of the other).
Units are independent, so under "no difference" the sign of a value is a fair coin, given all sizes and the values
before it. Betting on it a share tanh(strength × size) of the current wealth, size relative to the root mean square so
far, keeps the expected wealth at 1; it ever reaches 1 / 5 % with a probability of at most 5 % (Ville, Étude
critique de la notion de collectif, 1939). The bets are those of Fisher-type e-tests of symmetry (Vovk and Wang,
Nonparametric e-tests of symmetry, New England Journal of Statistics in Data Science 2, 2024; de la Peña, Annals of
Probability 27, 1999): exp(s x) / cosh(s x). The ratios that are not rejected are the interval, valid at any stopping
time (Ramdas, Grünwald, Vovk and Shafer, Game-theoretic statistics and safe anytime-valid inference, Statistical
Science 38, 2023). The values are assumed to be symmetric about the truth.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from gradbench.analysis.races.intervals import CONFIDENCE, POWER, ROUNDING

STRENGTHS = (0.5, 2.0)  # half the wealth on each, a quarter on each sign: for small and for large differences
LEVEL = math.log(1 / (1 - CONFIDENCE))
# Where an interval's ends are looked for, in ranges of the values.
_WIDE = np.concatenate([np.linspace(0, 3, 121), np.geomspace(3, 1e4, 41)[1:]])
_COPIES = 200  # of the values, to find what is detectable


def log_fortunes(values: np.ndarray) -> np.ndarray:
    """The log of the wealth, at first 1, after each of the values (..., N), by bets against 0 as their median."""
    squares = np.cumsum(values**2, axis=-1) / np.arange(1, values.shape[-1] + 1)
    sizes = np.divide(values, np.sqrt(squares), out=np.zeros_like(values), where=squares > 0)
    bets = [sign * strength * sizes for strength in STRENGTHS for sign in (1, -1)]
    logs = np.cumsum([np.log1p(np.tanh(bet)) for bet in bets], axis=-1)
    return np.logaddexp.reduce(logs, axis=0) - math.log(len(bets))


class Sequential(NamedTuple):
    """The Hodges-Lehmann estimate of the values' centre, the ends of its interval (NaN where there is none yet), and a
    p-value that is valid at any stopping time."""

    value: float
    low: float
    high: float
    p_value: float

    @property
    def decided(self) -> bool:
        return self.p_value <= 1 - CONFIDENCE

    @classmethod
    def of(cls, values: np.ndarray) -> Sequential:
        """Of values (N,), N > 0."""
        pairs = (values[:, None] + values) / 2
        middle = float(np.median(pairs[np.triu_indices(len(values))]))
        p_value = math.exp(-max(0.0, float(log_fortunes(values)[-1])))
        return cls(middle, middle - _reach(middle - values), middle + _reach(values - middle), p_value)


def _reach(values: np.ndarray) -> float:
    """How far above 0 the interval of values around 0 reaches; NaN where it is unbounded."""
    spread = float(np.ptp(values))
    if spread <= ROUNDING:
        return 0.0 if _rejected(values, 1.0) else math.nan
    ends = _WIDE * spread
    kept = np.flatnonzero(~np.array([_rejected(values, end) for end in ends]))
    if len(kept) == 0:
        return 0.0
    if kept[-1] == len(ends) - 1:
        return math.nan
    low, high = ends[kept[-1]], ends[kept[-1] + 1]
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if _rejected(values, middle) else (middle, high)
    return float(high)


def _rejected(values: np.ndarray, middle: float) -> bool:
    return bool(log_fortunes(values - middle)[-1] >= LEVEL)


def detectable(values: np.ndarray, looks: np.ndarray) -> float:
    """The smallest centre that would be detected at one of the `looks` (numbers of values) with a probability of 80 %,
    for values spread about it as these are about theirs, with random signs and order. NaN with too few."""
    spread = values - Sequential.of(values).value
    rng = np.random.default_rng(0)
    copies = rng.permuted(np.tile(spread, (_COPIES, 1)), axis=1) * rng.choice([-1, 1], (_COPIES, len(values)))

    def seen(middle: float) -> bool:
        reached = log_fortunes(copies + middle)[:, looks - 1] >= LEVEL
        return bool(reached.any(axis=1).mean() >= POWER)

    if not spread.any():
        return 0.0 if seen(1.0) else math.nan
    high = 100 * float(np.abs(spread).max())
    if not seen(high):
        return math.nan
    low = 0.0
    while high - low > 1e-3 * high:
        low, high = (low, (low + high) / 2) if seen((low + high) / 2) else ((low + high) / 2, high)
    return high
