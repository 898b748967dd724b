"""The noise itself: draws that stand for roundings, a function of the value that is rounded.

Rounding is a function of the operands, so a batch of equal rows errs coherently; noise drawn entry by entry would miss
it. Each helper is jitted: it is traced once for a shape, however many equations of a function it serves.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# The multipliers of SplitMix64 (Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014).
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_LEADING = np.uint64(0x7FFF << 48)  # the exponent and the first four bits of the significand


def start(seed: jax.Array) -> jax.Array:
    """The uint64 that all noise under one seed, a uint32 scalar, is made of."""
    return mix((seed.astype(jnp.uint64) + np.uint64(1)) * _STEP)


@functools.cache
def odd(salt: int) -> np.uint64:
    """The multiplier that makes of a seed's number that of its operation `salt` (SplitMix64's finaliser)."""
    number = salt * int(_STEP) % 2**64
    number = (number ^ (number >> 30)) * int(_FIRST) % 2**64
    number = (number ^ (number >> 27)) * int(_SECOND) % 2**64
    return np.uint64(number ^ (number >> 31) | 1)


def mix(x: jax.Array) -> jax.Array:
    """uint64 to uint64; every bit of `x` moves the 32 leading ones."""
    x = x * _FIRST
    return (x ^ (x >> np.uint64(32))) * _SECOND


def signs(value: jax.Array, word: jax.Array) -> jax.Array:
    """Noise uniform in [-1, 1): equal float64 values draw the same of the same word."""
    mixed = mix(lax.bitcast_convert_type(value, jnp.uint64) ^ word)
    return lax.bitcast_convert_type(mixed, jnp.int64).astype(jnp.float64) * 2.0**-63


@functools.partial(jax.jit, static_argnames="scale")
def perturbed(noisy: Any, exact: Any, amplitude: Any, picks: Any, word: jax.Array, scale: float) -> Any:
    """`noisy` plus noise of `scale` times the amplitude that `picks`, which broadcasts, draws; zero and infinity stay
    what they are."""
    amplitude = scale * jnp.where((exact == 0) | ~jnp.isfinite(exact), 0.0, amplitude)
    if jnp.iscomplexobj(picks):
        return noisy + amplitude * lax.complex(signs(picks.real, word), signs(picks.imag, word))
    return noisy + amplitude * signs(picks, word)


@functools.partial(jax.jit, static_argnames=("unit", "underflow"))
def rounding_of(exact: Any, unit: float, underflow: float) -> Any:
    """The amplitude of roundings of so many units."""
    return unit * jnp.abs(exact) + underflow


@functools.partial(jax.jit, static_argnames="digits")
def unless_held(exact: Any, noisy: Any, operands: list[Any], digits: int) -> Any:
    """`noisy`, or `exact` where that fits in so many digits and the operands, pairs of values without noise and with
    it, have none."""
    held = lax.reduce_precision(exact, exponent_bits=11, mantissa_bits=digits - 1) == exact
    for without, given in operands:
        held &= without == given
    return jnp.where(held, exact, noisy)


@jax.jit
def leading(value: Any) -> Any:
    """The magnitude of a float64 or complex128 value, cut to its exponent and first four bits; float64."""
    size = jnp.abs(value) if jnp.iscomplexobj(value) else value
    return lax.bitcast_convert_type(lax.bitcast_convert_type(size, jnp.uint64) & _LEADING, jnp.float64)
