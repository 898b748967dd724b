"""Runs chosen trials again, alone and short, and keeps their params: what a record of losses cannot say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from gradbench.inputs.optimizer import Optimizer, Settings, load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Data, Params, Problem, cast
from gradbench.program.minibatch import batch_rows, take_rows
from gradbench.program.program import State, Trial, numerics
from gradbench.program.spread import initialise, over_trials
from gradbench.program.xla.products import as_products

CALL_BYTES = 2**26  # of the params whose losses are found in one call


class Replay(NamedTuple):
    """Trials run again: `steps` (K,) int, `params` (T, K, P) flattened as ravel_pytree does, `losses` (T, K) of all
    the data. Once params are not finite the trial has diverged and stays so."""

    steps: np.ndarray
    params: np.ndarray
    losses: np.ndarray


def start(problem: Problem, seed: int, dtype: str) -> np.ndarray:
    """Where a seed's trial starts, flattened (P,)."""
    params, _ = problem.objective.parts(jax.tree.map(lambda leaf: leaf[0], _starts(problem, [seed])))
    with jax.enable_x64(dtype == "float64"):
        return np.asarray(ravel_pytree(cast(params, dtype))[0])


def _starts(problem: Problem, seeds: Sequence[int]) -> Params:
    """What init draws, with a leading axis for the seeds, in float32, as in a sweep, by the program of a sweep."""
    distinct, place = np.unique(np.asarray(seeds, np.uint32), return_inverse=True)
    with jax.enable_x64(False):
        starts = initialise(problem, jax.devices()[:1])(jnp.asarray(distinct))
        return jax.tree.map(lambda leaf: np.asarray(leaf)[place], starts)


