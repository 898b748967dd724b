"""Rewrites convolutions and products of several axes as products of two matrices.

XLA:CPU has fast kernels for products of two matrices and slow paths for the rest. A convolution inside a loop, as in
every step of a compiled sweep, takes 5 to 20 times as long as its arithmetic; several trials' convolutions become a
grouped one, whose groups it takes one after another, and which JAX cannot always batch. A product of a sequence's
activations, of three axes, with a weight is transposed first, and so are its derivatives.

So a loss is rewritten before it is differentiated, and its derivatives and batches are made of products as well (and
its loops keep less for them: loops.py). A convolution is a product of the windows' entries, side by side, with the
kernel (im2col; Chellapilla, Puri and Simard, High Performance Convolutional Neural Networks for Document Processing,
2006), which are cut out along one axis of the image after the other: the derivative of a slice with strides along
several axes at once is a padding with gaps in each, which XLA computes entry by entry. Cut into phases without gaps,
the derivative joins them again, and LLVM reads what is joined with masks, also far outside the array: a masked read of
a page that is not there takes a hundred times as long as another.

Few features are short rows, which move slowly and fill the vector registers badly. So where a batch has many images of
few features (`suits_images_last`), arrays have their images on the last axis, and the entries of the windows at one
place of all images are a matrix, which is multiplied by the kernel: what moves are whole matrices. The digits' network
takes 1.4 times as long without.

On a GPU several trials' convolutions take 3 times as long as the products (docs/gpu.md), and their derivatives are not
the same from call to call; products of several axes are as fast as they are.

The numbers are the same but for rounding: the terms of each sum are, and their order is not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gradbench.program.xla.jaxprs import (
    PLAIN_CALLS,
    bind,
    called,
    equations,
    evaluate,
    has_rule,
    open_jaxpr,
    place_of_rule,
    with_bodies,
)
from gradbench.program.xla.layout import VECTOR
from gradbench.program.xla.loops import has_cheap_values, keep_less
from gradbench.program.xla.switch import enabled

_IMAGES = 16 * VECTOR  # at least, to be on the last axis: fewer make products too small
_MAX_TAPS = 128  # entries of a window, over its axes: more would make a long program
_MAX_WINDOWS = 2**26  # bytes of all windows' entries side by side: beyond, one product for each row of the kernel


def suits_images_last(loss: Any) -> bool:
    """Whether the convolutions of a traced loss are taken with images on the last axis: all have many images, at most a
    vector's features as results, and no more windows than are held. Not with a pooling, whose windows XLA takes in the
    order that is written."""
    found = list(equations(loss))
    convolutions = [e for e in found if e.primitive.name == "conv_general_dilated"]
    pooled = any(e.primitive.name.startswith("reduce_window") for e in found)
    return bool(convolutions) and not pooled and all(map(_has_many_images, convolutions))


def _has_many_images(equation: Any) -> bool:
    convolution, spec = _Convolution.of(equation), equation.params["dimension_numbers"]
    image, kernel = (v.aval for v in equation.invars)
    if convolution is None or convolution.groups > 1 or kernel.shape[spec.rhs_spec[0]] > VECTOR:
        return False
    entries = kernel.size // kernel.shape[spec.rhs_spec[0]]
    images = image.shape[spec.lhs_spec[0]]
    windows = images * math.prod(axis.windows for axis in convolution.axes)
    return images >= _IMAGES and windows * entries * image.dtype.itemsize <= _MAX_WINDOWS


def as_products(function: Callable[..., Any], platform: str, images: bool = False) -> Callable[..., Any]:
    """`function`, of pytrees of arrays, with its convolutions as products of matrices on a CPU and a GPU, on a CPU also
    its products of several axes, and loops that keep less; itself elsewhere and where rewriting is off. Calls, loops
    and branches inside are included; what is under jax.checkpoint or has a rule of its own stays as it is. `images`:
    convolutions on a CPU have their images last; all must suit on the batch of an update (`suits_images_last`)."""
    if platform not in ("cpu", "gpu") or not enabled():
        return function
    on_cpu = platform == "cpu"
    of = functools.partial(_instead, on_cpu=on_cpu, images=images and on_cpu)

    @functools.wraps(function)
    def changed(*args: Any) -> Any:
        traced, result = jax.make_jaxpr(function, return_shape=True)(*args)
        if not any(of(equation) for equation in equations(traced)):
            return function(*args)
        evaluated = functools.partial(_evaluated, traced, functools.partial(_step, of))
        if _of_one_trace(traced, evaluated):
            return function(*args)
        return jax.tree.unflatten(jax.tree.structure(result), evaluated(*jax.tree.leaves(args)))

    return changed


def _evaluated(traced: Any, step: Callable[[Any, list[Any]], Sequence[Any]], *leaves: Any) -> list[Any]:
    return evaluate(*open_jaxpr(traced), leaves, step)


def _of_one_trace(traced: Any, evaluated: Callable[..., list[Any]]) -> bool:
    """Whether a rule for a derivative in a traced function, as `evaluated`, is a function of values of that trace, not
    only of its arguments: another evaluation does not compute these."""
    rules = filter(has_rule, equations(traced))
    if not any(e.primitive.name.startswith("custom_vjp") or place_of_rule(e) for e in rules):  # others are JAX's own
        return False

    def cotangent(x: Any) -> Any:
        return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.inexact) else np.zeros(x.shape, jax.dtypes.float0)

    def derivatives(*leaves: Any) -> Any:
        results, pulled_back = jax.vjp(evaluated, *leaves)
        return pulled_back(list(map(cotangent, results)))

    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in traced.jaxpr.invars]
    traces = traced, jax.make_jaxpr(derivatives)(*shapes)
    own, found = ({id(x) for x in trace.consts if isinstance(x, Tracer)} for trace in traces)
    return not found <= own


Change = Callable[[Callable[..., Any], list[Any]], list[Any]]


def _instead(equation: Any, on_cpu: bool, images: bool) -> Change | None:
    """The function (operands, `step`) -> results that replaces an equation, where `step` evaluates the equations inside
    it; None if it stays unchanged."""
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated" and (convolution := _Convolution.of(equation)) is not None:
        convolved = _with_images_last if images and convolution.groups == 1 else _convolved
        return lambda _, operands: [convolved(convolution, params, *operands)]
    if on_cpu and name == "dot_general" and _several_axes(equation):
        return lambda _, operands: [_product(params, *operands)]
    if on_cpu and name == "scan" and has_cheap_values(equation):
        return functools.partial(keep_less, equation)
    return None


def _step(of: Callable[[Any], Change | None], equation: Any, operands: list[Any]) -> Sequence[Any]:
    """The results of an equation."""
    step = functools.partial(_step, of)
    if equation.primitive.name in PLAIN_CALLS:
        inner = called(equation, operands)
        assert inner is not None
        return evaluate(*inner, step)
    if change := of(equation):
        with equation.ctx.manager:
            return change(step, operands)
    return bind(equation, operands, with_bodies(equation, lambda body, args: evaluate(*open_jaxpr(body), args, step)))


def _several_axes(product: Any) -> bool:
    """Whether a product has no batch axes, and one side has several free axes or several summed ones."""
    (summed, _), (batch, _) = product.params["dimension_numbers"]
    free = [v.aval.ndim - len(summed) for v in product.invars]
    return not batch and min(free) > 0 and (max(free) > 1 or len(summed) > 1)


def _product(params: dict[str, Any], a: jax.Array, b: jax.Array) -> jax.Array:
    """A product of arrays of several axes, by one of matrices."""
    (summed_a, summed_b), _ = params["dimension_numbers"]
    free_a, free_b = ([i for i in range(x.ndim) if i not in s] for x, s in ((a, summed_a), (b, summed_b)))
    shape = [*(a.shape[i] for i in free_a), *(b.shape[i] for i in free_b)]
    terms = math.prod(a.shape[i] for i in summed_a)
    a = jnp.reshape(jnp.transpose(a, (*free_a, *summed_a)), (-1, terms))
    b = jnp.reshape(jnp.transpose(b, (*summed_b, *free_b)), (terms, -1))
    return jnp.reshape(_matrices(a, b, params), shape)


def _matrices(a: jax.Array, b: jax.Array, params: dict[str, Any], batch: int = 0) -> jax.Array:
    """a @ b over `batch` leading axes, in the precision and type of an equation."""
    axes = tuple(range(batch))
    return jax.lax.dot_general(
        a,
        b,
        (((batch + 1,), (batch,)), (axes, axes)),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )


class _Axis(NamedTuple):
    """What a convolution does along one axis of the image: the kernel's entries, steps between windows and between a
    window's entries, padding (before, after, between), and how many windows there are."""

    taps: int
    stride: int
    dilation: int
    padding: tuple[int, int, int]
    windows: int

    @classmethod
    def of(cls, size: int, taps: int, stride: int, dilation: int, gaps: int, before: int, after: int) -> _Axis:
        length = (size - 1) * gaps + 1 + before + after
        windows = (length - (taps - 1) * dilation - 1) // stride + 1
        return cls(taps, stride, dilation, (before, after, gaps - 1), windows)


