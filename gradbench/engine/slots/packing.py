"""Device arrays as a checkpoint stores them, and pieces of rows joined."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def pack(leaf: jax.Array) -> np.ndarray:
    """A device array as plain numbers that .npy can hold: keys as their data, bfloat16 as its bits."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.view(np.uint16) if array.dtype.kind == "V" or array.dtype.name == "bfloat16" else array


def unpack(array: np.ndarray, like: jax.Array) -> Any:
    """A stored array as the device array `like` had it: of its dtype, or a key."""
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    return array.view(like.dtype) if array.dtype != like.dtype else array


def packed(tree: Any) -> list[np.ndarray]:
    """The leaves of a tree of device arrays."""
    return [pack(leaf) for leaf in jax.tree.leaves(tree)]


def joined(pieces: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Pieces of rows, by column, as one piece; {} without any."""
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]} if pieces else {}
