"""(problem, optimizer) -> the compiled program that advances a block of trials by a chunk of steps.

A block is devices x lanes trials on one leading axis, sharded over the devices; a chunk is `rows` observations,
`stride` updates apart. Nothing in the program depends on the number of trials or on the learning rates, so one
compile serves every learning rate, seed and refill.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gradbench.inputs.optimizer import Optimizer, extra_arguments
from gradbench.inputs.plan import PRECISIONS, SweepPlan
from gradbench.inputs.problem import Data, Params, Problem, cast, shapes
from gradbench.machine.internals import compiler_options
from gradbench.program.minibatch import batch_rows, take_rows
from gradbench.program.xla.jaxprs import equations
from gradbench.program.xla.layout import examples_last, should_relayout
from gradbench.program.xla.rewrite import rewritten

TRIALS = "trials"


@contextlib.contextmanager
def numerics(dtype: str, precision: str):
    """Within it, float64 is on if `dtype` is, off if not, and matrix products have `precision`."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision(PRECISIONS[precision]):
        yield


def loop_options(platform: str, products: bool, lanes: int = 1) -> dict[str, bool | int]:
    """Compiler options of a loop over steps of `lanes` trials, empty where the compiler does not know them.

    XLA:CPU copies every array of a loop's state at every step unless asked to look where each is last read: a third of
    a bowl's step. Not with matrix products, beside which copies cost nothing: jax 0.10 then runs the products of both
    devices' loops at once, on cores already busy, and a network's step takes a third longer. What stands between the
    products of several trials, an exp of every example, is 2 to 6 % of a step faster in vectors of 512 bits, where a
    core has them; one trial's products of a matrix and a vector are half as slow again.
    """
    if platform != "cpu" or (products and lanes == 1):
        return {}
    name = "xla_cpu_prefer_vector_width" if products else "xla_cpu_copy_insertion_use_region_analysis"
    return compiler_options(platform, **{name: 512 if products else True})


class State(NamedTuple):
    """One trial between two steps. `updates` are the last ones made; `overshot` is used by minibatches only."""

    params: Params
    opt_state: Any
    updates: Params
    overshot: jax.Array


class Observation(NamedTuple):
    """What is seen of a trial at a step, before its update: float32 scalars, float64 in a float64 run.

    overshot is 1 where the last update u points uphill at the new point, <u, grads> > 0: it went past the lowest point
    of its own line. For gradient descent that is successive gradients pointing against each other. With minibatches it
    is the share of such steps since the row before, of a cosine of 1/2 at least between u and grads: descent at rate r
    along a curvature c, whose gradients have independent noise, has a cosine of r c / 2 there on average once it has
    settled (u and grads / c are both an autoregression of order one and its noise), so noise alone is uphill too, but
    by less than 1/2 unless the step is longer than to the lowest point, r c > 1.
    """

    loss: jax.Array
    grad_norm_squared: jax.Array
    overshot: jax.Array


@dataclass(frozen=True)
class Block:
    """The fixed shape of a program. It decides the arithmetic, so run.json stores it and a resume repeats it."""

    devices: int
    lanes: int
    rows: int
    stride: int

    @property
    def slots(self) -> int:
        return self.devices * self.lanes

    @property
    def steps(self) -> int:
        return self.rows * self.stride


def over_trials(function: Callable[..., Any], in_axes: Sequence[int | None]) -> Callable[..., Any]:
    """jax.vmap(function, in_axes), of axes that are 0 or None; or one trial after another inside the program, where JAX
    cannot batch what is in `function`: a primitive without a batching rule, a grouped convolution under shard_map."""
    together = jax.vmap(function, tuple(in_axes))

    def one_by_one(*args: Any) -> Any:
        def one(own: list[Any]) -> Any:
            rest = iter(own)
            return function(*(shared if axis is None else next(rest) for shared, axis in zip(args, in_axes)))

        return jax.lax.map(one, [arg for arg, axis in zip(args, in_axes, strict=True) if axis is not None])

    def several(*args: Any) -> Any:
        try:
            traced, result = jax.make_jaxpr(together, return_shape=True)(*args)
        except NotImplementedError:
            return one_by_one(*args)
        return jax.tree.unflatten(jax.tree.structure(result), jaxpr_as_fun(traced)(*jax.tree.leaves(args)))

    return several


