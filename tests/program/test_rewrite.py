"""Divisions by reciprocals, sums by parts, and nothing else changes."""

from __future__ import annotations

import math

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit_quickly
from sampling import sample

from gradbench.errors import GradbenchWarning, PlanError
from gradbench.program.xla import rewrite, switch
from gradbench.program.xla.jaxprs import equations
from gradbench.program.xla.products import as_products
from gradbench.program.xla.rewrite import rewritten

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)


def scanned(x):
    return jax.lax.scan(lambda carry, row: (carry + row / row.sum(), carry / (1 + row[0] ** 2)), jnp.zeros(3), x)


def rescaled(x):
    return jax.lax.while_loop(lambda x: jnp.max(x / jnp.sum(x)) > 9, lambda x: x / jnp.sum(x**2), x)


@jax.custom_jvp
def normalised(x):
    return x / jnp.sum(x)


normalised.defjvp(lambda primals, tangents: (normalised(*primals), tangents[0]))

FUNCTIONS = {
    "softmax": jax.nn.softmax,
    "in a jit": jax.jit(lambda x: {"a": x / jnp.linalg.norm(x), "b": [x.sum(0, keepdims=True) + x]}),
    "in a scan": scanned,
    "in a while loop": rescaled,
    "in a branch": lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x / x[0], lambda x: x / jnp.sum(x), x),
    "in a function with a derivative of its own": lambda x: normalised(x),
    "its gradient": jax.grad(lambda x: jnp.sum(x**3 / jnp.sum(x**2))),
    "batched": jax.vmap(lambda x, scale: x / scale, in_axes=(0, None)),
}


def divisions(function, *args):
    """Of every x / y, whether y is broadcast."""
    found = [e for e in equations(jax.make_jaxpr(function)(*args)) if e.primitive.name == "div"]
    return [e.invars[1].aval.size < e.outvars[0].aval.size for e in found]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_array_is_divided_by_a_broadcast_one(name):
    args = (X, jnp.float32(3)) if name == "batched" else (X,)
    function = FUNCTIONS[name]
    assert any(divisions(function, *args))  # or this test would see nothing
    changed = rewritten(function, "gpu")
    assert not any(divisions(changed, *args))
    results = [jit_quickly(each)(*args) for each in (changed, function)]
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    for new, old in zip(*map(jax.tree.leaves, results), strict=True):
        # One rounding more for each of the few divisions that an entry goes through, and sums of 15 terms of size 1.
        np.testing.assert_allclose(new, old, rtol=20 * np.finfo(np.float32).eps, atol=20 * np.finfo(np.float32).eps)


