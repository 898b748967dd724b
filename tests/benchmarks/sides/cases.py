"""What every side runs: one problem, one optimizer, a grid of learning rates, float32, full batch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from gradbench.inputs.optimizer import Optimizer, load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem, cast, load_problem
from gradbench.program.program import Trial, numerics

OPTIMIZERS = ("sgd", "momentum", "adam")


class Setting(NamedTuple):
    """Of a problem: steps, the largest learning rate of each optimizer (the smallest is a hundredth of it), and how
    many rates. All are stable, and the bowl's are small enough for its shrinking params to stay normal floats:
    subnormals slow the sides that keep them. The cnn's of adam is the largest tried for which the tolerance exists: at
    0.01 the interpretation with noise ends in nan, though every side ends in the same loss."""

    steps: int
    highest: tuple[float, float, float]
    rates: int = 64


SMALL = {
    "quadratic_bowl": Setting(2000, (0.01, 0.0005, 0.001)),
    "linear_regression[examples=1000,features=50]": Setting(500, (0.5, 0.05, 0.05)),
    "logistic_regression": Setting(500, (0.5, 0.05, 0.05)),
    "mlp": Setting(50, (0.1, 0.01, 0.01)),
}
NETWORKS = {
    "cnn": Setting(10, (0.1, 0.01, 0.003), 8),
    "transformer": Setting(4, (0.1, 0.1, 0.003), 8),
    "lstm": Setting(10, (0.1, 0.01, 0.01), 8),
    "autoencoder": Setting(50, (1.0, 0.1, 0.01), 8),
    "matrix_factorisation[users=5000,items=3000,rank=32,ratings=200000]": Setting(5, (5000, 500, 0.02), 8),
}
PROBLEMS = SMALL | NETWORKS
SWEEP_STEPS = 200
JUDGED = 4  # learning rates, spread over the grid, whose final losses are compared: the ones that every side runs


def short(problem: str) -> str:
    """Its name without settings."""
    return problem.split("[")[0]


@dataclass(frozen=True)
class Case:
    problem_name: str
    optimizer_name: str
    rates: np.ndarray  # float32, (G,)
    steps: int

    @classmethod
    def of(cls, problem: str, optimizer: str, count: int | None = None, steps: int | None = None) -> Case:
        setting = PROBLEMS[problem]
        top = setting.highest[OPTIMIZERS.index(optimizer)]
        rates = np.geomspace(top / 100, top, count or setting.rates).astype(np.float32)
        return cls(problem, optimizer, rates, steps or setting.steps)

    @property
    def sweep(self) -> Trial:
        """A trial of as many steps as a sweep has: its chunks are what the engine runs, be it for a few steps only."""
        steps = max(self.steps, SWEEP_STEPS if self.problem_name in NETWORKS else 0)
        return dataclasses.replace(self.trial, plan=dataclasses.replace(self.plan, steps=steps))

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
        """The starting point as the sides without pytrees take it."""
        return named(self.params)

    @property
    def named_data(self) -> dict[str, np.ndarray]:
        return named(self.data)


def named(tree: Any) -> dict[str, np.ndarray]:
    """A pytree's leaves by their paths: {"blocks.0.query": ...}; an array alone is "x"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator=".") or "x": np.asarray(leaf) for path, leaf in leaves}


class Side:
    """One way to run a case. Making it is the set-up, up to the data on the device; `run` may compile at first.

    `trials` is how many learning rates `run` goes through: all, or the judged ones where all would take minutes.
    """

    name = ""

    def __init__(self, case: Case):
        self.case = case

    @classmethod
    def takes(cls, case: Case) -> bool:
        """Whether it is written for this problem."""
        return True

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