def inner(a: Any, b: Any) -> jax.Array:
    """The inner product of two pytrees, accumulated in float32 at least."""
    wide = partial(jnp.promote_types, jnp.float32)
    products = [
        jnp.sum(x.astype(wide(x.dtype)) * y.astype(wide(y.dtype)))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    return sum(products[1:], products[0])


def _like(new: Any, old: Any) -> Any:
    """`new` in the dtypes of `old`: a loop's carry keeps its types."""
    return jax.tree.map(lambda n, o: n if n.dtype == o.dtype else n.astype(o.dtype), new, old)


@dataclass(frozen=True)
class Trial:
    """One trial's arithmetic, with no axis for trials: how it starts, and how one observed row comes about. `products`
    says whether its loss has matrix products or convolutions."""

    problem: Problem
    optimizer: Optimizer
    plan: SweepPlan
    extras: Callable[..., dict[str, Any]]
    products: bool

    @classmethod
    def of(cls, problem: Problem, optimizer: Optimizer, plan: SweepPlan) -> Trial:
        """Raises OptimizerError if the optimizer cannot be traced on this problem."""
        params, data = shapes(problem, plan.dtype)
        extras = extra_arguments(optimizer, plan.steps, problem.loss, params, data)
        loss = jax.make_jaxpr(problem.loss)(params, data)
        names = {equation.primitive.name for equation in equations(loss)}
        return cls(problem, optimizer, plan, extras, bool(names & {"dot_general", "conv_general_dilated"}))

    def start(self, params: Params, learning_rate: jax.Array) -> State:
        params = cast(params, self.plan.dtype)
        opt_state = self.optimizer.build(learning_rate, self.plan.steps).init(params)
        opt_state = jax.tree.map(jnp.asarray, opt_state)
        return State(params, opt_state, jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32))

    def state_shape(self) -> State:
        """What `start` returns, as shapes."""
        params, _ = shapes(self.problem, self.plan.dtype)
        with numerics(self.plan.dtype, self.plan.precision):
            rate = jax.ShapeDtypeStruct((), jnp.promote_types(jnp.float32, self.plan.dtype))
            return jax.eval_shape(self.start, params, rate)

    def step(self, state: State, learning_rate: jax.Array, data: Data) -> tuple[State, Observation]:
        """One observation of `data` and one update."""
        value, grads = jax.value_and_grad(self.problem.loss)(state.params, data)
        return self.update(state, learning_rate, data, value, grads)

    def update(
        self, state: State, learning_rate: jax.Array, data: Data, value: jax.Array, grads: Params
    ) -> tuple[State, Observation]:
        """The same, of the loss of `data` and its gradient."""
        params, opt_state, updates, overshot = state
        value = value.astype(jnp.promote_types(jnp.float32, value.dtype))
        uphill, squared = inner(updates, grads), inner(grads, grads)
        if self.plan.batch_size is None:
            overshot_now = uphill > 0
        else:
            overshot_now = (uphill > 0) & (uphill > jnp.sqrt(squared) * jnp.sqrt(inner(updates, updates)) / 2)
        row = Observation(value, squared, overshot_now.astype(jnp.float32))
        transformation = self.optimizer.build(learning_rate, self.plan.steps)
        extras = self.extras(value, grads, lambda p: self.problem.loss(p, data))
        updates, new_opt_state = transformation.update(grads, opt_state, params, **extras)
        new_params = _like(optax.apply_updates(params, updates), params)
        return State(new_params, _like(new_opt_state, opt_state), _like(updates, params), overshot), row

    def segment(
        self, state: State, learning_rate: jax.Array, data: Data, key: jax.Array, first_step: jax.Array, stride: int
    ) -> tuple[State, Observation]:
        """With minibatches: an observation of all the data, then `stride` updates; a trial rests after its last."""
        examples, batch_size = self.problem.examples, self.plan.batch_size
        assert examples is not None
        assert batch_size is not None
        value, grads = jax.value_and_grad(self.problem.loss)(state.params, data)
        value = value.astype(jnp.promote_types(jnp.float32, value.dtype))
        row = Observation(value, inner(grads, grads), state.overshot / stride)

        def update(state: State, step: jax.Array) -> tuple[State, None]:
            batch = take_rows(data, batch_rows(step, examples, batch_size, key), examples)
            after, seen = self.step(state, learning_rate, batch)
            after = after._replace(overshot=state.overshot + seen.overshot)
            return jax.tree.map(partial(jnp.where, step < self.plan.steps), after, state), None

        state = state._replace(overshot=jnp.zeros_like(state.overshot))
        state, _ = jax.lax.scan(update, state, first_step + jnp.arange(stride, dtype=jnp.int32))
        return state, row


