"""Functions as people write them, right ones and wrong ones: what `check_functions.py` sets before the check.

A family is a reference, right implementations of it, and faulty ones by the name of what is wrong with them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from function_faults_dense import LAYER_NORM, MATMUL, SOFTMAX, Family, ruled
from jax import lax

# scatter-add of rows, and the rows of a table


def scatter_add(t, x, idx):
    return t.at[idx].add(x)


def one_hot_add(t, x, idx):
    return t + jnp.dot((idx[None, :] == jnp.arange(t.shape[0])[:, None]).astype(x.dtype), x)


def take(table, idx):
    return table[idx]


def take_ruled(gradient: Callable) -> Callable:
    def back(saved, y, ct):
        table, idx = saved
        return gradient(jnp.zeros_like(table), idx, ct), np.zeros(idx.shape, jax.dtypes.float0)

    return ruled(take, back)


SCATTER = Family(
    "scatter-add",
    "t: f32[m,d], x: f32[n,d], idx: i32[n] in 0..m, m in 1..300",
    scatter_add,
    {"by segments": lambda t, x, idx: t + jax.ops.segment_sum(x, idx, t.shape[0])},
    {
        "by one-hot, so a NaN spreads": one_hot_add,
        "set for add": lambda t, x, idx: t.at[idx].set(x),
        "index off by one": lambda t, x, idx: t.at[idx - 1].add(x),
        "the table forgotten": lambda t, x, idx: jnp.zeros_like(t).at[idx].add(x),
        "the last update dropped": lambda t, x, idx: t.at[idx[:-1]].add(x[:-1]),
        "duplicates added once": lambda t, x, idx: t + jnp.zeros_like(t).at[idx].set(x),
        "index in 7 bits": lambda t, x, idx: t.at[idx % 128].add(x),
    },
)
TAKE = Family(
    "rows of a table",
    "table: f32[m,d], idx: i32[n] in 0..m, m in 1..300",
    take,
    {"with its rule": take_ruled(lambda zero, idx, ct: zero.at[idx].add(ct))},
    {
        "backward sets for adds": take_ruled(lambda zero, idx, ct: zero.at[idx].set(ct)),
        "backward's index off by one": take_ruled(lambda zero, idx, ct: zero.at[idx + 1].add(ct)),
        "backward's last row lost": take_ruled(lambda zero, idx, ct: zero.at[idx[:-1]].add(ct[:-1])),
    },
)

# attention, causal


def attention(q, k, v, scale=None, mask=0, shift=True):
    scores = (q @ k.T) * jnp.asarray(scale or 1 / np.sqrt(q.shape[-1]), q.dtype)
    visible = jnp.arange(q.shape[0])[:, None] >= jnp.arange(k.shape[0])[None, :] - mask
    scores = jnp.where(visible, scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1) @ v


def online_attention(q, k, v, rescale=True, block=4):
    """Block by block with a running maximum, as flash attention does."""
    rows = jnp.arange(q.shape[0])[:, None]
    top = jnp.full((q.shape[0], 1), -jnp.inf, q.dtype)
    total, out = jnp.zeros((q.shape[0], 1), q.dtype), jnp.zeros((q.shape[0], v.shape[1]), q.dtype)
    for start in range(0, k.shape[0], block):
        part = k[start : start + block]
        scores = (q @ part.T) * jnp.asarray(1 / np.sqrt(q.shape[-1]), q.dtype)
        scores = jnp.where(rows >= start + jnp.arange(len(part))[None, :], scores, -jnp.inf)
        new = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
        old = jnp.exp(top - new) if rescale or start == 0 else jnp.ones_like(top)
        e = jnp.exp(scores - new)
        total, out, top = total * old + e.sum(-1, keepdims=True), out * old + e @ v[start : start + block], new
    return out / total


ATTENTION = Family(
    "causal attention",
    "q: f32[n,d], k: f32[n,d], v: f32[n,e], n in 1..300, d in 1..300",
    attention,
    {"block by block": online_attention},
    {
        "no scale": functools.partial(attention, scale=1.0),
        "scale of d, not its root": lambda q, k, v: attention(q, k, v, 1 / q.shape[-1]),
        "no mask": lambda q, k, v: attention(q, k, v, mask=10**6),
        "mask off by one": functools.partial(attention, mask=1),
        "blocks not rescaled": functools.partial(online_attention, rescale=False),
        "k and q swapped": lambda q, k, v: attention(k, q, v),
    },
)

# entry by entry


def gelu(x):
    return x * jax.nn.sigmoid(jnp.asarray(1.75, x.dtype) * x)


def gelu_slope(x):
    s = jax.nn.sigmoid(1.75 * x)
    return s * (1 + 1.75 * x * (1 - s))


def gelu_jvp(slope: Callable) -> Callable:
    made = jax.custom_jvp(gelu)
    made.defjvp(lambda x, t: (gelu(x[0]), slope(x[0]) * t[0]))
    return made


def gelu_vjp(slope: Callable) -> Callable:
    return ruled(gelu, lambda saved, y, ct: (ct * slope(saved[0]),))


ENTRYWISE = Family(
    "gelu by a sigmoid",
    "x: f32[n]",
    gelu,
    {"with a forward rule": gelu_jvp(gelu_slope), "with a reverse rule": gelu_vjp(gelu_slope)},
    {
        "wrong for negatives": lambda x: jnp.abs(x) * jax.nn.sigmoid(1.75 * jnp.abs(x)),
        "negatives cut": jax.nn.relu,
        "wrong beyond 8": lambda x: jnp.where(jnp.abs(x) > 8, jnp.clip(gelu(x), -8, 8), gelu(x)),
        "flushed below 1e-30": lambda x: jnp.where(jnp.abs(x) < 1e-30, 0, gelu(x)).astype(x.dtype),
        "NaN to zero": lambda x: jnp.where(jnp.isnan(x), 0, gelu(x)).astype(x.dtype),
        "minus infinity lost": lambda x: jnp.where(jnp.isneginf(x), 0, gelu(x)).astype(x.dtype),
        "forward rule without a term": gelu_jvp(lambda x: jax.nn.sigmoid(1.75 * x)),
        "forward rule off by 1e-3": gelu_jvp(lambda x: gelu_slope(x) * jnp.asarray(1.001, x.dtype)),
        "backward of tanh": gelu_vjp(lambda x: 1 - jnp.tanh(x) ** 2),
        "backward of the positive part": gelu_vjp(lambda x: jnp.where(x > 0, gelu_slope(x), 0)),
        "backward blocked": lambda x: x * lax.stop_gradient(jax.nn.sigmoid(jnp.asarray(1.75, x.dtype) * x)),
    },
)

FAMILIES = (SOFTMAX, LAYER_NORM, MATMUL, SCATTER, TAKE, ATTENTION, ENTRYWISE)
