"""Division by a broadcast array, the same on any number of devices.

XLA may turn x / y, where y has fewer entries than x, into x * (1 / y): a softmax's division by its sums, adam's by its
bias correction. Whether it does depends on what earlier passes have left of the broadcast, and a program for one device
goes through other passes than one for several: a trial's last bits would depend on the number of devices, and unstable
learning rates amplify them. So it is decided here, before XLA, always for the reciprocal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradbench.jaxprs import REMATERIALISED, called, open_jaxpr


def by_reciprocals(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, of pytrees of arrays, with x * (1 / y) for every x / y whose y is broadcast: one rounding more.

    Calls, loops and branches inside included; what is under jax.checkpoint stays as it is.
    """

    def changed(*args: Any) -> Any:
        traced, result = jax.make_jaxpr(function, return_shape=True)(*args)
        return jax.tree.unflatten(jax.tree.structure(result), _run(*open_jaxpr(traced), jax.tree.leaves(args)))

    return changed


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """The outputs of an open jaxpr."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(variable: Any) -> Any:
        return variable.val if hasattr(variable, "val") else values[variable]

    for equation in jaxpr.eqns:
        with equation.ctx.manager:
            results = _results(equation, [read(v) for v in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


_BODIES = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr"), "cond": ("branches",)}


def _results(equation: Any, operands: list[Any]) -> Sequence[Any]:
    primitive, params = equation.primitive, equation.params
    inner = None if primitive.name in REMATERIALISED else called(equation, operands)
    if inner is not None:
        return _run(*inner)
    if primitive.name == "div":
        (x, y), result = operands, equation.outvars[0].aval
        if jnp.issubdtype(result.dtype, jnp.inexact) and jnp.size(y) < result.size:
            # float16 cannot hold the reciprocals of small numbers.
            wide = jnp.promote_types(result.dtype, jnp.float32)
            return [jnp.multiply(x, jnp.reciprocal(jnp.asarray(y, wide))).astype(result.dtype)]
    params = params | {key: jax.tree.map(_changed, params[key]) for key in _BODIES.get(primitive.name, ())}
    results = primitive.bind(*operands, **primitive.get_bind_params(params))
    return results if primitive.multiple_results else [results]


def _changed(body: Any) -> Any:
    """A loop's or a branch's jaxpr with its divisions changed."""
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in body.in_avals]
    return jax.make_jaxpr(lambda *args: _run(*open_jaxpr(body), args))(*shapes)
