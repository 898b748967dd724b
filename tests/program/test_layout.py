"""Products and what follows them in another order of axes: the same numbers, and no transposes."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from quick import jit_quickly
from sampling import drawn, sample

import gradbench
from gradbench.inputs.problem import shapes
from gradbench.program.xla.jaxprs import equations
from gradbench.program.xla.layout import (
    PermutedArray,
    aligned,
    as_permuted,
    broadcast_permuted,
    examples_last,
    materialize,
    materialize_tree,
    product,
    tall_product,
    transpose_permuted,
    without,
)
from gradbench.program.xla.products import as_products
from gradbench.program.xla.rewrite import rewritten

LANES = 3


def normal(*shape, seed=0):
    with jax.enable_x64(True):
        return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@st.composite
def orders(draw):
    """An array, and which axis of a value each of its axes is."""
    order = draw(st.permutations(range(draw(st.integers(1, 4)))))
    shape = draw(st.permutations((2, 3, 4, 5)))[: len(order)]
    return np.random.default_rng(0).normal(size=shape), order


@drawn(10, 40, orders(), st.data())
def test_a_value_in_another_order(pair, data):
    array, order = pair
    places = [order.index(axis) for axis in range(len(order))]
    value = np.transpose(array, places)
    permutation = data.draw(st.permutations(range(value.ndim)))
    axes = data.draw(st.sets(st.integers(0, value.ndim - 1), min_size=1))
    assert as_permuted(array, order).shape == value.shape

    @jit_quickly  # one program, not one for each operation
    def results(array):
        x = as_permuted(array, order)
        same = [materialize(x), materialize(transpose_permuted(x, permutation))]
        if not isinstance(x, PermutedArray):
            return same, None
        (first, second, scalar), common = aligned([x, jnp.transpose(array, places) + 1, 2.0])
        same.append(materialize(as_permuted(first * second * scalar, common)))
        at, left = without(x, axes)
        return same, materialize(as_permuted(jnp.sum(x.array, at), left))

    with jax.enable_x64(True):
        same, total = results(array)
    for got, expected in zip(same, (value, np.transpose(value, permutation), value * (value + 1) * 2.0)):
        np.testing.assert_array_equal(got, expected)
    if total is not None:
        np.testing.assert_allclose(total, np.sum(value, tuple(axes)), atol=1e-13)


@st.composite
def products(draw):
    """Two arrays, each with the order of axes it is kept in and whether it is kept in its own too, and the dimension
    numbers of a product: any batch, free and summed axes, in any order."""
    sizes = st.integers(1, 5)
    batch, summed = (draw(st.lists(sizes, max_size=2)) for _ in range(2))
    sides = []
    for seed in (0, 1):
        free = draw(st.lists(sizes, max_size=2))
        places = draw(st.permutations(range(len(batch) + len(summed) + len(free))))
        shape = np.empty(len(places), int)
        shape[list(places)] = (*batch, *summed, *free)
        array = np.random.default_rng(seed).normal(size=shape)
        kept = draw(st.permutations(range(array.ndim)))
        summed_at = places[len(batch) : len(batch) + len(summed)]
        sides.append((array, kept, draw(st.booleans()), places[: len(batch)], summed_at))
    return sides


def kept_as(array, order, both):
    permuted = as_permuted(jnp.transpose(array, order), order)
    both = both and isinstance(permuted, PermutedArray)
    return PermutedArray(permuted.array, permuted.order, array) if both else permuted


@drawn(16, 80, products())
def test_a_product_of_any_axes_is_the_product(sides):
    (a, *kept_a, batch_a, summed_a), (b, *kept_b, batch_b, summed_b) = sides
    numbers = ((tuple(summed_a), tuple(summed_b)), (tuple(batch_a), tuple(batch_b)))
    params = {"dimension_numbers": numbers, "precision": None, "preferred_element_type": None}
    shared = dict(zip((*batch_b, *summed_b), (*batch_a, *summed_a)))
    axes_a, axes_b = list(range(a.ndim)), [shared.get(axis, a.ndim + axis) for axis in range(b.ndim)]
    free = [axis for axis in (*axes_a, *axes_b) if axis not in shared.values()]
    expected = np.einsum(a, axes_a, b, axes_b, [*batch_a, *free])

    @jit_quickly
    def result(a, b):
        return materialize(product(kept_as(a, *kept_a), kept_as(b, *kept_b), params))

    with jax.enable_x64(True):
        got = result(a, b)
    entries = math.prod(a.shape[axis] for axis in shared.values())
    vectors = min(a.size, b.size) == entries or math.prod(a.shape[axis] for axis in summed_a) == 1
    assert (got is None) == vectors
    if got is not None:
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12, strict=True)


@pytest.mark.parametrize(("other", "moved"), [(2, False), (256, True)])
def test_rows_of_several_trials_are_not_moved_for_a_small_factor(other, moved):
    """As in a recurrent network, whose every round has few numbers of each example: (trials, examples, units)."""
    units, x = jnp.ones((2, 64, 128)), jnp.ones((64, other))
    params = {"dimension_numbers": (((1,), (0,)), ((), ())), "precision": None, "preferred_element_type": None}
    trace = jax.make_jaxpr(lambda units, x: materialize(product(units, x, params)))(units, x)
    moves = [e for e in trace.eqns if e.primitive.name == "transpose" and e.invars[0].aval.shape == units.shape]
    assert bool(moves) == moved


@pytest.mark.parametrize("kept", [False, True])
def test_what_is_broadcast_stays_in_its_order(kept):
    """As data of which several trials' outputs are subtracted."""
    value = normal(5, 4)
    x = PermutedArray(value.T, (1, 0), value if kept else None)
    for shape, places in (((3, 5, 4), (1, 2)), ((5, 4, 3), (0, 1)), ((1, 5, 2, 4), (1, 3))):
        made = broadcast_permuted(x, shape, places)
        assert [axis for axis in made.order if axis in places] == [places[1], places[0]]
        assert made.shape == shape
        expected = jax.lax.broadcast_in_dim(value, shape, places)
        np.testing.assert_array_equal(materialize(made), expected)
        np.testing.assert_array_equal(jnp.transpose(made.array, made.places), expected)


