"""The laws of special functions against SciPy's float64 values, on this device and JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax import lax
from sampling import sample

import gradbench
from gradbench.gradients.rounding import special
from gradbench.gradients.rounding.numbers.formats import format_of
from gradbench.gradients.rounding.primitives import ELEMENTARY_UNITS

GENERATOR = np.random.default_rng(3)


def derivative_to_shape(a, x):
    """dP/da by central differences of fourth order, nan where their rounding, 1e-16 / step, may show in float32."""
    step = 1e-3 * a
    one, two = (scipy.special.gammainc(a + n * step, x) - scipy.special.gammainc(a - n * step, x) for n in (1, 2))
    slope = (8 * one - two) / (12 * step)
    return np.where(np.abs(slope) > 1e8 * 1e-16 / step, slope, np.nan)


def functions(generator, many):
    """name -> (the function, SciPy's, arguments of `many` points)."""
    positive, shape = np.exp(generator.uniform(-3, 4, many)), np.exp(generator.uniform(-2, 4, many))
    share, real = scipy.special.expit(generator.uniform(-6, 6, many)), generator.uniform(-20, 20, many)
    return {
        "lgamma": (lax.lgamma, scipy.special.gammaln, [real]),
        "digamma": (lax.digamma, scipy.special.digamma, [real]),
        "erf_inv": (lax.erf_inv, scipy.special.erfinv, [2 * share - 1]),
        "bessel_i0e": (lax.bessel_i0e, scipy.special.i0e, [real]),
        "bessel_i1e": (lax.bessel_i1e, scipy.special.i1e, [real]),
        "polygamma": (lax.polygamma, scipy.special.polygamma, [np.ones(many), positive]),
        "zeta": (lax.zeta, scipy.special.zeta, [1.5 + share * 5, positive]),
        "igamma": (lax.igamma, scipy.special.gammainc, [shape, positive]),
        "igammac": (lax.igammac, scipy.special.gammaincc, [shape, positive]),
        "igamma_grad_a": (lax.igamma_grad_a, derivative_to_shape, [shape, positive]),
        "regularized_incomplete_beta": (lax.betainc, scipy.special.betainc, [shape, shape[::-1], share]),
    }


FUNCTIONS = functions(GENERATOR, 4000)


@pytest.mark.parametrize("dtype", sample(["float32", "bfloat16", "float16"]))
@pytest.mark.parametrize("name", sample(FUNCTIONS, 3))
def test_a_special_function_is_off_by_no_more_than_its_law(name, dtype):
    function, known, arguments = FUNCTIONS[name]
    narrow = [np.asarray(x).astype(jnp.dtype(dtype)) for x in arguments]
    wide = [x.astype(np.float64) for x in narrow]
    got = np.asarray(jax.jit(function)(*narrow)).astype(np.float64)
    form, single = format_of(dtype), format_of(np.float32)
    with jax.enable_x64(True):
        exact = known(*wide)
        size = special.amplitude(name, lambda given: function(*given), [jnp.asarray(x) for x in wide], exact)
    allowed = form.unit * np.abs(exact) + form.tiny + ELEMENTARY_UNITS * min(form.unit, single.unit) * np.asarray(size)
    judged = np.isfinite(exact) & (np.abs(exact) < form.largest)
    assert judged.mean() > 0.5
    assert (np.abs(got[judged] - exact[judged]) <= allowed[judged]).all()


@pytest.mark.parametrize("programs", sample([["value_and_grad"], None]))
def test_a_poisson_regression_with_its_constant_passes(programs):
    counts = GENERATOR.poisson(3.0, 60).astype(float)
    features = GENERATOR.standard_normal((60, 3))

    def loss(w, data):
        eta = data["x"] @ w
        return jnp.mean(jnp.exp(eta) - data["y"] * eta + jax.scipy.special.gammaln(data["y"] + 1))

    problem = gradbench.Problem(
        init=lambda key: 0.1 * jnp.ones(3), loss=loss, data={"x": features, "y": counts}, examples=60
    )
    report = gradbench.check_gradient(problem, fast=True, programs=programs)
    assert report.verdict == "PASS", str(report)
