"""Complex arguments and results: their real and imaginary parts are judged, and holomorphic or not is said."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import gradbench
from gradbench.errors import PlanError
from gradbench.gradients.functions import arguments, cases, programs

LETTERS = "z: c64[n], w: c64[n], n in 1|5|17"


def check(mine, reference, inputs="z: c64[n]", **options):
    return gradbench.check_function(mine, reference=reference, inputs=inputs, **({"fast": True} | options))


def squared(rule):
    made = jax.custom_vjp(lambda z: z * z)
    made.defvjp(lambda z: (z * z, z), lambda z, ct: (rule(z, ct),))
    return made


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.thorough)])
def test_a_right_function_passes_and_says_where_it_is_holomorphic(dtype):
    report = check(lambda z, w: jnp.exp(z) * w.conj(), lambda z, w: w.conj() * jnp.exp(z), LETTERS, dtype=dtype)
    assert report.verdict == "PASS"
    assert {row.check for row in report.rows} == {"value", "vjp", "jvp", "vjp against jvp"}
    (note,) = report.notes
    assert note.startswith("the reference is holomorphic in z and not holomorphic in w at n=5,random,0")


OF_ITSELF = {
    "abs": jnp.abs,
    "sqrt": jnp.sqrt,
    "quotient": lambda z: z / (z * z + 4),
    "sign": jnp.sign,
    "angle": jnp.angle,
    "log": jnp.log,
    "tanh": jnp.tanh,
    "fft": jnp.fft.fft,
    "cube": lambda z: z**3,
}


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(f, id=name, marks=[] if i < 1 else pytest.mark.thorough)
        for i, (name, f) in enumerate(OF_ITSELF.items())
    ],
)
def test_a_function_does_not_leave_its_own_band(function):
    assert check(function, function, case="n=5,random,0").verdict == "PASS"


@pytest.mark.thorough
def test_the_conjugate_is_the_imaginary_part_with_its_sign_flipped():
    report = check(jnp.conj, lambda z: 1 * z)
    assert report.verdict == "FAIL"
    assert "value.imag is off" in str(report)
    assert "the sign is flipped" in str(report)


@pytest.mark.thorough
def test_a_rule_that_conjugates_is_found_by_itself():
    assert check(squared(lambda z, ct: ct * 2 * z), None).verdict == "PASS"
    report = check(squared(lambda z, ct: ct * 2 * jnp.conj(z)), None)
    assert {row.check for row in report.rows if row.verdict == "FAIL"} == {"vjp"}


def test_an_opaque_function_gets_numpys_complex_numbers():
    report = check(lambda z: np.exp(np.asarray(z)), jnp.exp)
    assert report.verdict == "PASS"
    assert {row.program for row in report.rows} == {"eager"}


def test_there_are_no_complex_numbers_of_16_bits():
    with pytest.raises(PlanError, match="dtype=bfloat16: an argument is complex; complex numbers have float32 or"):
        check(jnp.exp, jnp.exp, dtype="bfloat16")


def test_complex_letters_and_their_kinds():
    parsed = arguments.parse("z: c128[n], x: f32[n]")
    assert parsed.own_dtype == "float32"
    z, x = arguments.draw(parsed, {"n": 3}, "", np.random.default_rng(0))
    assert (z.dtype, x.dtype) == (np.complex128, np.float32)
    assert arguments.draw(parsed, {"n": 3}, "float32", np.random.default_rng(0))[0].dtype == np.complex64
    (made,) = cases.altered("nan:1", (np.ones(3, np.complex64),), np.random.default_rng(0))
    assert (np.isnan(made.real).sum(), np.isnan(made.imag).sum()) == (0, 1)


def test_parts_keep_infinities():
    made = cases.complex_of(np.array([np.inf, 1.0], np.float32), np.array([0.0, -np.inf], np.float32))
    assert made.dtype == np.complex64
    np.testing.assert_array_equal(made.real, [np.inf, 1])
    np.testing.assert_array_equal(made.imag, [0, -np.inf])


Z = np.array([0.5 + 1j, -1 + 0.25j], np.complex64)


def test_a_loss_of_complex_parameters_is_differentiated_by_both_parts():
    def loss(z, x):
        return jnp.sum(jnp.abs(z * z + x) ** 2)

    report = gradbench.check_gradient(loss, Z, np.ones(2, np.float32), fast=True)
    assert report.verdict == "PASS"
    assert set(report.leaves) == {"z.real", "z.imag", "x"}
    check_grads(lambda z: loss(z, 1.0), (jnp.asarray(Z),), order=1, modes=["rev"], rtol=1e-2)  # another library agrees


def test_a_wrong_rule_of_complex_parameters_is_found():
    wrong = squared(lambda z, ct: ct * 2 * jnp.conj(z))
    report = gradbench.check_gradient(lambda z: jnp.sum(jnp.abs(wrong(z) + 1) ** 2), Z, fast=True)
    assert report.formula_verdict == "FAIL"


def test_a_gradient_that_cancels_to_zero_is_not_accused():
    report = gradbench.check_gradient(lambda z: jnp.sum(jnp.abs(jnp.exp(z)) ** 2), Z, fast=True)
    assert report.formula_verdict == "PASS"


def test_an_array_of_another_library_is_told_by_its_dtypes_name():
    """PyTorch's dtypes are none that NumPy knows: asking NumPy raised."""
    assert programs.is_complex(SimpleNamespace(dtype="torch.complex64"))
    assert not programs.is_complex(SimpleNamespace(dtype="torch.float32"))
