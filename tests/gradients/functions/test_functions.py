"""check_function: what is found, where, and what is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.test_util import check_grads
from sampling import sample

import gradbench
from gradbench.errors import GradbenchError
from gradbench.gradients.functions import expected
from gradbench.gradients.functions.cases import SEEDS

LETTERS = "x: f32[n,d]"


def plain(x):
    return jax.nn.softmax(x, axis=-1)


def written_out(x):
    e = jnp.exp(x - jnp.max(x, axis=-1, keepdims=True))
    return e / jnp.sum(e, axis=-1, keepdims=True)


def check(mine, reference=plain, inputs=LETTERS, **options):
    return gradbench.check_function(mine, reference=reference, inputs=inputs, **options)


def row(report, what, program="jit"):
    return next(row for row in report.rows if (row.check, row.program) == (what, program))


def test_a_right_function_passes_in_every_program():
    report = check(written_out, fast=True)
    assert report.verdict == "PASS"
    programs = {(row.check, row.program) for row in report.rows}
    assert programs >= {(what, "jit") for what in ("value", "vjp", "jvp", "vjp against jvp")}
    assert programs >= {(what, how) for what in ("value", "vjp") for how in ("eager", "vmap")} | {("vjp", "remat")}
    assert all(row.resolves < 1e-4 for row in report.rows)
    gradbench.assert_function(written_out, reference=plain, inputs=LETTERS, case="random,0", strict=True)


def test_an_empty_argument_has_no_derivative_to_compare():
    def function(x, y):
        return jnp.sum(x**2) + jnp.sum(y**2)

    assert gradbench.check_function(function, jnp.ones((0, 2)), jnp.ones(3), fast=True).verdict == "PASS"


@pytest.mark.parametrize("dtype", sample(["float64", "bfloat16", "float16"]))
def test_a_right_function_passes_in_the_other_dtypes(dtype):
    report = check(written_out, dtype=dtype, case="random,0")
    assert report.verdict == "PASS"
    assert {row.dtype for row in report.rows} == {dtype}


@pytest.mark.thorough
def test_right_at_128_and_wrong_at_129_is_found_at_129():
    def tiled(x):
        whole = len(x) // 128 * 128 or len(x)
        return jnp.where(jnp.arange(len(x))[:, None] < whole, written_out(x), 0)

    assert check(tiled, case="n=128,random,0").verdict == "PASS"
    report = check(tiled, fast=True)
    row, finding = report.smallest
    assert (report.verdict, row.check, row.program) == ("FAIL", "value", "jit")
    assert finding.case.startswith("n=129,")
    assert "value[128, 0]: got 0, expected" in str(report)
    again = check(tiled, case=finding.case)
    assert again.verdict == "FAIL"
    with pytest.raises(AssertionError, match=f"case='{finding.case}'"):
        gradbench.assert_function(tiled, reference=plain, inputs=LETTERS, fast=True)


def test_zeros_that_pass_allclose_fail():
    small = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    assert np.allclose(np.zeros(100), 1e-6 * small, rtol=1.3e-6, atol=1e-5)  # torch.testing's for float32
    report = check(jnp.zeros_like, lambda x: 1e-6 * x, case="random,0")
    assert row(report, "value").verdict == "FAIL"
    assert "blocked" in row(report, "value").worst.reason


@pytest.mark.thorough
def test_a_right_bfloat16_gradient_that_check_grads_refuses_passes():
    def wave(x):
        return jnp.sin(3 * x) * x

    x = jnp.linspace(-2, 2, 64).astype(jnp.bfloat16)
    with pytest.raises(AssertionError):
        check_grads(lambda x: jnp.sum(wave(x)), (x,), order=1, modes=["rev"])
    report = gradbench.check_function(wave, x, reference=lambda x: x * jnp.sin(3 * x), case="given,0")
    assert (report.verdict, report.rows[0].dtype) == ("PASS", "bfloat16")


def kernel(x_ref, o_ref):
    o_ref[...] = jnp.exp(x_ref[...]) * 0.5


def opaque(x):
    return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)


def called_back(x):
    return jax.pure_callback(lambda x: np.exp(x) * np.asarray(0.5, x.dtype), jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def of_numpy(x):
    return np.exp(x) * np.asarray(0.5, x.dtype)


@pytest.mark.parametrize("mine", sample([opaque, called_back, of_numpy]))
def test_an_opaque_function_needs_no_rounding_rule(mine):
    report = check(mine, lambda x: jnp.exp(x) / 2, case="random,0")
    assert report.verdict == "PASS"
    assert {row.check for row in report.rows} <= {"value", "jvp"}
    assert report.skipped
    wrong = check(lambda x: mine(x) * np.asarray(1.01, x.dtype), lambda x: jnp.exp(x) / 2, case="random,0")
    assert row(wrong, "value", "eager").verdict == "FAIL"


def changes_its_input(x):
    y = np.tanh(x)
    x *= 2
    return y


def kept(x, seen={}):  # noqa: B006  the fault
    y = np.tanh(x)
    return seen.setdefault(x.shape, y)


def first_call_wrong(x, calls=[]):  # noqa: B006  the fault
    y = np.tanh(x)
    calls.append(1)
    return y * np.asarray(1.5 if len(calls) == 1 else 1, x.dtype)


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        (changes_its_input, "is changed by the call"),
        (kept, "value is off by"),
        (first_call_wrong, "2 different answers in 5 calls"),
    ],
)
def test_a_function_with_a_state_is_found(mine, words):
    report = check(mine, jnp.tanh, "x: f32[n], n in 4|5")
    assert report.verdict == "FAIL"
    assert words in str(report)


@jax.custom_batching.custom_vmap
def first_lane_wrong(x):
    return jnp.tanh(x)


@first_lane_wrong.def_vmap
def _(size, batched, x):
    return jnp.tanh(x).at[0].multiply(0.5), True


def test_a_batch_rule_is_judged_lane_by_lane():
    report = check(first_lane_wrong, jnp.tanh, case="random,0")
    assert {row.program for row in report.rows if row.verdict == "FAIL"} == {"vmap"}


def test_a_nan_goes_where_the_references_does():
    report = check(lambda x: jnp.nan_to_num(plain(x)), case="nan:0,0")
    assert "where the reference is NaN" in row(report, "value").worst.reason
    assert check(written_out, case="nan:0,0").verdict == "PASS"


def test_what_the_reference_loses_too_is_no_fault():
    """The squares overflow in float32 and not in float64: of the reference they give infinity as well."""

    def size(x):
        return jnp.sqrt(jnp.mean(x * x, axis=-1))

    def scaled(x):
        return size(x * 2.0**-70) * 2.0**70

    report = check(size, size, case="overflow,0")
    assert report.verdict == "INCONCLUSIVE"
    assert "the reference itself, run in float32" in str(report)
    assert check(scaled, size, case="overflow,0").verdict == "PASS"
    assert check(size, scaled, case="overflow,0").verdict == "FAIL"


def test_a_nan_for_a_number_beyond_the_range_is_undecided_and_for_one_within_a_fault():
    def horner(x):
        return x * (x * (x - 2.0) + 3.0)

    def powers(x):
        return x**3 - 2.0 * x**2 + 3.0 * x  # inf - inf

    report = check(powers, horner, case="overflow,0")
    assert report.verdict == "INCONCLUSIVE"
    assert "the right number lies beyond float32's range" in str(report)
    assert check(lambda x: 0.0 * x, horner, case="overflow,0").verdict == "FAIL"
    assert check(lambda x: jnp.tanh(powers(x)), lambda x: jnp.tanh(horner(x)), case="overflow,0").verdict == "FAIL"


def test_a_right_formula_that_fails_is_said_to_lose_digits():
    def direct(x):
        return jnp.log1p(jnp.exp(x))

    report = check(lambda x: jnp.log(1 + jnp.exp(x)), direct, inputs="x: f32[n] in -9..-8", fast=True)
    assert report.verdict == "FAIL"
    assert "value at n=1,random,0" in report.notes[-1]
    assert "no formula is wrong there; it loses digits" in report.notes[-1]
    wrong = check(lambda x: direct(x) * (1 + 2.0**-20), direct, inputs="x: f32[n] in -9..-8", fast=True)
    assert wrong.verdict == "FAIL"
    assert "no formula is wrong" not in str(wrong)


@pytest.mark.thorough
def test_digits_are_lost_also_where_the_reference_has_none_to_lose():
    """Of powers of two the square's gradient is exact; that of |x| - min(|x|, 1) is 1 - 1 and then some."""

    def huber(x):
        return jnp.where(jnp.abs(x) <= 1, 0.5 * x * x, jnp.abs(x) - 0.5)

    def clipped(x):
        q = jnp.minimum(jnp.abs(x), 1)
        return 0.5 * q * q + (jnp.abs(x) - q)

    report = gradbench.check_function(clipped, jnp.ldexp(1.0, -jnp.arange(3, 12)), reference=huber, fast=True)
    assert report.verdict == "FAIL"
    assert "no formula is wrong there; it loses digits" in report.notes[-1]


