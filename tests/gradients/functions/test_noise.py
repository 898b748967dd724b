"""The spread that NumPy samples is the one that a compiled sampler does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit_quickly
from sampling import in_each_dtype, sample
from scipy.stats import f as fisher

import gradbench
from gradbench.gradients.formula import noise
from gradbench.gradients.formula.noise import QuickBand
from gradbench.gradients.rounding.band import SAMPLES, Band, quantile
from gradbench.gradients.rounding.numbers.formats import round_to, x64_context

X = np.random.default_rng(0).standard_normal((4, 5))


def scanned(x, w):
    def step(carry, row):
        carry = jnp.tanh(0.3 * carry + row)
        return carry, carry * w

    return jax.lax.scan(step, jnp.zeros(x.shape[1], x.dtype), x)


def looped(x, w):
    return jax.lax.while_loop(lambda s: s[1] < 4, lambda s: (jnp.sin(s[0]) + w, s[1] + 1), (x, 0))[0]


FUNCTIONS = {
    "softmax": lambda x, w: jax.nn.softmax(x * w, axis=-1),
    "product": lambda x, w: jnp.dot(x, x.T) / (1 + jnp.sum(w * w)),
    "erf": lambda x, w: jax.scipy.special.erf(x) @ w,
    "scatter": lambda x, w: jnp.zeros((3, 5), x.dtype).at[jnp.array([0, 2, 2, 0])].add(x * w),
    "scan": scanned,
    "while": looped,
    "cond": lambda x, w: jax.lax.cond(jnp.sum(x) > 0, lambda: x / w, lambda: x * w),
    "sort": lambda x, w: jnp.sort(x * w, axis=-1),
}
PAIRS = in_each_dtype([(name,) for name in FUNCTIONS], "float64")


@pytest.mark.parametrize(("name", "dtype"), sample(PAIRS, 6))
def test_numpy_and_the_compiled_sampler_agree(name, dtype):
    given = (round_to(X, dtype), round_to(X[0], dtype))
    cpu = jax.devices("cpu")[0]
    with x64_context(dtype):
        trace = jax.make_jaxpr(FUNCTIONS[name])(*given)
    found = noise.sample(trace, list(given), dtype, "highest", cpu).spread
    wanted = Band(FUNCTIONS[name], *given, dtype, "highest", cpu).sample(*given)
    # Two estimates of one variance, each from as many samples at least; 1e-7 on either side.
    low, high = np.sqrt(fisher.ppf([1e-7, 1 - 1e-7], SAMPLES, SAMPLES))
    for got, exact, one, other in zip(found.exact, wanted.exact, found.norm, wanted.norm):
        np.testing.assert_allclose(got, exact, rtol=1e-12, atol=1e-14)
        assert one == other == 0 or low < one / other < high
    for got, other in zip(found.sigma, wanted.sigma):
        assert ((got > 0) == (other > 0)).all()
    assert (found.tie, found.overflow, found.unknown) == (wanted.tie, wanted.overflow, wanted.unknown)
    assert found.stagnating == wanted.stagnating


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_band_is_sampled_by_numpy_where_that_is_less_than_compiling_it(name):
    given = tuple(x.astype(np.float32) for x in (X, X[0]))
    band = QuickBand(FUNCTIONS[name], *given, "float32", "highest", jax.devices("cpu")[0])
    assert band.by_numpy == (name != "while")  # nobody knows how often one turns


def test_samples_by_numpy_in_parts_are_those_taken_at_once():
    given = tuple(x.astype(np.float32) for x in (X, X[0]))
    cpu = jax.devices("cpu")[0]
    found = QuickBand(scanned, *given, "float32", "highest", cpu).sample(*given)
    wanted = noise.sample(jax.make_jaxpr(scanned)(*given), list(given), "float32", "highest", cpu).spread
    assert found.samples == SAMPLES
    for got, sigma in zip(found.sigma, wanted.sigma):  # the same seeds: only their sums are in another order
        np.testing.assert_allclose(got, sigma, rtol=1e-12)
    np.testing.assert_allclose([*found.norm, *found.along], [*wanted.norm, *wanted.along], rtol=1e-12)


@pytest.mark.parametrize("first", [True, False])
def test_a_compiled_sampler_takes_over_before_the_first_sample_only(monkeypatch, first):
    """Sums of squares are in units of what the sampler that began them computes."""
    band = QuickBand(lambda x, w: x * w, X, X[0], "float64", "highest", jax.devices("cpu")[0])
    sampled, band.part = band._sampled, 4

    def fails(start, leaves):
        if start or first:
            raise NotImplementedError
        return sampled(start, leaves)

    monkeypatch.setattr(band, "_sampled", fails)
    if first:
        assert band.sample(X, X[0], 8).samples == 8
    else:
        with pytest.raises(NotImplementedError):
            band.sample(X, X[0], 8)


def sines(x, w):
    return jax.lax.scan(lambda s, _: (jnp.sin(s) + w, None), x, length=30)[0]


def branching(x, w):
    """Each operation after a branch or a loop is the same one whatever was taken."""

    def step(s, number):
        s = jax.lax.cond(number < 6, lambda: (s + w) * 1.125 - w, lambda: s)
        s = jax.lax.while_loop(lambda t: t[1] < 3, lambda t: (t[0] + w, t[1] + 1), (s, number))[0]
        return s + x, None

    return jax.lax.scan(step, x + 64, jnp.arange(8.0))[0]


@pytest.mark.parametrize(
    ("function", "worst_case"), sample([(sines, True), (branching, False), (sines, False), (branching, True)], 2)
)
def test_an_operation_rounds_alike_at_each_iteration_as_where_it_is_compiled(function, worst_case):
    given = (round_to(X, "float32"), round_to(X[0], "float32"))
    arguments = (function, *given, "float32", "highest", jax.devices("cpu")[0])
    quick, compiled = (made(*arguments, worst_case=worst_case) for made in (QuickBand, Band))
    quick.by_numpy, quick.part, samples = True, 256, 256
    found = quick.sample(*given, samples).norm[0] / compiled.sample(*given, samples).norm[0]
    assert quick.by_numpy
    # Two estimates of one variance, each from as many samples at least; 1e-7 on either side.
    low, high = np.sqrt(fisher.ppf([1e-7, 1 - 1e-7], samples, samples))
    assert low < found < high


def test_a_right_program_whose_loop_rounds_one_way_is_not_accused():
    def loss(params, data):
        return jnp.sum(
            jax.lax.scan(lambda s, _: (s + params * data, None), jnp.full(3, 64.0, data.dtype), length=16)[0]
        )

    problem = gradbench.Problem(init=lambda key: jnp.full(3, 0.21), loss=loss, data=jnp.ones(3))
    report = gradbench.check_gradient(problem, dtype="bfloat16", fast=True, programs=["value_and_grad"])
    assert report.verdict == "PASS"


def test_where_nothing_rounds_there_is_no_spread():
    trace = jax.make_jaxpr(lambda x: (x.T * 0.5, jnp.argmax(x), x > 0))(X.astype(np.float32))
    found = noise.sample(trace, [X.astype(np.float32)], "float32", "highest", jax.devices("cpu")[0])
    assert not any(sigma[1:].any() for sigma in found.spread.sigma if sigma.ndim)
    assert [d.shape for d in found.deviations] == [(SAMPLES, 5, 4), (SAMPLES,), (SAMPLES, 4, 5)]


def test_a_sum_that_cancels_to_zero_has_rounded_and_one_of_zeros_has_not():
    given = np.array([[0.75, 1.0 / 3, -0.75, -1.0 / 3], [0, 0, 0, 0]], np.float32)
    given[0, 3] = -given[0, 1]
    trace = jax.make_jaxpr(lambda x: [jnp.sum(x, axis=1)])(given)
    (sigma,) = noise.sample(trace, [given], "float32", "highest", jax.devices("cpu")[0]).spread.sigma
    assert sigma[0] > 2.0**-26
    assert sigma[1] == 0


@pytest.mark.parametrize(
    ("function", "dtype"), sample(in_each_dtype([(lambda x, c: x + c,), (lambda x, c: c - x,)]), 2)
)
def test_a_number_added_to_many_of_one_binade_rounds_the_same_way_everywhere(function, dtype):
    """x is a multiple of the result's spacing, so that all errors are one: by 1.6 and 13 bands more than independent
    ones may add up to."""
    generator = np.random.default_rng(0)
    x, c = round_to(generator.uniform(4.5, 7.5, 10_000), dtype), round_to(generator.uniform(0.01, 0.3), dtype)
    cpu = jax.devices("cpu")[0]
    expected = function(x.astype(np.float64), c.astype(np.float64))
    error = np.asarray(jax.jit(function)(x, c)).astype(np.float64) - expected
    trace = jax.make_jaxpr(lambda x, c: [function(x, c)])(x, c)
    bands = [
        noise.sample(trace, [x, c], dtype, "highest", cpu).spread,
        Band(lambda x, c: [function(x, c)], x, c, dtype, "highest", cpu).sample(x, c),
    ]
    for band in bands:
        assert abs(np.vdot(error, expected)) / np.vdot(expected, expected) < quantile(4) * band.along[0]


def test_sums_of_numbers_that_are_all_different_round_independently():
    given = [x.astype(np.float32) for x in np.random.default_rng(1).standard_normal((2, 10_000))]
    trace = jax.make_jaxpr(lambda x, y: [x + y])(*given)
    spread = noise.sample(trace, given, "float32", "highest", jax.devices("cpu")[0]).spread
    (sigma,), (exact,) = spread.sigma, spread.exact
    assert spread.along[0] < 2 * np.linalg.norm(sigma * exact) / np.vdot(exact, exact)  # of 32 samples: 12 % off


@pytest.mark.parametrize(("reverse", "dtype"), sample(in_each_dtype([(False,), (True,)]), 2))
def test_running_sums_share_the_roundings_of_their_additions(reverse, dtype):
    """Taken one after another, long stretches of sums are off to one side: at each of these, by 1.04 to 2.1 times what
    a band of independent errors allows the scale."""
    x = round_to(np.random.default_rng(1).standard_normal((1000, 2)) + 0.5, dtype)
    rows, total, sums = x[::-1] if reverse else x, np.zeros_like(x[0]), []
    for row in rows:
        total = (total + row).astype(x.dtype)
        sums.append(total)
    got, cpu = np.array(sums[::-1] if reverse else sums).astype(np.float64), jax.devices("cpu")[0]

    def running(x, w):
        return [jax.lax.cumsum(x * w, 0, reverse=reverse)]

    one = np.ones((), x.dtype)
    bands = [
        noise.sample(jax.make_jaxpr(running)(x, one), [x, one], dtype, "highest", cpu).spread,
        Band(running, x, one, dtype, "highest", cpu).sample(x, one),
    ]
    for band in bands:
        (expected,) = band.exact
        assert abs(np.vdot(got - expected, expected)) < quantile(4) * band.along[0] * np.vdot(expected, expected)
        assert np.linalg.norm(got - expected) < quantile(4) * band.norm[0]


def test_running_sums_of_one_term_and_zeros_are_exact():
    x = np.zeros((9, 2), np.float32)
    x[3] = 1 / 3, 0.1
    trace = jax.make_jaxpr(lambda x: [jax.lax.cumsum(x, 0)])(x)
    (sigma,) = noise.sample(trace, [x], "float32", "highest", jax.devices("cpu")[0]).spread.sigma
    assert sigma.max() < 2.0**-24 * 2 / 3  # of finishing, as every sum's: nothing grows along the axis
    np.testing.assert_allclose(sigma[3:], np.broadcast_to(sigma[3], (6, 2)))
    assert not sigma[:3].any()


def test_of_an_array_that_was_rounded_every_entry_may_have_been():
    """The cosine of a small angle is 1 in bfloat16, which is off by nearly a unit all the same."""
    table = jnp.asarray(np.cos([0.02, 1.0]), jnp.bfloat16)
    trace = jax.make_jaxpr(lambda x: [x * table, x * jnp.asarray([1.0, 0.5], x.dtype)])(jnp.ones(2, jnp.bfloat16))
    given = [np.ones(2, jnp.bfloat16)]
    rounded, exact = noise.sample(trace, given, "bfloat16", "highest", jax.devices("cpu")[0]).spread.sigma
    assert rounded.min() > 2.0**-11
    assert not exact.any()


def test_complex_constants_are_rounded_too():
    turn = jnp.asarray(np.exp([0.1j, 1j]), jnp.complex64)
    given = [np.array([1 + 1j, 1], np.complex64)]
    trace = jax.make_jaxpr(lambda z: [jnp.real(z * turn), jnp.imag(z * turn)])(given[0])
    spread = noise.sample(trace, given, "float32", "highest", jax.devices("cpu")[0]).spread
    assert min(s.min() for s in spread.sigma) > 2.0**-27
    trace = jax.make_jaxpr(lambda z: [jnp.real(turn + 0 * z)])(given[0])
    assert noise.sample(trace, given, "float32", "highest", jax.devices("cpu")[0]).spread.sigma[0].min() > 2.0**-27


def test_a_number_added_up_many_times_rounds_the_same_way_in_a_binade():
    """By 1.2 bands more than independent roundings allow the sums."""
    x = np.full(1000, 0.11, np.float32)
    got = np.cumsum(x, dtype=np.float32).astype(np.float64)
    trace = jax.make_jaxpr(lambda x: [jax.lax.cumsum(x, 0)])(x)
    (sigma,) = noise.sample(trace, [x], "float32", "highest", jax.devices("cpu")[0]).spread.sigma
    expected = np.arange(1, 1001) * np.float64(x[0])
    assert np.max(np.abs(got - expected) / sigma) < quantile(2000)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_that_scale_all_entries_may_be_multiplied_first(dtype):
    """By 3.2 times what a band of independent errors allows the scale in float32."""
    generator = np.random.default_rng(0)
    x, *scales = round_to(generator.standard_normal((63, 17)), dtype), *round_to(generator.uniform(1, 2, 2), dtype)
    given, cpu = [x, *(np.asarray(s, x.dtype) for s in scales)], jax.devices("cpu")[0]

    def one_by_one(x, a, b):
        return [jax.jit(lambda x, a: -(x * a).T)(x, a) * b]

    folded = float(np.asarray(scales[0] * scales[1], x.dtype)) / (float(scales[0]) * float(scales[1])) - 1
    found = noise.sample(jax.make_jaxpr(one_by_one)(*given), given, dtype, "highest", cpu).spread
    compiled = Band(lambda x, s: one_by_one(x, *s), x, given[1:], dtype, "highest", cpu).sample(x, given[1:])
    unit = 2.0**-24 if dtype == "float32" else 2.0**-8
    assert abs(folded) <= unit
    assert unit < quantile(4) * min(found.along[0], compiled.along[0])
    once = noise.sample(jax.make_jaxpr(lambda x, a, b: [x * a])(*given), given, dtype, "highest", cpu).spread
    assert quantile(4) * once.along[0] < unit / 2  # nothing to fold


def test_a_sum_that_is_exact_by_chance_on_the_way_is_not_exact():
    x = np.array([1.1, -1.2, 2.0, 0.1], np.float32)

    def sums(x):
        return [(x[0] + x[1]) + x[3], x[0] + x[1], (x[2] + x[2]) + 1.0, x[0] * 1.0 + 0.0]

    exact = sums(x.astype(np.float64))
    assert [np.float32(e) for e in exact] == exact
    trace = jax.make_jaxpr(sums)(x)
    found = noise.sample(trace, [x], "float32", "highest", jax.devices("cpu")[0]).spread.sigma
    assert [bool(sigma > 0) for sigma in found] == [True, False, False, False]


def chain(x):
    return [(x[0] + x[1]) + x[2], x[0] - (x[1] - x[2])]


def prefixes(x):
    """Running sums and, transposed, their gradient."""
    scanned = functools.partial(jax.lax.associative_scan, jnp.add)
    return [scanned(x), jax.vjp(scanned, x)[1](x)[0]]


def in_a_loop(x):
    def sums(x):
        return jax.lax.scan(lambda s, row: (s + row, s + row), jnp.zeros_like(x[0]), x)[1]

    return [sums(x), jax.vjp(sums, x)[1](x)[0]]


def running(x):
    return [jnp.cumsum(x, axis=0), jax.lax.cumsum(x, reverse=True)]


# A function, the same sums in another order, and with a fault.
ORDERS = [
    (
        chain,
        lambda x: [x[0] + (x[1] + x[2]), (x[0] - x[1]) + x[2]],
        lambda x: [x[0] + (x[1] + x[2]) * 1.05, (x[0] - x[1]) + x[2]],
    ),
    (in_a_loop, running, lambda x: running(x.at[7].multiply(1.05))),
    (prefixes, running, lambda x: running(x.at[7].multiply(1.05))),
]


@pytest.mark.parametrize(("function", "other", "wrong", "dtype"), sample(in_each_dtype(ORDERS), 2))
def test_sums_in_another_order_are_no_fault_where_they_cancel(function, other, wrong, dtype):
    """By 50 to 10^35 times what the roundings of the written order allow."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((16, 300))
    x[2] = -x[0] - x[1] + 0.01 * x[2]
    x[3] = x[4] + 0.01 * x[3]
    x = round_to(x, dtype)
    cpu = jax.devices("cpu")[0]
    bands = [noise.sample(jax.make_jaxpr(function)(x), [x], dtype, "highest", cpu).spread]
    if function is not prefixes:  # which takes long to compile
        bands += [Band(lambda x, w: function(x), x, (), dtype, "highest", cpu).sample(x, ())]
    with jax.enable_x64(True):
        expected = [np.asarray(e) for e in jit_quickly(function)(x.astype(np.float64))]

    def off(band, program):
        pairs = zip(jax.jit(program)(x), expected, band.sigma)
        errors = [np.abs(np.asarray(g, np.float64) - e) / np.maximum(s, 1e-99) for g, e, s in pairs]
        return max(map(np.max, errors)) / quantile(x.size)

    for band in bands:
        assert off(band, other) <= 1
        assert off(band, wrong) > 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_added_to_all_entries_may_be_added_to_each_other_first(dtype):
    generator = np.random.default_rng(0)
    x, a, b = (round_to(v, dtype) for v in (generator.standard_normal(10_000) / 16, 1.3, -0.617))
    given, cpu = [x, a, b], jax.devices("cpu")[0]
    expected = x.astype(np.float64) + a.astype(np.float64) + b.astype(np.float64)
    error = np.asarray(jax.jit(lambda x, a, b: x + (a + b))(*given)).astype(np.float64) - expected
    trace = jax.make_jaxpr(lambda x, a, b: [(x + a) + b])(*given)
    spread = noise.sample(trace, given, dtype, "highest", cpu).spread
    assert abs(np.vdot(error, expected)) / np.vdot(expected, expected) < quantile(4) * spread.along[0]
    compiled = Band(lambda x, w: [(x + w[0]) + w[1]], x, given[1:], dtype, "highest", cpu).sample(x, given[1:])
    assert 0.5 < compiled.along[0] / spread.along[0] < 2  # two estimates from 32 samples each


