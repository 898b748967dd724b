"""Planted faults: a small network with everything that a gradient can get wrong, and wrong versions of its parts.

A formula fault changes the derivative rule and is judged in float64. An execution fault is planted only in the program
under test; the oracle and the band are those of the right loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradbench.inputs.problem import Problem

EXAMPLES, WIDTH, OUTPUTS, WORDS = 96, 16, 4, 12


@dataclasses.dataclass(frozen=True)
class Parts:
    """The replaceable operations of the network."""

    take: Callable = lambda table, rows: table[rows]
    rsqrt: Callable = lax.rsqrt
    dot: Callable = jnp.dot
    tanh: Callable = jnp.tanh
    mean: Callable = jnp.mean
    scale: Callable = lambda x: x
    rows: Callable = lambda data: data


def network(params: Any, data: Any, parts: Parts = Parts()) -> jax.Array:
    """Half the mean squared error of: look up a row, normalise it by its root mean square, tanh layer, linear layer."""
    data = parts.rows(data)
    x = parts.take(params["table"], data["words"])
    x = x * parts.scale(parts.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + 0.125))
    hidden = parts.tanh(parts.dot(x, params["w1"]) + params["b1"])
    residual = parts.dot(hidden, params["w2"]) + params["b2"] - data["y"]
    return 0.5 * parts.mean(residual * residual)


def _init(key: jax.Array) -> Any:
    keys = jax.random.split(key, 3)
    return {
        "table": jax.random.normal(keys[0], (WORDS, WIDTH)),
        "w1": jax.random.normal(keys[1], (WIDTH, WIDTH)) / 4,
        "b1": jnp.zeros(WIDTH),
        "w2": jax.random.normal(keys[2], (WIDTH, OUTPUTS)) / 4,
        "b2": jnp.zeros(OUTPUTS),
    }


def planted(loss: Callable[[Any, Any], jax.Array] = network) -> Problem:
    """The network as a problem, with the loss given."""
    generator = np.random.default_rng(3)
    data = {
        "words": generator.integers(WORDS, size=EXAMPLES).astype(np.int32),
        "y": generator.standard_normal((EXAMPLES, OUTPUTS)),
    }
    return Problem(init=_init, loss=loss, data=data, examples=EXAMPLES, name="planted")


def with_parts(**parts: Callable) -> Callable[[Any, Any], jax.Array]:
    return lambda params, data: network(params, data, Parts(**parts))


def with_backward(corrupt: Callable[[Any], Any], loss: Callable = network) -> Callable[[Any, Any], jax.Array]:
    """`loss` with a backward rule that returns corrupt(gradient)."""

    @jax.custom_vjp
    def faulty(params, data):
        return loss(params, data)

    def ahead(params, data):
        value, gradient = jax.value_and_grad(loss)(params, data)
        return value, (gradient, jax.tree.map(lambda x: _zero_tangent(x), data))

    def back(saved, cotangent):
        gradient, nothing = saved
        return jax.tree.map(lambda g: cotangent * g, corrupt(gradient)), nothing

    faulty.defvjp(ahead, back)
    return faulty


def _zero_tangent(x: Any) -> Any:
    return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else np.zeros(x.shape, jax.dtypes.float0)


def _leaf(name: str, change: Callable) -> Callable[[Any], Any]:
    return lambda gradient: {**gradient, name: change(gradient[name])}


def _rule(function: Callable, backward: Callable) -> Callable:
    """`function(x)` with the derivative backward(x, y, cotangent)."""
    faulty = jax.custom_vjp(function)
    faulty.defvjp(lambda x: (function(x), x), lambda x, ct: (backward(x, function(x), ct),))
    return faulty


def _wrong_jvp() -> Callable:
    faulty = jax.custom_jvp(lax.rsqrt)
    faulty.defjvp(lambda x, t: (lax.rsqrt(x[0]), -(x[0] ** -1.5) * t[0]))  # the factor 1/2 is missing
    return faulty


def product(forward: Callable, backward: Callable) -> Callable:
    """A matrix product a @ b whose own products, forward and in each operand's derivative, are the given ones."""

    @jax.custom_vjp
    def dot(a, b):
        return forward(a, b)

    def back(saved, cotangent):
        return backward(saved[0], saved[1], cotangent)

    dot.defvjp(lambda a, b: (forward(a, b), (a, b)), back)
    return dot


def _safe_root(params, data):
    """The double-where trap: the loss is finite, the derivative of the branch not taken is infinite."""
    x = params["b1"] * jnp.where(jnp.arange(WIDTH) < 2, 0.0, 1.0)
    root = jnp.where(x * x > 0, jnp.sqrt(x * x), 0.0)
    return network(params, data) + jnp.mean(root)


MILLION = 10**6


def million(loss: Callable | None = None) -> Problem:
    """loss = mean of c x^2 over 10^6 entries."""

    def right(params, data):
        return jnp.mean(data * params * params)

    generator = np.random.default_rng(5)
    weights = generator.uniform(0.5, 2.0, MILLION)
    return Problem(init=lambda key: jnp.ones(MILLION), loss=loss or right, data=weights, name="planted[million]")


def _one_of_million(params, data):
    def right(p, d):
        return jnp.mean(d * p * p)

    return with_backward(lambda g: g.at[777_777].set(0.0), right)(params, data)


