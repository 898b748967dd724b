"""Of the functions of `function_faults.py` the softmax, the layer norm and the matrix product.

A family is a reference, right implementations of it, and faulty ones by the name of what is wrong with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@dataclasses.dataclass(frozen=True)
class Family:
    name: str
    args: str
    reference: Callable[..., Any]
    right: dict[str, Callable[..., Any]]
    faults: dict[str, Callable[..., Any]]


def ruled(function: Callable, backward: Callable, forward: Callable | None = None) -> Callable:
    """`function` with the reverse rule backward(arguments, output, cotangent) -> cotangents, reporting `forward`."""
    made = jax.custom_vjp(function)
    reported = forward or function

    def ahead(*arguments):
        value = reported(*arguments)
        return value, (arguments, value)

    made.defvjp(ahead, lambda saved, cotangent: backward(*saved, cotangent))
    return made


def kept_bits(x: Any, bits: int) -> Any:
    """x with `bits` explicit bits of significand, its exponent's range as it is."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    exponent = 11 if wide.dtype == jnp.float64 else 8
    return lax.reduce_precision(wide, exponent_bits=exponent, mantissa_bits=bits).astype(x.dtype)


def tiled(function: Callable, tile: int) -> Callable:
    """`function` whose rows beyond the last whole tile of the first argument are left at zero."""

    def run(x, *rest):
        y = function(x, *rest)
        whole = y.shape[0] // tile * tile or y.shape[0]
        return jnp.where(jnp.arange(y.shape[0]).reshape(-1, *[1] * (y.ndim - 1)) < whole, y, jnp.zeros_like(y))

    return run


# softmax: each row's exponentials over their sum


def softmax(x):
    return jax.nn.softmax(x, axis=-1)


def exponentials(x, shift=True):
    e = jnp.exp(x - lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))) if shift else jnp.exp(x)
    return e, jnp.sum(e, axis=-1, keepdims=True)


def softmax_right(x):
    e, total = exponentials(x)
    return e / total


def softmax_back(saved, y, ct):
    return (y * (ct - jnp.sum(ct * y, axis=-1, keepdims=True)),)


def padded_softmax(x):
    """Columns padded by zeros to a multiple of 8, which are summed too."""
    e, total = exponentials(x)
    shift = lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
    return e / (total + (-x.shape[-1] % 8) * jnp.exp(-shift))


def softmax_by_powers(x):
    """exp by a polynomial of degree 5 in the fraction: off by 2e-6 to 1e-4."""
    z = (x - lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))) / np.asarray(np.log(2), x.dtype)
    whole = jnp.floor(z)
    f = (z - whole) * np.asarray(np.log(2), x.dtype)
    power = 1 + f * (1 + f / 2 * (1 + f / 3 * (1 + f / 4 * (1 + f / 5))))
    e = power * jnp.exp2(whole)
    return e / jnp.sum(e, axis=-1, keepdims=True)


def softmax_first_columns(x):
    e, _ = exponentials(x)
    return e / jnp.sum(e[:, :128], axis=-1, keepdims=True)


def rough_reciprocal(x):
    e, total = exponentials(x)
    return e * kept_bits(1 / total, 11)


SOFTMAX = Family(
    "softmax",
    "x: f32[n,d], d in 1..300",
    softmax,
    {"written out": softmax_right, "with its rule": ruled(softmax_right, softmax_back)},
    {
        "tail tile of 128 rows dropped": tiled(softmax_right, 128),
        "tail tile of 4 rows dropped": tiled(softmax_right, 4),
        "padding not masked": padded_softmax,
        "wrong reduction axis": lambda x: jax.nn.softmax(x, axis=0),
        "only the first 128 columns summed": softmax_first_columns,
        "no shift by the maximum": lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x), axis=-1, keepdims=True),
        "an approximate exponential": softmax_by_powers,
        "a reciprocal of 12 bits": rough_reciprocal,
        "zeros returned": jnp.zeros_like,
        "NaN swallowed": lambda x: jnp.nan_to_num(softmax_right(x)),
        "infinity clipped": lambda x: softmax_right(jnp.clip(x, -1e4, 1e4)),
        "transposed strides": lambda x: softmax_right(x).T.reshape(x.shape),
        "two columns swapped": lambda x: (
            jnp.roll(softmax_right(x)[:, :2], 1, axis=1)
            if x.shape[1] == 2
            else jnp.concatenate([softmax_right(x)[:, 1:2], softmax_right(x)[:, :1], softmax_right(x)[:, 2:]], axis=1)
        ),
        "last row a copy of the one before": lambda x: softmax_right(x)[
            jnp.minimum(jnp.arange(len(x)), max(len(x) - 2, 0))
        ],
        "backward without the sum": ruled(softmax_right, lambda a, y, ct: (y * ct,)),
        "backward of the sigmoid": ruled(softmax_right, lambda a, y, ct: (ct * y * (1 - y),)),
        "backward's tail tile dropped": ruled(
            softmax_right, lambda a, y, ct: (tiled(lambda c, v: softmax_back(None, v, c)[0], 128)(ct, y),)
        ),
        "backward from a stale residual": ruled(
            softmax_right, lambda a, y, ct: softmax_back(a, jax.nn.softmax(a[0] * 0.5, axis=-1), ct)
        ),
    },
)

