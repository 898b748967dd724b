"""Attention block by block, forward and backward, as FlashAttention does it (Dao, Fu, Ermon, Rudra and Re 2022), and
three faults of such kernels."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

BLOCK = 16  # queries of a program, and keys of a turn
PLATFORMS = {"cpu": {"interpret": True}, "gpu": {"compiler_params": triton.CompilerParams()}}
OPTIONS = PLATFORMS.get(jax.default_backend(), {})


def plain(q, k, v):
    return jax.nn.softmax(q @ k.T / jnp.sqrt(q.shape[1]).astype(q.dtype), axis=-1) @ v


def product(a, b):
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)


def scores(q, k, start, keys, scale):
    """Of a block of keys from `start` on; minus infinity beyond the last."""
    s = product(q, k.T) * scale
    return jnp.where(start + lax.broadcasted_iota(jnp.int32, s.shape, 1) < keys, s, -jnp.inf)


def forward_kernel(q_ref, k_ref, v_ref, o_ref, log_ref, *, keys, scale, rescale):
    q = q_ref[...]

    def turn(i, carry):
        top, total, out = carry
        rows = pl.ds(i * BLOCK, BLOCK)
        s = scores(q, k_ref[rows, :], i * BLOCK, keys, scale)
        higher = jnp.maximum(top, jnp.max(s, axis=1, keepdims=True))
        e = jnp.exp(s - higher)
        old = jnp.exp(top - higher) if rescale else jnp.where(top == -jnp.inf, 0.0, 1.0).astype(q.dtype)
        return higher, total * old + jnp.sum(e, axis=1, keepdims=True), out * old + product(e, v_ref[rows, :])

    first = jnp.full((BLOCK, 1), -jnp.inf, q.dtype), jnp.zeros((BLOCK, 1), q.dtype), jnp.zeros_like(o_ref[...])
    top, total, out = lax.fori_loop(0, k_ref.shape[0] // BLOCK, turn, first)
    o_ref[...] = out / total
    log_ref[...] = top + jnp.log(total)


def query_kernel(q_ref, k_ref, v_ref, ct_ref, log_ref, delta_ref, dq_ref, *, keys, scale):
    q, ct, log, delta = q_ref[...], ct_ref[...], log_ref[...], delta_ref[...]

    def turn(i, total):
        rows = pl.ds(i * BLOCK, BLOCK)
        p = jnp.exp(scores(q, k_ref[rows, :], i * BLOCK, keys, scale) - log)
        ds = p * (product(ct, v_ref[rows, :].T) - delta)
        return total + product(ds, k_ref[rows, :]) * scale

    dq_ref[...] = lax.fori_loop(0, k_ref.shape[0] // BLOCK, turn, jnp.zeros_like(q))


def key_kernel(q_ref, k_ref, v_ref, ct_ref, log_ref, delta_ref, dk_ref, dv_ref, *, keys, scale, key_scale):
    k, v, start = k_ref[...], v_ref[...], pl.program_id(0) * BLOCK

    def turn(i, carry):
        dk, dv = carry
        rows = pl.ds(i * BLOCK, BLOCK)
        q, ct = q_ref[rows, :], ct_ref[rows, :]
        p = jnp.exp(scores(q, k, start, keys, scale) - log_ref[rows, :])
        ds = p * (product(ct, v.T) - delta_ref[rows, :])
        return dk + product(ds.T, q) * key_scale, dv + product(p.T, ct)

    first = jnp.zeros_like(k), jnp.zeros_like(v)
    dk_ref[...], dv_ref[...] = lax.fori_loop(0, q_ref.shape[0] // BLOCK, turn, first)


def padded(*arrays):
    """Rows to whole blocks, columns to a power of two (of one, at least 16: a GPU's products want it)."""
    widths = [max(pl.next_power_of_2(x.shape[1]), 16 if x.shape[1] > 1 else 1) for x in arrays]
    return [jnp.pad(x, [(0, -len(x) % BLOCK), (0, w - x.shape[1])]) for x, w in zip(arrays, widths)]


def tile(x):
    return pl.BlockSpec((BLOCK, x.shape[1]), lambda i: (i, 0))


def whole(x):
    return pl.BlockSpec(x.shape, lambda i: (0, 0))


def call(kernel, blocks, wholes, shaped, order, **settings):
    """`kernel` for each block of rows of `blocks`, beside all of `wholes`; results shaped like `shaped`."""
    given = {
        **{name: (x, tile(x)) for name, x in blocks.items()},
        **{name: (x, whole(x)) for name, x in wholes.items()},
    }
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shaped]
    return pl.pallas_call(
        functools.partial(kernel, **settings),
        grid=len(next(iter(blocks.values()))) // BLOCK,
        in_specs=[given[name][1] for name in order],
        out_specs=[tile(x) for x in shaped],
        out_shape=shapes,
        **OPTIONS,
    )(*[given[name][0] for name in order])


def wide(*arrays):
    """16-bit floats as float32, in which everything is summed."""
    return [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in arrays]


def attention(mask=True, rescale=True, scaled_keys=True):
    def ahead(q, k, v):
        (n, d), keys, e = q.shape, len(k) if mask else -(-len(k) // BLOCK) * BLOCK, v.shape[1]
        if 0 in (*q.shape, *k.shape, *v.shape):
            return plain(q, k, v), None
        scale = 1 / d**0.5
        qs, ks, vs = padded(*wide(q, k, v))
        log = jnp.zeros((len(qs), 1), qs.dtype)
        out = jnp.zeros((len(qs), vs.shape[1]), qs.dtype)
        out, log = call(
            forward_kernel, {"q": qs}, {"k": ks, "v": vs}, [out, log], "qkv", keys=keys, scale=scale, rescale=rescale
        )
        return out[:n, :e].astype(q.dtype), (q, k, v, out[:n, :e], log[:n])

    def back(saved, ct):
        q, k, v, out, log = saved
        keys, scale = len(k) if mask else -(-len(k) // BLOCK) * BLOCK, 1 / q.shape[1] ** 0.5
        own = wide(q, k, v, ct)
        delta = jnp.sum(own[3] * out, axis=1, keepdims=True)
        qs, ks, vs, cts, logs, deltas = padded(*own, log, delta)
        rows = {"q": qs, "c": cts, "l": logs, "d": deltas}
        (dq,) = call(query_kernel, rows, {"k": ks, "v": vs}, [qs], "qkvcld", keys=keys, scale=scale)
        key_scale = scale if scaled_keys else 1.0
        dk, dv = call(
            key_kernel, {"k": ks, "v": vs}, rows, [ks, vs], "qkvcld", keys=keys, scale=scale, key_scale=key_scale
        )
        return tuple(g[: len(x), : x.shape[1]].astype(x.dtype) for g, x in zip((dq, dk, dv), (q, k, v)))

    made = jax.custom_vjp(lambda q, k, v: ahead(q, k, v)[0])
    made.defvjp(ahead, back)
    return made


mine = attention()
padding_seen = attention(mask=False)
sum_not_rescaled = attention(rescale=False)
backward_of_keys_unscaled = attention(scaled_keys=False)