def test_divisions_entry_by_entry_and_of_integers_stay():
    assert jnp.array_equal(rewritten(lambda x, y: x / y, "gpu")(X, X + 9), X / (X + 9))
    whole = jnp.arange(-7, 8)
    assert jnp.array_equal(rewritten(lambda x: x // 3, "gpu")(whole), whole // 3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_quotient_keeps_its_dtype_and_is_rounded_twice_at_most(dtype):
    y = jnp.asarray(1e-5, dtype)  # float16 cannot hold its reciprocal
    x = X.astype(dtype) * y
    quotient = rewritten(lambda x, y: x / y, "gpu")(x, y)
    assert quotient.dtype == dtype
    exact = np.asarray(x, np.float64) / np.asarray(y, np.float64)
    np.testing.assert_allclose(np.asarray(quotient, np.float64), exact, rtol=1.01 * float(jnp.finfo(dtype).eps))


def column_sums(x):
    return jnp.sum(x, axis=0)


SUMS = {
    "a bowl": (lambda x: jnp.sum(x), (100,)),
    "one more than a window": (lambda x: jnp.sum(x), (33,)),
    "batched, with a rest": (lambda x: jnp.mean(x, axis=-1), (7, 569)),
    "over two axes": (lambda x: jnp.sum(x, axis=(1, 2)), (3, 20, 11)),
    "in a scan": (lambda x: jax.lax.scan(lambda c, row: (c + row.sum(), row.sum()), 0.0, x)[1], (4, 1024)),
}


def summed(function, x):
    """How many entries each sum adds up."""
    found = [e for e in equations(jax.make_jaxpr(function)(x)) if e.primitive.name == "reduce_sum"]
    return [e.invars[0].aval.size // e.outvars[0].aval.size for e in found]


@pytest.mark.parametrize("name", SUMS)
def test_on_a_cpu_no_more_than_32_entries_are_summed_at_once(name):
    function, shape = SUMS[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    assert max(summed(function, x)) > 32
    assert max(summed(rewritten(function, "cpu"), x)) <= 32
    assert summed(rewritten(function, "gpu"), x) == summed(function, x)


@pytest.mark.parametrize(("shape", "axes"), [((100,), (0,)), ((33,), (0,)), ((7, 569), (1,)), ((3, 20, 11), (1, 2))])
def test_a_folded_sum_is_the_sum(shape, axes):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    folded = rewritten(lambda x: jnp.sum(x, axis=axes), "cpu")(jnp.asarray(x))
    # An entry goes through at most 5 additions of parts, 31 within the last part, 31 of the rest and one of the two.
    allowed = 68 * np.finfo(np.float32).eps / 2 * np.abs(x).sum(axis=axes)
    assert (np.abs(folded - x.sum(axis=axes, dtype=np.float64)) <= allowed).all()


@pytest.mark.parametrize("axes", sample([[0, 2], [0, 1, 2], [2], [1, 2]], 2))
def test_long_sums_over_last_axes_and_others_are_products_with_ones(axes):
    axes = tuple(axes)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 1500)), jnp.float32)
    changed = rewritten(lambda x: jnp.sum(x, axis=axes), "cpu", relayout=True)
    assert max(summed(changed, x), default=0) <= 6
    # A sum of n terms, in any order.
    n = math.prod(x.shape[axis] for axis in axes)
    allowed = n * np.finfo(np.float32).eps / 2 * jnp.abs(x).sum(axis=axes)
    assert (np.abs(changed(x) - np.sum(np.asarray(x), axis=axes, dtype=np.float64)) <= allowed).all()


def test_a_sum_of_exps_stays():
    x = jnp.ones(100)
    for function in (lambda x: jnp.sum(2 * jnp.exp(x)), lambda x: jnp.mean(jax.nn.softplus(x))):
        assert 100 in summed(rewritten(function, "cpu"), x)
    assert 100 not in summed(rewritten(lambda x: jnp.sum(x @ jnp.exp(jnp.eye(100))), "cpu"), x)


def test_a_literal_is_summed_over_no_axis():
    """As in optax.scale_by_backtracking_linesearch(store_grad=True)."""
    np.testing.assert_array_equal(rewritten(lambda x: x + jax.lax.reduce_sum(2.0, axes=()), "cpu", True)(X), X + 2)


def test_sums_in_other_dtypes_and_of_more_entries_stay():
    for x in (jnp.ones(100, jnp.int32), jnp.ones(1025), jnp.ones((100, 3))):
        assert summed(rewritten(column_sums, "cpu"), x) == summed(column_sums, x)


@pytest.mark.parametrize("places", ["labels", "rows of a table"])
def test_a_gpu_is_told_where_each_place_gets_one_term(places):
    """Labels 0 and 9 (out of range: no place) too. Rows of a table may be looked up twice."""
    labels = jnp.asarray([0, 2, 2, 1, 9])

    def loss(x):
        if places == "labels":
            return jnp.sum(jnp.take_along_axis(x, labels[:, None], axis=1) ** 2)
        return jnp.sum(x[labels] ** 2)

    gradient = jax.vmap(jax.grad(loss))
    x = jnp.stack([X, 2 * X])
    changed = rewritten(gradient, "gpu")
    found = [e for e in equations(jax.make_jaxpr(changed)(x)) if e.primitive.name == "scatter-add"]
    assert [e.params["unique_indices"] for e in found] == [places == "labels"]
    np.testing.assert_array_equal(changed(x), gradient(x))


def test_on_a_cpu_rows_of_a_table_are_looked_up_again_where_they_are_many(monkeypatch):
    users, items = (jnp.asarray(np.random.default_rng(0).integers(5, size=60)) for _ in range(2))

    def loss(x):
        return jnp.sum(jnp.sum(x[users] * x[items], axis=1) ** 2)

    def lookups(function):
        return sum(e.primitive.name == "gather" for e in equations(jax.make_jaxpr(function)(X)))

    gradient = jax.grad(loss)
    assert lookups(rewritten(gradient, "cpu")) == lookups(gradient) == 2  # 720 bytes each
    monkeypatch.setattr(rewrite, "CACHES", 700)
    assert lookups(rewritten(gradient, "gpu")) == 2
    assert lookups(rewritten(gradient, "cpu")) == 4
    np.testing.assert_array_equal(rewritten(gradient, "cpu")(X), gradient(X))

    def often(x):
        rows = x[users]
        return jnp.sum(rows * jnp.sin(rows) + jnp.cos(rows))

    assert lookups(rewritten(jax.grad(often), "cpu")) == 2 * lookups(jax.grad(often))
    few = jax.grad(lambda x: jnp.sum(x[users[:9]] ** 3))  # not twice the table
    monkeypatch.setattr(rewrite, "CACHES", 0)
    assert lookups(rewritten(few, "cpu")) == lookups(few) == 1


def test_rewriting_can_be_switched_off_and_the_record_says_so(monkeypatch, sweep):
    monkeypatch.setenv("GRADBENCH_REWRITE", "0")
    switch.enabled.cache_clear()
    try:
        function = jnp.sum
        assert rewritten(function, "cpu") is function
        run = sweep("quadratic_bowl[dim=50]", ["sgd"], [0.1, 0.3], seeds=2, steps=5)
    finally:
        switch.enabled.cache_clear()
    monkeypatch.delenv("GRADBENCH_REWRITE")
    same = sweep("quadratic_bowl[dim=50]", ["sgd"], [0.1, 0.3], seeds=2, steps=5)
    assert run.info["environment"]["flags"]["GRADBENCH_REWRITE"] == "0"
    assert "GRADBENCH_REWRITE" not in same.info["environment"]["flags"]
    np.testing.assert_allclose(run.curves["loss"], same.curves["loss"], rtol=50 * 2.0**-24)


def test_a_jax_without_what_rewriting_reads_is_told_once_and_runs(monkeypatch):
    monkeypatch.setattr(jax.extend.core.Primitive, "get_bind_params", None)
    switch.enabled.cache_clear()
    try:
        with pytest.warns(GradbenchWarning, match="internals"):
            assert rewritten(jnp.sum, "cpu") is jnp.sum
        assert as_products(jnp.dot, "cpu") is jnp.dot
    finally:
        switch.enabled.cache_clear()


def test_a_switch_that_is_neither_on_nor_off_is_refused(monkeypatch):
    monkeypatch.setenv("GRADBENCH_REWRITE", "off")
    switch.enabled.cache_clear()
    with pytest.raises(PlanError, match="need 0"):
        rewritten(jnp.sum, "cpu")
    switch.enabled.cache_clear()


def test_a_high_level_primitive_is_traced_for_the_operands_it_has():
    """jax 0.12's searchsorted is equal to the one that vmap makes of it, which takes other shapes."""
    grid = jnp.array([0.0, 1.0, 4.0])

    def place(x):
        return jnp.searchsorted(grid, x) * x

    single = rewritten(place, "cpu")(jnp.asarray(2.0))
    several = rewritten(jax.vmap(place), "cpu", relayout=True)(jnp.array([0.5, 2.0, 5.0]))
    assert single == 4.0
    np.testing.assert_array_equal(several, [0.5, 4.0, 15.0])