def network(rows: bool):
    """A network's loss, with the examples as rows or as columns."""

    def loss(params, data):
        w, v = params["w"], params["v"]
        if rows:
            logits = jnp.tanh(data["x"] @ w + params["b"]) @ v
            return optax.softmax_cross_entropy_with_integer_labels(logits, data["y"]).mean()
        logits = v.T @ jnp.tanh(w.T @ data["x"].T + params["b"][:, None])
        return optax.softmax_cross_entropy_with_integer_labels(logits, data["y"], axis=0).mean()

    return loss


def convolution(params, data):
    images, order = data["x"][:, :36].reshape(-1, 6, 6, 1), ("NHWC", "HWIO", "NHWC")
    features = jax.lax.conv_general_dilated(
        images, params["w"][:9].reshape(3, 3, 1, -1), (1, 1), "VALID", dimension_numbers=order
    )
    return jnp.mean(jax.nn.relu(jnp.einsum("nxyc,cd->ndyx", features, params["v"])) ** 2)


def attention(params, data):
    x = data["x"].reshape(-1, 8, data["x"].shape[1]) @ params["w"]
    weights = jax.nn.softmax(jnp.einsum("bsd,btd->bst", x, x) / 3)
    chosen = jnp.argmax(weights, axis=1)
    return jnp.mean(jnp.cumsum((weights @ x) @ params["v"], axis=0) ** 2) + jnp.mean(x[0, chosen % 8])


def looped(params, data):
    def body(state, row):
        return state + jnp.where(row[0] > 0, 1.0, 0.5) * jnp.tanh(row @ params["w"]), (data["x"].T * 2).max()

    state, most = jax.lax.scan(body, params["b"], data["x"][:7])
    hidden = jax.checkpoint(lambda x: jnp.sin(x @ params["w"]))(data["x"])
    return (
        jnp.sum((jax.lax.cond(state[0] > 0, jnp.sin, jnp.cos, hidden.T @ hidden / len(hidden)) @ params["v"]) ** 2)
        + most[0]
    )


