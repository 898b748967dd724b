"""What the interpreter works on: values without noise and with it, and where its model of rounding may not hold."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from gradbench.gradients.rounding import primitives as rounding
from gradbench.gradients.rounding.numbers.arrays import jnp
from gradbench.gradients.rounding.numbers.formats import Format

# A decision (x > 0) is taken at 4 times its sampled deviation: the largest of 32 normal deviations exceeds 1.5 sigma
# with probability 0.99, so a tie that rounding can change (up to 6 sigma) changes in some of the samples.
TIE_REACH = 4.0


class Pair(NamedTuple):
    """A value without noise and with it, float64 if float. Both are one object where noise cannot reach."""

    exact: Any
    noisy: Any


def same(value: Any) -> Pair:
    return Pair(value, value)


class Flags(NamedTuple):
    """Where the model may not hold.

    overflow: a value beyond the format's range. tie: a choice that rounding can change. reciprocal: a quotient x / y in
    the range whose reciprocal 1 / y is not, so that x * (1 / y), which a compiler may take instead, is wrong.

    A choice is an equality, a sort, an argmax, the index of a cond or the end of a while. (Orderings such as x > 0 need
    no flag: they change in some samples, see TIE_REACH.)
    """

    overflow: Any = np.False_
    tie: Any = np.False_
    reciprocal: Any = np.False_

    def add(self, other: Flags) -> Flags:
        never = np.False_  # most equations raise none
        return Flags(*(b if a is never else a if b is never else a | b for a, b in zip(self, other)))


def is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def wide(dtype: Any) -> Any:
    """float64 or complex128 for floats, the dtype itself otherwise."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.dtype(np.complex128)
    return np.dtype(np.float64) if jnp.issubdtype(dtype, jnp.floating) else dtype


def widen(params: dict[str, Any]) -> dict[str, Any]:
    """A primitive's parameters with every float dtype replaced by float64."""

    def one(value: Any) -> Any:
        if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
            return wide(np.dtype(value))
        return value

    return {key: one(value) for key, value in params.items()}


def is_float_array(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def reach(pair: Pair) -> Any:
    """The noisy value with its deviation times TIE_REACH, by which decisions are taken."""
    if pair.noisy is pair.exact or not is_float(pair.exact):
        return pair.noisy
    return pair.exact + TIE_REACH * (pair.noisy - pair.exact)


def decision_can_change(name: str, ins: list[Pair], exact: Any, noisy: Any) -> jax.Array:
    """Whether rounding can change a choice: a selection's integer results, an integer result, or an equality of floats
    that differ by at most TIE_REACH times their deviations."""
    if name in rounding.SELECTIONS:
        pairs = zip(jax.tree.leaves(exact), jax.tree.leaves(noisy))
        return jnp.stack([jnp.any(a != b) for a, b in pairs if not is_float(a)] or [jnp.zeros((), bool)]).any()
    if not is_float(ins[0].exact):
        return jnp.any(exact != noisy)
    (a, b), (da, db) = (p.exact for p in ins), (jnp.abs(p.noisy - p.exact) for p in ins)
    return jnp.any((a != b) & (jnp.abs(a - b) <= TIE_REACH * (da + db)))


def loses_reciprocal(quotient: Any, divisor: Any, form: Format) -> jax.Array:
    """Whether a quotient lies in the format's range where 1 / divisor does not; see Flags."""
    inverse, size = 1 / jnp.abs(divisor), jnp.abs(quotient)
    lost = ((inverse < form.tiny) | (inverse > form.largest)) & (divisor != 0) & jnp.isfinite(divisor)
    return jnp.any(lost & (size >= form.tiny) & (size <= form.largest))


def leaves_range(value: Any, form: Format) -> Any:
    """Whether a finite number of an array lies beyond the format's range."""
    return jnp.any((jnp.abs(value) > form.largest) & jnp.isfinite(value))


def lanes(going: Any, new: Any, old: Any) -> Any:
    """What a while loop carries after a turn: `new`, but `old` where `going` is not. Under vmap the condition has an
    axis of lanes, as has what the loop carries, and a lane that has ended stays as it is."""
    if not np.ndim(going):
        return new

    def kept(n: Any, o: Any) -> Any:
        of_lanes = going.reshape(going.shape + (1,) * (n.ndim - going.ndim))
        return (jnp if isinstance(n, jax.Array) else np).where(of_lanes, n, o)

    return jax.tree.map(kept, new, old)
