"""Axes in the engine: one program for all values, the same numbers as run apart, and what theory says of two axes."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import optax
import pyarrow.compute as pc
import pytest
from conftest import StopAfter
from sampling import sample

import gradbench
from gradbench.analysis.summary import summarise
from gradbench.archive.export import trial_logs
from gradbench.engine import compiling
from gradbench.errors import GradbenchError, OptimizerError
from gradbench.inputs.plan import SweepPlan

pytestmark = pytest.mark.usefixtures("compiled_quickly")
LOSSES = ("final_loss", "best_loss", "final_grad_norm", "steps_run")


@pytest.fixture
def programs(monkeypatch) -> list[str]:
    """The optimizer of every program that is compiled for a sweep."""
    found, compile_program = [], compiling.compile_program

    def count(program):
        found.append(program.trial.optimizer.spec)
        return compile_program(program)

    monkeypatch.setattr(compiling, "compile_program", count)
    return found


def own(learning_rate, strength=0.5, momentum=0.0):
    return optax.chain(optax.trace(momentum), optax.scale(strength), optax.scale_by_learning_rate(learning_rate))


# An optimizer, a setting of its, and two values; how far, in units of its rounding, float64's 2^-52, arithmetic on the
# setting in another order may move a loss over 12 steps.
CASES = [
    ("sgd", "momentum", [0.5, 0.9]),
    ("adamw", "weight_decay", [0.0, 0.1]),
    ("adamw", "b1", [0.5, 0.9]),
    ("lion", "b1", [0.5, 0.9]),
    ("muon", "beta", [0.5, 0.9]),
    ("adam[schedule=cosine]", "warmup", [0, 5]),
    ("adam[schedule=linear]", "end", [0.0, 0.5]),
    ("mine", "strength", [0.25, 1.0]),
]


@pytest.mark.parametrize(("optimizer", "name", "values"), sample(CASES))
def test_trials_of_an_axis_are_those_of_separate_runs(sweep, small_blocks, programs, optimizer, name, values):
    small_blocks(lanes=2, rows=5)
    given = {"mine": own} if optimizer == "mine" else optimizer
    settings = {"seeds": 1, "steps": 12, "timing": "none"}

    def swept(**changed):
        return sweep("mlp[hidden=4]", given, [0.01, 0.1], **settings, **changed).trials

    together = swept(axes={name: values})
    assert len(programs) == 1
    assert together[name].to_pylist() == [values[0]] * 2 + [values[1]] * 2
    for number, value in enumerate(values):
        points = [{"learning_rate": rate, name: value} for rate in (0.01, 0.1)]
        apart = swept(design=points)  # one value, traced as well: the same program, so the same bits
        for column in LOSSES:
            np.testing.assert_array_equal(together[column].to_numpy()[2 * number :][:2], apart[column].to_numpy())


@pytest.mark.thorough
@pytest.mark.parametrize(("optimizer", "name", "values"), [case for case in CASES if case[0] not in ("mine", "lion")])
def test_a_traced_setting_is_the_constant_within_rounding(sweep, optimizer, name, values):
    settings = {"seeds": 1, "steps": 12, "timing": "none", "dtype": "float64"}
    together = sweep("mlp[hidden=4]", optimizer, [0.01, 0.1], **settings, axes={name: values}).trials
    for number, value in enumerate(values):
        spec = f"{optimizer.rstrip(']')}{',' if '[' in optimizer else '['}{name}={value}]"
        apart = sweep("mlp[hidden=4]", spec, [0.01, 0.1], **settings).trials
        # The same formulas in double precision, whose constants the compiler may fold: 2^-52 a step and operation, of
        # which a step has a few hundred in a row, and which 12 steps of a smooth loss grow little.
        found, expected = (of["final_loss"].to_numpy() for of in (together, apart))
        np.testing.assert_allclose(found[2 * number :][:2], expected, rtol=1e-10)


def test_a_grid_of_any_size_compiles_once_a_pair(sweep, programs):
    run = sweep(
        "quadratic_bowl[dim=3]",
        ["adamw[weight_decay=1e-5:1e-1:5,b1=0.8|0.9|0.95]", "sgd"],
        "1e-3:1:9",
        seeds=1,
        steps=5,
        timing="none",
    )
    assert sorted(programs) == sorted(run.plan.optimizers)
    assert run.trials.num_rows == 9 * 5 * 3 + 9
    assert run.trials["b1"].null_count == run.trials["weight_decay"].null_count == 9  # sgd's
    assert run.trials["trial"].to_pylist() == list(range(144))


@pytest.mark.thorough
def test_what_cannot_be_traced_is_a_program_of_its_own(sweep, programs):
    run = sweep("quadratic_bowl[dim=3]", "lbfgs[memory_size=3|5]", [0.1], seeds=1, steps=3, timing="none")
    assert programs == ["lbfgs[memory_size=3]", "lbfgs[memory_size=5]"]
    assert run.plan.optimizers == tuple(programs)
    assert run.plan.axis_names == ()


def looks_at_a_value(learning_rate, power=2.0, strength=1.0):
    return optax.sgd(learning_rate * strength if power > 1 else learning_rate)


def test_an_own_function_that_tests_a_value_gets_a_program_for_each(sweep, programs):
    axes = {"power": [0.5, 2.0], "strength": [0.5, 1.0]}
    run = sweep("quadratic_bowl[dim=1]", {"mine": looks_at_a_value}, [0.1], seeds=1, steps=1, timing="none", axes=axes)
    assert sorted(programs) == ["mine[power=0.5,strength=0.5|1.0]", "mine[power=2.0,strength=0.5|1.0]"]
    # x² from 1: a step of 0.1 s along -2x leaves (1 - 0.2 s)².
    np.testing.assert_allclose(run.trials["final_loss"].to_numpy(), [0.64, 0.64, 0.81, 0.64], rtol=1e-6)


def test_momentum_on_a_bowl_is_stable_and_best_where_polyak_says(sweep):
    """Polyak, Introduction to Optimization (1987), 3.2.1: stable below 2 (1 + beta) / L, and best at
    rate 4 / (sqrt(L) + sqrt(mu))², beta ((sqrt(L) - sqrt(mu)) / (sqrt(L) + sqrt(mu)))²."""
    largest, mu = 2.0, 0.2
    roots = np.sqrt(largest) + np.sqrt(mu), np.sqrt(largest) - np.sqrt(mu)
    best_rate, best_beta = 4 / roots[0] ** 2, (roots[1] / roots[0]) ** 2
    betas = np.round(np.linspace(0, 0.9, 19), 6)
    rates = best_rate * 2.0 ** np.arange(-6, 2.01, 0.25)
    run = sweep(
        "quadratic_bowl[dim=10,condition=10]",
        "sgd",
        rates,
        seeds=1,
        steps=250,
        axes={"momentum": betas},
        timing="none",
        dtype="float64",
    )
    rate, beta, verdict = (run.trials[name].to_numpy(False) for name in ("learning_rate", "momentum", "verdict"))
    limit = 2 * (1 + beta) / largest
    near = abs(rate / limit - 1) < 0.02  # diverges too slowly for 250 steps to show
    np.testing.assert_array_equal((verdict == "diverged")[~near], (rate > limit)[~near])
    [pair] = run.summary()
    # Just below the best beta the slowest coordinate is a double root away: the next grid value may win.
    assert abs(pair["best_momentum"] - best_beta) <= 0.05 + 1e-9
    assert abs(np.log2(pair["best_learning_rate"] / best_rate)) <= 0.25 + 1e-9


@pytest.mark.thorough
def test_a_stopped_run_goes_on_to_the_same_record(sweep, small_blocks, tmp_path):
    small_blocks(lanes=2, rows=4)
    plan = SweepPlan(
        ("quadratic_bowl[dim=3]",),
        ("sgd", "adamw[weight_decay=0|0.1,b1=0.5|0.9]"),
        (0.01, 0.1),
        seeds=2,
        steps=20,
        timing="none",
    )
    whole = gradbench.run_plan(plan, out=tmp_path / "whole")
    stopped = gradbench.run_plan(plan, out=tmp_path / "stopped", watcher=StopAfter(7))
    assert stopped.info["state"] == "interrupted"
    assert stopped.trials.schema == whole.trials.schema
    resumed = gradbench.resume(stopped.path)
    assert resumed.trials.equals(whole.trials)
    assert resumed.curves.equals(whole.curves)


def test_a_record_says_which_settings_its_trials_had(sweep):
    run = sweep("quadratic_bowl[dim=2]", "adam[b1=0.5|0.9]", [0.1, 1.0], seeds=1, steps=5, timing="none")
    again = gradbench.load_run(run.path)
    assert again.trials["b1"].to_pylist() == [0.5, 0.5, 0.9, 0.9]
    assert json.loads((run.path / "run.json").read_text())["plan"]["optimizers"] == ["adam[b1=0.5|0.9]"]


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ("adam[b1=0.9|1.2]", "b1=1.2 should be at least 0 and below 1"),
        ("adam[beta=0.5|0.9]", "no setting 'beta'"),
        ("adam[b1=low|high]", "b1=low should be a number"),
        ("adam[schedule=cosine,end=0.5|2]", "end=2 should be"),
    ],
)
def test_a_bad_value_of_an_axis_gets_one_line_before_anything_runs(sweep, tmp_path, optimizer, words):
    with pytest.raises(OptimizerError, match=words):
        sweep("quadratic_bowl[dim=2]", optimizer, [0.1], seeds=1, steps=2)
    assert not (tmp_path / "results").exists()


def test_an_axis_named_as_a_column_of_trials_is_refused(sweep):
    def make(learning_rate, seed=0.0):
        return optax.sgd(learning_rate + seed)

    with pytest.raises(GradbenchError, match="seed is a column"):
        sweep("quadratic_bowl[dim=2]", {"mine": make}, [0.1], seeds=1, steps=2, axes={"seed": [0.0, 0.1]})


@pytest.mark.thorough
def test_several_batch_sizes_and_steps_are_those_of_separate_runs(sweep):
    settings = {"seeds": 2, "timing": "none"}
    together = sweep("linear_regression", "sgd", [0.01, 0.1], batch_size=[32, 64], steps=[10, 25], **settings)
    rows = together.trials.to_pylist()
    for optimizer in together.plan.optimizers:
        own = together.plan.of(optimizer)
        apart = sweep("linear_regression", "sgd", [0.01, 0.1], batch_size=own.batch_size, steps=own.steps, **settings)
        mine = [row for row in rows if row["optimizer"] == optimizer]
        for row, alone in zip(mine, apart.trials.to_pylist(), strict=True):
            assert row | {"trial": 0, "optimizer": ""} == alone | {"trial": 0, "optimizer": ""}


@pytest.mark.thorough
def test_dtypes_of_one_record_are_those_of_separate_runs(sweep):
    settings = {"seeds": 2, "steps": 20, "timing": "batched"}
    dtypes = ["float32", "bfloat16", "float64"]
    together = sweep("linear_regression", "sgd", [0.01, 0.1], dtype=dtypes, **settings)
    assert together.trials["dtype"].to_pylist() == [dtype for dtype in dtypes for _ in range(4)]
    assert together.info["limits"].keys() == set(dtypes)
    for optimizer, dtype, pair in zip(together.plan.optimizers, dtypes, together.summary()):
        apart = sweep("linear_regression", "sgd", [0.01, 0.1], dtype=dtype, **settings | {"timing": "none"})
        mine = together.trials.filter(pc.field("optimizer") == optimizer).to_pylist()
        for row, alone in zip(mine, apart.trials.to_pylist(), strict=True):
            assert row | {"trial": 0, "optimizer": ""} == alone | {"trial": 0, "optimizer": ""}
        [alone] = apart.summary()
        said = ("best_learning_rate", "verdict", "final_gap", "good_low", "good_high", "reference_loss")
        assert {name: pair[name] for name in said} == {name: alone[name] for name in said}
    assert gradbench.verify(together, 12, seed=0).holds
    assert [log.config["dtype"] for log in trial_logs(together, np.array([0, 4, 8]))] == dtypes


@pytest.mark.thorough
def test_a_minimum_is_refuted_by_no_more_than_a_dtypes_own_rounding(sweep):
    """1.003 rounds to 1 in bfloat16, far below it by float64's rounding and not by bfloat16's, of 2^-7."""
    problem = gradbench.Problem(lambda key: jnp.ones(()), lambda x, _: x**2 + 1.003, minimum=1.003, name="raised")
    run = sweep(problem, "sgd", [0.25], seeds=1, steps=30, dtype="float64,bfloat16", timing="none")
    assert run.trials["best_loss"].to_pylist()[1] == 1.0
    reference = run.info["references"]["raised"]
    assert (reference["kind"], reference["loss"]) == ("minimum", 1.003)
    assert [pair.floor for pair in summarise(run)] == pytest.approx([2.0**-52 * 1.003, 2.0**-7 * 1.003], rel=0.01)
