"""Convolutions and products of several axes are products of matrices: the same numbers as JAX's own."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit_quickly
from sampling import sample

from gradbench.program.xla import products
from gradbench.program.xla.jaxprs import emitted, equations, uncounted_flops
from gradbench.program.xla.products import as_products, suits_images_last


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def names(function, *args):
    return [e.primitive.name for e in equations(jax.make_jaxpr(function)(*args))]


def assert_same(function, *args, images=False):
    """The value of `function` and its derivatives, written as products and not: the same but for rounding (float64,
    sums of at most some thousand terms of order 1: 1e-12)."""
    as_products = functools.partial(products.as_products, platform="cpu", images=images)

    def scalar(*args):
        return jnp.sum(jnp.sin(function(*args)))

    everything = tuple(range(len(args)))
    pairs = [(function, as_products(function))]
    pairs += [(jax.grad(scalar, everything), jax.grad(as_products(scalar), everything))]

    def all_of_them(*args):  # in one program: operation by operation each would be compiled
        return [(plain(*args), changed(*args)) for plain, changed in pairs]

    for expected, got in jit_quickly(all_of_them)(*args):
        jax.tree.map(lambda e, g: np.testing.assert_allclose(g, e, rtol=1e-12, atol=1e-12), expected, got)
        jax.tree.map(lambda e, g: np.testing.assert_equal(g.dtype, e.dtype), expected, got)


def convolution(strides=(1, 1), padding="SAME", numbers=("NHWC", "HWIO", "NHWC"), **options):
    def function(image, kernel):
        return jax.lax.conv_general_dilated(image, kernel, strides, padding, dimension_numbers=numbers, **options)

    return function


def arrays(*shapes):
    generator = np.random.default_rng(0)
    return [jnp.asarray(generator.normal(size=shape)) for shape in shapes]


PADDINGS = (((0, 0), (0, 0)), ((1, 1), (1, 1)), ((2, 1), (0, 3)))


@pytest.mark.parametrize("taps", sample([3, 2, 1, 5], 2))
def test_a_convolution_of_any_stride_dilation_and_padding(taps):
    image, kernel = arrays((2, 11, 13, 2), (taps, taps, 2, 3))
    plain = [
        convolution((stride, 1), padding, rhs_dilation=(dilation, 1), lhs_dilation=(1, gaps))
        for stride, dilation, gaps, padding in itertools.product((1, 2, 3), (1, 2), (1, 2), PADDINGS)
    ]
    changed = [as_products(function, "cpu") for function in plain]

    def results(functions):
        one = jit_quickly(lambda *args: [f(*args) for f in functions])
        return one(image, kernel)

    for got, expected in zip(results(changed), results(plain), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    assert "conv_general_dilated" not in names(changed[-1], image, kernel)


@pytest.mark.parametrize(
    ("numbers", "shapes"),
    sample(
        [
            (("HWNC", "OIHW", "CNHW"), ((6, 7, 2, 2), (4, 2, 3, 2))),
            (("NWC", "WIO", "NWC"), ((2, 9, 2), (3, 2, 4))),
            (("NDHWC", "DHWIO", "NDHWC"), ((2, 4, 5, 3, 2), (2, 3, 1, 2, 4))),
            (("NHWC", "HWIO", "NHWC"), ((2, 6, 7, 2), (3, 2, 2, 4))),
            (("NCHW", "OIHW", "NCHW"), ((2, 2, 6, 7), (4, 2, 3, 2))),
        ],
        3,
    ),
)
def test_a_convolution_in_any_order_of_axes_and_its_derivatives(numbers, shapes):
    strides = (2,) * (len(shapes[0]) - 2)
    assert_same(convolution(strides, numbers=numbers), *arrays(*shapes))


@pytest.mark.parametrize(
    ("strides", "options"),
    [((2, 2), {}), ((1, 3), {"rhs_dilation": (2, 1)}), ((1, 2), {"lhs_dilation": (2, 1), "padding": ((2, 1), (0, 3))})],
)
def test_a_convolution_with_images_last_and_its_derivatives(strides, options):
    function, (image, kernel) = convolution(strides, **options), arrays((7, 8, 6, 2), (3, 2, 2, 3))
    assert_same(function, image, kernel, images=True)
    made = equations(jax.make_jaxpr(as_products(function, "cpu", images=True))(image, kernel))
    assert [e.outvars[0].aval.shape[1:] for e in made if e.primitive.name == "dot_general"] == [(3, 7)]
    assert "conv_general_dilated" in names(as_products(function, "tpu", images=True), image, kernel)


def test_a_convolution_with_images_last_in_any_order_of_axes_of_several_trials():
    function = convolution((2, 2), numbers=("CNHW", "OIHW", "NHWC"))
    image, kernels = arrays((2, 5, 6, 4), (3, 4, 2, 3, 2))
    both = [jax.vmap(of, (None, 0)) for of in (function, as_products(function, "cpu", images=True))]
    expected, got = jit_quickly(lambda *args: [of(*args) for of in both])(image, kernels)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    assert_same(function, image, kernels[0], images=True)


def test_a_kernels_gradient_is_added_up_over_the_places_in_float32_at_least():
    def scalar(kernel, image):
        return jnp.sum(convolution()(image, kernel).astype("f4"))

    image, kernel = (x.astype(jnp.bfloat16) for x in arrays((8, 6, 6, 2), (3, 3, 2, 3)))
    made = equations(jax.make_jaxpr(jax.grad(as_products(scalar, "cpu", images=True)))(kernel, image))
    assert {e.invars[0].aval.dtype for e in made if e.primitive.name == "reduce_sum"} == {np.dtype("float32")}


@pytest.mark.thorough
def test_no_kernel_of_a_windows_derivative_reads_with_masks(tmp_path):
    # A masked read of a page that is not there takes a hundred times as long: with momentum the digits' network took 5
    # to 10 times the time of a step with sgd, by where XLA placed an array.
    sweep = "import gradbench; gradbench.sweep('cnn', 'momentum', learning_rates=[0.1], steps=1, timing='none')"
    own = {"XLA_FLAGS": f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text", "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", sweep], env=os.environ | own, cwd=tmp_path, check=True)
    kernels = [path for path in tmp_path.glob("*.jit_advance.*ir-with-opt.ll") if "fusion" in path.name]
    if not kernels:
        pytest.skip("this XLA does not write its kernels' code")
    assert not [path.name for path in kernels if "masked.load" in path.read_text()]


def test_images_are_last_where_they_are_many_and_features_few():
    def pooled(image, kernel):
        result = convolution()(image, kernel)
        return jax.lax.reduce_window(result, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    def suits(function, images, features, results, side=4):
        shapes = [jax.ShapeDtypeStruct(s, "f4") for s in ((images, side, side, features), (3, 3, features, results))]
        return suits_images_last(jax.make_jaxpr(function)(*shapes))

    assert suits(convolution(), 256, 40, 16)
    assert not suits(convolution(), 255, 40, 16)
    assert not suits(convolution(), 256, 40, 17)
    assert not suits(convolution(), 256, 40, 16, side=32)  # windows of 377 MB
    assert not suits(pooled, 256, 40, 16)
    assert not suits(lambda image, kernel: image, 256, 40, 16)
    assert not suits_images_last(
        jax.make_jaxpr(convolution(feature_group_count=4))(jnp.ones((256, 4, 4, 4)), jnp.ones((3, 3, 1, 8)))
    )


@pytest.mark.parametrize(("features", "results"), sample([(1, 2), (3, 2), (1, 1)], 2))
def test_a_grouped_convolution_and_its_derivatives(features, results):
    groups = 4
    shapes = (2, 6, 5, groups * features), (3, 3, features, groups * results)
    function = convolution((2, 1), feature_group_count=groups)
    assert_same(function, *arrays(*shapes))
    assert "conv_general_dilated" not in names(as_products(function, "cpu"), *arrays(*shapes))


def test_windows_that_are_too_many_to_hold_are_taken_row_by_row(monkeypatch):
    monkeypatch.setattr(products, "_MAX_WINDOWS", 1000)
    image, kernel = arrays((2, 8, 8, 3), (3, 3, 3, 4))
    assert_same(convolution((2, 2)), image, kernel)
    assert names(as_products(convolution(), "cpu"), image, kernel).count("dot_general") == 3


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: jnp.einsum("btf,fo->bto", x, w),
        lambda x, w: jnp.einsum("fo,btf->obt", w, x),
        lambda x, w: jnp.einsum("btf,tfo->bo", x, jnp.stack([w] * 4)),
    ],
)
def test_a_product_of_several_axes_is_one_of_matrices(function):
    x, w = arrays((3, 4, 5), (5, 6))
    expected, got = function(x, w), as_products(function, "cpu")(x, w)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    made = equations(jax.make_jaxpr(as_products(function, "cpu"))(x, w))
    made = [e for e in made if e.primitive.name == "dot_general"]
    assert made
    assert all(v.aval.ndim == 2 for e in made for v in e.invars)


def test_inside_calls_loops_and_branches_and_several_trials():
    image, kernel = arrays((2, 4, 4, 3), (3, 3, 3, 3))
    once = convolution()

    def function(image, kernel):
        image = jax.lax.scan(lambda x, _: (jnp.tanh(jax.jit(once)(x, kernel)), None), image, length=2)[0]
        return jax.lax.cond(jnp.sum(image) > 0, lambda x: once(x, kernel), lambda x: x, image)

    assert_same(function, image, kernel)
    assert "conv_general_dilated" not in names(as_products(function, "cpu"), image, kernel)
    kernels = jnp.stack([kernel, 2 * kernel, -kernel])
    alone, together = jit_quickly(function), jit_quickly(jax.vmap(as_products(function, "cpu"), (None, 0)))
    expected, got = jnp.stack([alone(image, k) for k in kernels]), together(image, kernels)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_rules_of_their_own_and_what_is_no_such_product_stay():
    @jax.custom_vjp
    def tripled(image, kernel):
        return convolution()(image, kernel)

    tripled.defvjp(lambda x, w: (tripled(x, w), w), lambda w, g: (3 * g, jnp.zeros_like(w)))
    image, kernel = arrays((2, 4, 4, 3), (3, 3, 3, 3))
    gradient = jax.grad(as_products(lambda x, w: jnp.sum(tripled(x, w)), "cpu"))(image, kernel)
    np.testing.assert_array_equal(gradient, jnp.full_like(image, 3))
    batched = lambda a: jnp.einsum("bij,bjk->bik", a, a)  # noqa: E731
    assert names(as_products(batched, "cpu"), jnp.ones((2, 3, 3))).count("dot_general") == 1
    matrix, vector = jnp.ones((3, 3)), jnp.ones(3)
    assert names(as_products(jnp.dot, "cpu"), matrix, vector) == names(jnp.dot, matrix, vector)


def test_a_gpu_is_given_products_for_convolutions_only():
    image, kernel, sequence, weight = arrays((2, 4, 4, 3), (3, 3, 3, 3), (2, 5, 3), (3, 4))
    assert "conv_general_dilated" not in names(as_products(convolution(), "gpu"), image, kernel)
    assert names(as_products(jnp.dot, "gpu"), sequence, weight) == names(jnp.dot, sequence, weight)
    assert names(as_products(jnp.dot, "cpu"), sequence, weight) != names(jnp.dot, sequence, weight)
    assert "conv_general_dilated" in names(as_products(convolution(), "tpu"), image, kernel)


def test_flops_that_the_cost_analysis_leaves_out_are_those_of_the_other_rounds():
    def function(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=7)[0]

    x, w = arrays((4, 5), (5, 5))
    trace = jax.make_jaxpr(function)(x, w)
    assert uncounted_flops(trace) == 6 * (2 * 4 * 5 * 5 + 4 * 5)
    assert uncounted_flops(jax.make_jaxpr(jnp.dot)(x, w)) == 0
    assert emitted(trace) == 7 * (4 * 5 + 4 * 5)
    assert emitted(jax.make_jaxpr(jnp.dot)(x, w[0])) == 2 * 4 * 5


@pytest.mark.parametrize("rule", sample(["backward", "none", "forward"], 2))
def test_a_rule_that_is_a_function_of_values_around_it_is_differentiated_as_written(rule):
    """In another evaluation of the trace there are no such values."""

    def loss(w, x, key):
        around = x[0] + jax.random.normal(key, (3,))

        @jax.custom_vjp
        def own(w):
            return w * w

        def forward(w):
            return own(w) + (around if rule == "forward" else 0), w

        def backward(w, cotangent):
            return (2 * w * cotangent * (around if rule == "backward" else 1),)

        own.defvjp(forward, backward)
        last, seen = jax.lax.scan(lambda h, row: (jnp.tanh(h * w + row) * h + 1, h), w, x)
        return jnp.sum(own(w)) + jnp.sum(last) + jnp.sum(seen)

    args = jnp.linspace(0.1, 0.3, 3), jnp.ones((4, 3)), jax.random.key(0)
    plain, changed = jax.value_and_grad(loss), jax.value_and_grad(as_products(loss, "cpu"))
    expected, got = jit_quickly(lambda *of: (plain(*of), changed(*of)))(*args)
    # Sums of at most 15 numbers of order 1 to 10.
    jax.tree.map(lambda e, g: np.testing.assert_allclose(g, e, rtol=1e-12, atol=1e-12), expected, got)
    assert (names(changed, *args) == names(plain, *args)) == (rule != "none")
