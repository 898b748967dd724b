"""Rewritten divisions, sums and products over the whole range of each dtype, against sums and quotients by NumPy.

Subnormal numbers are left out, since XLA:CPU takes them for zeros; results may be off by the smallest normal number for
each operation that could give one. u is half of eps, so that one rounding is off by at most u times its result.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling import in_each_dtype, sample

from gradbench.program.xla.rewrite import rewritten

DTYPES = ("float32", "float64", "bfloat16", "float16")


@st.composite
def magnitudes(draw, dtype, size):
    """`size` numbers of one dtype: signs, zeros and normal numbers of all exponents, or near one; some not finite."""
    info = jnp.finfo(dtype)
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    first, last = int(info.minexp), int(info.maxexp) - 1
    exponents = st.sampled_from((first, 0, last)) | st.integers(first, last)
    low, high = sorted(draw(st.tuples(exponents, exponents)))
    numbers = np.ldexp(generator.uniform(1, 2 - 2.0**-7, size), generator.integers(low, high + 1, size))
    numbers *= generator.choice([-1.0, 1.0], size) * (generator.uniform(size=size) > draw(st.sampled_from((0, 0.3))))
    special = draw(st.lists(st.sampled_from((np.inf, -np.inf, np.nan)), max_size=3))
    numbers[generator.integers(0, size, len(special))] = special
    return numbers.astype(jnp.dtype(dtype)).astype(np.longdouble)


def compiled(function, dtype, lanes=1):
    """`function` of arrays of `dtype`, rewritten and compiled once; of and to longdouble."""
    run = jax.jit(rewritten(function, "cpu", lanes > 1))

    def call(*arrays):
        with jax.enable_x64(dtype == "float64"):
            return np.asarray(run(*(jnp.asarray(a.astype(jnp.dtype(dtype))) for a in arrays))).astype(np.longdouble)

    return call


def agrees(got, expected, allowed, largest, reach):
    """Entry by entry: within `allowed`, or the same if not finite; anything beyond the range where `reach`, the most
    that numbers on the way may be, is."""
    with np.errstate(invalid="ignore"):
        same = (got == expected) | (np.isnan(got) & np.isnan(expected)) | (np.abs(got - expected) <= allowed)
    return same | (np.isfinite(reach) & (reach + allowed > largest) & (~np.isfinite(got) | ~np.isfinite(expected)))


@functools.cache
def limits(dtype):
    info = jnp.finfo(dtype)
    return np.longdouble(info.max), np.longdouble(info.tiny), np.longdouble(info.eps) / 2


@functools.cache
def quotients(dtype):
    return compiled(lambda x, y: x / y, dtype)


@pytest.mark.parametrize("dtype", sample(["float16", "float32", "float64", "bfloat16"], 2))
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_quotient_of_any_two_numbers(dtype, data):
    x = data.draw(magnitudes(dtype, 32)).reshape(8, 4)
    y = data.draw(magnitudes(dtype, 8)).reshape(8, 1)
    largest, tiny, u = limits(dtype)
    with np.errstate(all="ignore"):
        exact = x / y
    expected = np.where(np.abs(exact) > largest, np.copysign(np.inf, exact), exact)
    # The reciprocal is rounded once and the product once: (1 + u)^2 <= 1 + 3 u. The powers of two are exact.
    assert agrees(quotients(dtype)(x, y), expected, 3 * u * np.abs(exact) + tiny, largest, np.abs(exact)).all()


@pytest.mark.parametrize("divisor", [3e38, -1.7e38, 1e38, 1.2e-38, 3.0])
def test_a_quotient_by_a_constant_near_the_ends_of_the_range(divisor):
    x = np.float32([3.4e38, 1.1, 1.2e-38])[:, None] * np.float32([1, -1])
    got = np.asarray(jax.jit(rewritten(lambda x: x / divisor, "cpu"))(x), np.float64)
    exact = x.astype(np.float64) / np.float64(np.float32(divisor))
    largest, tiny, u = (float(limit) for limit in limits("float32"))
    assert agrees(got, exact, 3 * u * np.abs(exact) + tiny, largest, np.abs(exact)).all()


def test_shares_near_the_largest_number():
    x = np.float32([0.1, 0.2, 0.3, 0.3]) * np.finfo(np.float32).max
    shares = jax.jit(rewritten(lambda x: x / jnp.sum(x), "cpu"))(x)
    wide = x.astype(np.float64)
    # Three additions, a reciprocal and a product.
    np.testing.assert_allclose(shares, wide / wide.sum(), rtol=6 * float(np.finfo(np.float32).eps / 2))


SUMS = {"folded": (2, 100), "folded with a rest": (2, 1000), "a product with ones": (4, 1500)}


@functools.cache
def sums(dtype):
    return compiled(lambda x: jnp.sum(x, axis=-1), dtype, lanes=2)


@pytest.mark.parametrize(
    ("kind", "dtype"), sample(in_each_dtype([(kind,) for kind in SUMS], second="float64"), len(SUMS))
)
@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_sum_of_any_numbers(dtype, kind, data):
    rows, terms = SUMS[kind]
    x = data.draw(magnitudes(dtype, rows * terms)).reshape(rows, terms)
    largest, tiny, u = limits(dtype)
    with np.errstate(all="ignore"):
        reach = np.sum(np.where(np.isfinite(x), np.abs(x), 0), axis=-1)
        # Any order of adding is off by at most (terms - 1) u of the sum of absolute values, and so is longdouble's.
        assert agrees(sums(dtype)(x), x.sum(axis=-1), terms * (u * reach + tiny), largest, reach).all()


@functools.cache
def products(dtype, layout):
    return compiled(jax.vmap(lambda a, b: jnp.einsum(layout, a, b, precision="highest")), dtype, lanes=3)


LAYOUTS = ["mk,kn->mn", "km,kn->nm", "mk,nk->nm"]


# Each dtype with one layout, and each layout with some dtype; then the others.
@pytest.mark.parametrize(
    ("dtype", "layout"), sample([(d, LAYOUTS[(n + k) % 3]) for k in range(3) for n, d in enumerate(DTYPES)], 4)
)
@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_product_of_any_numbers(dtype, layout, data):
    sizes = {"m": 20, "k": 5, "n": 6}
    a, b = (
        data.draw(magnitudes(dtype, 3 * int(np.prod(shape)))).reshape(3, *shape)
        for shape in ([sizes[axis] for axis in side] for side in layout.split("->")[0].split(","))
    )
    largest, tiny, u = limits(dtype)
    lanes = "z" + layout.replace(",", ",z").replace("->", "->z")
    with np.errstate(all="ignore"):
        expected = np.einsum(lanes, a, b)
        finite = (np.where(np.isfinite(x), np.abs(x), 0) for x in (a, b))
        reach = np.einsum(lanes, *finite)
        expected = np.where(
            np.isfinite(expected) & (np.abs(expected) > largest), np.copysign(np.inf, expected), expected
        )
    # A product and 4 additions for each of 5 terms, and one rounding to the dtype.
    assert agrees(products(dtype, layout)(a, b), expected, 6 * u * reach + 10 * tiny, largest, reach).all()
