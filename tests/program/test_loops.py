"""Loops keep what is dear to make for their derivative, and nothing else: the same numbers as JAX's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from quick import jit_quickly
from sampling import drawn, sample

from gradbench.program.xla import loops as module
from gradbench.program.xla.jaxprs import equations, scan_counts
from gradbench.program.xla.loops import over_steps
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


LOSSES = [gated, repeated, lambda w, x: gated(w, x, reverse=True), lambda w, x: gated(w, x, unroll=2)]


@pytest.mark.parametrize("loss", sample(LOSSES, 2))
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


def steps_of(loss, x, **options):
    """A body for steps of gradient descent, which also returns its gradient."""

    def body(w, rate):
        value, grad = jax.value_and_grad(loss)(w, x, **options)
        return w - rate * grad, (value, grad)

    return body


def test_a_loop_over_steps_fills_the_memory_of_its_loops_once(monkeypatch):
    monkeypatch.setattr(module, "_LEAST", 1)
    w, x, rates = jnp.asarray(W), jnp.asarray(X), jnp.linspace(0.1, 0.2, 3)
    body = steps_of(gated, x)
    trace = jax.make_jaxpr(lambda w: over_steps(body, w, rates, 3))(w)
    (outer,) = [e for e in trace.jaxpr.eqns if e.primitive.name == "scan"]
    consts, carried = scan_counts(outer.params)

    def stacked(loop):
        return [(v.aval.shape, v.aval.dtype) for v in loop.outvars[scan_counts(loop.params)[1] :]]

    of_loops = [stack for loop in loops(body, w, 0.1) for stack in stacked(loop)]
    assert len(of_loops) > 2
    assert [(v.aval.shape, v.aval.dtype) for v in outer.invars[consts + 1 : consts + carried]] == of_loops
    left = [e for e in equations(outer.params["jaxpr"]) if e.primitive.name == "scan"]
    assert [stack for loop in left for stack in stacked(loop)] == []


def nested_loops(draw, deeper=2):
    """A body of a loop, whose loops may hold others, go backwards, stack results or carry whole numbers."""
    inner = nested_loops(draw, deeper - 1) if deeper and draw(st.booleans()) else None
    length, reverse, stacks, over = draw(st.integers(1, 3)), *(draw(st.booleans()) for _ in range(3))

    def one_round(carry, x):
        state, count = carry
        state = jnp.tanh(state * 0.7 + (0 if x is None else x) + 0.1 * count)
        state, more = inner(state, None) if inner else (state, None)
        return (state, count + 1), (state * 2, count, more) if stacks else None

    def body(state, rate):
        xs = jnp.stack([state * k for k in range(1, length + 1)]) if over else None
        (state, count), seen = jax.lax.scan(one_round, (state, 0), xs, length=length, reverse=reverse)
        for y in jax.tree.leaves(seen):
            state = state + jnp.mean(y) * 0.1
        return state + count + (0 if rate is None else rate), seen

    return body


@drawn(4, 40, st.data(), st.booleans())
def test_any_loops_in_a_loop_over_steps_give_the_same(data, derived):
    body = nested_loops(data.draw)

    def with_gradient(state, rate):
        (_, seen), grad = jax.value_and_grad(lambda s: (jnp.sum(body(s, rate)[0]), body(s, rate)[1]), has_aux=True)(
            state
        )
        return state - 0.1 * grad, seen

    step = with_gradient if derived else body
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LEAST", 1)
        start, rates = jnp.asarray(W), jnp.linspace(0.1, 0.2, 4)

        def pair(start):
            return jax.lax.scan(step, start, rates), over_steps(step, start, rates, 4)

        expected, got = jit_quickly(pair)(start)
    # Numbers of order 1, a few hundred operations; a step multiplies what is off by two at most.
    jax.tree.map(lambda e, g: np.testing.assert_allclose(g, e, rtol=1e-11, atol=1e-11), expected, got)


def test_loops_with_effects_over_keys_or_unrolled_stay(monkeypatch):
    monkeypatch.setattr(module, "_LEAST", 1)
    keys = jax.random.split(jax.random.key(0), 3)

    def watched(y, x):
        jax.debug.print("{}", x)
        return y, x

    bodies = [
        lambda w, _: jax.lax.scan(watched, w, w),
        lambda w, _: jax.lax.scan(lambda y, key: (y + jax.random.normal(key), y), w, keys),
        lambda w, _: (w, jax.lax.scan(lambda y, x: (y + x, y), w[0], w, unroll=2)),
        lambda w, _: (w, jax.lax.scan(lambda y, x: (y + x, y), w[0], w[:0])),
    ]
    for body in bodies:
        trace = jax.make_jaxpr(lambda w, body=body: over_steps(body, w, None, 2)[1])(jnp.ones(3))
        names = [e.primitive.name for e in equations(trace)]
        assert names.count("scan") == 2
        assert "while" not in names
