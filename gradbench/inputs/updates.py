"""An optimizer traced on a problem: what its update may be handed, and whether a loop can carry its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradbench.errors import GradbenchError, OptimizerError, error_text
from gradbench.inputs.optimizer import Optimizer, Settings
from gradbench.inputs.specs.axis import Axis

ExtraArguments = Callable[[jax.Array, Any, Callable[[Any], jax.Array]], dict[str, Any]]

# What update() may be handed beyond gradients, state and params: optax names these in its optimizers' docstrings. Of an
# update that takes any, `build` cannot tell what those it hands them on to take.
_EXTRA_ARGUMENTS: tuple[ExtraArguments, ...] = (
    lambda value, grads, loss: {"value": value, "grad": grads, "value_fn": loss, "obj_fn": loss},
    lambda value, grads, loss: {"value": value, "grad": grads, "value_fn": loss},  # polyak, momo, line searches
    lambda value, grads, loss: {"value": value, "obj_fn": loss},  # sophia
    lambda value, grads, loss: {},
)


def traced_settings(optimizer: Optimizer, dtype: Any = jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what `build` takes of one trial: the learning rate and the axes' values, whole ones as int32."""
    whole = optimizer.whole
    kinds = {"learning_rate": dtype} | {
        axis.name: jnp.int32 if axis.name in whole else dtype for axis in optimizer.axes
    }
    return {name: jax.ShapeDtypeStruct((), kind) for name, kind in kinds.items()}


def untraceable(
    optimizer: Optimizer,
    values: Mapping[str, Any],
    steps: int,
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    data: Any,
) -> list[str]:
    """The names of the axes whose values an optimizer's code has to know: a program cannot be given them as an array.
    Found by tracing it with one axis at a time, and `values` of the others."""
    return [
        axis.name
        for axis in optimizer.axes
        if not _traces(_one_axis(optimizer, axis, values), steps, loss, params, data)
    ]


def _one_axis(optimizer: Optimizer, axis: Axis, values: Mapping[str, Any]) -> Optimizer:
    others = {other.name: values[other.name] for other in optimizer.axes if other is not axis}

    def build(learning_rate: Any, steps: int, own: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
        return optimizer.build(learning_rate, steps, others | dict(own))

    return replace(optimizer, axes=(axis,), build=build)


def _traces(optimizer: Optimizer, *what: Any) -> bool:
    try:
        extra_arguments(optimizer, *what)
    except OptimizerError:
        return False
    return True


_NESTED = (jnp.number, jnp.inexact, jnp.complexfloating)  # of whole numbers the first, of floats the first two


def _check_states(spec: str, before: Any, after: Any) -> None:
    """OptimizerError unless a loop can carry the state: `after` an update as `before` it, and no floats where whole
    numbers were, or complex numbers where floats were, as each update would then cut off a part of them."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        was, found = map(jax.tree.structure, (before, after))
        raise OptimizerError(f"{spec!r}: its update returned the state {found}, and its init {was}; make them alike")
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after)):
        kinds = [sum(jnp.issubdtype(leaf.dtype, kind) for kind in _NESTED) for leaf in (old, new)]
        if old.shape != new.shape or kinds[0] < kinds[1]:
            was, found = (f"{leaf.dtype} of shape {leaf.shape}" for leaf in (old, new))
            where = f"state{jax.tree_util.keystr(path)}"
            raise OptimizerError(f"{spec!r}: {where} is {was} from its init, and {found} from its update")


def extra_arguments(
    optimizer: Optimizer, steps: int, loss: Callable[[Any, Any], jax.Array], params: Any, data: Any
) -> ExtraArguments:
    """The extra arguments to hand this optimizer's update, found by tracing it on shapes of `params` and `data`.

    Raises OptimizerError when it cannot be traced with a learning rate that is an array.
    """

    def attempt(extras: ExtraArguments, settings: Settings, params: Any, data: Any) -> Any:
        transformation = optimizer.of(settings, steps)
        state = jax.tree.map(jnp.asarray, transformation.init(params))
        value, grads = jax.value_and_grad(loss)(params, data)
        updates, next_state = transformation.update(
            grads, state, params, **extras(value, grads, lambda p: loss(p, data))
        )
        return optax.apply_updates(params, updates), state, jax.tree.map(jnp.asarray, next_state)

    fault: Exception | None = None
    for extras in _EXTRA_ARGUMENTS:
        try:
            after, *states = jax.eval_shape(partial(attempt, extras), traced_settings(optimizer), params, data)
        except GradbenchError:
            raise
        except Exception as error:
            fault = fault or error
            continue
        if jax.tree.map(jnp.shape, after) != jax.tree.map(jnp.shape, params):
            raise OptimizerError(f"{optimizer.spec!r}: its updates do not have the shapes of the parameters")
        _check_states(optimizer.spec, *states)
        return extras
    assert fault is not None
    hint = ""
    if isinstance(fault, jax.errors.ConcretizationTypeError):
        spec = f"give the schedule by the spec, {optimizer.spec.partition('[')[0]}[schedule=cosine,warmup=100], or "
        hint = (
            ": the learning rate is traced, so nothing may test its value, as some schedules of optax do; "
            f"{spec if optimizer.from_spec else ''}"
            "make one of peak 1 and pass lambda step: learning_rate * schedule(step)"
        )
    elif isinstance(fault, TypeError) and "schedule=" in optimizer.spec:
        hint = ": with a schedule the learning rate is a function of the step, to be passed on to optax"
    raise OptimizerError(f"{optimizer.spec!r}: cannot be swept: {error_text(fault)}{hint}") from fault
