"""The trials of a pair in their order: those of a design, known from the start, or those that a search asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.specs.searches import HALVING, REFINE
from gradbench.search.ask_tell import ask_tell
from gradbench.search.asked import Asked, Searching
from gradbench.search.refine import refine


class Queue:
    """`settings` by name and `seeds` of every trial known so far, each (N,), and `why` each was asked for, where a
    search did. Trials from `start` to before `stop` are this queue's."""

    def __init__(self, plan: SweepPlan, optimizer: str, part: range | None = None):
        self.plan, self.search = plan, _search(plan, optimizer)
        self.why: list[str] | None = None
        self.asked = 0  # the first trial of what the search asked for last
        if self.search is None:
            points = plan.points(optimizer)
            self.settings = {name: np.repeat(values, plan.seeds) for name, values in points.items()}
            self.seeds = np.tile(np.arange(plan.seeds), len(points["learning_rate"]))
            if plan.rungs:  # in the order of a grid each wave of trials would be better than those before
                order = np.random.default_rng(0).permutation(len(self.seeds))
                self.settings = {name: values[order] for name, values in self.settings.items()}
                self.seeds = self.seeds[order]
        else:
            first = next(self.search)
            self.settings, self.seeds, self.why = dict(first.settings), first.seeds, list(first.why)
        part = range(len(self.seeds)) if part is None or self.search else part
        self.start, self.stop = part.start, part.stop

    def __len__(self) -> int:
        return self.stop - self.start

    def ask(self, scores: Mapping[int, float]) -> bool:
        """Take in what the search asks for, where the scores of all that it asked for last are known: whether there is
        more."""
        if self.search is None or not all(trial in scores for trial in range(self.asked, self.stop)):
            return False
        try:
            more: Asked = self.search.send(np.array([scores[trial] for trial in range(self.asked, self.stop)]))
        except StopIteration:
            return False
        assert self.why is not None
        self.asked = self.stop
        self.settings = {name: np.append(of, more.settings[name]) for name, of in self.settings.items()}
        self.seeds, self.why = np.append(self.seeds, more.seeds), [*self.why, *more.why]
        self.stop = len(self.seeds)
        return True

    def replay(self, scores: Mapping[int, float]) -> None:
        """Ask again for all that was asked for before an interruption."""
        while self.ask(scores):
            pass


def _search(plan: SweepPlan, optimizer: str) -> Searching | None:
    found = plan.searching
    if found is None or found.kind == HALVING:
        return None
    return (refine if found.kind == REFINE else ask_tell)(plan, optimizer, found.argument)


class Spending:
    """What of a pair's budget is left."""

    def __init__(self, plan: SweepPlan):
        self.budget, self.steps = plan.allowed, plan.steps

    def room(self, begun: int, trial_steps: int, steps_left: int) -> int:
        """How many more trials may begin, of which `begun` have: `trial_steps` are made, and `steps_left` to make."""
        if self.budget is None or self.budget.unit == "seconds":
            return 2**31
        if self.budget.unit == "trials":
            return max(0, int(self.budget.amount) - begun)
        return max(0, math.floor((self.budget.amount - trial_steps - steps_left) / self.steps))

    def over(self, seconds: float) -> bool:
        """Whether the time is up, in which what runs is given up."""
        return self.budget is not None and self.budget.unit == "seconds" and seconds > self.budget.amount