@pytest.mark.thorough
def test_inputs_that_are_equal_by_chance_leave_a_derivative_undecided_within_their_entries():
    """In 16 bits some of a hundred random numbers are equal; each may get what the other does, or half of both."""

    @jax.custom_vjp
    def shared(x):
        return jnp.sort(x)

    def backward(x, ct):
        order = jnp.argsort(x)
        alike = x[order][:, None] == x[order][None]
        return (jnp.zeros_like(x).at[order].set((alike @ ct.astype(jnp.float32) / alike.sum(1)).astype(x.dtype)),)

    shared.defvjp(lambda x: (jnp.sort(x), x), backward)
    found = check(shared, jnp.sort, inputs="x: bf16[n]", case="n=129,random,0")
    assert row(found, "vjp").verdict == "INCONCLUSIVE"
    assert "inputs are equal" in row(found, "vjp").worst.reason

    @jax.custom_vjp
    def wrong(x):
        return jnp.sort(x)

    wrong.defvjp(lambda x: (jnp.sort(x), x), lambda x, ct: (1.25 * backward(x, ct)[0],))
    assert row(check(wrong, jnp.sort, inputs="x: bf16[n]", case="n=129,random,0"), "vjp").verdict == "FAIL"


def test_another_derivative_at_a_kink_is_undecided_and_off_it_a_fault():
    def steps(x):
        return jnp.where(x >= 0, x, 0)

    report = check(steps, jax.nn.relu, "x: f32[n]", case="zeros,0")
    assert report.verdict == "INCONCLUSIVE"
    assert "may have a kink here" in str(report)
    assert check(steps, jax.nn.relu, "x: f32[n]", case="random,0").verdict == "PASS"


