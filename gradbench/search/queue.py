"""The trials of a pair in their order: those of a design, known from the start, or those that a search asks for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.specs.searches import ASKING, RANGE_TEST, REFINE
from gradbench.search.ask_tell import ask_tell
from gradbench.search.asked import Asked, Searching
from gradbench.search.refine import refine


class Queue:
    """`settings` by name and `seeds` of every trial of the pair known so far, each (N,), and `why` each was asked for,
    where a search did. `order` are the numbers of the trials that are run, one after another."""

    def __init__(self, plan: SweepPlan, optimizer: str, part: Sequence[int] | np.ndarray | None = None):
        self.plan, self.search = plan, _search(plan, optimizer)
        self.why: list[str] | None = None
        self.ran: np.ndarray | None = None  # the steps that trials of a record ran
        self.asked = 0  # the first trial of what the search asked for last
        if self.search is None:
            self.settings, self.seeds = designed(plan, optimizer)
            self.why = reasons(plan, self.seeds) if plan.until else None
            if plan.searching is not None and plan.searching.kind == RANGE_TEST:
                self.why = ["range test"] * len(self.seeds)
        else:
            first = next(self.search)
            self.settings, self.seeds, self.why = dict(first.settings), first.seeds, list(first.why)
            part = None  # what it asks for is known only as it goes on
        self.order = np.arange(len(self.seeds)) if part is None else np.asarray(part, np.int64)

    @classmethod
    def recorded(
        cls,
        plan: SweepPlan,
        optimizer: str,
        trials: pa.Table,
        before: int,
        part: Sequence[int] | np.ndarray | None = None,
    ) -> Queue:
        """Of the pair's trials in a record, the first of which has the number `before` there."""
        queue = cls(dataclasses.replace(plan, search=None, budget=None), optimizer, part)
        numbers = trials["trial"].to_numpy() - before
        size = int(numbers.max()) + 1
        names = list(queue.settings)
        queue.settings = {name: np.zeros(size) for name in names}
        queue.seeds = np.zeros(size, np.int64)
        for name in names:
            queue.settings[name][numbers] = trials[name].to_numpy()
        queue.seeds[numbers] = trials["seed"].to_numpy()
        queue.ran = np.zeros(size, np.int64)
        queue.ran[numbers] = trials["steps_run"].to_numpy()
        queue.order = numbers if part is None else queue.order
        return queue

    def __len__(self) -> int:
        return len(self.order)

    def ask(self, scores: Mapping[int, float]) -> bool:
        """Take in what the search asks for, where the scores of all that it asked for last are known: whether there is
        more."""
        known = len(self.seeds)
        if self.search is None or not all(trial in scores for trial in range(self.asked, known)):
            return False
        try:
            more: Asked = self.search.send(np.array([scores[trial] for trial in range(self.asked, known)]))
        except StopIteration:
            return False
        assert self.why is not None
        self.asked = known
        self.settings = {name: np.append(of, more.settings[name]) for name, of in self.settings.items()}
        self.seeds, self.why = np.append(self.seeds, more.seeds), [*self.why, *more.why]
        self.order = np.arange(len(self.seeds))
        return True

    def replay(self, scores: Mapping[int, float]) -> None:
        """Ask again for all that was asked for before an interruption."""
        while self.ask(scores):
            pass


def designed(plan: SweepPlan, optimizer: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The settings by name and the seeds of all trials of a pair of a design, each (N,)."""
    points = plan.points(optimizer)
    if plan.until:  # seed by seed, as they are added
        settings = {name: np.tile(values, plan.seeds) for name, values in points.items()}
        return settings, np.repeat(np.arange(plan.seeds), len(points["learning_rate"]))
    settings = {name: np.repeat(values, plan.seeds) for name, values in points.items()}
    seeds = np.tile(np.arange(plan.seeds), len(points["learning_rate"]))
    if not plan.rungs:
        return settings, seeds
    order = np.random.default_rng(0).permutation(len(seeds))  # else each wave would be better than those before
    return {name: values[order] for name, values in settings.items()}, seeds[order]


def reasons(plan: SweepPlan, seeds: np.ndarray) -> list[str]:
    """Why each trial of a race is made, by its seed."""
    ends = plan.round_ends
    words = [f"the fewest seeds that can decide {plan.until}"]
    words += [f"{plan.until} was not decided after {end} seeds" for end in ends]
    return np.array(words, object)[np.searchsorted(ends, seeds, side="right")].tolist()


def _search(plan: SweepPlan, optimizer: str) -> Searching | None:
    found = plan.searching
    if found is None or found.kind not in ASKING:
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
