"""The noise itself: draws that stand for roundings, a function of the value that is rounded.

Rounding is a function of the operands, so a batch of equal rows errs coherently; noise drawn entry by entry would miss
it. The helpers take NumPy's arrays and JAX's, for which they are jitted.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gradbench.gradients.rounding.numbers.arrays import bits, holds, jitted, jnp, of_bits

# The multipliers of SplitMix64 (Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014).
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_LEADING = np.uint64(0x7FFF << 48)  # the exponent and the first four bits of the significand
_EXPONENT = np.uint64(0x7FF << 52)


def start(seed: Any) -> Any:
    """The uint64 from which all noise under one seed (uint32) is made."""
    return mix((seed.astype(jnp.uint64) + np.uint64(1)) * _STEP)


@functools.cache
def odd(salt: int) -> np.uint64:
    """The multiplier that turns a seed's number into that of its operation `salt` (SplitMix64's finaliser)."""
    number = salt * int(_STEP) % 2**64
    number = (number ^ (number >> 30)) * int(_FIRST) % 2**64
    number = (number ^ (number >> 27)) * int(_SECOND) % 2**64
    return np.uint64(number ^ (number >> 31) | 1)


def mix(x: Any) -> Any:
    """uint64 to uint64; every bit of `x` moves the 32 leading ones."""
    x = x * _FIRST
    return (x ^ (x >> np.uint64(32))) * _SECOND


def signs(value: Any, word: Any) -> Any:
    """Noise uniform in [-1, 1): with the same `word`, equal float64 values get the same noise."""
    return of_bits(mix(bits(value) ^ word), np.int64).astype(np.float64) * 2.0**-63


def _perturbed(noisy: Any, exact: Any, amplitude: Any, picks: Any, word: Any, scale: float) -> Any:
    """`noisy` plus noise of `scale` times the amplitude, drawn by `picks`, which broadcasts; zero and infinity stay
    as they are."""
    amplitude = scale * jnp.where((exact == 0) | ~jnp.isfinite(exact), 0.0, amplitude)
    if jnp.iscomplexobj(picks):
        return noisy + amplitude * (signs(picks.real, word) + 1j * signs(picks.imag, word))
    return noisy + amplitude * signs(picks, word)


def _rounding_of(exact: Any, unit: float, underflow: float) -> Any:
    """The amplitude of roundings by `unit`, relative, and `underflow`, absolute."""
    return unit * jnp.abs(exact) + underflow


def _unless_held(exact: Any, noisy: Any, operands: list[Any], digits: int) -> Any:
    """`noisy`, or `exact` where that fits in so many digits and the operands, pairs (exact, noisy) of results of
    operations, have no noise and were not exact by chance: they are whole, have at most half the digits, or are the
    result itself up to a power of two. A program that comes to another number by other operations rounds."""
    held = holds(digits, exact)
    for without, given in operands:
        copied = jnp.frexp(exact)[0] == jnp.frexp(without)[0]
        few = holds(digits // 2, without) | (without == jnp.round(without))
        held = held & (without == given) & (few | copied)
    return jnp.where(held, exact, noisy)


def _leading(value: Any) -> Any:
    """The magnitude of a float64 or complex128 value, cut to its exponent and first four bits; float64."""
    size = jnp.abs(value) if jnp.iscomplexobj(value) else value
    return of_bits(bits(size) & _LEADING)


def _place_on_grid(exact: Any, one: Any, other: Any, digits: int) -> Any:
    """A float64 for each entry of a sum `exact` of `one` and `other`, in a format of so many digits: the same where
    `one` is the same, and `other` lies as far from the multiples of the result's spacing; of the opposite numbers too,
    whose rounding is the opposite."""

    def spacing(value: Any) -> Any:
        return jnp.maximum(of_bits(bits(value) & _EXPONENT), 2.0**-900) * 2.0 ** (1 - digits)

    upright, step, own = direction(exact), spacing(exact), spacing(other)
    rest = jnp.round(upright * other / own) * own / step
    place = (rest - jnp.floor(rest)) + 2.0**-52 * (bits(exact) & _EXPONENT).astype(np.float64)
    return of_bits(mix(bits(place)) ^ bits(upright * one))


def places(array: Any) -> Any:
    """A different number for each entry, to pick its noise."""
    return jnp.arange(1, array.size + 1, dtype=jnp.float64).reshape(array.shape)


def direction(value: Any) -> Any:
    """-1 where a value is negative, else 1."""
    return jnp.where(value < 0, -1.0, 1.0)


perturbed = jitted(_perturbed, "scale")
rounding_of = jitted(_rounding_of, "unit", "underflow")
unless_held = jitted(_unless_held, "digits")
leading = jitted(_leading)
place_on_grid = jitted(_place_on_grid, "digits")
