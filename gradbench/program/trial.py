"""One trial's arithmetic: how it starts, what a step does, what is observed. No axis for trials, and no device."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradbench.errors import ProblemError
from gradbench.inputs.losses.objective import SPLITS, Objective, trial_key
from gradbench.inputs.optimizer import Optimizer, Settings
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Data, Params, Problem, cast, shapes
from gradbench.inputs.specs.checks import PRECISIONS
from gradbench.inputs.specs.schedules import COOLING
from gradbench.inputs.updates import extra_arguments, traced_settings, warn_of_idle_rate
from gradbench.program.kind import Kind
from gradbench.program.minibatch import batch_rows, take_rows
from gradbench.program.xla.jaxprs import uncounted_flops
from gradbench.program.xla.products import as_products


@contextlib.contextmanager
def numerics(dtype: str, precision: str):
    """A context with x64 on if `dtype` is float64, else off, and with `precision` for matrix products."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision(PRECISIONS[precision]):
        yield


class State(NamedTuple):
    """One trial between two steps. `updates` are the last ones made; `overshot` is used with minibatches only;
    `model_state` is what the problem has beside params, which no optimizer changes."""

    params: Params
    opt_state: Any
    updates: Params
    overshot: jax.Array
    model_state: Any = ()


class Keys(NamedTuple):
    """A trial's keys: of its minibatch order, uint32 (2,), and of its loss's own randomness, where it has any."""

    order: jax.Array
    noise: Any = ()


class Observation(NamedTuple):
    """What is observed of a trial at a step, before its update: float32 scalars, float64 in a float64 run.

    overshot is 1 where the last update u points uphill at the new point, <u, grads> > 0: it went past the lowest point
    of its own line. For gradient descent that is successive gradients pointing against each other. With minibatches it
    is the share of such steps since the row before, of a cosine of 1/2 at least between u and grads: descent at rate r
    along a curvature c, whose gradients have independent noise, has a cosine of r c / 2 there on average once it has
    settled (u and grads / c are both an autoregression of order one and its noise), so noise alone is uphill too, but
    by less than 1/2 unless the step is longer than to the lowest point, r c > 1. A loss that takes a key has the same
    noise with all the data too.

    metrics are what the problem records beside its curve, (V,), 0 but at recorded rows; () where there is nothing.
    """

    loss: jax.Array
    grad_norm_squared: jax.Array
    overshot: jax.Array
    metrics: Any = ()