class _Convolution(NamedTuple):
    """A convolution that can be a product: its axes, and how many groups its features are in."""

    axes: tuple[_Axis, ...]
    groups: int

    @classmethod
    def of(cls, equation: Any) -> _Convolution | None:
        params, (image, kernel) = equation.params, (v.aval for v in equation.invars)
        spec = params["dimension_numbers"]
        axes = tuple(
            _Axis.of(image.shape[i], kernel.shape[k], stride, dilation, gaps, *padding)
            for i, k, stride, dilation, gaps, padding in zip(
                spec.lhs_spec[2:],
                spec.rhs_spec[2:],
                params["window_strides"],
                params["rhs_dilation"],
                params["lhs_dilation"],
                params["padding"],
                strict=True,
            )
        )
        serves = (
            params["batch_group_count"] == 1
            and jnp.issubdtype(image.dtype, jnp.floating)
            and 0 < math.prod(axis.taps for axis in axes) <= _MAX_TAPS
            and all(axis.windows > 0 for axis in axes)
            and min(image.size, kernel.size) > 0
        )
        return cls(axes, params["feature_group_count"]) if serves else None


def _convolved(convolution: _Convolution, params: dict[str, Any], image: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution, by products."""
    axes, groups = convolution
    spec = params["dimension_numbers"]
    image = jnp.transpose(image, (spec.lhs_spec[0], *spec.lhs_spec[2:], spec.lhs_spec[1]))
    kernel = jnp.transpose(kernel, (*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0]))
    parts = _entries(image, axes, 1)
    kernel = jnp.reshape(kernel, (len(parts), *kernel.shape[-2:]))
    result = _one_group(parts, kernel, axes[0].taps, params) if groups == 1 else _grouped(parts, kernel, groups, params)
    return _in_order(result, (spec.out_spec[0], *spec.out_spec[2:], spec.out_spec[1]))


def _with_images_last(
    convolution: _Convolution, params: dict[str, Any], image: jax.Array, kernel: jax.Array
) -> jax.Array:
    """The same, each window's entries a matrix with an image in each column."""
    axes, spec = convolution.axes, params["dimension_numbers"]
    image = jnp.transpose(image, (*spec.lhs_spec[2:], spec.lhs_spec[1], spec.lhs_spec[0]))
    kernel = jnp.transpose(kernel, (spec.rhs_spec[0], *spec.rhs_spec[2:], spec.rhs_spec[1]))
    windows = jnp.concatenate(_entries(image, axes, 0), axis=-2)
    places = windows.shape[:-2]
    windows = jnp.reshape(windows, (-1, *windows.shape[-2:]))
    weights = jnp.reshape(kernel, (len(kernel), -1))
    weights = weights.astype(jnp.promote_types(kernel.dtype, jnp.float32))  # its gradient is a sum over the places
    weights = jnp.broadcast_to(weights, (len(windows), *weights.shape)).astype(kernel.dtype)
    result = _matrices(weights, windows, params, batch=1)
    result = jnp.reshape(result, (*places, *result.shape[1:]))
    return _in_order(result, (*spec.out_spec[2:], spec.out_spec[1], spec.out_spec[0]))


def _in_order(result: jax.Array, order: Sequence[int]) -> jax.Array:
    """A convolution's result, whose axis i is number order[i], with its axes in order."""
    # Its derivative is a barrier too: or XLA adds up the windows that an entry is in while it transposes the sums for
    # the kernel's gradient, entry by entry, a third of a step on images of 32 x 32.
    return jax.lax.optimization_barrier(jnp.transpose(result, [order.index(i) for i in range(len(order))]))


def _entries(image: jax.Array, axes: Sequence[_Axis], start: int) -> list[jax.Array]:
    """The entries of all windows, one array per position in the window; the image's axes are those from `start` on."""
    padding = [(0, 0, 0)] * image.ndim
    padding[start : start + len(axes)] = [axis.padding for axis in axes]
    parts = [jax.lax.pad(image, jnp.zeros((), image.dtype), padding)]
    for number, axis in enumerate(axes, start):
        parts = [part for whole in parts for part in _taps(whole, number, axis)]
    return parts


def _taps(image: jax.Array, number: int, axis: _Axis) -> list[jax.Array]:
    """The entries of all windows along an axis of the image, one array per position in the window."""
    firsts = [tap * axis.dilation for tap in range(axis.taps)]
    span = (axis.windows - 1) * axis.stride + 1
    return [jax.lax.slice_in_dim(image, first, first + span, axis.stride, number) for first in firsts]


def _one_group(parts: list[jax.Array], kernel: jax.Array, rows: int, params: dict[str, Any]) -> jax.Array:
    """The product of all windows' entries with the kernel (taps, features, results); where the entries of all windows
    are too much to hold, the sum of such products for each of the kernel's `rows`."""
    size = len(parts) * parts[0].size * parts[0].dtype.itemsize
    count = rows if size > _MAX_WINDOWS else 1
    each = len(parts) // count
    wide = jnp.promote_types(parts[0].dtype, jnp.float32) if count > 1 else params["preferred_element_type"]

    def product(row: int) -> jax.Array:
        windows = jnp.concatenate(parts[row * each : (row + 1) * each], axis=-1)
        weights = jnp.reshape(kernel[row * each : (row + 1) * each], (windows.shape[-1], -1))
        entries = jnp.reshape(windows, (-1, windows.shape[-1]))
        return _matrices(entries, weights, params | {"preferred_element_type": wide})

    result = functools.reduce(jnp.add, map(product, range(count)))
    result = result.astype(params["preferred_element_type"] or parts[0].dtype)
    return jnp.reshape(result, (*parts[0].shape[:-1], -1))


def _grouped(parts: list[jax.Array], kernel: jax.Array, groups: int, params: dict[str, Any]) -> jax.Array:
    """The same of each group's features (kernel: taps, features of a group, results of all); of groups of one feature,
    as of a depthwise convolution, entry by entry."""
    taps, features, results = kernel.shape
    shape = parts[0].shape[:-1]
    kernel = jnp.reshape(kernel, (taps, features, groups, -1))
    if features == 1:
        wide = jnp.promote_types(params["preferred_element_type"] or kernel.dtype, jnp.float32)
        terms = [part[..., None].astype(wide) * kernel[tap, 0].astype(wide) for tap, part in enumerate(parts)]
        total = functools.reduce(jnp.add, terms).astype(params["preferred_element_type"] or kernel.dtype)
    else:
        entries = jnp.stack([jnp.reshape(part, (-1, groups, features)) for part in parts], axis=-2)
        entries = jnp.reshape(jnp.moveaxis(entries, 0, 1), (groups, -1, taps * features))
        weights = jnp.reshape(jnp.transpose(kernel, (2, 0, 1, 3)), (groups, taps * features, -1))
        total = jnp.moveaxis(_matrices(entries, weights, params, batch=1), 0, 1)
    return jnp.reshape(total, (*shape, results))