def flat_loss(problem: Problem, dtype: str):
    """`loss(flat params (P,), data) -> scalar`: the loss of `problem.plain`, whose data it takes, of one vector."""
    problem = problem.plain
    with jax.enable_x64(False):
        shapes = jax.eval_shape(lambda: problem.init(jax.random.key(0)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    with jax.enable_x64(dtype == "float64"):
        _, unravel = ravel_pytree(cast(zeros, dtype))
    return lambda flat, data: problem.loss(unravel(flat), data)


def losses_at(problem: Problem, plan: SweepPlan) -> Callable[[np.ndarray], np.ndarray]:
    """(N, P) flat params -> (N,) losses of all the data, with the plan's arithmetic: one program, whatever N is."""
    loss = as_products(flat_loss(problem, plan.dtype), jax.default_backend())
    with numerics(plan.dtype, plan.precision):
        data, wide = cast(problem.plain.data, plan.dtype), jnp.promote_types(jnp.float32, plan.dtype)
    program = jax.jit(lambda points, data: jax.lax.map(lambda point: loss(point, data).astype(wide), points))

    def evaluate(points: np.ndarray) -> np.ndarray:
        rows = at_once(points.shape[1])
        whole = np.zeros((-(-len(points) // rows) * rows, points.shape[1]), jnp.dtype(plan.dtype))
        whole[: len(points)] = points
        with numerics(plan.dtype, plan.precision):
            parts = [np.asarray(program(whole[k : k + rows], data)) for k in range(0, len(whole), rows)]
        return np.concatenate(parts)[: len(points)]

    return evaluate


def at_once(size: int) -> int:
    """How many flat params of `size` numbers `losses_at` takes in one call of its program."""
    return int(np.clip(CALL_BYTES // (8 * size), 1, 1024))


def replay(
    problem: Problem,
    optimizer: str | Optimizer,
    plan: SweepPlan,
    trials: Sequence[tuple[float, int]],
    steps: Sequence[int],
) -> Replay:
    """`replays` of one optimizer."""
    [made] = replays(problem, {optimizer: trials}, plan, steps)
    return made


def replays(
    problem: Problem,
    trials: Mapping[Any, Sequence[tuple[float, int]]],
    plan: SweepPlan,
    steps: Sequence[int],
    losses: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[Replay]:
    """Run the `trials` of each optimizer (a spec or an Optimizer), each (learning_rate, seed), again with the plan's
    arithmetic, keeping params at `steps`; `losses` is `losses_at` of the problem, where the caller has it.

    One compiled program up to the last of `steps` (sorted, without repeats), which most of the time goes into: so it
    has the gradient once, of the trials of all optimizers together. The memory is trials × steps × parameters.
    Raises OptimizerError as a sweep does.
    """
    wanted, platform = np.asarray(steps, np.int32), jax.default_backend()
    with numerics(plan.dtype, plan.precision):
        optimizers = [load_optimizer(of) if isinstance(of, str) else of for of in trials]
        kinds = [Trial.of(problem, optimizer, plan).compiled_for(platform) for optimizer in optimizers]
    counts = [len(of) for of in trials.values()]
    seeds = np.asarray([seed for of in trials.values() for _, seed in of], np.uint32)
    axis = None if plan.batch_size is None else 0  # of what a step sees: all the data, or a batch for each trial
    gradient = over_trials(kinds[0].gradient, (0, 0, axis, 0), platform)
    changes = [over_trials(kind.update, (0, 0, axis, 0, 0, 0), platform) for kind in kinds]

    def parts(tree: Any) -> list[Any]:
        ends = np.cumsum([0, *counts])
        return [jax.tree.map(lambda leaf, i=i, j=j: leaf[i:j], tree) for i, j in pairwise(ends)]

    def run(settings: list[Settings], seeds: jax.Array, drawn: Any, data: Data) -> jax.Array:
        keys = jax.vmap(kinds[0].keys)(seeds)

        def batches(step: jax.Array) -> Data:
            if plan.batch_size is None:
                return data
            size, examples = plan.batch_size, problem.examples
            assert examples is not None
            return jax.vmap(lambda key: take_rows(data, batch_rows(step, examples, size, key), examples))(keys.order)

        def update(step: jax.Array, states: list[State]) -> list[State]:
            batch, noise = batches(step), jax.vmap(lambda of: kinds[0].noise(of, step))(keys)
            params, model_state = (together([getattr(s, name) for s in states]) for name in ("params", "model_state"))
            values, grads, model_state = gradient(params, model_state, batch, noise)
            seen = [batch] * len(kinds) if axis is None else parts(batch)
            return [
                change(state, set_to, own, value, grad, key)[0]._replace(model_state=after)
                for change, state, set_to, own, value, grad, key, after in zip(
                    changes, states, settings, seen, parts(values), parts(grads), parts(noise), parts(model_state)
                )
            ]

        def until(states: list[State], ends: jax.Array) -> tuple[list[State], jax.Array]:
            states = jax.lax.fori_loop(ends[0], ends[1], update, states)
            return states, jax.vmap(lambda params: ravel_pytree(params)[0])(together([s.params for s in states]))

        ends = jnp.stack([jnp.asarray([0, *wanted[:-1]], jnp.int32), jnp.asarray(wanted)], axis=1)
        begin = [jax.vmap(kind.start)(*each) for kind, *each in zip(kinds, parts(drawn), settings)]
        return jax.lax.scan(until, begin, ends)[1]

    starts = _starts(problem, seeds.tolist())
    with numerics(plan.dtype, plan.precision):
        kind = jnp.promote_types(jnp.float32, plan.dtype)
        settings = [{"learning_rate": jnp.asarray([rate for rate, _ in of], kind)} for of in trials.values()]
        kept = jax.jit(run)(settings, seeds, cast(starts, plan.dtype), cast(problem.data, plan.dtype))
    flat = np.asarray(kept).swapaxes(0, 1)
    found = (losses or losses_at(problem, plan))(flat.reshape(-1, flat.shape[-1])).reshape(flat.shape[:2])
    return [Replay(wanted, *each) for each in zip(parts(flat), parts(found))]


def together(trees: Sequence[Any]) -> Any:
    """One tree of several, along the leading axis."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)