def test_whole_numbers_are_compared_exactly():
    def best(x):
        return jnp.max(x, axis=-1), jnp.argmax(x, axis=-1)

    def last(x):
        return jnp.max(x, axis=-1), x.shape[-1] - 1 - jnp.argmax(x[..., ::-1], axis=-1)

    assert row(check(last, best, case="d=17,random,0"), "value").verdict == "PASS"
    assert row(check(last, best, case="equal,0"), "value").worst.reason == "value[1][0] is 2 instead of 0"


@pytest.mark.thorough
def test_pytrees_in_and_out():
    def layer(params, x, scale):
        return {"y": x @ params["w"] + params["b"], "norms": [jnp.sum(x * x) * scale]}

    def wrong(params, x, scale):
        return layer({"w": params["w"], "b": params["b"][::-1]}, x, scale)

    given = ({"w": np.ones((3, 2)), "b": np.arange(2.0)}, np.ones((4, 3)), 0.5)
    report = gradbench.check_function(layer, *given, reference=layer, dtype="float32", case="random,0")
    assert report.verdict == "PASS"
    assert "of params['w'] alone" in {row.program for row in report.rows}
    report = gradbench.check_function(wrong, *given, reference=layer, dtype="float32", case="random,0")
    assert row(report, "value").worst.reason.startswith("value[1] is off")


