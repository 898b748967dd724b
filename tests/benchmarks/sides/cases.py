"""What every side runs: one problem, one optimizer, a grid of learning rates, float32, full batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from gradbench.inputs.optimizer import Optimizer, load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem, cast, load_problem
from gradbench.program.program import Trial, numerics

LINEAR = "linear_regression[examples=1000,features=50]"
OPTIMIZERS = ("sgd", "momentum", "adam")
# Steps, and the largest learning rate of each optimizer; the smallest is a hundredth of it. All are stable, and the
# bowl's are small enough for its shrinking params to stay normal floats: subnormals slow the sides that keep them.
PROBLEMS: dict[str, tuple[int, tuple[float, float, float]]] = {
    "quadratic_bowl": (2000, (0.01, 0.0005, 0.001)),
    LINEAR: (500, (0.5, 0.05, 0.05)),
    "logistic_regression": (500, (0.5, 0.05, 0.05)),
    "mlp": (50, (0.1, 0.01, 0.01)),
}
JUDGED = 4  # learning rates, spread over the grid, whose final losses are compared: the ones that every side runs


@dataclass(frozen=True)
class Case:
    problem_name: str
    optimizer_name: str
    rates: np.ndarray  # float32, (G,)
    steps: int

    @classmethod
    def of(cls, problem: str, optimizer: str, count: int = 64, steps: int | None = None) -> Case:
        default, highest = PROBLEMS[problem]
        top = highest[OPTIMIZERS.index(optimizer)]
        return cls(problem, optimizer, np.geomspace(top / 100, top, count).astype(np.float32), steps or default)

    @property
    def judged(self) -> np.ndarray:
        """Indices of the compared learning rates."""
        return np.unique(np.linspace(0, len(self.rates) - 1, JUDGED).round().astype(int))

    @cached_property
    def problem(self) -> Problem:
        return load_problem(self.problem_name)

    @cached_property
    def optimizer(self) -> Optimizer:
        return load_optimizer(self.optimizer_name)

    @cached_property
    def plan(self) -> SweepPlan:
        rates = [float(rate) for rate in self.rates]
        return SweepPlan((self.problem_name,), (self.optimizer_name,), rates, seeds=1, steps=self.steps)

    @cached_property
    def trial(self) -> Trial:
        with numerics("float32", "highest"):
            return Trial.of(self.problem, self.optimizer, self.plan)

    @cached_property
    def params(self) -> Any:
        return cast(self.problem.init(jax.random.key(0)), "float32")

    @cached_property
    def data(self) -> Any:
        return cast(self.problem.data, "float32")

    @property
    def named_params(self) -> dict[str, np.ndarray]:
        """The starting point as a flat dict, as the sides without pytrees take it."""
        if self.problem_name != "mlp":
            return {"x": np.asarray(self.params)}
        return {f"{k}{i}": np.asarray(layer[k]) for i, layer in enumerate(self.params) for k in ("w", "b")}

    @property
    def named_data(self) -> dict[str, np.ndarray]:
        data = self.data if isinstance(self.data, dict) else {"lambdas": self.data}
        return {k: np.asarray(v) for k, v in data.items()}


class Side:
    """One way to run a case. Making it is the set-up, up to the data on the device; `run` may compile at first.

    `trials` is how many learning rates `run` goes through: all, or the judged ones where all would take minutes.
    """

    name = ""

    def __init__(self, case: Case):
        self.case = case

    @property
    def indices(self) -> np.ndarray:
        return np.arange(len(self.case.rates))

    def run(self) -> tuple[float, np.ndarray]:
        """Seconds in the loop over the steps, and the loss seen by the last step of each trial run."""
        raise NotImplementedError

    @property
    def trial_steps(self) -> int:
        """How many steps of one trial the seconds of `run` hold."""
        return len(self.indices) * self.case.steps


class JudgedOnly(Side):
    @property
    def indices(self) -> np.ndarray:
        return self.case.judged