def order_key(seed: jax.Array) -> jax.Array:
    """The key of a trial's minibatch order, uint32 (2,), folded out of the key its start is drawn from."""
    return jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1))[:2]


class Program:
    """The programs of one (problem, optimizer) pair for one block shape, and the data on its devices.

    `advance` is compiled ahead by the timing module; the others are small, and compile in `prepare` or at their first
    call.
    """

    def __init__(self, trial: Trial, block: Block, devices: Sequence[jax.Device]):
        self.trial, self.block, self.devices = trial, block, list(devices[: block.devices])
        mesh = Mesh(np.array(self.devices), (TRIALS,), axis_types=(AxisType.Auto,))
        self.sharded, self.replicated = NamedSharding(mesh, P(TRIALS)), NamedSharding(mesh, P())
        self.rows_sharded = NamedSharding(mesh, P(None, TRIALS))
        plan, platform, lanes = trial.plan, self.devices[0].platform, block.lanes
        self.rate_dtype = jnp.promote_types(jnp.float32, plan.dtype)

        def advance(state: State, rates: jax.Array, seeds: jax.Array, first: jax.Array, data: Data):
            if plan.batch_size is None:
                step = rewritten(over_trials(trial.step, (0, 0, None)), platform, lanes)
                return jax.lax.scan(lambda s, _: step(s, rates, data), state, length=block.rows)
            keys = jax.vmap(order_key)(seeds)
            segment = partial(trial.segment, stride=block.stride)
            segment = rewritten(over_trials(segment, (0, 0, None, 0, 0)), platform, lanes)
            offsets = block.stride * jnp.arange(block.rows, dtype=jnp.int32)
            return jax.lax.scan(lambda s, offset: segment(s, rates, data, keys, first + offset), state, offsets)

        per_trial = (P(TRIALS),) * 4
        spread = jax.shard_map(
            advance, mesh=mesh, in_specs=(*per_trial, P()), out_specs=(P(TRIALS), P(None, TRIALS)), check_vma=False
        )
        options = loop_options(platform, trial.products, lanes)
        self.advance = jax.jit(spread, donate_argnums=0, compiler_options=options)
        self._begin = jax.jit(over_trials(trial.start, (0, 0)), out_shardings=self.sharded)
        self._admit = jax.jit(self._select, donate_argnums=1, out_shardings=self.sharded)

    @cached_property
    def data(self) -> Data:
        """The problem's, on every device: placed at first use, since a program may be compiled long before it runs."""
        plan = self.trial.plan
        with jax.enable_x64(plan.dtype == "float64"):
            return jax.device_put(self.laid_out(cast(self.trial.problem.data, plan.dtype)), self.replicated)

    def laid_out(self, data: Data) -> Data:
        """The problem's data, or their shapes, as `advance` takes them."""
        return (
            jax.tree.map(examples_last, data) if should_relayout(self.devices[0].platform, self.block.lanes) else data
        )

    def arguments(self) -> tuple[Any, ...]:
        """What `advance` takes, as shapes: it compiles without an array being made."""
        trial, slots = self.trial, self.block.slots
        scalars = (jax.ShapeDtypeStruct((), kind) for kind in (self.rate_dtype, jnp.uint32, jnp.int32))
        _, data = shapes(trial.problem, trial.plan.dtype)

        def placed(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding, *axis: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*axis, *leaf.shape), leaf.dtype, sharding=sharding)

        return (
            *jax.tree.map(lambda leaf: placed(leaf, self.sharded, slots), (trial.state_shape(), *scalars)),
            jax.tree.map(lambda leaf: placed(leaf, self.replicated), self.laid_out(data)),
        )

    def place(self, array: np.ndarray) -> jax.Array:
        """A host array with one entry per slot, onto the devices."""
        return jax.device_put(array, self.sharded)

    def rates(self, values: np.ndarray) -> jax.Array:
        with jax.enable_x64(self.trial.plan.dtype == "float64"):
            return self.place(np.asarray(values, self.rate_dtype))

    def prepare(self, admits: bool) -> None:
        """Compile what a sweep calls beside `advance`: how trials start and, if it `admits` more to free slots, how."""
        seeds, fresh = (
            jax.ShapeDtypeStruct((self.block.slots,), kind, sharding=self.sharded) for kind in (np.uint32, np.bool_)
        )
        with jax.enable_x64(False):
            starts = initialise(self.trial.problem, self.devices[0].platform)
            shardings, drawn = starts.lower(seeds).compile().output_shardings, jax.eval_shape(starts, seeds)
        self.prepare_begin(jax.tree.map(self._placed, drawn, shardings))
        if admits:
            state, *_ = self.arguments()
            with numerics(self.trial.plan.dtype, self.trial.plan.precision):
                self._admit.lower(fresh, state, state).compile()

    def _placed(self, leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
        """The shape of a result with its sharding; none where it depends on no seed, and so is bound to no device."""
        bound = len(sharding.device_set) == self.block.devices
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding if bound else None)

    def prepare_begin(self, params: Params) -> None:
        """Compile `begin` for params of these shapes and shardings."""
        rates = jax.ShapeDtypeStruct((self.block.slots,), self.rate_dtype, sharding=self.sharded)
        with numerics(self.trial.plan.dtype, self.trial.plan.precision):
            self._begin.lower(params, rates).compile()

    def start(self, seeds: np.ndarray, rates: jax.Array) -> State:
        """Every slot at its trial's starting point."""
        return self.begin(self.starts(seeds), rates)

    def starts(self, seeds: np.ndarray) -> Params:
        """Each slot's starting point, drawn in float32, so that all dtypes share them."""
        with jax.enable_x64(False):
            return initialise(self.trial.problem, self.devices[0].platform)(self.place(seeds.astype(np.uint32)))

    def begin(self, params: Params, rates: jax.Array) -> State:
        """Every slot before its first step, from its starting point."""
        with numerics(self.trial.plan.dtype, self.trial.plan.precision):
            return self._begin(params, rates)

    def admit(self, fresh: np.ndarray, state: State, seeds: np.ndarray, rates: jax.Array) -> State:
        """`state` with the slots where `fresh` set to their trial's start."""
        new = self.start(seeds, rates)
        if fresh.all():
            return new
        with numerics(self.trial.plan.dtype, self.trial.plan.precision):
            return self._admit(self.place(fresh), state, new)

    @staticmethod
    def _select(fresh: jax.Array, state: State, new: State) -> State:
        def pick(n: jax.Array, o: jax.Array) -> jax.Array:
            return jnp.where(fresh.reshape(fresh.shape + (1,) * (n.ndim - 1)), n, o)

        return jax.tree.map(pick, new, state)


_initialisers: dict[tuple[int, str], tuple[Problem, jax.stages.Wrapped]] = {}


def initialise(problem: Problem, platform: str) -> jax.stages.Wrapped:
    """seeds (S,) -> starting points with a leading axis S; compiled once per problem, whatever the optimizers."""
    held = _initialisers.get((id(problem), platform))
    if held is None or held[0] is not problem:
        # Two problems, one that is swept and one that is compiled beside it: data should not outlive its run.
        for oldest in list(_initialisers)[:-1]:
            _initialisers.pop(oldest, None)
        start = over_trials(lambda seed: problem.init(jax.random.key(seed)), (0,))
        # XLA:CPU unrolls random bits into long programs: an mlp's take it two seconds to compile for speed.
        options = compiler_options(platform, xla_backend_optimization_level=1) if platform == "cpu" else {}
        held = problem, jax.jit(start, compiler_options=options)
        _initialisers[id(problem), platform] = held
    return held[1]
