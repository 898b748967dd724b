"""check --search: faults that lie at no case of the list, and the smallest case of each."""

import sys

import hypothesis.configuration
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradbench
from gradbench.errors import PlanError
from gradbench.gradients.functions import session
from gradbench.gradients.functions.cases import from_letters
from gradbench.gradients.fuzz.search import smallest

LETTERS = "x: f32[n,d]"


def plain(x):
    return jnp.tanh(x)


def wrong(x):  # NumPy's: nothing is compiled
    n, d = x.shape
    return np.tanh(x) * (0.99 if n % 11 == 0 and d > 4 else 1)


def check(mine, **options):
    return gradbench.check_function(mine, reference=plain, inputs=LETTERS, fast=True, **options)


def test_a_fault_at_no_size_of_the_list_is_found_at_its_smallest_case():
    assert check(wrong).verdict == "PASS"
    report = check(wrong, search=30)
    assert report.culprit == "value under eager in float32 at n=11,d=5,random,0"
    assert "dtype='float32', case='n=11,d=5,random,0')" in str(report)
    assert check(wrong, case="n=11,d=5,random,0").verdict == "FAIL"


@pytest.mark.thorough
def test_a_wrong_backward_pass_at_no_size_of_the_list_is_found():
    mine = jax.custom_vjp(plain)

    def backward(y, ct):
        return ((1 - y * y) * ct * (0.99 if len(y) == 10 else 1),)

    mine.defvjp(lambda x: (plain(x), plain(x)), backward)
    options = {"reference": plain, "inputs": "x: f32[n], n in 9|10|11", "fast": True}
    assert gradbench.check_function(mine, **options).verdict == "PASS"
    assert gradbench.check_function(mine, **options, search=10).culprit == "vjp under jit in float32 at n=10,random,0"


def test_a_right_function_passes_and_the_report_says_how_much_was_searched():
    few = {"reference": plain, "inputs": "x: f32[n], n in 1..9", "fast": True}
    report = gradbench.check_function(lambda x: jnp.tanh(x), **few, search=5)
    assert report.verdict == "PASS"
    assert any("cases beyond the list were searched in float32" in note for note in report.notes)


@pytest.mark.thorough
def test_near_given_arrays_other_seeds_are_searched():
    def mine(x):
        return plain(x) * jnp.where((x > 1.14) & (x < 1.9), 0.9, 1)

    def near(**options):
        return gradbench.check_function(mine, jnp.ones(1, "float32"), reference=plain, **options)

    assert near().verdict == "PASS"
    assert near(search=100).culprit.startswith("value under jit in float32 at random,")


def test_a_failure_that_is_likely_among_many_answers_is_none(monkeypatch):
    """The tolerance of one answer, to which all of a search are held, is larger than that of each."""
    monkeypatch.setattr(session, "quantile", lambda numbers: 1e9 if numbers == 30 else 1.0)  # only the value is judged
    assert check(wrong, search=30).verdict == "PASS"


def test_each_number_is_the_least_at_which_it_fails():
    total = smallest(lambda c: c[0] + c[1] >= 30, [20, 100], 100)
    assert sum(total or ()) == 30
    assert smallest(lambda c: c[0] > 6 and c[1] % 5 == 2, [1000, 1000], 100) == (7, 2)
    assert smallest(lambda c: False, [3, 3], 100) is None
    assert smallest(lambda c: None, [3, 3], 100) is None


def test_every_run_tries_the_same():
    runs = [[], []]
    for tried in runs:
        smallest(lambda c: tried.append(c) or c[0] % 37 == 36, [129, 129], 50)  # noqa: B023
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 30


def test_hypothesis_writes_nothing(tmp_path, monkeypatch):
    """It would keep the constants of every module, here of one that is new to it."""
    (tmp_path / "constants_of_mine.py").write_text("N = 37\n")
    monkeypatch.syspath_prepend(tmp_path)
    home = tmp_path / "home"
    hypothesis.configuration.set_hypothesis_home_dir(home)
    try:
        __import__("constants_of_mine")
        smallest(lambda c: False, [1000, 1000], 100)
    finally:
        hypothesis.configuration.set_hypothesis_home_dir(None)
        sys.modules.pop("constants_of_mine")
    assert not home.exists()


@pytest.mark.parametrize(
    ("args", "largest"), [("x: f32[a,b,c,d]", 129**2), ("x: f32[n,d], n in 200..300", 300 * 129), ("x: f32[3]", 1)]
)
def test_the_sizes_of_a_case_are_those_allowed_and_their_product_is_bounded(args, largest):
    source, _ = from_letters(args, None)
    counts, case = source.searched()
    most = case(tuple(count - 1 for count in counts))
    assert source.allows(most.sizes)
    assert most.total <= max(largest, 3)
    assert case((0,) * len(counts)).label.endswith("random,0")


@pytest.mark.parametrize("search", [-1, "ten", 1.5, True])
def test_what_is_no_number_of_examples_is_refused(search):
    with pytest.raises(PlanError, match="need how many examples are tried"):
        check(plain, search=search)


def test_a_search_beside_a_case_is_refused():
    with pytest.raises(PlanError, match="give one of the two"):
        check(plain, search=5, case="random,0")


def test_without_hypothesis_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(PlanError, match=r"^search: needs hypothesis: pip install hypothesis$"):
        check(plain, search=5)