def test_cases_of_a_function():
    def cases(key):
        return [(jax.random.normal(key, (n, 2)), 0) for n in (2, 3)]

    report = check(lambda x, axis: jnp.flip(jnp.flip(x, axis).cumsum(axis), axis)[::-1], jnp.cumsum, cases, fast=True)
    assert report.verdict == "FAIL"
    report = check(lambda x, axis: jnp.cumsum(x, axis), jnp.cumsum, cases)
    assert report.verdict == "PASS"
    assert len({f.case for r in report.rows for f in r.findings if "random" in f.case}) == SEEDS + 1


def test_a_large_call_is_judged_by_a_compiled_band(monkeypatch):
    monkeypatch.setattr(expected, "MANY", 10)
    report = check(lambda x: x * 0.3, lambda x: x / 3, case="random,0")
    assert row(report, "value").verdict == "FAIL"
    assert row(report, "value").off > 1e5


def test_the_report_says_everything_in_json():
    report = check(lambda x: 0.9 * plain(x), case="random,0")
    document = report.to_json()
    assert document["verdict"] == "FAIL"
    assert {r["check"] for r in document["rows"]} == {"value", "vjp", "jvp", "vjp against jvp"}
    assert {"check", "program", "dtype", "verdict", "would_have_caught"} <= set(report.table()[0])
    page = report._repr_html_()
    assert page.count("<tr>") == 1 + len(report.table())
    assert "<th>error (bands)</th>" in page
    assert "None" not in page
    assert repr(report).startswith("FunctionReport f against plain: FAIL, 1 cases")


@pytest.mark.parametrize(
    ("mine", "options", "words"),
    [
        (plain, {"inputs": LETTERS, "reference": of_numpy}, "of_numpy: the reference raised .* is for jax.numpy"),
        (
            plain,
            {"inputs": LETTERS, "reference": lambda x: x @ x},
            r"f: the reference raised TypeError.*float32\[5, 3\]",
        ),
        (lambda x: x @ x, {"inputs": LETTERS, "reference": plain}, r"f raised \w+Error: .*; at float32\[5, 3\]"),
        (plain, {"inputs": LETTERS, "reference": lambda x: x > 0}, r"f: it returns no float \(bool\)"),
        (opaque, {"inputs": LETTERS}, "opaque: nothing is known of what pallas_call should compute; give a reference"),
        (of_numpy, {"inputs": LETTERS}, "of_numpy: JAX cannot trace it .*; give a reference"),
        (plain, {}, "give arguments, or inputs: shapes by letters"),
        (plain, {"inputs": "x: f32[n"}, "cannot read"),
        (plain, {"inputs": LETTERS, "dtype": "float31"}, "dtype: no 'float31', did you mean 'float32'"),
        (plain, {"inputs": LETTERS, "precision": "high"}, "precision: no 'high'"),
        (plain, {"inputs": LETTERS, "case": "rnadom"}, "case: no 'rnadom'"),
        (plain, {"inputs": (np.ones(3),)}, r"inputs is a tuple; give arguments one by one: check_function\(f, x, y\)"),
        (plain, {"inputs": lambda key: 1 / 0}, r"f\(key\) raised ZeroDivisionError"),
        (42, {"inputs": LETTERS}, "42: not a function"),
    ],
)
def test_bad_input_is_one_line(mine, options, words):
    with pytest.raises(GradbenchError, match=words) as caught:
        gradbench.check_function(mine, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.thorough
def test_where_only_the_places_of_nan_are_off_a_note_says_that_no_formula_is_wrong():
    def take(t, i):
        return t[i]

    def one_hot(t, i):
        return jax.nn.one_hot(i, t.shape[0], dtype=t.dtype) @ t

    inputs = "t: f32[5,3], i: i32[4] in 0..5"
    found = gradbench.check_function(one_hot, reference=take, inputs=inputs)
    assert found.verdict == "FAIL"
    assert any("where NaN and infinity go" in note for note in found.notes)
    assert gradbench.check_function(one_hot, reference=take, inputs=f"{inputs[:11]} in -4..4{inputs[11:]}").passed
    wrong = gradbench.check_function(lambda t, i: 1.01 * one_hot(t, i), reference=take, inputs=inputs)
    assert not any("where NaN and infinity go" in note for note in wrong.notes)