LOSSES = {
    "examples as rows": network(True),
    "examples as columns": network(False),
    "a convolution": convolution,
    "attention": attention,
    "loops, branches, checkpoints": looped,
}


@pytest.fixture
def problem():
    with jax.enable_x64(True):
        params = {"w": normal(LANES, 40, 12) / 6, "b": normal(LANES, 12), "v": normal(LANES, 12, 5)}
        yield params, {"x": normal(1200, 40, seed=1), "y": jnp.arange(1200) % 5}


def several(loss):
    return jax.vmap(jax.value_and_grad(loss), in_axes=(0, None))


def laid_out(loss):
    return rewritten(several(loss), "cpu", relayout=True)


@pytest.mark.parametrize("name", sample(LOSSES, 3))
def test_gradients_are_the_same_but_for_rounding(name, problem):
    params, data = problem
    data = data | {"x": data["x"][:96]} if name == "attention" else data
    kept = jax.tree.map(examples_last, data)
    assert isinstance(kept["x"], PermutedArray)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, materialize_tree(kept), data))
    expected = jit_quickly(several(LOSSES[name]))(params, data)
    result = jit_quickly(laid_out(LOSSES[name]))(params, kept)
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    # Sums of 1200 terms of size 1, in another order.
    jax.tree.map(lambda r, e: np.testing.assert_allclose(r, e, rtol=1e-11, atol=1e-11), result, expected)


@pytest.mark.parametrize("rows", [True, False])
def test_a_network_is_computed_along_its_examples_however_it_is_written(rows, problem):
    params, data = problem
    program = jax.make_jaxpr(laid_out(network(rows)))(params, jax.tree.map(examples_last, data))
    made = list(equations(program))
    outputs = [e.outvars[0].aval.shape for e in made if e.primitive.name in ("dot_general", "tanh", "exp")]
    assert {shape[-1] for shape in outputs if 1200 in shape} == {1200}
    moved = [e.outvars[0].aval for e in made if e.primitive.name == "transpose"]
    assert max(aval.size for aval in moved) < 12 * 1200 * LANES  # weights and one-hot labels, no activations
    written = [e for e in equations(jax.make_jaxpr(several(network(True)))(params, data)) if e.primitive.name == "tanh"]
    assert written[0].outvars[0].aval.shape[-1] == 12  # or this test would see nothing


def test_nothing_large_is_transposed_between_convolutions_with_images_last():
    problem = gradbench.load_problem("cnn")
    loss = as_products(problem.loss, "cpu", images=True)
    params, data = shapes(problem, "float32")
    step = rewritten(jax.value_and_grad(loss), "cpu", relayout=True)
    made = list(equations(jax.make_jaxpr(step)(params, data)))
    filled = {
        e.outvars[0] for e in made if e.primitive.name == "broadcast_in_dim"
    }  # with one number, as is its transpose
    moved = [e for e in made if e.primitive.name == "transpose" and e.invars[0] not in filled]
    large = [e.outvars[0].aval.size for e in moved if e.outvars[0].aval.size > 16 * 1438]
    assert set(large) <= {64 * 1438}  # the images, and what the dense layer takes and gives, not 256 entries an image


def test_without_relayout_products_keep_the_order_that_is_written(problem):
    params, data = problem
    loss = several(network(True))
    names = [e.primitive.name for e in equations(jax.make_jaxpr(loss)(params, data))]
    for platform in ("cpu", "gpu"):
        changed = [e.primitive.name for e in equations(jax.make_jaxpr(rewritten(loss, platform))(params, data))]
        assert changed.count("dot_general") == names.count("dot_general")
        assert "optimization_barrier" not in changed


