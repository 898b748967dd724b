"""Minibatches by random access: which rows step n of a trial takes, without storing a permutation.

Each epoch is a permutation of the rows, keyed by the trial's seed and the epoch, computed row by row with the
swap-or-not shuffle (Hoang, Morris and Rogaway, An Enciphering Scheme Based on a Card Shuffle, CRYPTO 2012). So a
trial needs no state for its data order, and may start, stop and resume at any step.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.inputs.plan import steps_per_epoch
from gradbench.inputs.problem import Data


def mix(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3: a bijection of uint32 in which every input bit moves every output bit."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def permuted(index: jax.Array, size: int, key: jax.Array) -> jax.Array:
    """Where a permutation of 0..size-1 takes `index`: int32 of the same shape. `key` is uint32 (2,).

    4 log2(size) rounds; in each, index and its mirror image under a random reflection are swapped or not.
    """
    rounds = 4 * max(math.ceil(math.log2(size)), 4) if size > 1 else 0

    def swap_or_not(number: jax.Array, index: jax.Array) -> jax.Array:
        round_key = mix(key[0] ^ mix(key[1] + number.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)))
        mirror = ((round_key % size).astype(jnp.int32) - index) % size
        coin = mix(jnp.maximum(index, mirror).astype(jnp.uint32) ^ mix(round_key + jnp.uint32(1))) & 1
        return jnp.where(coin == 1, mirror, index)

    return jax.lax.fori_loop(0, rounds, swap_or_not, index.astype(jnp.int32))


def batch_rows(step: jax.Array, examples: int, batch_size: int, key: jax.Array) -> jax.Array:
    """The rows, int32 (batch_size,), that update number `step` (from 0) takes: without replacement in an epoch of
    steps_per_epoch(). `key` is uint32 (2,); each epoch has its own order."""
    epoch, position = jnp.divmod(step, steps_per_epoch(examples, batch_size))
    epoch_key = key ^ mix(epoch.astype(jnp.uint32) + jnp.arange(1, 3, dtype=jnp.uint32))
    return permuted(position * batch_size + jnp.arange(batch_size), examples, epoch_key)


def take_rows(data: Data, rows: Any, examples: int) -> Data:
    """`data`, of JAX or NumPy, with only `rows` (indices or a slice) of every leaf that has `examples` rows."""
    return jax.tree.map(lambda leaf: leaf[rows] if np.ndim(leaf) and np.shape(leaf)[0] == examples else leaf, data)
