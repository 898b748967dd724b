"""A Hessian-vector product by two derivatives, one of the other: forward or reverse each (Pearlmutter 1994).

Each takes a loss(params, data) and returns `run(params, (data, v)) -> (<v, g>, H v)`, g the gradient and H the Hessian
at params, v of the shapes of params.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Loss = Callable[[Any, Any], jax.Array]
Product = Callable[[Any, Any], tuple[jax.Array, Any]]


def forward_over_reverse(loss: Loss) -> Product:
    """The JVP of the gradient along v."""

    def run(params: Any, rest: Any) -> tuple[jax.Array, Any]:
        data, vector = rest
        gradient, along = jax.jvp(lambda p: jax.grad(loss)(p, data), (params,), (vector,))
        return inner(vector, gradient), along

    return run


def reverse_over_reverse(loss: Loss) -> Product:
    """The gradient of <v, gradient>."""
    return lambda params, rest: jax.value_and_grad(slope(loss))(params, rest)


def reverse_over_forward(loss: Loss) -> Product:
    """The gradient of the loss's JVP along v."""

    def along(params: Any, rest: Any) -> jax.Array:
        data, vector = rest
        return jax.jvp(lambda p: loss(p, data), (params,), (vector,))[1]

    return lambda params, rest: jax.value_and_grad(along)(params, rest)


PRODUCTS: dict[str, Callable[[Loss], Product]] = {
    "forward over reverse": forward_over_reverse,
    "reverse over reverse": reverse_over_reverse,
    "reverse over forward": reverse_over_forward,
}
OVER = tuple(PRODUCTS)


def slope(loss: Loss) -> Callable[[Any, Any], Any]:
    """`(params, (data, v)) -> <v, gradient>`, whose gradient is H v."""
    return lambda params, rest: inner(rest[1], jax.grad(loss)(params, rest[0]))


def inner(one: Any, other: Any) -> Any:
    """The sum of the products of two pytrees' entries."""
    return sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)))


def has_no_forward(error: Exception) -> bool:
    """Whether it is the error that JAX raises where a custom_vjp, which has no forward derivative, is differentiated
    forward."""
    return "custom_vjp" in str(error) or "custom_lin" in str(error)
