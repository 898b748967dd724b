"""Losses with keys, state, auxiliary scalars, metrics and held-out data: trajectories and records."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import objectives
import optax
import pytest
from conftest import StopAfter
from objectives import EXAMPLES, PROBLEMS
from quick import jit_quickly
from sampling import sample
from sklearn.metrics import accuracy_score, log_loss

import gradbench
from gradbench.engine import driver, runner
from gradbench.engine.compiling import TIMED
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import cast
from gradbench.program.minibatch import batch_rows
from gradbench.program.program import initialise
from gradbench.program.trial import order_key
from gradbench.theory.replay import replay

pytestmark = pytest.mark.usefixtures("compiled_quickly")
KINDS = ["dropout", "state", "all"]


@functools.cache
def plain_step(name, batch_size):
    """One step of an ordinary Optax loop, compiled once for all rates and starts."""
    problem = PROBLEMS[name]

    def loss(params, state, data, key):
        arguments = (params, *([state] if problem.stateful else []), data)
        result = problem.loss(*arguments, *([key] if problem.objective.random else []))
        return (result[0], result[1]) if problem.stateful else (result, None)

    def step(params, state, opt_state, data, n, rate, order, keys):
        key = jax.random.fold_in(keys, n)
        seen = loss(params, state, data, key)[0]
        rows = slice(None) if batch_size is None else batch_rows(n, EXAMPLES, batch_size, order)
        batch = jax.tree.map(lambda leaf: leaf[rows], data)
        (_, after), grads = jax.value_and_grad(loss, has_aux=True)(params, state, batch, key)
        updates, opt_state = optax.adam(rate).update(grads, opt_state, params)
        return optax.apply_updates(params, updates), after, opt_state, seen

    return jit_quickly(step)


def plain_loop(name, start, rate, steps, seed, batch_size):
    """The losses of an ordinary Optax loop in float64: those of all the data at each step."""
    problem, step, losses = PROBLEMS[name], plain_step(name, batch_size), []
    with jax.enable_x64(True):
        params, state = cast(start, "float64") if problem.stateful else (cast(start, "float64"), None)
        data, opt_state = cast(problem.data, "float64"), optax.adam(rate).init(params)
        order, keys = order_key(np.uint32(seed)), jax.random.fold_in(jax.random.key(np.uint32(seed)), 2)
        for n in range(steps + 1):
            given = data, np.int32(n), np.float64(rate), order, keys
            params, state, opt_state, seen = step(params, state, opt_state, *given)
            losses.append(float(seen))
    return np.array(losses)


def columns(run, name):
    return {key: np.array(values) for key, values in getattr(run, name).to_pydict().items()}


@pytest.mark.parametrize(("name", "batch_size"), sample(itertools.product(KINDS, [8, None])))
def test_trajectories_are_those_of_a_plain_optax_loop(sweep, small_blocks, name, batch_size):
    small_blocks(lanes=2, rows=7)
    rates, steps = [0.003, 0.03], 50
    settings = {"seeds": 2, "steps": steps, "dtype": "float64", "record_points": 99, "batch_size": batch_size}
    run = sweep(PROBLEMS[name], ["adam"], rates, timing="none", **settings)
    curves = columns(run, "curves")
    starts = initialise(PROBLEMS[name], jax.devices()[:1])(jnp.arange(2, dtype=jnp.uint32))
    for trial, (rate, seed) in enumerate(itertools.product(rates, range(2))):
        start = jax.tree.map(lambda leaf, seed=seed: np.asarray(leaf)[seed], starts)
        expected = plain_loop(name, start, rate, steps, seed, batch_size)
        mine = curves["trial"] == trial
        assert mine.sum() == (51 if batch_size is None else 18)
        np.testing.assert_allclose(curves["loss"][mine], expected[curves["step"][mine]], rtol=1e-9)


def metrics_of(run):
    """(trial, step, split.name) -> value."""
    table = columns(run, "metrics")
    names = [f"{split}.{name}" for split, name in zip(table["split"], table["name"])]
    found = dict(zip(zip(table["trial"].tolist(), table["step"].tolist(), names), table["value"].tolist()))
    assert len(found) == len(names)
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("batch_size", [8, None])
def test_metrics_are_those_that_scikit_learn_finds_at_the_replayed_params(sweep, small_blocks, batch_size):
    small_blocks(lanes=2, rows=7)
    problem, rates = PROBLEMS["judged"], [0.01, 0.3]
    settings = {"seeds": 2, "steps": 40, "dtype": "float64", "batch_size": batch_size, "record_points": 5}
    run = sweep(problem, ["adam"], rates, timing="none", **settings)
    found = metrics_of(run)
    steps = sorted({step for _, step, _ in found})
    assert steps == sorted(set(columns(run, "curves")["step"].tolist()))
    trials = list(itertools.product(rates, range(2)))
    path = replay(problem, "adam", run.plan, trials, steps)
    for (trial, flat), (k, step) in itertools.product(enumerate(path.params), enumerate(steps)):
        v, w = flat[k][:15].reshape(5, 3), flat[k][15:].reshape(4, 5)  # ravel_pytree sorts by name
        for split, data in (("train", problem.data), ("holdout", problem.holdout)):
            scores = np.tanh(data["x"] @ w) @ v
            share = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            right = accuracy_score(data["y"], scores.argmax(axis=1))
            np.testing.assert_allclose(found[trial, step, f"{split}.accuracy"], right, rtol=2.0**-23)  # a float32 mean
            loss = log_loss(data["y"], share, labels=range(3))
            np.testing.assert_allclose(found[trial, step, f"{split}.loss"], loss, rtol=1e-9)


@pytest.mark.thorough
def test_a_replay_has_the_keys_and_the_state_of_its_trial(sweep):
    problem, rates = PROBLEMS["all"], [0.01, 0.03]
    run = sweep(problem, ["adam"], rates, seeds=1, steps=20, dtype="float64", timing="none")
    found = metrics_of(run)
    path = replay(problem, "adam", run.plan, [(rate, 0) for rate in rates], [0, 5, 20])
    for trial, k in itertools.product(range(2), range(3)):
        expected = found[trial, int(path.steps[k]), "train.norm"]
        np.testing.assert_allclose(np.linalg.norm(path.params[trial, k]), expected, rtol=1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize("batch_size", [8, None])
def test_neither_blocks_nor_neighbours_change_a_trial(sweep, small_blocks, batch_size):
    """Solo and batched, in chunks of any length: the same keys, state and metrics."""
    settings = {"seeds": 2, "steps": 30, "dtype": "float64", "batch_size": batch_size, "timing": "none"}
    runs = []
    for lanes, rows, devices in ((1, 5, 1), (3, 16, 2), (4, 40, 1)):
        small_blocks(lanes=lanes, rows=rows, devices=devices)
        runs.append(sweep(PROBLEMS["all"], ["adam"], [0.01, 0.1], **settings))
    first, *others = map(metrics_of, runs)
    for other in others:
        assert first.keys() == other.keys()
        np.testing.assert_allclose(list(first.values()), list(other.values()), rtol=1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize("batch_size", [8, None])
def test_an_interrupted_run_resumes_with_its_state_keys_and_metrics(sweep, small_blocks, tmp_path, batch_size):
    small_blocks(lanes=2, rows=2)
    plan = SweepPlan((objectives.__file__,), ("adam",), (0.01, 0.03, 0.1), seeds=1, steps=30, batch_size=batch_size)
    plan = dataclasses.replace(plan, timing="none")
    whole = runner.run_plan(plan, out=tmp_path)
    for questions in (2, 4):
        stopped = runner.run_plan(plan, out=tmp_path, watcher=StopAfter(questions))
        assert stopped.info["state"] == "interrupted"
        resumed = gradbench.resume(stopped.path)
        for table in ("trials", "curves", "metrics"):
            assert getattr(resumed, table).equals(getattr(whole, table)), (questions, table)
    assert whole.metrics.num_rows


def test_a_problem_that_records_no_metrics_leaves_no_file(sweep):
    run = sweep("beale", ["sgd"], [1e-3], seeds=1, steps=5, timing="none")
    assert run.metrics.num_rows == 0
    assert not (run.path / "metrics.parquet").exists()


@pytest.mark.thorough
def test_what_is_timed_does_without_keys_state_and_metrics(sweep, monkeypatch):
    monkeypatch.setattr(driver, "TIMED", TIMED)
    run = sweep(PROBLEMS["all"], ["adam"], [0.01], seeds=1, steps=20, timing="full")
    assert run.timings["mode"].to_pylist() == ["value", "value_and_grad", "solo", "batched"]
    assert min(run.timings["flops_per_step"].to_pylist()) > 0


def test_a_loss_with_noise_is_judged_as_minibatches_are(sweep):
    """At its noise floor a trial neither falls nor overshoots, though every other update points uphill."""
    problem = gradbench.Problem(
        lambda key: jnp.ones(20),
        lambda x, _, key: jnp.mean((x - jax.random.normal(key, (20,))) ** 2),
        target=0.01,
    )
    run = sweep(problem, ["sgd"], [1.0], seeds=3, steps=400, timing="none")
    # E loss = 1 + x² and, at rate 1, r c = 1/10, x² = r c / (2 - r c) ~ 1/19; 20 squares over 100 rows: 0.03 each
    np.testing.assert_allclose(run.trials["smoothed_loss"].to_numpy(), 1 + 1 / 19, atol=5 * 0.032)
    assert set(run.trials["verdict"].to_pylist()) == {"stalled"}
