"""Loops keep what is dear to make for their derivative, and nothing else: the same numbers as JAX's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit_quickly

from gradbench.program.xla.jaxprs import equations
from gradbench.program.xla.products import as_products
from gradbench.program.xla.rewrite import rewritten

W = np.random.default_rng(0).normal(size=(3, 6))
X = np.random.default_rng(1).normal(size=(5, 4, 3))


def gated(w, x, **options):
    """A unit with a gate, a count that has no derivative, and an output of every round."""

    def one_round(carry, x):
        state, count = carry
        gate, new = jnp.split((x + state) @ w, 2, axis=1)
        state = jax.nn.sigmoid(gate) * state + (1 - jax.nn.sigmoid(gate)) * jnp.tanh(new) / (1 + count)
        return (state, count + 1), jax.nn.relu(state)

    (state, _), seen = jax.lax.scan(one_round, (jnp.zeros(x.shape[1:]), 0), x, **options)
    return jnp.sum(state**2) + jnp.mean(seen)


def repeated(w, x):
    """A loop over nothing but its count."""
    return jnp.sum(jax.lax.fori_loop(0, 4, lambda i, y: jnp.tanh(y @ w[:, :3]) * (y + 1), x[0]))


def loops(function, *args):
    return [e for e in equations(jax.make_jaxpr(function)(*args)) if e.primitive.name == "scan"]


@pytest.mark.parametrize(
    "loss", [gated, repeated, lambda w, x: gated(w, x, reverse=True), lambda w, x: gated(w, x, unroll=2)]
)
def test_values_and_derivatives_are_the_same(loss):
    """But for rounding: float64, sums of some hundred terms of order 1."""
    with jax.enable_x64(True):
        w, x = jnp.asarray(W), jnp.asarray(X)
        both = jax.vmap(jax.value_and_grad(loss, (0, 1)), (0, None))
        changed = jax.vmap(jax.value_and_grad(as_products(loss, "cpu"), (0, 1)), (0, None))
        changed = rewritten(changed, "cpu", relayout=True)

        def pair(w, x):
            return both(w, x), changed(w, x)

        expected, got = jit_quickly(pair)(jnp.stack([w, -w]), x)
    jax.tree.map(lambda e, g: np.testing.assert_allclose(g, e, rtol=1e-12, atol=1e-12), expected, got)


def test_a_second_derivative_is_the_same():
    w, x = jnp.asarray(W), jnp.asarray(X)

    def curved(loss):
        return jax.jvp(lambda w: jax.grad(loss)(w, x), (w,), (jnp.ones_like(w),))[1]

    pair = jit_quickly(lambda: (curved(gated), curved(as_products(gated, "cpu"))))
    expected, got = pair()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())  # float32, a few hundred


def test_what_is_cheap_is_not_kept():
    """The state before a round, the gate and the tanh; JAX keeps their products and complements too."""
    plain, changed = (jax.grad(f) for f in (gated, as_products(gated, "cpu")))

    def kept(gradient):
        forward, _ = loops(gradient, jnp.asarray(W), jnp.asarray(X))
        stacked = [v.aval for v in forward.outvars if v.aval.shape == (5, 4, 3)]
        return len([a for a in stacked if a.dtype == jnp.float32])

    assert kept(changed) < kept(plain)


@pytest.mark.parametrize("activation", [jax.nn.relu, lambda y: jnp.where(y > 0, y, 0.1 * y)])
def test_a_comparison_is_kept_and_not_its_operands(activation):
    def loss(w, x):
        start = jnp.zeros(x.shape[1:])
        return jnp.sum(jax.lax.scan(lambda h, x: (activation(x + h @ w), None), start, x)[0] ** 2)

    def kept(loss):
        forward, _ = loops(jax.grad(loss), jnp.asarray(W[:, :3]), jnp.asarray(X))
        return sum(v.aval.size * v.aval.dtype.itemsize for v in forward.outvars)

    assert kept(as_products(loss, "cpu")) <= kept(loss)


def test_loops_that_say_what_is_kept_or_have_effects_stay():
    @jax.checkpoint
    def own(y, x):
        return jnp.tanh(y) * x, None

    def watched(y, x):
        jax.debug.print("{}", x)
        return y * x, None

    def outer(y, x):
        return jax.lax.scan(lambda z, _: (own(z, x)[0], None), y, length=2)[0], None

    for body in (own, watched, outer):
        (loop, *_) = loops(as_products(lambda x, body=body: jax.lax.scan(body, 1.0, x)[0], "cpu"), jnp.ones(3))
        made = [e for e in equations(loop.params["jaxpr"]) if e.primitive.name in ("remat", "remat2", "checkpoint")]
        assert len(made) == (body is not watched)