def test_sums_that_are_exact_in_every_order_are_exact():
    x = np.array([0.5, 1.25, 3.0, 100.0, -96.5], np.float32)
    trace = jax.make_jaxpr(lambda x: [((x[0] + x[1]) + x[2]) + (x[3] + x[4])])(x)
    assert not noise.sample(trace, [x], "float32", "highest", jax.devices("cpu")[0]).spread.sigma[0].any()


def test_partial_sums_of_another_order_may_leave_the_range():
    x = np.array([[2.0], [-2.0], [2.5]], np.float32) * 1e38
    trace = jax.make_jaxpr(lambda x: [(x[0] + x[1]) + x[2]])(x)
    assert noise.sample(trace, [x], "float32", "highest", jax.devices("cpu")[0]).spread.overflow
    assert not noise.sample(trace, [x / 4], "float32", "highest", jax.devices("cpu")[0]).spread.overflow


def test_a_sum_of_sums_that_is_converted_is_a_number_like_another():
    """Conversions that narrow are no sums, and whole numbers have no addends."""
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)

    def narrowed(x):
        y = (x[0] + x[1] + x[2]).astype(jnp.bfloat16)
        return [y, y + y, (y + y).astype(jnp.float16), y.astype(jnp.float32) + x[1]]

    def whole(x, around=lambda y: y.astype(jnp.int32).astype(y.dtype)):
        return [around(1000 * x[0] + x[1]) + x[2]]

    cpu = jax.devices("cpu")[0]
    assert all(s.all() for s in noise.sample(jax.make_jaxpr(narrowed)(x), [x], "float32", "highest", cpu).spread.sigma)
    found = noise.sample(jax.make_jaxpr(whole)(x), [x], "float32", "highest", cpu).spread.sigma[0]
    one = noise.sample(jax.make_jaxpr(lambda x: whole(x, jnp.trunc))(x), [x], "float32", "highest", cpu).spread.sigma[0]
    np.testing.assert_allclose(found, one, rtol=0.5)


def test_many_small_addends_of_a_large_one_do_not_leave_the_range():
    x = np.full((20, 3), 1.5, np.float16)
    x[0] = 20_000
    trace = jax.make_jaxpr(lambda x: [functools.reduce(jnp.add, list(x))])(x)
    assert not noise.sample(trace, [x], "float16", "highest", jax.devices("cpu")[0]).spread.overflow
