"""`jnp` as the rounding rules use it: NumPy's functions for NumPy's arrays, jax.numpy's where an argument is JAX's.

So the rules of `primitives` are written once, and hold for a compiled interpretation and for one that NumPy does.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy
import numpy as np
from jax import lax


class _Namespace:
    """What is asked of it once is kept as its attribute."""

    def __getattr__(self, name: str) -> Any:
        theirs, ours = getattr(jax.numpy, name), getattr(np, name, None)
        found = theirs
        if isinstance(ours, type):
            found = ours  # a dtype, or a kind of dtypes
        elif ours is not None and name != "issubdtype":  # which knows bfloat16

            def found(*args: Any, **options: Any) -> Any:
                return (theirs if any(map(_is_jax, args)) else ours)(*args, **options)

        setattr(self, name, found)
        return found


jnp: Any = _Namespace()


def _is_jax(value: Any) -> bool:
    return isinstance(value, jax.Array) or (isinstance(value, list | tuple) and any(map(_is_jax, value)))


def words(value: Any) -> Any:
    """The two 32-bit words of each float64, the lower first: uint32 (..., 2)."""
    if isinstance(value, np.ndarray | np.generic):
        return np.ascontiguousarray(value)[..., None].view(np.uint32).reshape(*np.shape(value), 2)
    return lax.bitcast_convert_type(value, jnp.uint32)


def of_words(value: Any) -> Any:
    """float64 (...) of uint32 (..., 2), the inverse of `words`."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).view(np.float64)[..., 0]
    return lax.bitcast_convert_type(value, jnp.float64)


def holds(digits: int, value: Any) -> Any:
    """Whether a float64 has at most that many significant bits."""
    if isinstance(value, np.ndarray | np.generic):
        significand = np.frexp(value)[0] * 2.0**digits
        return significand == np.round(significand)
    return lax.reduce_precision(value, exponent_bits=11, mantissa_bits=digits - 1) == value
