"""How the best learning rate of a pair moves along another axis: a power law, its interval, and theory beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gradbench.analysis.points import best_of_seeds
from gradbench.analysis.profiles import by_seed
from gradbench.analysis.summary import PairSummary, rows_where
from gradbench.analysis.verdicts import Reference
from gradbench.errors import GradbenchError
from gradbench.inputs.specs.axis import NEAR_ONE, spec_text
from gradbench.inputs.specs.spec import parse_spec

RESAMPLES = 1000
MIN_VALUES = 3  # of the axis, with a learning rate that works
# Exponents by theory: decoupled decay shrinks weights by learning_rate x weight_decay (Loshchilov and Hutter, ICLR
# 2019); with equal gradients a step of momentum has the length learning_rate / (1 - momentum) (Polyak 1964).
# Batches of independent examples allow longer steps, in proportion (Goyal et al., 2017) or as the square root
# (Krizhevsky, 2014); in the maximal update parametrisation hidden layers' rates go as one over their width (Yang and
# Hu, ICML 2021).
THEORY = {
    "weight_decay": (-1.0, "learning_rate × weight_decay stays"),
    "momentum": (1.0, "as 1 − momentum"),
    "batch_size": (1.0, "in proportion; 0.5 as the square root"),
    "hidden": (-1.0, "one over the width"),
    "width": (-1.0, "one over the width"),
}


@dataclass(frozen=True)
class Move:
    """best learning rate ∝ of^exponent, where `of` is the axis or, for momentum and the like, one minus it; `low` and
    `high` are the exponent's 95 % interval."""

    axis: str
    of: str
    exponent: float
    low: float
    high: float
    theory: tuple[float, str] | None

    @property
    def words(self) -> str:
        """In one clause."""
        moved = f"best learning rate ∝ {self.of}^{self.exponent:.2g} (95 %: {self.low:.2g} to {self.high:.2g})"
        if self.low <= 0 <= self.high:
            interval = f"exponent {self.low:.2g} to {self.high:.2g}"
            moved = f"no move of the best learning rate along {self.axis} shown ({interval})"
        return moved + (f"; theory {self.theory[0]:g}: {self.theory[1]}" if self.theory else "")


def move(pair: PairSummary, trials: pa.Table, axis: str) -> Move | None:
    """The Move along an axis of a pair, other axes at the pair's best values, from all of its `trials`."""
    if others := {name: value for name, value in pair.settings.items() if name != axis}:
        trials = rows_where(trials, others)
    values = np.unique(trials[axis].to_numpy()).tolist()
    return fitted(axis, {value: (rows_where(trials, {axis: value}), pair.reference) for value in values})


def fitted(axis: str, trials: Mapping[float, tuple[pa.Table, Reference]], seed: int = 0) -> Move | None:
    """Fitted to the best learning rate at each value above 0 of the axis, from the trials there, whose gaps are to the
    reference beside them. None where fewer than MIN_VALUES of them have one that works.

    The interval covers two things: the seeds, resampled with replacement, and where between two rates of the grid the
    best lies, drawn uniformly within half a step to each side.
    """
    places = {value: 1 - value if axis in NEAR_ONE else value for value in trials}
    found = [(math.log(place), _Best(*trials[value])) for value, place in places.items() if place > 0]
    found = [(place, best) for place, best in found if best.at(np.arange(best.seeds)) is not None]
    if len(found) < MIN_VALUES:
        return None
    x, bests = np.array([place for place, _ in found]), [best for _, best in found]
    rng, slopes, seeds = np.random.default_rng(seed), [], min(best.seeds for best in bests)
    for _ in range(RESAMPLES):
        take = rng.integers(seeds, size=seeds)
        slopes.append(_slope(x, [best.drawn(take, rng) for best in bests]))
    exponent = _slope(x, [best.drawn(np.arange(best.seeds), None) for best in bests])
    low, high = np.percentile(slopes, [2.5, 97.5])
    of = f"(1 − {axis})" if axis in NEAR_ONE else axis
    return Move(axis, of, exponent, float(low), float(high), THEORY.get(axis))


def families(pairs: Sequence[PairSummary]) -> Iterator[tuple[str, str, dict[float, PairSummary]]]:
    """Pairs that differ only in one number of one spec, such as mlp[hidden=16] and mlp[hidden=32]: their name without
    that number, the setting, and value -> pair."""
    found: dict[tuple[str, str], dict[float, PairSummary]] = {}
    for pair in pairs:
        for problem, optimizer, name, value in _without_one(pair):
            found.setdefault((f"{problem} × {optimizer}", name), {})[value] = pair
    for (what, name), family in found.items():
        if len(family) >= MIN_VALUES:
            yield what, name, dict(sorted(family.items()))


def _without_one(pair: PairSummary) -> Iterator[tuple[str, str, str, float]]:
    """(problem, optimizer, setting, value) for each number in either spec, with that number left out of the spec."""
    for which, text in enumerate((pair.problem, pair.optimizer)):
        spec = parse_spec(text, GradbenchError)
        for name, value in spec.settings.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                rest = spec_text(spec.target, {key: of for key, of in spec.settings.items() if key != name})
                yield (rest, pair.optimizer, name, value) if which == 0 else (pair.problem, rest, name, value)


class _Best:
    """Finds the best learning rate at one value of the axis, for any choice of seeds."""

    def __init__(self, trials: pa.Table, to: Reference):
        self.rates, self.steps, self.gaps = by_seed(trials, to)
        self.seeds = self.gaps.shape[1]
        self.log = np.log(self.rates)
        self.half = float(np.median(np.diff(self.log))) / 2 if len(self.log) > 1 else 0.0
        self.known: dict[bytes, int | None] = {}

    def at(self, take: np.ndarray) -> int | None:
        key = np.sort(take).tobytes()
        if key not in self.known:
            self.known[key] = best_of_seeds(self.steps[:, take], self.gaps[:, take]) if len(take) else None
        return self.known[key]

    def drawn(self, take: np.ndarray, rng: np.random.Generator | None) -> float:
        """log of the best rate for these seeds: the middle of those that reach the target in equally few steps, or with
        `rng` a random place in their cells of the grid."""
        if self.at(take) is None:
            take = np.arange(self.seeds)
        place = self.at(take)
        assert place is not None
        steps = np.median(self.steps[:, take], axis=1)
        equal = np.flatnonzero(steps == steps[place]) if np.isfinite(steps[place]) else np.array([place])
        low, high = self.log[equal.min()], self.log[equal.max()]
        return float((low + high) / 2 if rng is None else rng.uniform(low - self.half, high + self.half))


def _slope(x: np.ndarray, y: Sequence[float]) -> float:
    centred = x - x.mean()
    return float(centred @ (np.asarray(y) - np.mean(y)) / (centred @ centred))