def test_on_a_cpu_tall_products_summed_along_first_axes_are_taken_in_the_other_order():
    a, b = normal(LANES, 50, 20), normal(LANES, 50, 12, seed=1)

    def shapes_of(function):
        with jax.enable_x64(True):
            made = list(equations(jax.make_jaxpr(function)(a, b)))
        return [e.outvars[0].aval.shape for e in made if e.primitive.name == "dot_general"]

    def written(a, b):
        return jnp.einsum("lei,leo->lio", a, b)

    assert shapes_of(rewritten(written, "gpu")) == shapes_of(written) == [(LANES, 20, 12)]
    assert shapes_of(rewritten(written, "cpu")) == [(LANES, 12, 20)]
    with jax.enable_x64(True):  # sums of 50 terms of size 1, in another order
        np.testing.assert_allclose(rewritten(written, "cpu")(a, b), written(a, b), rtol=1e-13, atol=1e-13)


def test_other_products_are_not_tall():
    def taken(a, b, numbers):
        params = {"dimension_numbers": numbers, "precision": None, "preferred_element_type": None}
        return tall_product(jnp.ones(a), jnp.ones(b), params)

    assert taken((9, 8), (9, 4), (((0,), (0,)), ((), ()))).shape == (8, 4)
    assert taken((9, 4), (9, 8), (((0,), (0,)), ((), ()))) is None  # wide
    assert taken((9, 8), (9, 3), (((0,), (0,)), ((), ()))) is None  # by plain loops
    assert taken((3, 8), (3, 4), (((0,), (0,)), ((), ()))) is None
    assert taken((8, 9), (4, 9), (((1,), (1,)), ((), ()))) is None
    assert taken((2, 3, 8), (2, 3, 4), (((0, 1), (0, 1)), ((), ()))) is None


def test_a_loops_state_is_kept_in_the_order_of_its_own_axes():
    """Or XLA would transpose it at every step, by a kernel that takes longer to compile than the rest."""
    x = jnp.ones((1000, 51))

    def step(w, x):
        return w - 0.1 * jax.grad(lambda w: jnp.mean((x @ w - x[:, 0]) ** 2))(w)

    changed = rewritten(jax.vmap(step, (0, None)), "cpu", relayout=True)
    loop = jax.jit(lambda w, x: jax.lax.scan(lambda w, _: (changed(w, x), None), w, length=5)[0])
    text = loop.lower(jnp.ones((32, 51)), examples_last(x)).compile().as_text()
    (state,) = re.findall(r"= \((.*)\) while\(", text)
    assert "[32,51]{1,0}" in state
    assert "[32,51]{0,1}" not in state


def test_what_is_large_or_no_tall_matrix_is_kept_once():
    tall, wide = jnp.ones((5, 3)), jnp.ones((3, 5))
    for x in (wide, jnp.ones(9), jnp.ones((9, 2), int), jax.ShapeDtypeStruct((2**20, 17), jnp.float32)):
        assert examples_last(x) is x
    shape = examples_last(jax.ShapeDtypeStruct((5, 3), jnp.float32))
    assert jax.tree.map(jnp.shape, examples_last(tall)) == jax.tree.map(lambda x: x.shape, shape)


# Products (m, k) x (k, n) of few entries or terms, and of whole numbers; each goes into a loop as it is written.
SMALL = """
import jax, jax.numpy as jnp
from gradbench.program.xla.rewrite import rewritten

cases = [(4, 3, 2, "float32"), (16, 2, 8, "float32"), (3, 5, 2, "float32"), (9, 9, 8, "int8"), (9, 9, 8, "int32")]
arrays = [(jnp.ones((m, k), kind), jnp.ones((k, n), kind)) for m, k, n, kind in cases]

def doubled(a, b):
    return jax.lax.scan(lambda product, _: (product * 2, None), a @ b, length=2)[0]

def all_of_them(lanes):
    return [jax.vmap(doubled)(a, b) for a, b in lanes]

lanes = [[jnp.stack([x, x, x]) for x in pair] for pair in arrays]
results = jax.jit(rewritten(all_of_them, "cpu", relayout=True))(lanes)
assert all((result == 4 * a.shape[1]).all() for (a, _), result in zip(arrays, results))
"""


@pytest.mark.thorough
def test_small_products_do_not_abort_the_process():
    # XLA:CPU of jax 0.10 does on some that are transposed behind a barrier: an LSTM's, in its backward loop.
    done = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
