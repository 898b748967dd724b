"""Runs chosen trials again, alone and short, and keeps their params: what a record of losses cannot say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from gradbench.inputs.optimizer import Optimizer, load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Data, Params, Problem, cast
from gradbench.program.minibatch import batch_rows, take_rows
from gradbench.program.program import State, Trial, numerics, order_key


class Replay(NamedTuple):
    """Trials run again: `steps` (K,) int, `params` (T, K, P) flattened as ravel_pytree does, `losses` (T, K) of all
    the data. Once params are not finite the trial has diverged and stays so."""

    steps: np.ndarray
    params: np.ndarray
    losses: np.ndarray


def start(problem: Problem, seed: int, dtype: str) -> np.ndarray:
    """Where a seed's trial starts, flattened (P,). Starts are drawn in float32, as in a sweep."""
    with jax.enable_x64(False):
        params = problem.init(jax.random.key(seed))
    with jax.enable_x64(dtype == "float64"):
        return np.asarray(ravel_pytree(cast(params, dtype))[0])


def flat_loss(problem: Problem, dtype: str):
    """`loss(flat params (P,), data) -> scalar`: the problem's loss as a function of one vector."""
    with jax.enable_x64(False):
        shapes = jax.eval_shape(lambda: problem.init(jax.random.key(0)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    with jax.enable_x64(dtype == "float64"):
        _, unravel = ravel_pytree(cast(zeros, dtype))
    return lambda flat, data: problem.loss(unravel(flat), data)


def replay(
    problem: Problem,
    optimizer: str | Optimizer,
    plan: SweepPlan,
    trials: Sequence[tuple[float, int]],
    steps: Sequence[int],
) -> Replay:
    """Run `trials`, each (learning_rate, seed), again with the plan's arithmetic, keeping params at `steps`.

    One compiled program up to the last of `steps` (sorted, without repeats); the memory is trials × steps × parameters.
    Raises OptimizerError as a sweep does.
    """
    wanted = np.asarray(steps, np.int32)
    with numerics(plan.dtype, plan.precision):
        loaded = load_optimizer(optimizer) if isinstance(optimizer, str) else optimizer
        trial = Trial.of(problem, loaded, plan)
    loss = flat_loss(problem, plan.dtype)

    def one(rate: jax.Array, seed: jax.Array, params: Params, data: Data) -> tuple[jax.Array, jax.Array]:
        key = order_key(seed)

        def update(step: jax.Array, state: State) -> State:
            if plan.batch_size is None:
                batch = data
            else:
                assert problem.examples is not None
                batch = take_rows(data, batch_rows(step, problem.examples, plan.batch_size, key), problem.examples)
            return trial.step(state, rate, batch)[0]

        def until(state: State, ends: jax.Array) -> tuple[State, jax.Array]:
            state = jax.lax.fori_loop(ends[0], ends[1], update, state)
            return state, ravel_pytree(state.params)[0]

        ends = jnp.stack([jnp.asarray([0, *wanted[:-1]], jnp.int32), jnp.asarray(wanted)], axis=1)
        _, kept = jax.lax.scan(until, trial.start(params, rate), ends)
        return kept, jax.lax.map(lambda position: loss(position, data).astype(rate.dtype), kept)

    with jax.enable_x64(False):
        unlike = {seed: problem.init(jax.random.key(seed)) for _, seed in trials}  # vmap's compile would cost a second
        starts = jax.tree.map(lambda *leaves: np.stack(leaves), *(unlike[seed] for _, seed in trials))
    with numerics(plan.dtype, plan.precision):
        rates = jnp.asarray([rate for rate, _ in trials], jnp.promote_types(jnp.float32, plan.dtype))
        seeds = jnp.asarray([seed for _, seed in trials], jnp.uint32)
        many = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None)))
        params, losses = many(rates, seeds, cast(starts, plan.dtype), cast(problem.data, plan.dtype))
        return Replay(wanted, np.asarray(params), np.asarray(losses))