# layer norm


def layer_norm(x, g, b):
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 0.125) * g + b


def layer_norm_with(variance: Callable, eps: float = 0.125, inverse: Callable = lax.rsqrt) -> Callable:
    def run(x, g, b):
        mean = jnp.mean(x, axis=-1, keepdims=True)
        return (x - mean) * inverse(variance(x, mean) + eps) * g + b

    return run


def biased(x, mean):
    return jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)


def layer_norm_back(change: Callable) -> Callable:
    def back(saved, y, ct):
        gradients = jax.vjp(layer_norm, *saved)[1](ct)
        return change(gradients, saved, ct)

    return ruled(layer_norm, back)


def in_float16(x, mean):
    narrow = (x - mean).astype(jnp.float16)
    return jnp.mean(narrow * narrow, axis=-1, keepdims=True).astype(x.dtype)


LAYER_NORM = Family(
    "layer norm",
    "x: f32[n,d], g: f32[d], b: f32[d], d in 1..300",
    layer_norm,
    {
        "var of jnp": layer_norm_with(lambda x, mean: jnp.var(x, axis=-1, keepdims=True)),
        "with its rule": layer_norm_back(lambda gradients, saved, ct: gradients),
    },
    {
        "n - 1 for n": layer_norm_with(lambda x, m: jnp.sum((x - m) ** 2, -1, keepdims=True) / max(x.shape[-1] - 1, 1)),
        "another epsilon": layer_norm_with(biased, 0.126),
        "no epsilon": layer_norm_with(biased, 0.0),
        "a rough rsqrt": layer_norm_with(biased, 0.125, lambda v: kept_bits(lax.rsqrt(v), 12)),
        "variance in float16": layer_norm_with(in_float16),
        "bias summed away": lambda x, g, b: layer_norm(x, g, b) - b + jnp.sum(b),
        "statistics over the batch": lambda x, g, b: (x - x.mean(0)) * lax.rsqrt(x.var(0) + 0.125) * g + b,
        "off by 1e-3": lambda x, g, b: layer_norm(x, g, b) * jnp.asarray(1.001, x.dtype),
        "statistics not differentiated": lambda x, g, b: (
            (x - lax.stop_gradient(x.mean(-1, keepdims=True)))
            * lax.stop_gradient(lax.rsqrt(x.var(-1, keepdims=True) + 0.125)) * g + b
        ),
        "bias gradient of one row only": layer_norm_back(lambda d, saved, ct: (d[0], d[1], ct[0] if len(ct) else d[2])),
        "bias gradient a mean": layer_norm_back(lambda d, saved, ct: (d[0], d[1], d[2] / max(len(ct), 1))),
        "no gradient of the gain": layer_norm_back(lambda d, saved, ct: (d[0], jnp.zeros_like(d[1]), d[2])),
        "gradient in 16 bits": layer_norm_back(lambda d, saved, ct: (kept_bits(d[0], 7), d[1], d[2])),
    },
)  # fmt: skip

# matrix product


def matmul(x, w):
    return jnp.dot(x, w)


def in_parts(x, w, total=lambda t: t, parts=8):
    """Summed in float32 at least: in 16 bits a sum of parts is the fault that `total` plants."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    out = jnp.zeros((x.shape[0], w.shape[1]), wide)
    for part in np.array_split(np.arange(x.shape[1]), parts):
        if len(part):
            out = total(out + jnp.dot(x[:, part], w[part], preferred_element_type=wide))
    return out.astype(x.dtype)


def matmul_ruled(backward: Callable, forward: Callable | None = None) -> Callable:
    return ruled(matmul, lambda saved, y, ct: backward(*saved, ct), forward)


def once_in(calls: int, function: Callable) -> Callable:
    """NumPy's, wrong by a hundredth in one call of `calls`."""
    count = 0

    def run(x, w):
        nonlocal count
        count += 1
        y = function(x, w)
        return y * np.asarray(1.01, y.dtype) if count % calls == 0 else y

    return run


