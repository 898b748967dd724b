"""The programs that compute a gradient. Each takes a loss and returns `run(params, data) -> (value, gradient)`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from concurrent.futures import Executor, Future
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
from gradbench.machine.workers import Here
from gradbench.program import program as sweep
from gradbench.program.minibatch import take_rows
from gradbench.program.spread import over_trials

LossFunction = Callable[[Any, Any], jax.Array]
Runner = Callable[[Any, Any], tuple[Any, Any]]


HERE = Here()


class Compiling:
    """A Runner whose program `begin` traces and lowers, and has compiled by `threads`; a call that finds nothing begun
    does it itself, and raises what the compiler raises."""

    _compiled: Future[Any] | None = None

    def begin(self, params: Any, data: Any, threads: Executor = HERE) -> None:
        """Begin to compile the program for arrays of these shapes."""
        raise NotImplementedError

    def compiled(self, params: Any, data: Any) -> Any:
        """The result of the job that compiled it."""
        if self._compiled is None:
            self.begin(params, data)
        assert self._compiled is not None
        return self._compiled.result()


class Jitted(Compiling):
    """The Runner of a jitted function: `given` makes its arguments of (params, data), and `taken` (value, gradient) of
    its result."""

    def __init__(
        self,
        function: Any,
        given: Callable[[Any, Any], tuple[Any, Any]] = lambda params, data: (params, data),
        taken: Callable[[Any], tuple[Any, Any]] = lambda result: result,
    ):
        self.function, self.given, self.taken = function, given, taken
        self.known: dict[str, Future[Any]] = {}  # compiled programs by their text, which several Jitted may share

    def begin(self, params: Any, data: Any, threads: Executor = HERE) -> None:
        lowered = self.function.lower(*self.given(params, data))
        _, _, text = lowered.as_text().partition("{")  # behind the module's name
        if text not in self.known:
            self.known[text] = threads.submit(lowered.compile)
        self._compiled = self.known[text]

    def __call__(self, params: Any, data: Any) -> tuple[Any, Any]:
        return self.taken(self.compiled(params, data)(*self.given(params, data)))


@dataclasses.dataclass(frozen=True)
class GradientProgram:
    """A way to compute a gradient. `build(loss, examples)` makes the runner, whose value may be None."""

    name: str
    build: Callable[[LossFunction, int | None], Runner]
    fast: bool = False


def _eager(loss: LossFunction, examples: int | None) -> Runner:
    return oracle.value_and_grad(loss)


def _jit(loss: LossFunction, examples: int | None) -> Runner:
    return Jitted(jax.jit(jax.grad(loss)), taken=lambda gradient: (None, gradient))


def _value_and_grad(loss: LossFunction, examples: int | None) -> Runner:
    return Jitted(jax.jit(oracle.value_and_grad(loss)))


def _has_aux(loss: LossFunction, examples: int | None) -> Runner:
    def with_aux(params, data):
        value = loss(params, data)
        return value, {"loss": value}

    def run(params, data):
        (_, aux), gradient = jax.value_and_grad(with_aux, has_aux=True)(params, data)
        return aux["loss"], gradient

    return Jitted(jax.jit(run))


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

    return Jitted(run, given=lambda params, data: (_lanes(params), data), taken=_lane)


def _remat(loss: LossFunction, examples: int | None) -> Runner:
    return Jitted(jax.jit(jax.value_and_grad(jax.checkpoint(loss))))


def _keeps_gradient(learning_rate: Any, steps: int, values: Any = None) -> optax.GradientTransformationExtraArgs:
    """An optimizer that does not move and whose state is the last gradient."""

    def update(updates, state, params=None, **extra):
        return jax.tree.map(jnp.zeros_like, updates), updates

    return optax.GradientTransformationExtraArgs(lambda params: jax.tree.map(jnp.zeros_like, params), update)


class _Batched(Compiling):
    """The sweep's own program (gradbench.program): two steps of three trials whose params do not change. Raises
    CompilerDied where the compiler ends its process on it."""

    def __init__(self, loss: LossFunction, examples: int | None):
        self.loss, self.examples = loss, examples

    def begin(self, params: Any, data: Any, threads: Executor = HERE) -> None:
        one = jax.tree.leaves(params)[0]
        [device] = one.devices()
        plan = SweepPlan(dtype=str(one.dtype), steps=2)
        problem = Problem(init=lambda key: params, loss=self.loss, data=data, examples=self.examples)
        trial = sweep.Trial.of(problem, Optimizer("keeps the gradient", _keeps_gradient), plan)
        relayout = trial.kind.relayout(LANES, device.platform)
        program = sweep.Program(trial, sweep.Block(1, LANES, rows=2, stride=1, relayout=relayout), [device])
        given = self._given(program, params, data)  # those of a call: shapes alone would be traced apart
        lowered, survive = program.advance.lower(*given), None
        if device.platform == "cpu":  # its products are rewritten by us, in unusual layouts that may crash XLA
            survive = sandbox.survive(program.advance, given, sweep.loop_options("cpu", trial.kind.products, LANES))

        def compiled() -> sweep.Program:
            if survive is not None:
                survive()
            lowered.compile()  # JAX keeps it for the call
            return program

        self._compiled = threads.submit(compiled)

    def __call__(self, params: Any, data: Any) -> tuple[Any, Any]:
        program = self.compiled(params, data)
        state, rows = program.advance(*self._given(program, params, data))
        return np.asarray(rows.loss)[-1, 1], _lane(state.opt_state)

    @staticmethod
    def _given(program: sweep.Program, params: Any, data: Any) -> tuple[Any, ...]:
        settings = program.settings({"learning_rate": np.zeros(LANES)})
        keys, none = program.place(np.zeros(LANES, np.uint32)), program.place(np.zeros(LANES, np.int32))
        return program.begin(_lanes(params), settings), settings, keys, none, program.laid_out(data)


MICROBATCHES = (4, 3, 5, 2)  # parts


def pieces(examples: int) -> list[tuple[float, slice]]:
    """Parts of the rows, with their weights: as many of MICROBATCHES as divide the rows evenly, so that one program
    serves all parts; else the first, or as many as there are rows."""
    count = next((n for n in MICROBATCHES if examples % n == 0), MICROBATCHES[0])
    edges = np.unique(np.linspace(0, examples, count + 1).astype(int))
    return [((stop - start) / examples, slice(int(start), int(stop))) for start, stop in itertools.pairwise(edges)]


class _Microbatches(Compiling):
    """The mean of the gradients of parts of the examples, weighted by their numbers of rows."""

    def __init__(self, loss: LossFunction, examples: int | None):
        self.examples = examples or 1
        self.piece = jax.jit(oracle.value_and_grad(loss))

    def begin(self, params: Any, data: Any, threads: Executor = HERE) -> None:
        self._compiled = threads.submit(self.piece.lower(params, self._parts(data)[0]).compile)

    def __call__(self, params: Any, data: Any) -> tuple[Any, Any]:
        self.compiled(params, data)  # JAX keeps it for the call; parts of another size are compiled there
        weights, _ = zip(*pieces(self.examples))
        return _mean([self.piece(params, part) for part in self._parts(data)], weights)

    def _parts(self, data: Any) -> list[Any]:
        whole = jax.device_get(data)  # NumPy cuts it without compiling
        return [take_rows(whole, rows, self.examples) for _, rows in pieces(self.examples)]


@jax.jit
def _mean(parts: Any, weights: Any) -> Any:
    return jax.tree.map(lambda *terms: sum(w * x for w, x in zip(weights, terms)), *parts)


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
        GradientProgram("batched", _Batched),
        GradientProgram("microbatches", _Microbatches),
    )
}
FORWARD = "forward"
NAMES = (*PROGRAMS, FORWARD)


def select(names: tuple[str, ...] | None, fast: bool) -> list[str]:
    """The programs to check: the named ones, or all, or with `fast` the one a training step uses."""
    if names is None:
        return [name for name in NAMES if not fast or (name in PROGRAMS and PROGRAMS[name].fast)]
    for name in names:
        if name not in NAMES:
            raise PlanError(f"program={name}: need one of {', '.join(NAMES)}{nearest(name, NAMES)}")
    return list(names)
