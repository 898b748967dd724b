"""Shapes by letters: what is drawn, and the one line for what cannot be read."""

import numpy as np
import pytest

from gradbench.errors import PlanError
from gradbench.gradients.functions import arguments


def drawn(text, dtype="", seed=0, **sizes):
    return arguments.draw(arguments.parse(text), sizes, dtype, np.random.default_rng(seed))


def test_shapes_dtypes_and_fixed_values():
    x, idx, axis, kind = drawn("x: f32[n, 2*d+1], idx: i32[n] in 0..d, axis = -1, kind='relu'", n=4, d=3)
    assert (x.shape, str(x.dtype)) == ((4, 7), "float32")
    assert (idx.shape, str(idx.dtype)) == ((4,), "int32")
    assert set(idx) <= {0, 1, 2}
    assert (axis, kind) == (-1, "relu")


def test_the_dtype_under_test_takes_the_place_of_what_is_written():
    assert [str(a.dtype) for a in drawn("x: f32[2], y: f[2], z: bf16[]", "float16")] == ["float16"] * 3
    assert [str(a.dtype) for a in drawn("x: f64[2], y: f[2], z: bf16[]")] == ["float64", "float32", "bfloat16"]
    assert arguments.parse("x: f64[2], z: bf16[], y: f[3]").own_dtype == "bfloat16"


def test_floats_lie_in_their_range():
    (x,) = drawn("x: f64[n] in 2..2*n", n=50)
    assert x.min() >= 2
    assert x.max() <= 100
    assert x.max() > 50


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x: f33[n]", r"no dtype 'f33', did you mean 'f32'\?"),
        ("x f32[n]", "cannot read 'x f32.n.'; write --args"),
        ("x: f32[n], idx: i32[n]", r"whole numbers need their range, as in idx: i32\[n\] in 0..8"),
        ("x: f32[n], idx: i32[n] in 0..m", "no shape has the letter 'm'"),
        ("x: f32[n], m in 8..16", "no shape has the letter 'm'"),
        ("x: f32[n], n in 8;16", "cannot read"),
        ("x: f32[n], n in 8..", "write a letter's sizes as n in 8..256"),
        ("x: f32[n.real]", "is no size; write a number, a letter"),
        ("x: f32[__import__('os')]", "is no size|cannot read"),
        ("x: f32[n], axis = minus", "minus is no Python literal"),
        ("axis = 1", "no array in"),
    ],
)
def test_what_cannot_be_read_is_one_line(text, words):
    with pytest.raises(PlanError, match=words) as caught:
        arguments.parse(text)
    assert "\n" not in str(caught.value)


def test_an_empty_range_and_a_negative_size_are_refused():
    with pytest.raises(PlanError, match=r"idx: nothing lies in 0..0 at \{'n': 2, 'm': 0\}"):
        drawn("x: f32[m], idx: i32[n] in 0..m", n=2, m=0)
    with pytest.raises(PlanError, match="x has a negative size"):
        drawn("x: f32[n-1]", n=0)
