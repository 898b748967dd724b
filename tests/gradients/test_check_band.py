"""The rounding band: rules against real arithmetic, and the interpreter against JAX itself."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from jax import lax
from quick import jit_quickly
from sampling import sample
from scipy.special import stdtrit

from gradbench.analysis.verdicts import EPSILON
from gradbench.gradients.formula import oracle
from gradbench.gradients.rounding import primitives as rounding
from gradbench.gradients.rounding.band import FALSE_ALARM, SAMPLES, Band, quantile
from gradbench.gradients.rounding.interpreter import Interpreter
from gradbench.gradients.rounding.numbers import noise
from gradbench.gradients.rounding.numbers.formats import flushes_subnormals, format_of, input_class
from gradbench.gradients.rounding.pairs import Pair
from gradbench.inputs.specs.checks import DTYPES
from gradbench.program.xla.jaxprs import open_jaxpr

CPU = jax.devices("cpu")[0]
GENERATOR = np.random.default_rng(11)
MATRIX = GENERATOR.standard_normal((12, 6))
VECTOR = GENERATOR.standard_normal(6)


def band(function, *arguments, dtype="float32", samples=SAMPLES, **options):
    arguments = [oracle.rounded(x, dtype) for x in arguments]
    made = Band(lambda params, data: function(*params), tuple(arguments), (), dtype, "highest", CPU, **options)
    made.part = min(made.part, samples)
    return made.sample(tuple(arguments), (), samples)


def scan(w):
    return lax.scan(lambda c, x: (jnp.tanh(c * w + x), jnp.sum(c)), jnp.zeros_like(w), jnp.asarray(MATRIX, w.dtype))[1]


def counted(w):
    """A loop as long as an int32 of the trace says, in a scan."""

    def step(s, number):
        return lax.fori_loop(0, number % 3, lambda _, s: jnp.sin(s) + w, s), None

    return lax.scan(step, w, jnp.arange(4, dtype=jnp.int32))[0]


FUNCTIONS = {
    "nested calls": lambda w: jax.jit(lambda v: jax.nn.softplus(jax.checkpoint(jnp.sin)(v)))(w),
    "scan": scan,
    "while": lambda w: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 1.5), (0, w))[1],
    "while, under vmap": jax.vmap(lambda x: lax.while_loop(lambda c: c < 9, lambda c: 1.5 * c + 1, x)),
    "loop in a scan": counted,
    "interpolation": lambda w: jnp.interp(
        w, jnp.linspace(-3, 3, 9, dtype=w.dtype), jnp.arange(9.0, dtype=w.dtype) ** 2
    ),
    "indices of some": lambda w: w[jnp.nonzero(w > 0, size=2)[0]],
    "cond": lambda w: lax.cond(w[0] < 1e6, lambda v: v * v, lambda v: v, w),
    "scatter add": lambda w: jnp.zeros(3, w.dtype).at[jnp.array([0, 1, 1, 2, 0, 0])].add(w),
    "scatter sub": lambda w: jnp.zeros(3, w.dtype).at[jnp.array([0, 1, 1, 2, 0, 0])].subtract(w),
    "scatter max": lambda w: jnp.zeros(3, w.dtype).at[jnp.array([0, 1, 1, 2, 0, 0])].max(w),
    "masked by infinity": lambda w: jax.nn.log_softmax(jnp.where(jnp.arange(6) < 3, w, -jnp.inf))[:3],
    "gather and sort": lambda w: jnp.sort(w)[jnp.array([3, 1])],
    "cumulative": lambda w: jnp.cumsum(w) + jnp.cumprod(w),
    "convolution": lambda w: jnp.convolve(w, w),
    "window": lambda w: lax.reduce_window(w, -jnp.inf, lax.max, (2,), (2,), "VALID"),
    "factorisation": lambda w: jnp.linalg.solve(jnp.outer(w, w) + jnp.eye(6, dtype=w.dtype), w),
}


@pytest.mark.parametrize("name", sample(FUNCTIONS, 6))
def test_without_noise_the_interpreter_computes_what_jax_computes(name):
    function = FUNCTIONS[name]
    with jax.enable_x64(True):
        jaxpr, consts = open_jaxpr(jax.make_jaxpr(function)(VECTOR))

        def interpreted(w):
            return Interpreter(None, CPU, lambda dtype: False).run(jaxpr, consts, [Pair(w, w)])[0][0].exact

        found, expected = jit_quickly(lambda w: (interpreted(w), function(w)))(VECTOR)
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", sample(FUNCTIONS, 6))
def test_float32_errors_lie_within_the_tolerance(name):
    function = FUNCTIONS[name]
    spread = band(function, VECTOR)
    assert not spread.unknown
    got = np.asarray(jax.jit(function)(jnp.asarray(VECTOR, jnp.float32))).astype(np.float64)
    allowed = quantile(got.size) * spread.sigma[0] + format_of(np.float32).tiny
    assert (np.abs(got - spread.exact[0]) <= allowed).all()


def test_noise_is_uniform_and_independent_between_values_operations_and_seeds():
    values = np.concatenate([np.arange(1.0, 20001.0), 1 + 2.0**-52 * np.arange(20000)])
    with jax.enable_x64(True):
        starts = [noise.start(jnp.uint32(seed)) for seed in (1, 2)]
        draws = [np.asarray(noise.signs(jnp.asarray(values), s * noise.odd(salt))) for s in starts for salt in (1, 2)]
    for number, draw in enumerate(draws):
        # Moments and correlations of so many numbers are known to 1/sqrt(n), times the deviation of each; 5 of these.
        known = 5 / np.sqrt(len(values))
        assert abs(np.mean(draw)) < known / np.sqrt(3)
        assert abs(np.mean(draw**2) - 1 / 3) < known * np.sqrt(4 / 45)
        for other in [draw[1:], *draws[number + 1 :]]:
            assert abs(np.mean(draw[: other.size] * other)) < known / 3


def test_fewer_samples_allow_no_less_than_their_share_of_what_all_do():
    few, every = band(jnp.tanh, MATRIX, samples=8), band(jnp.tanh, MATRIX)
    assert (few.samples, every.samples) == (8, SAMPLES)
    assert (few.share * few.sigma[0] <= every.sigma[0] * (1 + 1e-12)).all()


def test_one_addition_has_the_spread_of_a_uniform_rounding_error():
    numbers = np.float32(1 + GENERATOR.random((2, 4000)))
    spread = band(lambda a: a[0] + jnp.float32(2.0**-20) * a[1], numbers)
    # a uniform law on [-a, a] has deviation a / sqrt 3; 2^-20 of each sum is 0, where 20 bits of a[1] are
    expected = 2.0**-24 * (numbers[0] + 2.0**-20 * numbers[1]) / np.sqrt(3)
    assert np.sqrt(np.mean((spread.sigma[0] / expected) ** 2)) == pytest.approx(1.0, rel=0.05)


def test_what_the_format_holds_is_not_rounded():
    """The index of a median is floor(0.5 * 40): noise of one unit would pick its neighbour."""
    numbers = np.float32(GENERATOR.standard_normal(41))
    spread = band(lambda a: (a + jnp.floor(jnp.float32(0.5) * (a.size - 1.0)), jnp.median(a)), numbers)
    assert spread.sigma[1] == 0
    assert (spread.sigma[0] > 0).mean() > 0.5  # the format holds a sum or two by chance


def test_a_sum_of_like_terms_spreads_like_sequential_addition():
    terms = 1024
    numbers = 1 + 1e-3 * GENERATOR.random(terms)
    sigma = float(band(jnp.sum, numbers).sigma[0])
    # sequential: partial sums 1..k with independent roundings, u sqrt(sum i^2) / sqrt 3 = u k^1.5 / 3
    assert sigma == pytest.approx(2.0**-24 * terms**1.5 / 3, rel=0.6)


def test_equal_terms_round_the_same_way_at_each_addition():
    terms = 1024
    sigma = float(band(jnp.sum, np.ones(terms)).sigma[0])
    # one rounding d for all: u sum i / sqrt 3 = u k^2 / (2 sqrt 3)
    assert sigma == pytest.approx(2.0**-24 * terms**2 / (2 * np.sqrt(3)), rel=0.6)
    near, far = band(jnp.sum, np.full(terms, 0.01)), np.add.accumulate(np.full(terms, 0.01, np.float32))[-1]
    assert abs(float(far) - near.exact[0]) < quantile(1) * near.sigma[0]


def test_equal_rows_round_alike():
    row = np.full((500, 1), 0.3)
    together = float(band(lambda a: jnp.sum(jnp.exp(a)), row).sigma[0])
    one = float(band(lambda a: jnp.sum(jnp.exp(a)), row[:1]).sigma[0])
    # a coherent error grows like n = 500; independent ones would grow like sqrt(500) = 22
    assert together > 200 * one


def test_copies_selections_and_signs_do_not_round():
    spread = band(lambda a: -jnp.where(a > 0, a, 0.0)[::-1].reshape(2, 3), VECTOR)
    assert (spread.sigma[0] == 0).all()


def test_tf32_inputs_widen_the_band_and_highest_does_not():
    def product(a, b):
        return a @ b

    full, tf32 = band(product, MATRIX, VECTOR), band(product, MATRIX, VECTOR, assume="tf32")
    assert tf32.norm[0] > 300 * full.norm[0]


def test_mixed_precision_rounds_where_the_loss_says_so():
    narrow = band(lambda a: (a.astype(jnp.bfloat16) * jnp.bfloat16(1.5)).astype(jnp.float32), VECTOR)
    # two roundings of bfloat16: at most 2 u |y|, uniform each
    expected = 2.0**-8 * np.sqrt(2 / 3) * np.abs(1.5 * VECTOR)
    assert np.median(narrow.sigma[0] / expected) == pytest.approx(1.0, rel=0.3)


def test_mixed_precision_in_float64_is_not_moved_so_far_that_functions_bend():
    def narrow(a):
        return jnp.tanh(a.astype(jnp.bfloat16)).astype(a.dtype)

    double, single = band(narrow, VECTOR, dtype="float64"), band(narrow, VECTOR)
    # The same roundings of bfloat16, doubled in float64 as its reference is rounded too; 32 samples each: sigma is
    # known to 1/sqrt(64) = 12 %, the ratio to 18 %.
    assert (np.abs(double.sigma[0] / (2 * single.sigma[0]) - 1) < 4 * 0.18).all()


def test_a_constant_below_float16s_normal_numbers_is_rounded_to_its_spacing():
    spread = band(lambda a: jnp.float16(1e-6) * a, np.ones(1), dtype="float16")
    assert quantile(1) * spread.sigma[0][0] > abs(float(np.float16(1e-6)) - 1e-6)


def added_up(a):
    return lax.scan(lambda total, term: (total + term, None), jnp.zeros((), a.dtype), a)[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loop_that_rounds_alike_at_each_turn_lies_within_its_band(dtype):
    terms = np.full(1000, 0.01)
    usual, worst = band(added_up, terms, dtype=dtype), band(added_up, terms, dtype=dtype, worst_case=True)
    with jax.enable_x64(False):
        off = abs(float(added_up(jnp.asarray(terms, dtype))) - float(usual.exact[0]))
    independent = float(jnp.finfo(dtype).eps) / 2 * 10 * np.sqrt(1000 / 9)  # of roundings of 0.01, 0.02, ..., 10
    assert off > quantile(1) * independent  # 0.01 rounds the same way all through a binade
    assert off < quantile(1) * min(usual.sigma[0], worst.sigma[0])
    assert "scan" in usual.stagnating[0]


def test_a_scatter_of_many_terms_into_one_place_may_stagnate():
    def collected(a):
        return jnp.zeros(2, a.dtype).at[jnp.zeros(600, int)].add(a)

    assert any("scatter" in text for text in band(collected, np.ones(600), dtype="bfloat16").stagnating)


def test_a_sum_that_may_stagnate_is_named():
    ones = np.ones(600)
    spread = band(lambda a: lax.reduce_sum(a, (0,)), ones, dtype="bfloat16")
    assert "600 terms" in spread.stagnating[0]


def test_a_primitive_without_a_rule_is_named():
    def host(a):
        return jax.pure_callback(np.cbrt, jax.ShapeDtypeStruct(a.shape, a.dtype), a, vmap_method="sequential")

    assert "pure_callback" in band(host, VECTOR).unknown


def test_an_overflow_on_the_way_is_flagged_in_float16():
    assert band(lambda a: (a * 300) * 300 / 1e4, np.ones(3) * 2, dtype="float16").overflow


def test_a_choice_that_rounding_can_turn_is_flagged():
    close = np.array([1.0, 1.0 + 2.0**-23, 0.5])
    assert band(lambda a: jnp.argmax(jnp.exp(a)) * 1.0, close).tie
    assert not band(lambda a: jnp.argmax(jnp.exp(a)) * 1.0, np.array([1.0, 2.0, 0.5])).tie


def test_float64_noise_is_not_lost_in_the_interpretation_itself():
    wide, narrow = band(jnp.sum, MATRIX, dtype="float64"), band(jnp.sum, MATRIX)
    # the same rule at 2^-53 for 2^-24, doubled because the reference is a float64 computation too
    assert wide.sigma[0] == pytest.approx(2 * 2.0**-29 * narrow.sigma[0], rel=0.3)


@pytest.mark.parametrize(("dtype", "digits"), [("float64", 53), ("float32", 24), ("bfloat16", 8), ("float16", 11)])
def test_formats_have_the_units_of_ieee_754_and_bfloat16(dtype, digits):
    form = format_of(jnp.dtype(dtype))
    assert form.unit == 2.0**-digits
    assert form.spacing == pytest.approx(float(jnp.finfo(dtype).smallest_subnormal))


def test_a_cpu_has_one_precision():
    assert {input_class(p, CPU) for p in ("highest", "tf32", "default")} == {"full"}


def test_flushing_is_measured():
    with jax.default_device(CPU):
        half = float(jnp.float32(2.0**-126) * jnp.float32(0.5))
    assert flushes_subnormals("float32", CPU) == (half == 0)


def test_no_primitive_is_in_two_classes():
    classes = [rounding.EXACT, rounding.ONE_ROUNDING, rounding.TWO_ROUNDINGS, rounding.ELEMENTARY]
    classes += [rounding.SUMS, rounding.PRODUCTS, rounding.BACKWARD_STABLE]
    assert sum(map(len, classes)) == len(frozenset.union(*classes))


def test_the_epsilon_of_verdicts_is_that_of_the_formats():
    assert {dtype: 2 * format_of(dtype).unit for dtype in DTYPES} == EPSILON


@pytest.mark.thorough
def test_a_convolution_by_transforms_errs_where_its_own_terms_are_zero():
    """cuDNN gave 1e-9 for entries of a kernel's gradient that are 0, beside others of 1e-2."""
    image = np.float32(np.where(np.arange(64) < 32, GENERATOR.standard_normal((4, 64)), 0.0))
    kernel = np.float32(GENERATOR.standard_normal((3, 4)))

    def convolved(x, w):  # a batch of 1, 4 channels to 1
        return lax.conv_general_dilated(x[None], w.T[None], (1,), [(1, 1)], precision="highest")[0, 0]

    def sigma(device):
        with jax.enable_x64(True):
            traced, consts = open_jaxpr(jax.make_jaxpr(convolved)(image, kernel))
            pairs = [Pair(x, x) for x in (jnp.asarray(image, float), jnp.asarray(kernel, float))]
            sampled = jax.vmap(
                lambda seed: Interpreter(seed, device, lambda _: False).run(traced, consts, pairs)[0][0]
            )(jnp.arange(256, dtype=jnp.uint32))
            return np.asarray(sampled.exact[0]), np.std(np.asarray(sampled.noisy), axis=0)

    exact, of_cpu = sigma(CPU)
    _, of_gpu = sigma(SimpleNamespace(platform="gpu"))
    fourier = [scipy.fft.fft(x, 66) * scipy.fft.fft(w, 66) for x, w in zip(image, kernel[::-1].T)]
    found = np.sum([scipy.fft.ifft(product).real for product in fourier], axis=0)[1:65]
    errors = np.abs(found - exact)
    assert found.dtype == np.float32
    assert (of_cpu[34:] == 0).all()
    assert errors[34:].max() > 0
    assert (errors < quantile(64) * of_gpu).all()
    assert (of_gpu >= of_cpu * 0.9).all()
    assert of_gpu.max() < 3 * of_cpu.max()  # it is no larger than the rounding of the largest entries


@pytest.mark.parametrize("samples", [4, 8, SAMPLES])
@pytest.mark.parametrize("numbers", [1, 10**7])
def test_the_quantile_is_students(numbers, samples):
    wanted = -stdtrit(samples, FALSE_ALARM / (2 * numbers))
    assert quantile(numbers, samples) == pytest.approx(wanted, rel=1e-12)
