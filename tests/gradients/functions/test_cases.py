"""Which sizes and inputs a function is called with."""

import numpy as np
import pytest

from gradbench.errors import PlanError
from gradbench.gradients.functions import cases
from gradbench.gradients.rounding.numbers.formats import format_of


def source(text="x: f32[n,d], w: f32[d,k]", dtype=None):
    return cases.from_letters(text, dtype)[0]


def test_the_sizes_are_the_documented_ones():
    three = [dict(case.sizes) for case in source().cases()]
    shapes = {tuple(sizes.values()) for sizes in three}
    assert three[0] == {"n": 5, "d": 3, "k": 7}
    assert shapes >= {
        (0, 3, 7),
        (1, 3, 7),
        (128, 3, 7),
        (5, 129, 7),
        (5, 3, 129),
        (2, 2, 2),
        (127, 17, 2),
        (2, 127, 17),
    }
    assert len(shapes) == 1 + 4 * 3 + 4
    assert {case.sizes["n"] for case in source("x: f32[n]").cases()} == {0, 1, 2, 5, 17, 127, 128, 129}


def test_sizes_of_ones_own():
    assert {case.sizes["n"] for case in source("x: f32[n], n in 8|16|24").cases()} == {8, 16, 24}
    found = {case.sizes["n"] for case in source("x: f32[n], n in 4..130").cases()}
    assert found == {4, 5, 17, 127, 128, 129, 130}


def test_a_label_gives_its_case_again():
    for case in source().cases():
        again = source().one(case.label)
        assert again.label == case.label
        for one, other in zip(case.arguments, again.arguments):
            np.testing.assert_array_equal(one, other)


def test_seeds_and_letters_give_other_inputs():
    drawn = {case.arguments[0].tobytes() for case in source().cases() if case.kind == "random"}
    assert (
        len(drawn) == len([case for case in source().cases() if case.kind == "random" and case.arguments[0].size]) + 1
    )


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_kinds_are_what_they_are_called(dtype):
    form = format_of(dtype)
    found = {case.kind: case.arguments for case in source(dtype=dtype).cases() if dict(case.sizes) == source().base()}
    x = {kind: arguments[0].astype(np.float64) for kind, arguments in found.items()}
    assert not x["zeros"].any()
    assert (x["ones"] == 1).all()
    assert len(np.unique(x["equal"])) == 1
    assert len(np.unique(x["ties"])) < x["ties"].size
    assert ((np.abs(x["subnormal"]) < form.tiny) & (x["subnormal"] != 0)).all()
    assert (np.abs(x["overflow"]) > form.largest / 4).all()
    assert np.isfinite(x["overflow"]).all()
    assert (np.isnan(x["nan:0"]).sum(), np.isnan(x["nan:1"]).sum()) == (1, 0)
    assert (np.isposinf(x["inf:0"]).sum(), np.isneginf(x["-inf:0"]).sum()) == (1, 1)


def test_equal_entries_are_duplicate_indices():
    found = source("x: f32[n], idx: i32[n] in 0..n").one("equal,0")
    assert len(np.unique(found.arguments[1])) == 1


def test_a_declared_range_of_floats_has_no_inputs_outside_it():
    assert {case.kind for case in source("x: f32[n] in 1..2").cases()} == {"random"}


@pytest.mark.parametrize(
    ("text", "words"),
    [("n=129,randm,0", "no 'randm', did you mean 'random'"), ("m=3", "no 'm=3'"), ("n=x", "no 'n=x'")],
)
def test_an_unknown_case_is_one_line(text, words):
    with pytest.raises(PlanError, match=words):
        source().one(text)
