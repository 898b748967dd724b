"""Runs chosen trials again, alone and short, and keeps their params: what a record of losses cannot say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from gradbench.inputs.optimizer import Optimizer, Settings, load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Data, Params, Problem, cast
from gradbench.machine.internals import quick_compile
from gradbench.program.minibatch import batch_rows, take_rows
from gradbench.program.program import State, Trial, numerics
from gradbench.program.spread import initialise, over_trials
from gradbench.program.xla.jaxprs import emitted, equations
from gradbench.program.xla.products import as_products

CALL_BYTES = 2**26  # of the params whose losses are found in one call
# Optimising a program's code takes XLA:CPU half a millisecond per equation and saves half a nanosecond per entry that
# the equation computes, all in all: with fewer entries it is left out.
FEW_ENTRIES = 1e6
TOGETHER = 8  # of them side by side: their products with the data are one, three times as fast
TOGETHER_BYTES = 2**28  # of what the loss makes on the way, of all that are side by side; else they go one at a time


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
    platform = jax.default_backend()
    losses = over_trials(as_products(flat_loss(problem, plan.dtype), platform), (0, None), platform)
    with numerics(plan.dtype, plan.precision):
        data, wide = cast(problem.plain.data, plan.dtype), jnp.promote_types(jnp.float32, plan.dtype)

    @partial(jax.jit, static_argnums=2)
    def program(points: jax.Array, data: Data, together: int) -> jax.Array:
        rows, size = points.shape
        groups = points.reshape(-1, together, size)
        return jax.lax.map(lambda group: losses(group, data).astype(wide), groups).reshape(rows)

    @cache
    def compiled(rows: int, size: int) -> jax.stages.Compiled:
        return within_memory(program, jax.ShapeDtypeStruct((rows, size), plan.dtype), data)

    def evaluate(points: np.ndarray) -> np.ndarray:
        rows = at_once(points.shape[1])
        whole = np.zeros((-(-len(points) // rows) * rows, points.shape[1]), jnp.dtype(plan.dtype))
        whole[: len(points)] = points
        with numerics(plan.dtype, plan.precision):
            losses_of = compiled(rows, points.shape[1])
            parts = [np.asarray(losses_of(whole[k : k + rows], data)) for k in range(0, len(whole), rows)]
        return np.concatenate(parts)[: len(points)]

    return evaluate


def within_memory(program: Any, points: jax.ShapeDtypeStruct, data: Data) -> jax.stages.Compiled:
    """The jitted `program(points (N, P), data, together)` for TOGETHER points side by side where N allows it and what
    it makes on the way is TOGETHER_BYTES at most, else for one at a time."""
    if points.shape[0] % TOGETHER == 0:
        several = compile_for(program.trace(points, data, TOGETHER))
        if several.memory_analysis().temp_size_in_bytes <= TOGETHER_BYTES:
            return several
    return compile_for(program.trace(points, data, 1))


def compile_for(traced: jax.stages.Traced, times: float = 1) -> Any:
    """A program that is called so many times, compiled for the least time of both together."""
    platform, equations_in = jax.default_backend(), sum(1 for _ in equations(traced.jaxpr))
    few = times * emitted(traced.jaxpr) < FEW_ENTRIES * equations_in
    options = quick_compile(platform, xla_backend_optimization_level=0) if few else quick_compile(platform)
    return traced.lower().compile(compiler_options=options)


def at_once(size: int) -> int:
    """How many flat params of `size` numbers `losses_at` takes in one call of its program."""
    rows = int(np.clip(CALL_BYTES // (8 * size), 1, 1024))
    return rows if rows < TOGETHER else rows - rows % TOGETHER


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
    wanted = np.asarray(steps, np.int32)
    with numerics(plan.dtype, plan.precision):
        optimizers = [load_optimizer(of) if isinstance(of, str) else of for of in trials]
        several = _Several([Trial.of(problem, optimizer, plan) for optimizer in optimizers], trials.values())
    seeds = [seed for of in trials.values() for _, seed in of]
    starts = _starts(problem, seeds)
    with numerics(plan.dtype, plan.precision):
        kind = jnp.promote_types(jnp.float32, plan.dtype)
        settings = [{"learning_rate": jnp.asarray([rate for rate, _ in of], kind)} for of in trials.values()]
        drawn, data = cast(starts, plan.dtype), cast(problem.data, plan.dtype)
        arguments = settings, np.asarray(seeds, np.uint32), drawn, data, wanted
        traced = jax.jit(several.run).trace(*arguments)
        # What is counted has one step before each that is kept.
        kept = compile_for(traced, max(steps) / len(steps))(*arguments)
    flat = np.asarray(kept).swapaxes(0, 1)
    found = (losses or losses_at(problem, plan))(flat.reshape(-1, flat.shape[-1])).reshape(flat.shape[:2])
    return [Replay(wanted, *each) for each in zip(several.parts(flat), several.parts(found))]


class _Several:
    """Trials of several optimizers on one problem, their gradients taken together: `counts` many of each."""

    def __init__(self, trials: Sequence[Trial], of: Iterable[Sequence[Any]]):
        platform = jax.default_backend()
        self.trials = [trial.compiled_for(platform) for trial in trials]
        self.ends = np.cumsum([0, *map(len, of)])
        self.plan, self.problem = trials[0].plan, trials[0].problem
        axis = None if self.plan.batch_size is None else 0  # of what a step sees: all the data, or each trial's batch
        self.gradient = over_trials(self.trials[0].gradient, (0, 0, axis, 0), platform)
        self.changes = [over_trials(trial.update, (0, 0, axis, 0, 0, 0), platform) for trial in self.trials]

    def parts(self, tree: Any) -> list[Any]:
        """Each optimizer's part of what has an axis for all trials."""
        return [jax.tree.map(lambda leaf, i=i, j=j: leaf[i:j], tree) for i, j in pairwise(self.ends)]

    def run(self, settings: list[Settings], seeds: jax.Array, drawn: Any, data: Data, steps: jax.Array) -> jax.Array:
        """(K, T, P): the params of all trials, flattened, at each of `steps` (K,)."""
        keys = jax.vmap(self.trials[0].keys)(seeds)

        def until(states: list[State], ends: jax.Array) -> tuple[list[State], jax.Array]:
            states = jax.lax.fori_loop(ends[0], ends[1], lambda k, s: self._update(k, s, settings, keys, data), states)
            return states, jax.vmap(lambda params: ravel_pytree(params)[0])(together([s.params for s in states]))

        ends = jnp.stack([jnp.concatenate([jnp.zeros(1, jnp.int32), steps[:-1]]), steps], axis=1)
        begin = [jax.vmap(trial.start)(*each) for trial, *each in zip(self.trials, self.parts(drawn), settings)]
        return jax.lax.scan(until, begin, ends)[1]

    def _update(self, step: jax.Array, states: list[State], settings: list[Settings], keys: Any, data: Data) -> Any:
        """The states after one more update."""
        batch, noise = self._batches(step, keys, data), jax.vmap(lambda of: self.trials[0].noise(of, step))(keys)
        params, model_state = (together([getattr(s, name) for s in states]) for name in ("params", "model_state"))
        values, grads, model_state = self.gradient(params, model_state, batch, noise)
        seen = [batch] * len(states) if self.plan.batch_size is None else self.parts(batch)
        parts = (self.parts(each) for each in (values, grads, noise, model_state))
        return [
            change(state, set_to, own, value, grad, key)[0]._replace(model_state=after)
            for change, state, set_to, own, value, grad, key, after in zip(self.changes, states, settings, seen, *parts)
        ]

    def _batches(self, step: jax.Array, keys: Any, data: Data) -> Data:
        """What each trial's step sees of the data."""
        size, examples = self.plan.batch_size, self.problem.examples
        if size is None:
            return data
        assert examples is not None
        return jax.vmap(lambda key: take_rows(data, batch_rows(step, examples, size, key), examples))(keys.order)


def together(trees: Sequence[Any]) -> Any:
    """One tree of several, along the leading axis."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)
