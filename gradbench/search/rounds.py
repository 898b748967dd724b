"""The rounds in which a race adds seeds to all pairs, and when it is over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gradbench.analysis.races.records import InterimAnalysis
from gradbench.inputs.plan import SweepPlan
from gradbench.record.store import Run


class Part(NamedTuple):
    """Trials of a pair, from `first` to before `last`, of a round; `number` counts the parts of the pair."""

    number: int
    round: int
    first: int
    last: int


class Rounds:
    """Of a plan with `until`: after each round every pair has some more seeds, and one looks. `sizes` are the trials of
    a part, by pair."""

    def __init__(self, plan: SweepPlan, sizes: Sequence[int]):
        self.plan, self.current = plan, 0
        self.parts = [_parts(plan, optimizer, size) for (_, optimizer), size in zip(plan.pairs, sizes)]
        self.seconds: defaultdict[int, float] = defaultdict(float)  # of this process, by pair

    @property
    def seeds(self) -> int:
        """Of every pair, before the round that goes on."""
        return self.plan.round_ends[self.current - 1] if self.current else 0

    def needed(self, pair: int, done: set[int]) -> list[Part]:
        """The parts of a pair that are missing up to the round that goes on."""
        if self.spent(pair):
            return []
        return [part for part in self.parts[pair] if part.round <= self.current and part.number not in done]

    def spent(self, pair: int) -> bool:
        """Whether a pair's time is up. Of other budgets the plan's rounds know."""
        budget = self.plan.allowed
        return budget is not None and budget.unit == "seconds" and self.seconds[pair] >= budget.amount

    def go_on(self, done: Sequence[set[int]], read: Callable[[], Run]) -> bool:
        """Begin the next round, after those whose parts are `done` by all pairs: whether there is one. `read` gives the
        record so far."""
        if any(map(self.spent, range(len(done)))):
            return False
        missing = [min((p.round for p in of if p.number not in d), default=None) for of, d in zip(self.parts, done)]
        rounds = [number for number in missing if number is not None]
        if not rounds:
            return False
        self.current = min(rounds)
        return not self.seeds or not InterimAnalysis(read(), self.seeds).decided


def _parts(plan: SweepPlan, optimizer: str, size: int) -> list[Part]:
    points, begin, parts = plan.trials_of(optimizer) // plan.seeds, 0, []
    for number, end in enumerate(plan.round_ends):
        for first in range(begin, end * points, size):
            parts.append(Part(len(parts), number, first, min(first + size, end * points)))
        begin = end * points
    return parts
