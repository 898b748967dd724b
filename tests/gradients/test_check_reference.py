"""The oracle in NumPy against JAX in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from quick import jit_quickly
from sampling import sample

from gradbench.gradients.formula import oracle, reference

GENERATOR = np.random.default_rng(11)
MATRIX = GENERATOR.standard_normal((12, 6))
VECTOR = GENERATOR.standard_normal(6)


def evaluated(function, *arguments):
    return oracle.evaluate(lambda params, data: function(*params), arguments, ())


def loop(w):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 1.5), (0, w))[1]


def recurrence(w, reverse=False):
    return lax.scan(lambda c, x: (jnp.tanh(c * w + x), jnp.sum(c)), jnp.zeros_like(w), MATRIX, reverse=reverse)


FUNCTIONS = {
    "nested calls": lambda w: jax.jit(lambda v: jax.nn.softplus(jax.checkpoint(jnp.sin)(v)))(w),
    "scan": recurrence,
    "scan backwards": lambda w: recurrence(w, reverse=True),
    "empty scan": lambda w: lax.scan(lambda c, x: (c, c + x), w, jnp.zeros((0, 6))),
    "while": loop,
    "while, under vmap": jax.vmap(lambda x: lax.while_loop(lambda c: c < 9, lambda c: 1.5 * c + 1, x)),
    "interpolation": lambda w: jnp.interp(
        w, jnp.linspace(-3, 3, 9, dtype=w.dtype), jnp.arange(9.0, dtype=w.dtype) ** 2
    ),
    "indices of some": lambda w: w[jnp.nonzero(w > 0, size=2)[0]],
    "cond": lambda w: lax.cond(w[0] < 1e6, lambda v: v * v, lambda v: v, w),
    "switch": lambda w: lax.switch(7, [lambda v: v, lambda v: 2 * v, lambda v: 3 * v], w),
    "select of three": lambda w: lax.select_n(jnp.arange(6) % 3, w, 2 * w, 3 * w),
    "gather and scatter": lambda w: jnp.zeros(3).at[jnp.array([0, 1, 1, 2, 0, 0])].add(w)[jnp.array([2, 2, 0])],
    "gather of one entry": lambda w: jnp.stack([jnp.quantile(w, 0.3), jnp.median(w)]),
    "gather beyond the end": lambda w: w.at[jnp.argmax(w) + 9].get(mode="fill", fill_value=2.0) + w,
    "scatter of one entry": lambda w: w.at[jnp.argmax(w)].add(w[jnp.argmin(w)]),
    "sort": jnp.sort,
    "cumulative": lambda w: jnp.cumsum(w) + lax.cumsum(w, reverse=True) + jnp.cumprod(w),
    "convolution": lambda w: jnp.convolve(w, w),
    "batched product": lambda w: jnp.einsum("bij,kjb->ikb", w.reshape(1, 2, 3), w.reshape(2, 3, 1)),
    "outer product": lambda w: jnp.tensordot(w, w, 0),
    "solve": lambda w: jnp.linalg.solve(jnp.outer(w, w) + jnp.eye(6), w),
    "complex": lambda w: jnp.abs(jnp.fft.fft(w)) ** 2,
    "split": lambda w: jnp.concatenate(jnp.split(w.reshape(2, 3), [1, 2], axis=1)[::-1], axis=1),
    "moves": lambda w: jnp.concatenate([w[::-1], w[1:5:2]]).reshape(2, 2, 2).transpose(2, 0, 1).squeeze(),
    "reshape in another order": lambda w: lax.reshape(w.reshape(2, 3), (3, 2), (1, 0)),
    "product over an axis": lambda w: jax.grad(lambda v: jnp.sum(jnp.prod(v.reshape(2, 3), axis=1)))(w),
    "whole numbers": lambda w: (w * 3).astype(jnp.int32) // 2 + jnp.arange(6),
    "random keys": lambda w: w + jax.random.uniform(jax.random.key(0), (6,)),
}
ELEMENTARY = (
    "exp exp2 expm1 tanh sin cos tan asin acos atan sinh cosh asinh atanh cbrt logistic abs sign floor ceil square"
)
POSITIVE = "log log1p sqrt rsqrt"


@pytest.mark.parametrize("name", sample(FUNCTIONS, 16))
def test_it_computes_what_jax_computes(name):
    with jax.enable_x64(True):
        expected = [np.asarray(x) for x in jax.tree.leaves(jit_quickly(FUNCTIONS[name])(VECTOR))]
    for got, wanted in zip(evaluated(FUNCTIONS[name], VECTOR), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", [*ELEMENTARY.split(), *POSITIVE.split()])
def test_elementary_functions(name):
    numbers = np.concatenate([np.linspace(-0.95, 0.95, 20), [0.0]])
    numbers = np.abs(numbers) + 0.1 if name in POSITIVE.split() else numbers
    with jax.enable_x64(True):
        expected = getattr(lax, name)(jnp.asarray(numbers))
    np.testing.assert_allclose(evaluated(getattr(lax, name), numbers)[0], expected, rtol=8 * 2.0**-53, atol=0)


def test_the_logistic_keeps_its_digits_far_out():
    np.testing.assert_allclose(evaluated(lax.logistic, np.array([-700.0]))[0], np.exp(-700.0), rtol=1e-15)


def test_a_function_that_rounds_on_purpose_is_evaluated_without_rounding():
    got = evaluated(lambda x: (x.astype(jnp.bfloat16) * 3).astype(jnp.float32), VECTOR)[0]
    np.testing.assert_array_equal(got, 3 * VECTOR)


ARRAY = GENERATOR.standard_normal((5, 4, 3))
BEYOND = np.array([3, -9, 0, 7, 3, -1, 2])  # indices, some of them outside


def assert_as_compiled(function):
    """What is evaluated of `function(ARRAY)` is what XLA gives, to the bit."""
    with jax.enable_x64(True):
        expected = jit_quickly(function)(ARRAY)
    for got, wanted in zip(evaluated(function, ARRAY), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("mode", ["fill", "clip", "drop"])
def test_windows_beyond_an_array_are_filled_moved_or_dropped(mode):
    def function(x):
        reads = "clip" if mode == "clip" else "fill"
        found = [y.at[BEYOND, 1:3].get(mode=reads) for y in (x, (9 * x).astype(jnp.int32), x > 0)]
        found += [x.at[BEYOND, :, BEYOND].get(mode=reads), x.at[BEYOND].get(mode=reads, fill_value=2.0)]
        found += [x.at[:, BEYOND].add(jnp.arange(105.0).reshape(5, 7, 3), mode=mode), x.at[BEYOND].add(1.0, mode=mode)]
        return [*found, x.at[BEYOND[:0]].add(1.0, mode=mode)]

    assert_as_compiled(function)


def test_lookups_in_a_batch_and_their_derivatives():
    def function(x):
        rows = jnp.asarray(BEYOND[:5] % 4)
        windows = jax.vmap(lambda a, n: lax.dynamic_slice(a, (n, n), (2, 2)))
        given = [jax.vmap(lambda a, n: a[n]), windows]
        back = [jax.grad(lambda x, f=f: jnp.sum(f(x, rows) ** 2))(x) for f in given]
        return [*(f(x, rows) for f in given), *back]

    assert_as_compiled(function)


@pytest.mark.parametrize("mode", [lax.GatherScatterMode.CLIP, lax.GatherScatterMode.FILL_OR_DROP])
def test_windows_whose_axes_lie_before_those_of_the_indices(mode):
    starts = GENERATOR.integers(-2, 5, size=(7, 2))
    gathers = lax.GatherDimensionNumbers((0, 2), (1,), (2, 0))
    scatters = lax.ScatterDimensionNumbers((0, 2), (1,), (2, 0))

    def function(x):
        updates = jnp.arange(28.0).reshape(2, 7, 2)
        return lax.gather(x, starts, gathers, (2, 1, 2), mode=mode), lax.scatter_add(
            x, starts, updates, scatters, mode=mode
        )

    assert_as_compiled(function)


def test_a_counter_wraps_where_its_own_dtype_ends():
    """Its start is a whole number of Python's in the trace."""

    def function(turns):
        return lax.fori_loop(0, turns, lambda i, s: s + (i + (2**31 - 2)).astype(jnp.float32), 0.0)

    found = reference.run(jax.make_jaxpr(function)(jnp.int32(4)), [np.int32(4)])
    assert found == [(2**31 - 2) + (2**31 - 1) - 2**31 + (1 - 2**31)]


def test_a_derivative_is_traced_once_at_however_many_points():
    traced = []

    def loss(params, data):
        traced.append(params)
        return jnp.sum(params * data)

    for _ in range(3):
        oracle.evaluate(oracle.value_and_grad(loss), VECTOR, VECTOR)
    assert len(traced) == 1


def test_a_loss_without_a_hash_has_a_derivative():
    class Loss:
        __hash__ = None

        def __call__(self, params, data):
            return jnp.sum(params * data)

    np.testing.assert_array_equal(oracle.evaluate(oracle.value_and_grad(Loss()), VECTOR, 2 * VECTOR)[1], 2 * VECTOR)
