"""The band of products of many factors, and of what runs along an axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import in_each_dtype, sample

from gradbench.gradients.execution.judge import judge
from gradbench.gradients.formula import noise
from gradbench.gradients.rounding.band import Band
from gradbench.gradients.rounding.numbers.formats import format_of, round_to

CPU = jax.devices("cpu")[0]
UNIT = format_of(np.float32).unit


def factors(rows):
    return np.random.default_rng(0).uniform(0.9, 1.1, (rows, 3))


def scanned(step, start):
    return lambda x: jax.lax.scan(lambda s, row: (step(s, row),) * 2, jnp.full_like(x[0], start), x)[1]


# By name the primitive, its inputs, other ways to compute it, and what of a result the band lets one see at least, in
# units: before each number was allowed 8 sqrt(all numbers) units, in all 600 at these sizes.
RUNNING = {
    "products": (
        lambda x: jax.lax.cumprod(x, 0),
        factors(129),
        [scanned(jnp.multiply, 1), lambda x: jax.lax.associative_scan(jnp.multiply, x)],
        50,
    ),
    "products from the end": (
        lambda x: jax.lax.cumprod(x, 0, reverse=True),
        factors(129),
        [lambda x: jnp.flip(scanned(jnp.multiply, 1)(jnp.flip(x, 0)), 0)],
        50,
    ),
    "powers": (
        lambda x: jax.lax.cumprod(x, 0),
        np.full((129, 3), [0.98, 1.01, 1.03]),
        [scanned(jnp.multiply, 1), lambda x: jax.lax.associative_scan(jnp.multiply, x)],
        400,
    ),
    "logarithms": (
        lambda x: jax.lax.cumlogsumexp(x, 0),
        np.random.default_rng(0).standard_normal((129, 3)) - 2,
        [scanned(jnp.logaddexp, -jnp.inf), lambda x: jax.lax.associative_scan(jnp.logaddexp, x)],
        100,
    ),
    "a product": (
        lambda x: jnp.prod(x, 0),
        factors(129),
        [lambda x: scanned(jnp.multiply, 1)(x)[-1], lambda x: jnp.prod(x[::2], 0) * jnp.prod(x[1::2], 0)],
        130,
    ),
}


@pytest.mark.parametrize(("name", "dtype"), sample(in_each_dtype([(name,) for name in RUNNING]), len(RUNNING)))
def test_other_ways_are_within_a_band_in_which_faults_of_a_few_units_are_seen(name, dtype):
    function, x, others, seen = RUNNING[name]
    others = others[1:] if (name, dtype) == ("a product", "bfloat16") else others  # jnp.prod multiplies in float32
    x = round_to(x, dtype)
    spread = noise.sample(jax.make_jaxpr(lambda x: [function(x)])(x), [x], dtype, "highest", CPU).spread
    compiled = Band(lambda x, w: [function(x)], x, (), dtype, "highest", CPU).sample(x, ())
    form = format_of(dtype)
    for band in (spread, compiled):
        found = [judge([jax.jit(one)(x)], spread.exact, band, ["y"], form) for one in others]
        coarse = dtype == "bfloat16" and name == "powers"  # by 129 units, half of itself
        assert [f.verdict for f in found] == ["INCONCLUSIVE" if coarse else "PASS"] * len(found)
        assert max(f.off for f in found) <= 1
        assert found[0].resolves < seen * form.unit * (2 if dtype == "bfloat16" else 1)


@pytest.mark.parametrize("name", ["products", "logarithms"])
def test_a_fault_below_the_former_band_is_found(name):
    function, x, _, _ = RUNNING[name]
    x = round_to(x, "float32")
    spread = noise.sample(jax.make_jaxpr(lambda x: [function(x)])(x), [x], "float32", "highest", CPU).spread
    wrong = np.asarray(function(x)) * np.float32(1 + 300 * UNIT)
    assert judge([wrong], spread.exact, spread, ["y"], format_of(np.float32)).verdict == "FAIL"


@pytest.mark.parametrize("name", ["products", "logarithms"])
def test_zeros_and_infinities_are_undisturbed_and_a_factor_alone_is_exact(name):
    function = RUNNING[name][0]
    x = np.array([[1 / 3, 0.0, np.inf, np.nan, -np.inf], [0.7, 0.1, 0.3, 0.2, 0.6]], np.float32)
    spread = noise.sample(jax.make_jaxpr(lambda x: [function(x)])(x), [x], "float32", "highest", CPU).spread
    (sigma,) = spread.sigma
    assert (sigma[0, 0] == 0) == (name == "products")  # a logarithm may have been shifted by a later term
    assert np.isfinite(sigma).all()
    assert sigma[1, 0] > 0


def decaying(x, a):
    return x * a ** jnp.arange(x.shape[0], dtype=x.dtype)[:, None]


def multiplied(x, a):
    factors = jnp.full(x.shape[0], a).at[0].set(1)
    return x * jax.lax.associative_scan(jnp.multiply, factors)[:, None]


def test_powers_of_one_number_may_be_running_products():
    """By more bands of the scale than powers that are rounded independently: equal parts have equal errors."""
    x, a = np.random.default_rng(0).standard_normal((129, 3)).astype(np.float32), np.float32(0.99)
    trace = jax.make_jaxpr(lambda x, a: [decaying(x, a)])(x, a)
    spread = noise.sample(trace, [x, a], "float32", "highest", CPU).spread
    got = np.asarray(jax.jit(multiplied)(x, a))
    assert judge([got], spread.exact, spread, ["y"], format_of(np.float32)).verdict == "PASS"
    wrong = got * np.float32(1 + 1000 * UNIT)
    assert judge([wrong], spread.exact, spread, ["y"], format_of(np.float32)).verdict == "FAIL"


def sampled(function, x):
    trace = jax.make_jaxpr(lambda x: [function(x)])(x)
    return noise.sample(trace, [x], x.dtype.name, "highest", CPU).spread


def test_an_infinite_product_has_no_noise():
    x = np.array([2.0, np.inf, 3.0, 0.3], np.float32)
    (sigma,) = sampled(lambda x: 1 / jnp.cumprod(x), x).sigma
    assert sigma.tolist() == [sigma[0], 0, 0, 0]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_products_lose_by_underflow(dtype):
    """A right one that was accused by 1.3 bands in float16, by 500,000 in float32."""
    scale, rows = (2.0**13, 12) if dtype == "float16" else (2.0**120, 96)
    x = np.random.default_rng(0).uniform(0.2, 0.6, (rows, 3)).astype(dtype)
    spread = sampled(lambda x: jax.lax.reduce_prod(x, (0,)) * scale, x)
    got = jax.jit(lambda x: scanned(jnp.multiply, 1)(x)[-1] * scale)(x)
    assert judge([got], spread.exact, spread, ["y"], format_of(np.dtype(dtype))).off <= 1


def test_factors_with_real_part_one_round():
    x = (1 + 1j * np.linspace(-1, 1, 7)).astype(np.complex64)
    trace = jax.make_jaxpr(lambda x: [jnp.prod(x).real])(x)
    spread = noise.sample(trace, [x], "float32", "highest", CPU).spread
    assert spread.sigma[0] > UNIT * abs(spread.exact[0])


def test_running_logarithms_share_their_steps_whatever_is_beside_them():
    x = np.random.default_rng(0).standard_normal((129, 2)).astype(np.float32)
    alone = sampled(lambda x: jax.lax.cumlogsumexp(x), x[:, :1]).sigma[0]
    beside = sampled(lambda x: jax.lax.cumlogsumexp(x), x + np.array([0, 5000], np.float32)).sigma[0]
    np.testing.assert_allclose(beside[:, 0], alone[:, 0], rtol=1e-6)


def test_logarithms_taken_at_once_where_they_are_near_0():
    """Accused by 18 bands: the exponential of the first difference from the largest term rounds."""
    x = round_to(np.random.default_rng(2).uniform(-0.02, 0.02, (5, 300)), "float32")
    spread = sampled(lambda x: jax.lax.cumlogsumexp(x, 0), x)

    def at_once(x):
        return jnp.log(jnp.cumsum(jnp.exp(x - jnp.max(x, 0)), 0)) + jnp.max(x, 0)

    assert judge([jax.jit(at_once)(x)], spread.exact, spread, ["y"], format_of(np.float32)).off <= 1
