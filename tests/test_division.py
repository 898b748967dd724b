"""Division by a broadcast array becomes multiplication by a reciprocal, and nothing else changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradbench.division import by_reciprocals
from gradbench.jaxprs import equations

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)


def scanned(x):
    return jax.lax.scan(lambda carry, row: (carry + row / row.sum(), carry / (1 + row[0] ** 2)), jnp.zeros(3), x)


def halved(x):
    return jax.lax.while_loop(lambda x: jnp.max(x / jnp.sum(x)) > 9, lambda x: x / jnp.sum(x**2), x)


@jax.custom_jvp
def centred(x):
    return x / jnp.sum(x)


centred.defjvp(lambda primals, tangents: (centred(*primals), tangents[0]))

FUNCTIONS = {
    "softmax": jax.nn.softmax,
    "in a jit": jax.jit(lambda x: {"a": x / jnp.linalg.norm(x), "b": [x.sum(0, keepdims=True) + x]}),
    "in a scan": scanned,
    "in a while loop": halved,
    "in a branch": lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x / x[0], lambda x: x / jnp.sum(x), x),
    "in a function with a derivative of its own": lambda x: centred(x),
    "its gradient": jax.grad(lambda x: jnp.sum(x**3 / jnp.sum(x**2))),
    "batched": jax.vmap(lambda x, scale: x / scale, in_axes=(0, None)),
}


def divisions(function, *args):
    """The shapes of every x / y: broadcast or not."""
    found = [e for e in equations(jax.make_jaxpr(function)(*args)) if e.primitive.name == "div"]
    return [e.invars[1].aval.size < e.outvars[0].aval.size for e in found]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_array_is_divided_by_a_broadcast_one(name):
    args = (X, jnp.float32(3)) if name == "batched" else (X,)
    function = FUNCTIONS[name]
    assert any(divisions(function, *args))  # or this test would see nothing
    changed = by_reciprocals(function)
    assert not any(divisions(changed, *args))
    assert jax.tree.structure(changed(*args)) == jax.tree.structure(function(*args))
    for new, old in zip(jax.tree.leaves(changed(*args)), jax.tree.leaves(function(*args)), strict=True):
        # One rounding more for each of the few divisions that an entry goes through, and sums of 15 terms of size 1.
        np.testing.assert_allclose(new, old, rtol=20 * np.finfo(np.float32).eps, atol=20 * np.finfo(np.float32).eps)


def test_divisions_entry_by_entry_and_of_integers_stay():
    assert jnp.array_equal(by_reciprocals(lambda x, y: x / y)(X, X + 9), X / (X + 9))
    whole = jnp.arange(-7, 8)
    assert jnp.array_equal(by_reciprocals(lambda x: x // 3)(whole), whole // 3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_quotient_keeps_its_dtype_and_is_rounded_twice_at_most(dtype):
    y = jnp.asarray(1e-5, dtype)  # float16 cannot hold its reciprocal
    x = X.astype(dtype) * y
    quotient = by_reciprocals(lambda x, y: x / y)(x, y)
    assert quotient.dtype == dtype
    exact = np.asarray(x, np.float64) / np.asarray(y, np.float64)
    np.testing.assert_allclose(np.asarray(quotient, np.float64), exact, rtol=1.01 * float(jnp.finfo(dtype).eps))
