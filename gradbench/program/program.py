"""(problem, optimizer) -> the compiled program that advances a block of trials by a chunk of steps.

A block is devices x lanes trials on one leading axis, sharded over the devices; a chunk is `rows` observations,
`stride` updates apart. Nothing in the program depends on the number of trials or on their settings (learning rates and
values of the optimizer's axes), so one compile serves all of them, every seed and refill.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gradbench.inputs.optimizer import Settings
from gradbench.inputs.problem import Data, Params, cast, shapes
from gradbench.machine.internals import compiler_options, quick_compile
from gradbench.program.spread import TRIALS, initialise, over_trials, trials_mesh
from gradbench.program.trial import Observation, State, Trial, numerics
from gradbench.program.xla.layout import examples_last
from gradbench.program.xla.loops import over_steps
from gradbench.program.xla.rewrite import rewritten
from gradbench.program.xla.switch import enabled


def loop_options(platform: str, products: bool, lanes: int = 1) -> dict[str, bool | int]:
    """Compiler options of a loop over steps of `lanes` trials, empty where the compiler does not know them.

    XLA:CPU copies every array of a loop's state at every step, a third of a bowl's step, unless an option makes it
    analyse where each is last read. With matrix products copies cost little, and that option is left out: jax 0.10
    would run the products of both devices' loops at once, on cores already busy, and a network's step takes a third
    longer. The elementwise work between the products of several trials makes a step 2 to 6 % faster in 512-bit
    vectors, where a core has them; a matrix-vector product of one trial would take 1.5 times as long.

    XLA for GPUs chooses kernels by timing them, and some add in any order: two runs of a network differed from the
    first steps on. The option for a GPU excludes both.
    """
    if platform == "gpu":
        return compiler_options(platform, xla_gpu_exclude_nondeterministic_ops=True)
    if platform != "cpu" or (products and lanes == 1):
        return {}
    name = "xla_cpu_prefer_vector_width" if products else "xla_cpu_copy_insertion_use_region_analysis"
    return compiler_options(platform, **{name: 512 if products else True})


@dataclass(frozen=True)
class Block:
    """The fixed shape of a program. It decides the arithmetic, so run.json stores it and a resume repeats it.
    `relayout`: data has its examples on the last axis, and products are taken so (xla/layout.py)."""

    devices: int
    lanes: int
    rows: int
    stride: int
    relayout: bool = False

    @property
    def slots(self) -> int:
        return self.devices * self.lanes

    @property
    def steps(self) -> int:
        return self.rows * self.stride


class Program:
    """The programs of one (problem, optimizer) pair for one block shape, and the data on its devices, for the devices'
    platform or another `platform`, to be exported to it.

    `advance` is compiled by engine/timing.py; the others are small, and are compiled in `prepare` or at their first
    call.
    """

    def __init__(self, trial: Trial, block: Block, devices: Sequence[jax.Device], platform: str | None = None):
        self.block, self.devices = block, list(devices[: block.devices])
        self.platform = platform = platform or self.devices[0].platform
        self.trial, compiled = trial, trial.compiled_for(platform)
        mesh = trials_mesh(self.devices)
        self.sharded, self.replicated = NamedSharding(mesh, P(TRIALS)), NamedSharding(mesh, P())
        self.rows_sharded = NamedSharding(mesh, P(None, TRIALS))
        plan, relayout = trial.plan, block.relayout
        self.rate_dtype = jnp.promote_types(jnp.float32, plan.dtype)
        self.watches = bool(trial.objective.splits)

        scan = partial(over_steps if trial.kind.loops and platform == "cpu" else jax.lax.scan, length=block.rows)

        def advance(state: State, settings: Settings, seeds: jax.Array, first: jax.Array, data: Data, *watched: Any):
            if trial.noisy:
                keys = jax.vmap(trial.keys)(seeds)
                row = partial(compiled.row, stride=block.stride)
                row = rewritten(over_trials(row, (0, 0, None, 0, 0), platform), platform, relayout)
                steps: Any = block.stride * jnp.arange(block.rows, dtype=jnp.int32)

                def at(state: State, offset: Any) -> tuple[State, Observation]:
                    return row(state, settings, data, keys, first + offset)
            else:  # every step is the same
                step, steps = rewritten(over_trials(compiled.step, (0, 0, None), platform), platform, relayout), None

                def at(state: State, offset: Any) -> tuple[State, Observation]:
                    return step(state, settings, data)

            if watched:
                wanted, holdout = watched
                return scan(self._with_metrics(compiled, at, data, holdout), state, (steps, wanted))
            return scan(at, state, steps)

        per_trial, shared = (P(TRIALS),) * 4, (P(),) * (1 + 2 * self.watches)
        spread = jax.shard_map(
            advance, mesh=mesh, in_specs=(*per_trial, *shared), out_specs=(P(TRIALS), P(None, TRIALS)), check_vma=False
        )
        options = loop_options(platform, trial.kind.products, block.lanes)
        self.advance = jax.jit(spread, donate_argnums=0, compiler_options=options)
        # Each device starts its own trials; by itself XLA would gather the operands of what it cannot partition.
        begin = over_trials(trial.start, (0, 0), platform)
        spread = jax.shard_map(begin, mesh=mesh, in_specs=P(TRIALS), out_specs=P(TRIALS), check_vma=False)
        # It copies and fills: with nothing to optimise it is compiled in half the time.
        options = quick_compile(platform, xla_backend_optimization_level=0)
        self._begin = jax.jit(spread, compiler_options=options)
        self._admit = jax.jit(self._select, donate_argnums=1, out_shardings=self.sharded)
        self._copies = jax.jit(self._taken, out_shardings=self.replicated)
        self._graft = jax.jit(self._grafted, donate_argnums=0, out_shardings=self.sharded)

    def _with_metrics(self, trial: Trial, row: Callable[..., Any], data: Data, holdout: Data) -> Callable[..., Any]:
        """`row` of a scan that also takes whether to evaluate the metrics before it, all the trials' or none."""
        block, platform = self.block, self.platform
        evaluate = over_trials(trial.metrics, (0, None, None), platform)
        evaluate = rewritten(evaluate, platform, block.relayout)
        nothing = jnp.zeros((block.lanes, len(trial.objective.recorded)), self.rate_dtype)

        def watched(state: State, at: tuple[Any, jax.Array]) -> tuple[State, Observation]:
            offset, wanted = at
            found = jax.lax.cond(wanted, lambda state: evaluate(state, data, holdout), lambda _: nothing, state)
            state, seen = row(state, offset)
            return state, seen._replace(metrics=found)

        return watched

    def watch(self, rows: np.ndarray | None = None) -> tuple[Any, ...]:
        """What `advance` takes after the data: the mask of rows, bool (R,), before which the metrics are evaluated
        (none if None), and the held-out data; () where the problem records no metrics."""
        if not self.watches:
            return ()
        rows = np.zeros(self.block.rows, bool) if rows is None else rows
        return jax.device_put(rows, self.replicated), self.holdout

    @cached_property
    def holdout(self) -> Data:
        """The problem's held-out data, on every device."""
        plan = self.trial.plan
        with jax.enable_x64(plan.dtype == "float64"):
            return jax.device_put(cast(self.trial.problem.holdout, plan.dtype), self.replicated)

    @cached_property
    def data(self) -> Data:
        """The problem's data, on every device: placed at first use, as a program may run long after its compilation."""
        plan = self.trial.plan
        with jax.enable_x64(plan.dtype == "float64"):
            return jax.device_put(self.laid_out(cast(self.trial.problem.data, plan.dtype)), self.replicated)

    def laid_out(self, data: Data) -> Data:
        """The problem's data, or its shapes, in the layout that `advance` takes."""
        return jax.tree.map(examples_last, data) if self.block.relayout and enabled() else data

    def arguments(self) -> tuple[Any, ...]:
        """The arguments of `advance`, as shapes: it is compiled without making an array."""
        trial, slots = self.trial, self.block.slots
        scalars = trial.settings_shape(), *(jax.ShapeDtypeStruct((), kind) for kind in (jnp.uint32, jnp.int32))
        _, data = shapes(trial.problem, trial.plan.dtype)

        def placed(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding, *axis: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*axis, *leaf.shape), leaf.dtype, sharding=sharding)

        shared = (self.laid_out(data),)
        if self.watches:
            with jax.enable_x64(trial.plan.dtype == "float64"):
                holdout = jax.eval_shape(lambda: cast(trial.problem.holdout, trial.plan.dtype))
            shared += (jax.ShapeDtypeStruct((self.block.rows,), np.bool_), holdout)
        return (
            *jax.tree.map(lambda leaf: placed(leaf, self.sharded, slots), (trial.state_shape(), *scalars)),
            *jax.tree.map(lambda leaf: placed(leaf, self.replicated), shared),
        )

    def place(self, array: np.ndarray) -> jax.Array:
        """Place a host array (S, ...), one entry per slot, on the devices."""
        return jax.device_put(array, self.sharded)

    def settings(self, values: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """The slots' learning rates and values of the optimizer's axes, each (S,), on the devices."""
        shapes = self.trial.settings_shape()
        with jax.enable_x64(self.trial.plan.dtype == "float64"):
            return {name: self.place(np.asarray(values[name], shape.dtype)) for name, shape in shapes.items()}

    def prepare(self, admits: bool) -> None:
        """Compile what a sweep calls beside `advance`: `start` and, if it `admits` trials to free slots, `admit`."""
        seeds, fresh = (
            jax.ShapeDtypeStruct((self.block.slots,), kind, sharding=self.sharded) for kind in (np.uint32, np.bool_)
        )
        with jax.enable_x64(False):
            starts = initialise(self.trial.problem, self.devices)
            starts.lower(seeds).compile()
            drawn = jax.eval_shape(starts, seeds)
        self.prepare_begin(drawn)
        if admits:
            state, *_ = self.arguments()
            with numerics(self.trial.plan.dtype, self.trial.plan.precision):
                self._admit.lower(fresh, state, state).compile()

    def prepare_begin(self, params: Params) -> None:
        """Compile `begin` for params of these shapes, a leading axis of slots included."""
        one = self.trial.settings_shape()
        settings = {name: leaf.update(shape=(self.block.slots,)) for name, leaf in one.items()}
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.sharded), (params, settings)
        )
        with numerics(self.trial.plan.dtype, self.trial.plan.precision):
            self._begin.lower(*shapes).compile()

    def start(self, seeds: np.ndarray, settings: Settings) -> State:
        """The state of every slot at its trial's start. `seeds` is uint32 (S,)."""
        return self.begin(self.starts(seeds), settings)

    def starts(self, seeds: np.ndarray) -> Params:
        """Each slot's starting point, drawn in float32, so that all dtypes share them."""
        with jax.enable_x64(False):
            return initialise(self.trial.problem, self.devices)(self.place(seeds.astype(np.uint32)))

    def begin(self, params: Params, settings: Settings) -> State:
        """The state of every slot before its first step, from starting points with a leading axis S."""
        with numerics(self.trial.plan.dtype, self.trial.plan.precision):
            return self._begin(params, settings)

    def admit(self, fresh: np.ndarray, state: State, seeds: np.ndarray, settings: Settings) -> State:
        """`state` with the slots where `fresh`, bool (S,), set to their trial's start."""
        new = self.start(seeds, settings)
        if fresh.all():
            return new
        with numerics(self.trial.plan.dtype, self.trial.plan.precision):
            return self._admit(self.place(fresh), state, new)

    def copies(self, slots: np.ndarray, tree: Any) -> Any:
        """The entries of these slots, (K,), of a tree of arrays (S, ...): (K, ...), on every device."""
        with numerics(self.trial.plan.dtype, self.trial.plan.precision):
            return self._copies(tree, slots)

    def graft(self, tree: Any, copies: Any, place: np.ndarray) -> Any:
        """`tree` with each slot whose `place`, int32 (S,), is not negative set to that entry of `copies`."""
        with numerics(self.trial.plan.dtype, self.trial.plan.precision):
            return self._graft(tree, copies, self.place(place))

    @staticmethod
    def _taken(tree: Any, slots: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[slots], tree)

    @staticmethod
    def _grafted(tree: Any, copies: Any, place: jax.Array) -> Any:
        new = jax.tree.map(lambda leaf: leaf[jnp.maximum(place, 0)], copies)
        return Program._select(place >= 0, tree, new)

    @staticmethod
    def _select(fresh: jax.Array, state: State, new: State) -> State:
        def pick(n: jax.Array, o: jax.Array) -> jax.Array:
            return jnp.where(fresh.reshape(fresh.shape + (1,) * (n.ndim - 1)), n, o)

        return jax.tree.map(pick, new, state)
