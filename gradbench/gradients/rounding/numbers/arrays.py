"""`jnp` as the rounding rules use it: NumPy's functions for NumPy's arrays, jax.numpy's where an argument is JAX's.

So the rules of `primitives` are written once, for a compiled interpretation and for one by NumPy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy
import numpy as np
from jax import lax


class _Namespace:
    """Looks a name up once and keeps it as an attribute."""

    def __getattr__(self, name: str) -> Any:
        theirs, ours = getattr(jax.numpy, name), getattr(np, name, None)
        found = theirs
        if isinstance(ours, type):
            found = ours  # a dtype, or a kind of dtypes
        elif ours is not None and name != "issubdtype":  # jax.numpy's knows bfloat16

            def found(*args: Any, **options: Any) -> Any:
                return (theirs if any(map(_is_jax, args)) else ours)(*args, **options)

        setattr(self, name, found)
        return found


jnp: Any = _Namespace()


def _is_jax(value: Any) -> bool:
    return isinstance(value, jax.Array) or (isinstance(value, list | tuple) and any(map(_is_jax, value)))


def bits(value: Any) -> Any:
    """The bits of each float64, as uint64."""
    if isinstance(value, np.ndarray | np.generic):
        return np.ascontiguousarray(value).view(np.uint64).reshape(np.shape(value))
    return lax.bitcast_convert_type(value, jnp.uint64)


def of_bits(value: Any, dtype: Any = np.float64) -> Any:
    """The numbers of `dtype` that have these uint64 as their bits."""
    if isinstance(value, np.ndarray | np.generic):
        return np.ascontiguousarray(value).view(dtype).reshape(np.shape(value))
    return lax.bitcast_convert_type(value, dtype)


def holds(digits: int, value: Any) -> Any:
    """Whether a float64 has at most that many significant bits."""
    if isinstance(value, np.ndarray | np.generic):
        significand = np.frexp(value)[0] * 2.0**digits
        return significand == np.round(significand)
    return lax.reduce_precision(value, exponent_bits=11, mantissa_bits=digits - 1) == value


def lowest(value: Any) -> Any:
    """The largest power of two of which a float64 is a multiple; infinite for 0, and what is not finite is one of 1."""
    significand, exponent = jnp.frexp(jnp.where(jnp.isfinite(value), value, 1.0))
    whole = (significand * 2.0**53).astype(np.int64)
    return jnp.where(value == 0, np.inf, jnp.ldexp((whole & -whole).astype(np.float64), exponent - 53))


def jitted(function: Callable[..., Any], *static: str) -> Callable[..., Any]:
    """The function as it is if its first argument is NumPy's, jitted if it is JAX's: traced once per shape, however
    many equations use it. The arguments named `static` are Python values."""
    compiled = jax.jit(function, static_argnames=static)

    @functools.wraps(function)
    def of(*arguments: Any) -> Any:
        return (compiled if any(map(_is_jax, arguments)) else function)(*arguments)

    return of
