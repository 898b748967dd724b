"""What the pieces cost, for `make bench` and `pytest --benchmark-compare` between two commits.

One group a problem and dtype: the loss, the loss with its gradient, a step of one trial alone, and a chunk of the
engine's block. extra_info says how many steps and trials a round holds.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from synthetic import make_large_run

from gradbench.inputs.optimizer import load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import cast, load_problem, problem_names
from gradbench.inputs.specs.checks import DTYPES
from gradbench.machine.devices import find_devices
from gradbench.program.block import choose_block, solo_block
from gradbench.program.program import Program, Trial, numerics
from gradbench.reporting.page import write_report

CASES = [(name, dtype) for name in problem_names() for dtype in DTYPES]


def trial_of(name: str, dtype: str) -> Trial:
    plan = SweepPlan((name,), ("adam",), "1e-4:1e-2:64", seeds=1, dtype=dtype)
    with numerics(dtype, "highest"):
        return Trial.of(load_problem(name), load_optimizer("adam"), plan)


@pytest.mark.parametrize(("name", "dtype"), CASES)
@pytest.mark.parametrize("what", ["value", "value_and_grad"])
def test_evaluation(benchmark, name, dtype, what):
    benchmark.group = f"{name} {dtype}"
    problem = load_problem(name)
    with jax.enable_x64(False):
        start = problem.init(jax.random.key(0))
    with numerics(dtype, "highest"):
        params, data = cast(start, dtype), cast(problem.data, dtype)
        function = jax.jit(problem.loss if what == "value" else jax.value_and_grad(problem.loss))
        jax.block_until_ready(function(params, data))
        benchmark(lambda: jax.block_until_ready(function(params, data)))


@pytest.mark.parametrize(("name", "dtype"), CASES)
@pytest.mark.parametrize("what", ["solo step", "batched chunk"])
def test_engine(benchmark, name, dtype, what):
    benchmark.group = f"{name} {dtype}"
    trial, devices = trial_of(name, dtype), find_devices(None)
    block = choose_block(trial, devices, 64)
    if what == "solo step":
        block = dataclasses.replace(solo_block(trial, block, devices[0].platform), rows=1)
    program = Program(trial, block, devices)
    rates, seeds = program.settings({"learning_rate": np.full(block.slots, 1e-3)}), np.zeros(block.slots, np.uint32)
    placed, first = program.place(seeds), program.place(np.zeros(block.slots, np.int32))
    benchmark.extra_info.update(trials=block.slots, steps=block.rows)

    def setup():
        return (jax.block_until_ready(program.start(seeds, rates)), rates, placed, first, program.data), {}

    def run(*arguments):
        with numerics(dtype, "highest"):
            jax.block_until_ready(program.advance(*arguments))

    run(*setup()[0])
    benchmark.pedantic(run, setup=setup, rounds=20)


def test_a_report_of_100_000_trials_is_written_in_20_seconds(benchmark, tmp_path):
    run = make_large_run()
    benchmark.pedantic(lambda: write_report([run], tmp_path / "page.html"), rounds=3)
    assert benchmark.stats.stats.min < 20