def inner(a: Any, b: Any) -> jax.Array:
    """The inner product of two pytrees, accumulated in at least float32."""
    wide = partial(jnp.promote_types, jnp.float32)
    products = [
        jnp.sum(x.astype(wide(x.dtype)) * y.astype(wide(y.dtype)))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    return sum(products[1:], products[0])


def _like(new: Any, old: Any) -> Any:
    """`new` in the dtypes of `old`, numbers of Python too: a loop's carry keeps its types."""

    def like(n: Any, o: jax.Array) -> jax.Array:
        n = n if hasattr(n, "dtype") else jnp.asarray(n)
        return n if n.dtype == o.dtype else n.astype(o.dtype)

    return jax.tree.map(like, new, old)


@dataclass(frozen=True)
class Trial:
    """One trial's arithmetic, with no axis for trials: how it starts, and what makes one observed row."""

    problem: Problem
    optimizer: Optimizer
    plan: SweepPlan
    extras: Callable[..., dict[str, Any]]
    kind: Kind

    @classmethod
    def of(cls, problem: Problem, optimizer: Optimizer, plan: SweepPlan) -> Trial:
        """A trial of this pair. Raises what `extra_arguments` does."""
        plain = problem.plain
        params, data = shapes(plain, plan.dtype)
        try:
            extras = extra_arguments(optimizer, plan.steps, plain.loss, params, data)
        except ProblemError as error:
            raise ProblemError(f"{problem.name}: {error}") from error
        loss = traced(plain, plan, plain.loss, batch=True).jaxpr
        return cls(problem, optimizer, plan, extras, Kind.of(loss, params))

    def warn_of_idle_rate(self) -> None:
        """One GradbenchWarning where the learning rate changes nothing; see updates.py."""
        params, _ = shapes(self.problem.plain, self.plan.dtype)
        warn_of_idle_rate(self.optimizer, self.plan.steps, self.extras, params)

    def compiled_for(self, platform: str) -> Trial:
        """The same arithmetic as it is given to a platform's compiler (program/xla/)."""
        loss = as_products(self.problem.loss, platform, self.kind.images)
        return dataclasses.replace(self, problem=dataclasses.replace(self.problem, loss=loss))

    @property
    def trials(self) -> int:
        """How many trials the pair has."""
        return self.plan.trials_of(self.optimizer.spec)

    @property
    def side_by_side(self) -> int:
        """How many of the pair's trials may run at once."""
        return self.plan.side_by_side(self.optimizer.spec)

    @property
    def objective(self) -> Objective:
        return self.problem.objective

    @cached_property
    def uncounted(self) -> tuple[float, float]:
        """FLOP that XLA's cost analysis omits: of an update's gradient, and of the gradient on all the data."""
        plain = self.problem.plain
        update = uncounted_flops(traced(plain, self.plan, jax.value_and_grad(plain.loss), batch=True).jaxpr)
        if self.plan.batch_size is None:
            return update, update
        whole = traced(plain, self.plan, jax.value_and_grad(plain.loss), batch=False)
        return update, uncounted_flops(whole.jaxpr)

    @property
    def noisy(self) -> bool:
        """Whether gradients at fixed params differ from step to step."""
        return self.plan.batch_size is not None or self.objective.random

    def keys(self, seed: jax.Array) -> Keys:
        noise = jax.random.key_data(trial_key(seed)) if self.objective.random else ()
        return Keys(order_key(seed), noise)

    def noise(self, keys: Keys, step: jax.Array) -> Any:
        """The key that the loss of update number `step` gets; None for a loss that takes none."""
        if not self.objective.random:
            return None
        return jax.random.fold_in(jax.random.wrap_key_data(keys.noise), step)

    def start(self, drawn: Any, settings: Settings) -> State:
        """The state before the first step, from what the problem's init returned."""
        params, model_state = self.objective.parts(cast(drawn, self.plan.dtype))
        opt_state = self.optimizer.of(settings, self.plan.steps).init(params)
        opt_state = jax.tree.map(jnp.asarray, opt_state)
        return State(params, opt_state, jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32), model_state)

    def state_shape(self) -> State:
        """What `start` returns, as shapes."""
        drawn, _ = shapes(self.problem, self.plan.dtype)
        with numerics(self.plan.dtype, self.plan.precision):
            return jax.eval_shape(self.start, drawn, self.settings_shape())

    def fall(self, settings: Settings) -> tuple[Any, Any]:
        """Optimizer.fall of a trial's settings, or of those of N trials, each (N,)."""
        return self.optimizer.fall(self.plan.steps, {k: v for k, v in settings.items() if k != "learning_rate"})

    @property
    def forks(self) -> list[int]:
        """The steps at which trials may branch off: where a design's rates begin to fall, ascending."""
        plan, names = self.plan, [axis.name for axis in self.optimizer.axes]
        if plan.search or plan.budget or not {*names} & {*COOLING}:
            return []
        points = plan.points(self.optimizer.spec)
        falls, _ = self.optimizer.fall(plan.steps, {name: points[name] for name in names})
        return [int(step) for step in np.unique(falls) if step > 0]

    def settings_shape(self) -> dict[str, jax.ShapeDtypeStruct]:
        """One trial's learning rate and values of the optimizer's axes, as shapes: at least float32, or int32."""
        return traced_settings(self.optimizer, jnp.promote_types(jnp.float32, self.plan.dtype))

    def gradient(self, params: Params, model_state: Any, data: Data, key: Any) -> tuple[jax.Array, Params, Any]:
        """(loss on `data`, its gradient, the model's state after it)."""
        loss = jax.value_and_grad(self.objective.training, has_aux=True)
        (value, (after, _)), grads = loss(params, model_state, data, key)
        return value, grads, _like(jax.tree.map(jnp.asarray, after), model_state)

    def step(self, state: State, settings: Settings, data: Data, key: Any = None) -> tuple[State, Observation]:
        """One step: the observation of `data`, and one update by its gradient; `key` is for a loss that takes one."""
        value, grads, model_state = self.gradient(state.params, state.model_state, data, key)
        after, row = self.update(state, settings, data, value, grads, key)
        return after._replace(model_state=model_state), row

    def update(
        self, state: State, settings: Settings, data: Data, value: jax.Array, grads: Params, key: Any = None
    ) -> tuple[State, Observation]:
        """The same, given the loss `value` on `data` and its gradient; the model's state stays."""
        params, opt_state, updates, overshot, model_state = state
        value = value.astype(jnp.promote_types(jnp.float32, value.dtype))
        uphill, squared = inner(updates, grads), inner(grads, grads)
        if self.noisy:
            overshot_now = (uphill > 0) & (uphill > jnp.sqrt(squared) * jnp.sqrt(inner(updates, updates)) / 2)
        else:
            overshot_now = uphill > 0
        row = Observation(value, squared, overshot_now.astype(jnp.float32))
        transformation = self.optimizer.of(settings, self.plan.steps)
        extras = self.extras(value, grads, lambda p: self.objective.training(p, model_state, data, key)[0])
        updates, new_opt_state = transformation.update(grads, opt_state, params, **extras)
        new_params = _like(optax.apply_updates(params, updates), params)
        new_opt_state, updates = _like(new_opt_state, opt_state), _like(updates, params)
        return State(new_params, new_opt_state, updates, overshot, model_state), row

    def row(
        self, state: State, settings: Settings, data: Data, keys: Keys, step: jax.Array, stride: int
    ) -> tuple[State, Observation]:
        """One observation of all the data and `stride` updates, the first of which is number `step`. With minibatches
        the observation changes nothing, and a trial stays as it is after its last update; without, stride is 1."""
        examples, batch_size = self.problem.examples, self.plan.batch_size
        _, last = self.fall(settings)
        here = jnp.minimum(step, last)  # the last row, if less than a stride on

        if batch_size is None:
            return self.step(state, settings, data, self.noise(keys, here))
        assert examples is not None
        value, grads, _ = self.gradient(state.params, state.model_state, data, self.noise(keys, here))
        value = value.astype(jnp.promote_types(jnp.float32, value.dtype))
        row = Observation(value, inner(grads, grads), state.overshot / stride)

        def update(state: State, step: jax.Array) -> tuple[State, None]:
            batch = take_rows(data, batch_rows(step, examples, batch_size, keys.order), examples)
            after, seen = self.step(state, settings, batch, self.noise(keys, step))
            after = after._replace(overshot=state.overshot + seen.overshot)
            return jax.tree.map(partial(jnp.where, step < last), after, state), None

        state = state._replace(overshot=jnp.zeros_like(state.overshot))
        state, _ = jax.lax.scan(update, state, step + jnp.arange(stride, dtype=jnp.int32))
        return state, row

    def metrics(self, state: State, data: Data, holdout: Data) -> jax.Array:
        """The metrics recorded beside the curve, in the order of `objective.recorded`: (V,), at least float32."""
        wide, both = jnp.promote_types(jnp.float32, self.plan.dtype), dict(zip(SPLITS, (data, holdout)))
        found = {
            split: self.objective.evaluation(state.params, state.model_state, both[split])
            for split in self.objective.splits
        }
        return jnp.stack([jnp.asarray(found[split][name], wide) for split, name in self.objective.recorded])


def order_key(seed: jax.Array) -> jax.Array:
    """The key of a trial's minibatch order, uint32 (2,), folded out of the key of its start."""
    return jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1))[:2]


def traced(problem: Problem, plan: SweepPlan, function: Callable[..., Any], batch: bool) -> Any:
    """`function(params, data)` of the problem, traced in the plan's dtype on all the data or on one minibatch."""
    params, data = shapes(problem, plan.dtype)
    with jax.enable_x64(plan.dtype == "float64"):
        if batch and plan.batch_size is not None and problem.examples is not None:
            rows, examples = jax.ShapeDtypeStruct((plan.batch_size,), jnp.int32), problem.examples
            data = jax.eval_shape(lambda d, r: take_rows(d, r, examples), data, rows)
        return jax.jit(function).trace(params, data)