def formula_faults() -> dict[str, Problem]:
    """The faults in the derivative rule, by name."""
    n = EXAMPLES
    everywhere = jax.tree.map
    faults = {
        "sign flip in one leaf": with_backward(_leaf("b1", lambda g: -g)),
        "factor 2": with_backward(_leaf("w2", lambda g: 2 * g)),
        "missing term of 1e-3 in a small leaf": with_backward(_leaf("b2", lambda g: (1 - 1e-3) * g)),
        "n - 1 for n": with_backward(lambda g: everywhere(lambda x: x * n / (n - 1), g)),
        "sum for mean": with_backward(lambda g: everywhere(lambda x: n * x, g)),
        "stray stop_gradient": with_parts(scale=lax.stop_gradient),
        "wrong custom_vjp": with_parts(tanh=_rule(jnp.tanh, lambda x, y, ct: ct * (1 - y))),
        "wrong custom_jvp": with_parts(rsqrt=_wrong_jvp()),
        "missing cotangent factor": with_parts(
            mean=_rule(lambda x: jnp.mean(x), lambda x, y, ct: jnp.ones_like(x) / x.size)
        ),
        "transposed matrix in a backward rule": with_parts(
            dot=product(jnp.dot, lambda a, b, ct: (ct @ (b if b.shape[0] == b.shape[1] else b.T), a.T @ ct))
        ),
        "swapped rows": with_backward(_leaf("w2", lambda g: g[jnp.array([1, 0, *range(2, WIDTH)])])),
        "zeroed leaf": with_backward(_leaf("b1", jnp.zeros_like)),
        "NaN from the double-where trap": _safe_root,
    }
    problems = {name: planted(loss) for name, loss in faults.items()}
    return problems | {"one wrong entry among 10^6": million(_one_of_million)}


def _keep_bits(x: Any, bits: int) -> Any:
    """x rounded to `bits` explicit bits of significand; the exponent keeps float32's range."""
    wide = x.astype(jnp.float64) if x.dtype == jnp.float64 else x.astype(jnp.float32)
    exponent = 11 if wide.dtype == jnp.float64 else 8
    return lax.reduce_precision(wide, exponent_bits=exponent, mantissa_bits=bits).astype(x.dtype)


def _tf32(a, b):
    return jnp.dot(_keep_bits(a, 10), _keep_bits(b, 10))


def _bf16_accumulator(a, b):
    """a @ b summed in eight parts, the running sum kept in bfloat16's 8 bits."""
    total = jnp.zeros((a.shape[0], b.shape[1]), a.dtype)
    for part in np.array_split(np.arange(a.shape[1]), 8):
        if len(part):
            total = _keep_bits(total + jnp.dot(a[:, part], b[part]), 7)
    return total


def _with_dot(dot: Callable) -> Callable:
    return product(dot, lambda a, b, ct: (dot(ct, b.T), dot(a.T, ct)))


def _set_for_add() -> Callable:
    @jax.custom_vjp
    def take(table, rows):
        return table[rows]

    def back(saved, ct):
        shape, rows = saved
        return jnp.zeros(shape, ct.dtype).at[rows].set(ct), np.zeros(rows.shape, jax.dtypes.float0)

    take.defvjp(lambda table, rows: (table[rows], (table.shape, rows)), back)
    return lambda table, rows: take(table, rows)


def _half(data: Any) -> Any:
    return jax.tree.map(lambda x: x[: EXAMPLES // 2], data)


def _rounded_mean() -> Callable:
    faulty = jax.custom_vjp(lambda x: jnp.mean(x))
    faulty.defvjp(
        lambda x: (jnp.mean(_keep_bits(x, 7)), x),
        lambda x, ct: (jnp.broadcast_to(_keep_bits(ct / x.size, 7), x.shape),),
    )
    return faulty


def execution_faults() -> dict[str, Callable[[Any, Any], jax.Array]]:
    """Losses of the network that compute it wrongly, by name; the program under test is their gradient."""
    return {
        "TF32 inputs": with_parts(dot=_with_dot(_tf32)),
        "bfloat16 accumulator": with_parts(dot=_with_dot(_bf16_accumulator)),
        "rounding before a reduction": with_parts(mean=_rounded_mean()),
        "set for add with duplicate indices": with_parts(take=_set_for_add()),
        "zeroed tail tile": with_parts(
            dot=product(jnp.dot, lambda a, b, ct: (ct @ b.T, (a.T @ ct).at[-WIDTH // 4 :].set(0)))
        ),
        "half the batch dropped": with_parts(rows=_half),
        "rsqrt off by 1e-4": with_parts(rsqrt=lambda x: lax.rsqrt(x) * jnp.asarray(1 + 1e-4, x.dtype)),
    }


def scaled_bowl(scale: float) -> Problem:
    """loss = sum c x^2 with c around `scale`: for gradients at the ends of a format's range."""
    factors = scale * np.array([1.0, 1.25, 0.75, 1.5])

    def loss(params, data):
        return jnp.sum(data * params * params)

    return Problem(init=lambda key: jnp.ones(4), loss=loss, data=factors, name="planted[bowl]")


INTERMITTENT = 0.01


def every(calls: int, runner: Callable) -> Callable:
    """`runner` with a gradient too large by INTERMITTENT (relative) in one call out of `calls`."""
    count = 0

    def run(params, data):
        nonlocal count
        count += 1
        value, gradient = runner(params, data)
        if count % calls == 0:
            gradient = jax.tree.map(lambda g: g * jnp.asarray(1 + INTERMITTENT, g.dtype), gradient)
        return value, gradient

    return run
