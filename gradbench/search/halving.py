"""Successive halving inside a running sweep: at each rung of steps the worse trials leave their slots to waiting ones.

A trial goes on where its loss is among the best 1 / eta of all that have reached the rung so far (Li, Jamieson,
Rostamizadeh, Gonina, Ben-Tzur, Hardt, Recht and Talwalkar, A System for Massively Parallel Hyperparameter Tuning,
MLSys 2020, with a stop in the place of a pause; Jamieson and Talwalkar, AISTATS 2016, for one wave of trials).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


class Rungs:
    """The losses that trials had at each rung. `steps` are the rungs', ascending."""

    def __init__(self, steps: Sequence[int], eta: int):
        self.steps, self.eta = list(steps), eta
        self.losses: list[np.ndarray] = [np.zeros(0) for _ in self.steps]

    def crossed(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Which rung each trial reaches between two numbers of steps, (S,); -1 where none. A chunk crosses one."""
        found = np.full(len(before), -1)
        for number, step in enumerate(self.steps):
            found = np.where((before < step) & (step <= after), number, found)
        return found

    def stopped(self, rung: np.ndarray, losses: np.ndarray) -> np.ndarray:
        """Whether each trial that reaches a rung (`crossed`) with this loss leaves, (S,)."""
        leaves = np.zeros(len(rung), bool)
        losses = np.where(np.isfinite(losses), losses, np.inf)
        for number in range(len(self.steps)):
            here = rung == number
            if not here.any():
                continue
            self.losses[number] = np.append(self.losses[number], losses[here])
            every = np.sort(self.losses[number])
            worst = every[math.ceil(len(every) / self.eta) - 1]
            leaves |= here & ~(losses <= worst)
        return leaves

    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps."""
        return {f"rung{number}": losses for number, losses in enumerate(self.losses)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.losses = [arrays[f"rung{number}"] for number in range(len(self.steps))]
