"""The programs that compute a gradient. Each takes a loss and returns `run(params, data) -> (value, gradient)`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradbench.errors import PlanError, nearest
from gradbench.gradients.execution import sandbox
from gradbench.gradients.formula import oracle
from gradbench.inputs.optimizer import Optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem
from gradbench.program import program as sweep
from gradbench.program.minibatch import take_rows
from gradbench.program.spread import over_trials

LossFunction = Callable[[Any, Any], jax.Array]
Runner = Callable[[Any, Any], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class GradientProgram:
    """A way to compute a gradient. `build(loss, examples)` makes the runner, whose value may be None."""

    name: str
    build: Callable[[LossFunction, int | None], Runner]
    fast: bool = False


def _eager(loss: LossFunction, examples: int | None) -> Runner:
    return oracle.value_and_grad(loss)


def _jit(loss: LossFunction, examples: int | None) -> Runner:
    gradient = jax.jit(jax.grad(loss))
    return lambda params, data: (None, gradient(params, data))


def _value_and_grad(loss: LossFunction, examples: int | None) -> Runner:
    return jax.jit(oracle.value_and_grad(loss))


def _has_aux(loss: LossFunction, examples: int | None) -> Runner:
    def with_aux(params, data):
        value = loss(params, data)
        return value, {"loss": value}

    def run(params, data):
        (_, aux), gradient = jax.value_and_grad(with_aux, has_aux=True)(params, data)
        return aux["loss"], gradient

    return jax.jit(run)


LANES = 3


def _lanes(params: Any) -> Any:
    """Three trials along a leading axis: half the params, the params, the params reversed. By NumPy, which compiles
    nothing; both changes are exact."""

    def stack(x: Any) -> np.ndarray:
        array = np.asarray(x)
        return np.stack([array * np.asarray(0.5, array.dtype), array, -array])

    return jax.tree.map(stack, params)


def _lane(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x)[1], tree)


def _vmap(loss: LossFunction, examples: int | None) -> Runner:
    @jax.jit
    def run(lanes, data):
        return jax.vmap(oracle.value_and_grad(loss), in_axes=(0, None))(lanes, data)

    return lambda params, data: _lane(run(_lanes(params), data))


def _remat(loss: LossFunction, examples: int | None) -> Runner:
    return jax.jit(jax.value_and_grad(jax.checkpoint(loss)))


def _keeps_gradient(learning_rate: Any, steps: int, values: Any = None) -> optax.GradientTransformationExtraArgs:
    """An optimizer that does not move and whose state is the last gradient."""

    def update(updates, state, params=None, **extra):
        return jax.tree.map(jnp.zeros_like, updates), updates

    return optax.GradientTransformationExtraArgs(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def _batched(loss: LossFunction, examples: int | None) -> Runner:
    """The sweep's own program (gradbench.program): two steps of three trials whose params do not change. Raises
    CompilerDied where the compiler ends its process on it."""
    made: list[sweep.Program] = []

    def given(program: sweep.Program, params: Any, data: Any) -> tuple[Any, ...]:
        settings = program.settings({"learning_rate": np.zeros(LANES)})
        keys, none = program.place(np.zeros(LANES, np.uint32)), program.place(np.zeros(LANES, np.int32))
        return program.begin(_lanes(params), settings), settings, keys, none, program.laid_out(data)

    def runner(params, data):
        one = jax.tree.leaves(params)[0]
        if not made:
            plan = SweepPlan(dtype=str(one.dtype), steps=2)
            problem = Problem(init=lambda key: params, loss=loss, data=data, examples=examples)
            trial = sweep.Trial.of(problem, Optimizer("keeps the gradient", _keeps_gradient), plan)
            devices = list(one.devices())
            platform = devices[0].platform
            block = sweep.Block(devices=1, lanes=LANES, rows=2, stride=1, relayout=trial.kind.relayout(LANES, platform))
            program = sweep.Program(trial, block, devices)
            if platform == "cpu":  # its products are rewritten by us, in unusual layouts that may crash XLA
                options = sweep.loop_options("cpu", trial.kind.products, LANES)
                # The arguments of the call below: shapes alone would be traced apart.
                sandbox.survive(program.advance, given(program, params, data), options)
            made.append(program)
        state, rows = made[0].advance(*given(made[0], params, data))
        return np.asarray(rows.loss)[-1, 1], _lane(state.opt_state)

    return runner


MICROBATCHES = (4, 3, 5, 2)  # parts


def pieces(examples: int) -> list[tuple[float, slice]]:
    """Parts of the rows, with their weights: as many of MICROBATCHES as divide the rows evenly, so that one program
    serves all parts; else the first, or as many as there are rows."""
    count = next((n for n in MICROBATCHES if examples % n == 0), MICROBATCHES[0])
    edges = np.unique(np.linspace(0, examples, count + 1).astype(int))
    return [((stop - start) / examples, slice(int(start), int(stop))) for start, stop in itertools.pairwise(edges)]


def microbatches(loss: LossFunction, examples: int | None, transform: Callable = jax.jit) -> Runner:
    """The mean of the gradients of parts of the examples, weighted by their numbers of rows."""
    piece = transform(oracle.value_and_grad(loss))

    @jax.jit
    def mean(parts, weights):
        return jax.tree.map(lambda *terms: sum(w * x for w, x in zip(weights, terms)), *parts)

    def run(params, data):
        weights, rows = zip(*pieces(examples or 1))
        whole = jax.device_get(data)  # NumPy cuts it without compiling
        return mean([piece(params, take_rows(whole, part, examples or 1)) for part in rows], weights)

    return run


FORWARD_DIRECTIONS = 4


def directions(params: Any) -> Any:
    """FORWARD_DIRECTIONS directions of +-1, exact in every format: `params` with a leading axis (NumPy)."""
    generator = np.random.default_rng(7)

    def leaf(x: Any) -> np.ndarray:
        shape = (FORWARD_DIRECTIONS, *np.shape(x))
        return (2 * generator.integers(2, size=shape, dtype=np.int8) - 1).astype(x.dtype)

    return jax.tree.map(leaf, params)


@oracle.remembered
def forward(loss: LossFunction) -> Callable[[Any, Any], jax.Array]:
    """`run(params, (data, directions))` -> the forward-mode derivatives along each direction, shape (directions,)."""

    def run(params, both):
        data, tangents = both

        def along(tangent):
            return jax.jvp(lambda p: loss(p, data), (params,), (tangent,))[1]

        return over_trials(along, (0,), jax.default_backend())(tangents)

    return run


PROGRAMS = {
    program.name: program
    for program in (
        GradientProgram("eager", _eager),
        GradientProgram("jit", _jit),
        GradientProgram("value_and_grad", _value_and_grad, fast=True),
        GradientProgram("has_aux", _has_aux),
        GradientProgram("vmap", _vmap),
        GradientProgram("remat", _remat),
        GradientProgram("batched", _batched),
        GradientProgram("microbatches", microbatches),
    )
}
FORWARD = "forward"
NAMES = (*PROGRAMS, FORWARD)


def once(function: Any, compiled: dict[str, Any]) -> Runner:
    """The function, jitted, for arrays of fixed shapes; a program of the same text in `compiled` is used again."""
    made: list[Any] = []

    def run(params, data):
        if not made:
            lowered = function.lower(params, data)
            _, _, text = lowered.as_text().partition("{")  # behind the module's name
            made.append(compiled[text] if text in compiled else compiled.setdefault(text, lowered.compile()))
        return made[0](params, data)

    return run


def select(names: tuple[str, ...] | None, fast: bool) -> list[str]:
    """The programs to check: the named ones, or all, or with `fast` the one a training step uses."""
    if names is None:
        return [name for name in NAMES if not fast or (name in PROGRAMS and PROGRAMS[name].fast)]
    for name in names:
        if name not in NAMES:
            raise PlanError(f"program={name}: need one of {', '.join(NAMES)}{nearest(name, NAMES)}")
    return list(names)
