"""An optimizer traced on a problem: what its update may be handed, and whether a loop can carry its state."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from gradbench.errors import GradbenchError, GradbenchWarning, OptimizerError, ProblemError, error_text
from gradbench.inputs.optimizer import REFUSED, Optimizer, Settings
from gradbench.inputs.specs.axis import Axis

ExtraArguments = Callable[[jax.Array, Any, Callable[[Any], jax.Array]], dict[str, Any]]

# What update() may be handed beyond gradients, state and params: optax names these in its optimizers' docstrings. Of an
# update that takes any, `build` cannot tell what those it hands them on to take.
_EXTRA_ARGUMENTS: tuple[ExtraArguments, ...] = (
    lambda value, grads, loss: {  # sam hands its grad_fn the number of the step within its period, too
        "value": value,
        "grad": grads,
        "value_fn": loss,
        "obj_fn": loss,
        "grad_fn": lambda params, *_: jax.grad(loss)(params),
    },
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
    except (OptimizerError, ProblemError):  # raised again, with the names of both, where the pair is made
        return False
    return True


# What is said by optax or Python of an optimizer that no sweep can run, and what would do.
_HINTS = {
    "required keyword-only argument": "an update may ask for value, grad, value_fn (or obj_fn) and grad_fn",
    "no attribute fast": "lookahead wants two copies of the parameters, and a problem has one; "
    "write an optimizer that keeps the slow ones in its state",
    "expects grads to have a batch dimension": REFUSED["dpsgd"],
}
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
            raise OptimizerError(
                f"{spec!r}: {where} is {was} from its init, and {found} from its update; make them alike"
            )


def _reads_kept(function: Callable[..., Any], *shapes: Any) -> bool:
    """Whether a function reads arrays that an earlier call of it has written into a global or a closure."""
    try:
        return _has_tracers(jax.make_jaxpr(function)(*shapes))
    except jax.errors.UnexpectedTracerError:
        return True


def _has_tracers(jaxpr: Any) -> bool:
    """Whether a closed jaxpr has values of another trace among its constants: JAX compiles that, and fails later."""
    return any(isinstance(value, Tracer) for value in jaxpr.consts)


def extra_arguments(
    optimizer: Optimizer, steps: int, loss: Callable[[Any, Any], jax.Array], params: Any, data: Any
) -> ExtraArguments:
    """The extra arguments to hand this optimizer's update, found by tracing it on shapes of `params` and `data`.

    Raises OptimizerError when it cannot be traced with a learning rate that is an array, and ProblemError when the loss
    reads what an earlier call of it kept.
    """

    def start(settings: Settings, params: Any) -> Any:
        return jax.tree.map(jnp.asarray, optimizer.of(settings, steps).init(params))

    def attempt(extras: ExtraArguments, settings: Settings, state: Any, params: Any, data: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, data)
        given = extras(value, grads, lambda p: loss(p, data))
        updates, state = optimizer.of(settings, steps).update(grads, state, params, **given)
        optax.apply_updates(params, updates)
        return jax.tree.map(jnp.asarray, (updates, state))

    fault: Exception | None = None
    settings = traced_settings(optimizer)
    for extras in _EXTRA_ARGUMENTS:
        try:  # traced apart, as a sweep does: what an update needs of what was before has to be in its state
            before = jax.eval_shape(start, settings, params)
            traced = jax.make_jaxpr(partial(attempt, extras), return_shape=True)
            jaxpr, (updates, state) = traced(settings, before, params, data)
            kept = _has_tracers(jaxpr)
        except GradbenchError:
            raise
        except jax.errors.UnexpectedTracerError:  # of newer versions of JAX, sooner
            kept = True
        except Exception as error:
            fault = fault or error
            continue
        if kept:
            if _reads_kept(jax.value_and_grad(loss), params, data):
                again = "compute them anew, or return them as state (stateful=True)"
                raise ProblemError(f"the loss reads arrays of an earlier call; {again}")
            where = "its update reads arrays of an earlier call; keep them in its state"
            raise OptimizerError(f"{optimizer.spec!r}: {where}")
        if jax.tree.map(jnp.shape, updates) != jax.tree.map(jnp.shape, params):
            raise OptimizerError(f"{optimizer.spec!r}: its updates do not have the shapes of the parameters")
        _check_states(optimizer.spec, before, state)
        return extras
    assert fault is not None
    _check_loss_alone(loss, params, data)
    raise OptimizerError(
        f"{optimizer.spec!r}: cannot be swept: {error_text(fault).rstrip('.')}{_hint(optimizer, fault)}"
    ) from fault


def _check_loss_alone(loss: Callable[[Any, Any], jax.Array], params: Any, data: Any) -> None:
    """ProblemError where the gradient cannot be traced without any optimizer either: that it could in float32 is known,
    so what is wrong is the dtype of something."""
    try:
        jax.eval_shape(jax.value_and_grad(loss), params, data)
    except Exception as error:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        instead = "arrays that it closes over keep their own dtype; pass them as data, or make them like params"
        raise ProblemError(
            f"the loss has no gradient in {dtype}: {error_text(error).rstrip('.')}; {instead}"
        ) from error


def warn_of_idle_rate(optimizer: Optimizer, steps: int, extras: ExtraArguments, params: Any) -> None:
    """A GradbenchWarning where updates do not depend on the learning rate, of an optimizer that is a user's function:
    all of a sweep's rates would be one. Read off a trace, with a loss that is nothing but the sum of `params`."""
    if optimizer.from_spec and ":" not in optimizer.spec:
        return

    def total(params: Any) -> jax.Array:
        return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(params)), jnp.zeros(()))

    def updates(settings: Settings, params: Any) -> Any:
        transformation = optimizer.of(settings, steps)
        state = jax.tree.map(jnp.asarray, transformation.init(params))
        return transformation.update(params, state, params, **extras(total(params), params, total))[0]

    settings = traced_settings(optimizer)
    jaxpr = jax.make_jaxpr(updates)(settings, params).jaxpr
    rate = jaxpr.invars[sorted(settings).index("learning_rate")]
    if not any(rate is variable for equation in jaxpr.eqns for variable in equation.invars):
        text = f"{optimizer.spec}: its updates do not depend on the learning rate, so all rates of a sweep are alike"
        warnings.warn(text, GradbenchWarning, stacklevel=2)


def _hint(optimizer: Optimizer, fault: Exception) -> str:
    """What would do instead, where it is known."""
    if isinstance(fault, jax.errors.ConcretizationTypeError):
        spec = f"give it by the spec, {optimizer.spec.partition('[')[0]}[schedule=cosine,warmup=100], or "
        return (
            f"; if a schedule of optax tests the learning rate, {spec if optimizer.from_spec else ''}"
            "make one of peak 1 and pass lambda step: learning_rate * schedule(step)"
        )
    if isinstance(fault, TypeError) and "schedule=" in optimizer.spec:
        return ": with a schedule the learning rate is a function of the step, to be passed on to optax"
    said = str(fault).replace("'", "").replace("`", "")
    return next((f"; {hint}" for words, hint in _HINTS.items() if words in said), "")
