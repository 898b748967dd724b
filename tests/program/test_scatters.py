"""Large scatters done block by block: the same numbers, and only where the rows come from less than they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit_quickly

from gradbench.program.xla import scatters
from gradbench.program.xla.jaxprs import equations
from gradbench.program.xla.rewrite import rewritten

N, K, ROWS = 23, 16, 9


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A scatter of 368 numbers is large, and a block has 5 rows: 4 blocks and 3 rows more."""
    monkeypatch.setattr(scatters, "CACHES", 1400)
    monkeypatch.setattr(scatters, "_BLOCK", 5 * K * 4)


def numbers(seed, *shape):
    """Whole numbers, so that sums and products are exact in any order."""
    return jnp.asarray(np.random.default_rng(seed).integers(-3, 4, shape), jnp.float32)


def places(seed, *shape, high=ROWS):
    return jnp.asarray(np.random.default_rng(seed).integers(0, high, shape), jnp.int32)


ROW, ITEM, Y = places(0, N), places(1, N), numbers(2, N)


def factorisation(u, v):
    return jnp.sum((jnp.sum(u[ROW] * v[ITEM], axis=1) - Y) ** 2)


def weighted(u, v):
    rows = jnp.where(Y[:, None] > 0, jnp.square(v[ITEM]), -v[ITEM]) * jnp.arange(1.0, K + 1)
    return u.at[ROW].add(rows * Y[:, None])


def of_a_column(u, v):
    return u.at[ROW].add(jnp.reshape(Y * Y, (N, 1)) * v[0])


def left_out(u, v):
    return u.at[jnp.where(ROW > 5, ROW + 100, ROW)].add(Y[:, None] * v[ITEM], mode="drop")


def by_rows_and_by_places(u, v):
    scores, at = numbers(3, N), places(4, N, high=N)
    return jnp.zeros((N, K)).at[at].add(scores[:, None] * scores[at][:, None] * v[ITEM])


def in_a_loop(u, v):
    return jax.lax.fori_loop(0, 3, lambda _, x: x.at[ROW].add(Y[:, None] * v[ITEM]), u)


FUNCTIONS = {
    "factorisation": jax.grad(factorisation, (0, 1)),
    "vmap": jax.vmap(jax.grad(factorisation, (0, 1)), in_axes=(None, 0)),
    **{f.__name__: f for f in (weighted, of_a_column, left_out, by_rows_and_by_places, in_a_loop)},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_added_in_blocks_give_the_same_numbers(name):
    u, v = numbers(6, ROWS, K), numbers(7, ROWS, K)
    args = (u, jnp.stack([v, 2 * v, v + 1])) if name == "vmap" else (u, v)
    changed = rewritten(FUNCTIONS[name], "cpu")
    inside = [e for e in equations(jax.make_jaxpr(changed)(*args)) if e.primitive.name == "scatter-add"]
    assert any(N not in e.invars[2].aval.shape for e in inside)  # the rows of a block
    both = jit_quickly(lambda *args: [jax.tree.leaves(of(*args)) for of in (changed, FUNCTIONS[name])])(*args)
    for found, expected in zip(*both, strict=True):
        np.testing.assert_array_equal(found, expected)


def summed_rows(u, v):
    return u.at[ROW].add(numbers(8, N, N) @ v[ITEM])


def one_place_each(u, v):
    return jax.vmap(lambda table, at, row: table.at[at].add(row))(jnp.zeros((N, ROWS)), ROW[:, None], Y[:, None])


@pytest.mark.parametrize("function", [summed_rows, one_place_each])
def test_rows_that_are_not_computed_row_by_row_are_added_as_they_are(function):
    u, v = numbers(6, ROWS, K), numbers(7, ROWS, K)
    names = [
        [e.primitive.name for e in equations(jax.make_jaxpr(of)(u, v))] for of in (rewritten(function, "cpu"), function)
    ]
    assert names[0].count("scatter-add") == names[1].count("scatter-add") == 1
    assert not {"while", "scan"} & {*names[0]}
