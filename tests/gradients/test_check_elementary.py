"""The laws of elementary functions on this device and JAX: of all numbers of 16 bits, of samples of the wider ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax import lax
from sampling import sample

import gradbench
from gradbench.gradients.rounding.numbers.formats import format_of
from gradbench.gradients.rounding.primitives import ELEMENTARY_UNITS, names, within

# name -> NumPy's or SciPy's. Those of float32 and float64 are off by less than a unit in extended precision.
KNOWN = {name: getattr(np, name) for name in names("exp exp2 log log1p expm1 tanh sin cos tan sinh cosh cbrt sqrt")}
KNOWN |= {name: getattr(np, f"arc{name[1:]}") for name in names("asin acos atan asinh acosh atanh")}
KNOWN |= {"logistic": scipy.special.expit, "erf": scipy.special.erf, "erfc": scipy.special.erfc}
KNOWN |= {"rsqrt": lambda x: 1 / np.sqrt(x)}
# On a CPU jaxlib 0.10 is off by up to 240 units near x = -0.41; 0.12 is not.
FAULTY = {("log1p", "float64"), ("atanh", "float64")} if jax.__version_info__ < (0, 12) else set()


def numbers(dtype):
    """All finite numbers of a format of 16 bits, or many of a wider one; on a CPU subnormal ones count as zeros."""
    kind, generator = jnp.dtype(dtype), np.random.default_rng(0)
    if kind.itemsize == 2:
        x = np.arange(2**16).astype(np.uint16).view(kind)
    else:
        some = generator.integers(0, 2 ** (8 * kind.itemsize - 1), 50_000).astype(f"uint{8 * kind.itemsize}").view(kind)
        ends = (2, 30, 100, 800)
        x = np.concatenate([some, -some, *(generator.uniform(-end, end, 20_000).astype(kind) for end in ends)])
    with np.errstate(invalid="ignore"):  # of NaNs that signal
        x = x[np.isfinite(x)]
    wide = np.abs(x.astype(np.float64))
    return x[(wide >= format_of(dtype).tiny) | (wide == 0)]


@pytest.mark.parametrize("dtype", sample(["bfloat16", "float32", "float16", "float64"], 2))
def test_no_elementary_function_is_off_by_more_than_its_law(dtype):
    x, form = numbers(dtype), format_of(dtype)
    wide = x.astype(np.longdouble if dtype == "float64" else np.float64)
    beyond = {}
    for name, known in KNOWN.items():
        if (name, dtype) in FAULTY:
            continue
        with jax.enable_x64(dtype == "float64"), np.errstate(all="ignore"):
            got = np.asarray(jax.jit(getattr(lax, name))(x)).astype(wide.dtype)
            exact = np.asarray(known(wide if name not in ("logistic", "erf", "erfc") else x.astype(np.float64)))
            law = ELEMENTARY_UNITS * (form.unit * np.abs(exact) + form.tiny)
            law += np.asarray(within(name, x.astype(np.float64), exact.astype(np.float64), form))
            off = np.where(np.abs(exact) <= form.largest, np.abs(got - exact) / law, 0)  # not of NaN or infinity
        if not np.all(off <= 1):
            beyond[name] = float(x[np.nanargmax(off)]), float(np.nanmax(off))
    assert beyond == {}


@pytest.mark.parametrize(
    ("name", "inputs", "dtype"),
    sample(
        [
            ("exp2", "x: f32[n] in -100..100", "bfloat16"),
            ("erfc", "x: f32[n] in 0..9", "float32"),
            ("exp2", "x: f32[n] in -100..100", "float32"),
            ("sinh", "x: f32[n] in -80..80", "float32"),
            ("sinh", "x: c64[n] in 0..1e-3", "float32"),
            ("logistic", "x: f32[n] in -30..30", "float16"),
        ],
        2,
    ),
)
def test_a_function_passes_beside_itself_far_out(name, inputs, dtype):
    function = getattr(lax, name)
    report = gradbench.check_function(lambda x: function(x), inputs=inputs, reference=function, dtype=dtype, fast=True)
    assert report.verdict == "PASS", report
