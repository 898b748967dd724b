"""Values that are computed once for several uses: the same numbers, and no second computation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import jit_quickly

from gradbench.program.xla import fusion
from gradbench.program.xla.jaxprs import equations, nested
from gradbench.program.xla.rewrite import rewritten

LARGE = jax.ShapeDtypeStruct((512, 512), jnp.float32)
EPS = np.finfo(np.float32).eps


def functions(function, *args, platform="cpu"):
    """The primitives in each function that is not inlined."""
    trace = jax.make_jaxpr(rewritten(function, platform))(*args)
    found = [e for e in equations(trace) if e.params.get("name") == "computed"]
    return [[inner.primitive.name for body in nested(e) for inner in equations(body)] for e in found]


def residual(a, b, c, d):
    """A sum that four operations use."""
    v = a * b + c * d
    return v * a, v + b, v - c, jnp.sin(v)


def test_xla_computes_it_once():
    args = [jnp.asarray(np.random.default_rng(seed).uniform(1, 2, LARGE.shape), LARGE.dtype) for seed in range(4)]
    plain, once = (jax.jit(f).lower(*args).compile() for f in (residual, rewritten(residual, "cpu")))

    def products(program):
        return program.as_text().count(" multiply(")

    assert functions(residual, *args) == [["mul", "mul", "add"]]
    assert products(plain) > products(once) == 3
    # Positive terms: each result is rounded thrice at most, and the difference v - c is of the size of the terms.
    for got, expected in zip(once(*args), plain(*args), strict=True):
        np.testing.assert_allclose(got, expected, rtol=8 * EPS, atol=8 * 8 * EPS)


def attention(x, y, z):
    """Whose weights are needed in two orders of axes: for the products of both sides."""
    weights = x * y - z
    return jnp.einsum("bqk,bkd->bqd", weights, y), jnp.einsum("bqk,bqd->bkd", weights, y)


def test_what_a_batch_of_products_takes_in_another_order_is_computed_before():
    stacked = jax.ShapeDtypeStruct((64, 64, 64), jnp.float32)
    assert functions(attention, stacked, stacked, stacked) == [["mul", "sub"]]


def in_a_loop(rows, w):
    """Each round uses a value of its state and one of the row that it is given in as many places."""

    def several(v):
        return jnp.sin(v) + jnp.cos(v), v * w, v - w

    def one_round(state, row):
        return sum(several(state * w + state)), several(row * w - row)

    return jax.lax.scan(one_round, w, rows)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (lambda a, b, c, d: jnp.sin(a * b + c * d), [LARGE] * 4),  # one use
        (lambda a: [(a * 2 + 1) * a, a - (a * 2 + 1)], [LARGE]),  # of one array
        (lambda a, b, c, d: jnp.exp(a * b + c * d), [LARGE] * 4),
        (residual, [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 4),
        (lambda a, b: [jnp.exp(a * b) + c for c in (1.0, a, b)], [LARGE] * 2),  # which XLA writes anyway
    ],
)
def test_what_costs_nothing_to_compute_again_stays(function, args):
    assert functions(function, *args) == []


def test_what_a_loop_cuts_out_is_not_copied_for_a_function():
    assert functions(in_a_loop, jax.ShapeDtypeStruct((3, *LARGE.shape), jnp.float32), LARGE) == [["mul", "add"]]


def test_a_gpu_and_rewriting_switched_off_get_no_functions():
    assert functions(residual, *[LARGE] * 4, platform="gpu") == []


SIZE = 4
UNARY = [jnp.tanh, jnp.negative, lambda x: jnp.exp(-(x**2)), lambda x: x.T, lambda x: x / (1 + x**2), jnp.abs]
UNARY += [
    lambda x: jnp.broadcast_to(jnp.sum(x, axis=1, keepdims=True) / SIZE, x.shape),
    lambda x: jnp.concatenate([x[1:], x[:1]]),
    lambda x: x - jnp.max(x, axis=0),
    lambda x: jnp.reshape(x, (2, -1)).reshape(x.shape),
    lambda x: jax.lax.scan(lambda c, row: (jnp.tanh(c + row), c * row + row * jnp.sin(row)), x[0], x)[1],
    lambda x: jax.lax.fori_loop(0, 3, lambda i, y: jnp.tanh(y * x + x) + (y * x + x), x),
    lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: jnp.sin(y * y + x) - (y * y + x), jnp.cos, x),
    jax.checkpoint(lambda x: jnp.sin(x * x + x) * (x * x + x)),
]
BINARY = [jnp.add, jnp.subtract, jnp.multiply, jnp.maximum, lambda x, y: jnp.where(x > 0.1, (x - 0.1) * y, 0.0)]
BINARY += [lambda x, y: x @ y / SIZE, lambda x, y: jnp.einsum("ij,ik->jk", x, y) / SIZE]
BINARY += [lambda x, y: jnp.einsum("bi,bi,bj->bj", x, y, x) / SIZE]


@st.composite
def programs(draw):
    """A list of operations, each with the numbers of the earlier values that it takes."""
    steps = []
    for count in range(2, draw(st.integers(6, 14))):
        own = draw(st.sampled_from(range(len(UNARY) + 2 * len(BINARY))))  # as many of two as of one
        operation = UNARY[own] if own < len(UNARY) else BINARY[(own - len(UNARY)) % len(BINARY)]
        arity = 1 if own < len(UNARY) else 2
        steps.append((operation, [draw(st.integers(max(0, count - 4), count - 1)) for _ in range(arity)]))
    return steps


@settings(deadline=None, max_examples=40)
@given(programs(), st.booleans())
def test_a_random_program_has_the_same_values_and_derivatives(steps, relayout):
    """With functions for all that has several uses, whether they pay or not. In float64, of which a dozen operations
    that each multiply what is off by four, at most, leave eight digits."""

    def run(params, data):
        values = [params, data]
        for operation, places in steps:
            values.append(operation(*(values[place] for place in places)))
        return jnp.mean(jnp.tanh(values[-1])) + jnp.mean(values[-2] * jnp.sin(values[-3])), values

    both = jax.vmap(jax.value_and_grad(run, has_aux=True), (0, None))
    draw = np.random.default_rng(0)
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        args = jnp.asarray(draw.normal(size=(3, SIZE, SIZE))), jnp.asarray(draw.normal(size=(SIZE, SIZE)))
        patch.setattr(fusion._Uses, "pays", lambda self, v, read: len(self.of[v]) > 1)
        changed = rewritten(both, "cpu", relayout=relayout)
        expected, got = jit_quickly(lambda *args: (both(*args), changed(*args)))(*args)
    jax.tree.map(
        lambda e, g: np.testing.assert_allclose(g, e, rtol=0, atol=1e-8 * (1 + np.abs(e).max())), expected, got
    )