def numpy_dot(x, w):
    """Its products and sums in float64; JAX cannot trace it."""
    return (np.asarray(x).astype(np.float64) @ np.asarray(w).astype(np.float64)).astype(x.dtype)


def kept_by_shape() -> Callable:
    seen: dict[Any, Any] = {}

    def run(x, w):
        y = numpy_dot(x, w)
        return seen.setdefault((x.shape, w.shape, str(x.dtype)), y)

    return run


def changes_input(x, w):
    y = numpy_dot(x, w)
    x *= np.asarray(2, x.dtype)
    return y


def wrong_batch_row(x, w):
    @jax.custom_batching.custom_vmap
    def run(x, w):
        return jnp.dot(x, w)

    @run.def_vmap
    def rule(size, batched, x, w):
        x, w = (a if is_batched else jnp.broadcast_to(a, (size, *a.shape)) for a, is_batched in zip((x, w), batched))
        return jnp.einsum("bnd,bdk->bnk", x, w).at[0].multiply(0.5), True

    return run(x, w)


MATMUL = Family(
    "matrix product",
    "x: f32[n,d], w: f32[d,k]",
    matmul,
    {
        "by einsum": lambda x, w: jnp.einsum("nd,dk->nk", x, w),
        "in parts": in_parts,
        "with its rule": matmul_ruled(lambda x, w, ct: (ct @ w.T, x.T @ ct)),
        "NumPy in float64": numpy_dot,
    },
    {
        "accumulated in 8 bits": lambda x, w: in_parts(x, w, lambda t: kept_bits(t, 7)),
        "accumulated in 11 bits": lambda x, w: in_parts(x, w, lambda t: kept_bits(t, 10)),
        "TF32 inputs": lambda x, w: jnp.dot(kept_bits(x, 10), kept_bits(w, 10)),
        "last column of the sum dropped": lambda x, w: jnp.dot(x[:, :-1], w[:-1]) if x.shape[1] > 1 else jnp.dot(x, w),
        "odd sizes of the sum wrong": lambda x, w: (
            jnp.dot(x, w) * (1 if x.shape[1] % 128 != 1 or x.shape[1] == 1 else 0.5)
        ),
        "the tail of d dropped": lambda x, w: jnp.dot(*(((x[:, :128], w[:128])) if x.shape[1] > 128 else (x, w))),
        "one column's sign flipped": lambda x, w: (
            jnp.dot(x, w) * jnp.where(jnp.arange(w.shape[1]) == 0, -1, 1).astype(x.dtype)
        ),
        "the right operand transposed where square": lambda x, w: jnp.dot(x, w.T if w.shape[0] == w.shape[1] else w),
        "kept by shape": kept_by_shape(),
        "input changed": changes_input,
        "wrong in 1 call of 4": once_in(4, numpy_dot),
        "wrong in batch row 0": wrong_batch_row,
        "right for some inputs only": lambda x, w: jnp.dot(x, w) * jnp.where(jnp.sum(x) > 0, 1.0, 1.01).astype(x.dtype),
        "backward transposed where square": matmul_ruled(
            lambda x, w, ct: (ct @ (w if w.shape[0] == w.shape[1] else w.T), x.T @ ct)
        ),
        "backward without the cotangent": matmul_ruled(lambda x, w, ct: (jnp.ones_like(ct) @ w.T, x.T @ ct)),
        "backward's sign flipped": matmul_ruled(lambda x, w, ct: (-(ct @ w.T), x.T @ ct)),
        "backward of w twice": matmul_ruled(lambda x, w, ct: (ct @ w.T, 2 * (x.T @ ct))),
        "backward accumulated in 8 bits": matmul_ruled(
            lambda x, w, ct: (ct @ w.T, in_parts(x.T, ct, lambda t: kept_bits(t, 7)))
        ),
        "the rule reports another value": matmul_ruled(
            lambda x, w, ct: (ct @ w.T, x.T @ ct), lambda x, w: jnp.dot(x, w) * jnp.asarray(1.01, x.dtype)
        ),
    },
)
