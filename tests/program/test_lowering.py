"""Every program lowers for every kind of device, none of which is needed for that."""

from __future__ import annotations

import functools

import jax
import pytest
from jax import export
from sampling import sample

from gradbench.inputs.built_in import problem_names
from gradbench.inputs.optimizer import load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem, load_problem
from gradbench.program.program import Block, Program
from gradbench.program.trial import Trial, numerics

ACCELERATORS = ("cuda", "rocm", "tpu")
OPTIMIZERS = (
    *("sgd", "momentum", "nesterov", "adam", "adamw", "adagrad", "rmsprop", "lion", "lamb", "adafactor"),
    *("muon", "adam[schedule=cosine]", "schedule_free_adamw", "lbfgs"),
)


@functools.cache
def loaded(problem: str) -> Problem:
    return load_problem(problem)


def assert_lowers(problem: str, optimizer: str, **settings) -> None:
    plan = SweepPlan((problem,), (optimizer,), "1e-3:1e-1:8", seeds=1, steps=20, **settings)
    with numerics(plan.dtype, plan.precision):
        trial = Trial.of(loaded(problem), load_optimizer(optimizer), plan)
        program = Program(trial, Block(1, 3, 4, 2 if plan.batch_size else 1), jax.devices()[:1], platform="gpu")
        exported = export.export(program.advance, platforms=ACCELERATORS)(*program.arguments())
    assert exported.platforms == ACCELERATORS


# The others are among all pairs.
@pytest.mark.parametrize("problem", problem_names()[:4])
def test_every_problem(problem):
    assert_lowers(problem, "adam")


@pytest.mark.parametrize("optimizer", OPTIMIZERS[:6])
def test_every_kind_of_optimizer(optimizer):
    assert_lowers("mlp", optimizer)


@pytest.mark.parametrize("problem", sample(["cnn", "transformer"]))
def test_with_minibatches(problem):
    assert_lowers(problem, "sgd", batch_size=16)


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("problem", problem_names())
def test_every_pair(problem, optimizer):
    assert_lowers(problem, optimizer)
