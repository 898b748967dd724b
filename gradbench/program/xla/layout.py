"""Matrix products as XLA:CPU computes them fast, whatever order of axes they are written in.

Its kernels read a matrix of data fastest along its examples, and write a result fastest along its longer side: with
examples as rows, as most losses are written, a network's step takes twice as long. So an array may be kept with its
axes in another order than its value has (`PermutedArray`), products are taken in the order that suits them, and what
is done entry by entry to their results is done in that order too. Transposes cost nothing then, and most cancel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

VECTOR = 16  # float32 numbers in the widest vectors of a CPU
_LARGEST = 2**26  # bytes of data that is kept in two orders
_DTYPES = ("float16", "bfloat16", "float32", "float64")  # of products that XLA:CPU has kernels for
_LOOPS = 3  # beside these it makes products of at most 3 terms, or of at most 3 x 3 entries, by plain loops


@partial(jax.tree_util.register_dataclass, data_fields=("array", "value"), meta_fields=("order",))
@dataclass(frozen=True)
class PermutedArray:
    """A value whose axis order[i] is axis i of `array`; `value` is the value itself, where it is kept too."""

    array: Any
    order: tuple[int, ...]
    value: Any = None

    @property
    def places(self) -> tuple[int, ...]:
        """Where in `array` each axis of the value is."""
        return tuple(self.order.index(axis) for axis in range(len(self.order)))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape[place] for place in self.places)

    @property
    def dtype(self) -> Any:
        return self.array.dtype


def as_permuted(array: jax.Array, order: Sequence[int]) -> Any:
    """The value whose axis order[i] is axis i of `array`."""
    order = tuple(order)
    return array if order == tuple(range(len(order))) else PermutedArray(array, order)


def materialize(x: Any) -> Any:
    """The value of an array that may be a PermutedArray."""
    if not isinstance(x, PermutedArray):
        return x
    return jnp.transpose(x.array, x.places) if x.value is None else x.value


def in_own_order(x: Any) -> Any:
    """The value of an array that may be a PermutedArray, in memory in the order of its own axes.

    For what a loop carries: XLA would keep that in the order in which it is computed, and transpose it at every step
    for a product that needs the other one. Such a transpose alone, of sizes that vectors do not divide, took half of
    the time to compile a linear regression's program; within the computation it costs little.
    """
    from jax.experimental.layout import Layout, with_layout_constraint

    value = materialize(x)
    kept = not isinstance(x, PermutedArray) or x.value is not None
    return value if kept else with_layout_constraint(value, Layout(major_to_minor=tuple(range(value.ndim))))


def materialize_tree(tree: Any) -> Any:
    """A pytree with every PermutedArray in it replaced by its value."""
    return jax.tree.map(materialize, tree, is_leaf=lambda x: isinstance(x, PermutedArray))


def examples_last(x: Any) -> Any:
    """A float matrix with more rows than columns, also kept transposed; anything else, or above _LARGEST, unchanged.
    `x` is an array or its shape."""
    size = math.prod(x.shape) * x.dtype.itemsize
    if len(x.shape) != 2 or x.shape[0] <= x.shape[1] or size > _LARGEST or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    shape = isinstance(x, jax.ShapeDtypeStruct)
    return PermutedArray(jax.ShapeDtypeStruct(x.shape[::-1], x.dtype) if shape else np.asarray(x).T, (1, 0), x)


def transpose_permuted(x: Any, permutation: Sequence[int]) -> Any:
    """jnp.transpose(x, permutation), without moving data."""
    array, order = stored(x)
    return as_permuted(array, [list(permutation).index(axis) for axis in order])


def broadcast_permuted(x: PermutedArray, shape: Sequence[int], places: Sequence[int]) -> Any:
    """lax.broadcast_in_dim(x, shape, places), in the order that `x` is kept in, behind its new axes."""
    order = (*(axis for axis in range(len(shape)) if axis not in places), *(places[axis] for axis in x.order))
    behind = range(len(shape) - len(x.order), len(shape))
    array = jax.lax.broadcast_in_dim(x.array, [shape[axis] for axis in order], behind)
    if x.value is None:
        return as_permuted(array, order)
    return PermutedArray(array, order, jax.lax.broadcast_in_dim(x.value, shape, places))


def stored(x: Any) -> tuple[jax.Array, tuple[int, ...]]:
    """The array of a value that may be a PermutedArray, and the order of its axes."""
    return (x.array, x.order) if isinstance(x, PermutedArray) else (x, tuple(range(jnp.ndim(x))))


def aligned(operands: Sequence[Any]) -> tuple[list[Any], tuple[int, ...]]:
    """The operands of an elementwise operation, all with the axis order of the first that is permuted; that order."""
    order = next(x.order for x in operands if isinstance(x, PermutedArray))

    def in_order(x: Any) -> Any:
        array, kept = stored(x)
        return array if kept in ((), order) else jnp.transpose(materialize(x), order)

    return [in_order(x) for x in operands], order


def without(x: PermutedArray, axes: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For a reduction of a value over `axes`: the axes of the array to reduce, and the order of the result."""
    left = [axis for axis in x.order if axis not in axes]
    return tuple(x.places[axis] for axis in axes), tuple(sorted(left).index(axis) for axis in left)


class _Factor(NamedTuple):
    """One side of a product: an array of batch axes, then its free entries in one axis and the summed ones in another;
    the sizes of its free axes, and which axes of the result they are."""

    array: jax.Array
    last: bool  # whether the summed axis is the last
    sizes: tuple[int, ...]
    places: tuple[int, ...]
    value: jax.Array | None  # of data kept in two orders, the other one

    @property
    def entries(self) -> int:
        return math.prod(self.sizes)

    @property
    def summed(self) -> int:
        return self.array.ndim - (1 if self.last else 2)


def _factor(x: Any, batch: Sequence[int], summed: Sequence[int], start: int) -> _Factor:
    """Of `x`, whose free axes are the result's from `start` on."""
    array, order = stored(x)
    free = [axis for axis in order if axis not in batch and axis not in summed]
    last = order != (*batch, *summed, *free)  # or it serves as it is
    if last:
        array = jnp.transpose(array, [order.index(axis) for axis in (*batch, *free, *summed)])
    sizes = tuple(x.shape[axis] for axis in free)
    value = x.value if isinstance(x, PermutedArray) and len(order) == 2 else None  # as it is, a matrix
    matrix = (math.prod(sizes), -1) if last else (-1, math.prod(sizes))
    array = jnp.reshape(array, (*array.shape[: len(batch)], *matrix))
    return _Factor(array, last, sizes, tuple(start + sorted(free).index(axis) for axis in free), value)


def product(a: Any, b: Any, params: dict[str, Any]) -> Any | None:
    """lax.dot_general(a, b, **params) of matrices, perhaps permuted; None of a vector, or of whole numbers.

    The result's last axis is the longer one, since kernels vectorise along it; of two that are both shorter than the
    sums over them, the one that fills vectors better, or that is not data, or else the shorter one, since the kernels
    transpose the second factor: otherwise such a product takes up to 2.6 times as long. A factor much smaller than the
    other has its sums laid along its last axis; data that comes second is read by rows.
    """
    (summed_a, summed_b), (batch_a, batch_b) = params["dimension_numbers"]
    batch = tuple(range(len(batch_a)))
    sides = (a, batch_a, summed_a), (b, batch_b, summed_b)
    terms = math.prod(a.shape[axis] for axis in summed_a)
    shared = terms * math.prod(a.shape[axis] for axis in batch_a)
    dtypes = {str(d) for d in (a.dtype, b.dtype, params["preferred_element_type"]) if d is not None}
    if min(math.prod(a.shape), math.prod(b.shape)) <= shared or terms == 1 or not dtypes.issubset(_DTYPES):
        return None
    for big, small in (sides, sides[::-1]):
        if outer := _outer_axes(*big, small[0]):
            return _one_by_one(big, small, outer, params, first=big is sides[0])

    def rank(f: _Factor) -> tuple[float, bool, int]:
        filled = f.entries / (VECTOR * math.ceil(f.entries / VECTOR))
        long = terms > max(g.entries for g in factors)
        return (round(filled, 1), f.value is None, -f.entries) if long else (f.entries, False, 0)

    factors = [_factor(a, batch_a, summed_a, len(batch)), _factor(b, batch_b, summed_b, len(a.shape) - len(summed_a))]
    first, second = sorted(factors, key=rank)
    if second.last and second.value is not None:
        second = second._replace(array=second.value, last=False)
    if not first.last and 4 * first.array.size < second.array.size:
        first = first._replace(array=jax.lax.optimization_barrier(jnp.swapaxes(first.array, -1, -2)), last=True)
    result = jax.lax.dot_general(
        first.array,
        second.array,
        (((first.summed,), (second.summed,)), (batch, batch)),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    # Else XLA would take the product in another order, to save a transpose. It must be free to do so where it uses
    # plain loops: jax 0.10's XLA tries again once layouts are assigned, and then aborts the process.
    if terms > _LOOPS and max(first.entries, second.entries) > _LOOPS:
        result = jax.lax.optimization_barrier(result)
    result = jnp.reshape(result, (*result.shape[: len(batch)], *first.sizes, *second.sizes))
    return as_permuted(result, (*batch, *first.places, *second.places))


def _outer_axes(x: Any, batch: Sequence[int], summed: Sequence[int], other: Any) -> tuple[int, ...]:
    """The free axes of `x` that lie outside its summed ones, as trials do of what each makes of rows of data: where the
    rest of the free axes fill vectors, and `other` repeated along them takes no more memory than `x`. Else ()."""
    order = stored(x)[1][len(batch) :]
    outer = order[: next((i for i, axis in enumerate(order) if axis in summed), 0)]
    inner = order[len(outer) + len(summed) :]
    as_it_lies = stored(x)[1] == (*batch, *outer, *summed, *inner)
    filled = math.prod(x.shape[axis] for axis in inner) >= VECTOR
    fits = math.prod(other.shape) * math.prod(x.shape[axis] for axis in outer) <= math.prod(x.shape)
    return outer if as_it_lies and filled and fits else ()


def _one_by_one(big: Any, small: Any, outer: Sequence[int], params: dict[str, Any], first: bool) -> Any:
    """A product as one for each entry along the `outer` axes of `big`, which is not moved: `small` is repeated instead.
    A row of 256 numbers for each of 64 examples and 2 trials, times 2 numbers of each example, takes a sixth of the
    time that it takes after a transpose."""
    (x, batch, summed), (y, batch_y, summed_y) = big, small
    array, kept = stored(x)
    free_x, free_y = (
        [axis for axis in range(len(of.shape)) if axis not in (*own, *added)] for of, own, added in (big, small)
    )
    n, apart = len(batch), len(batch) + len(outer)
    trials = tuple(range(apart))
    repeated = jnp.transpose(materialize(y), (*batch_y, *free_y, *summed_y))
    repeated = jnp.expand_dims(repeated, range(n, apart))
    repeated = jnp.broadcast_to(repeated, (*array.shape[:apart], *repeated.shape[apart:]))
    last = tuple(range(repeated.ndim - len(summed), repeated.ndim))
    middle = tuple(range(apart, apart + len(summed)))
    result = jax.lax.dot_general(
        repeated,
        array,
        ((last, middle), (trials, trials)),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    of_x, of_y = (n, n + len(free_x)) if first else (n + len(free_y), n)
    inner = kept[apart + len(summed) :]
    before, behind = ([of_x + free_x.index(axis) for axis in axes] for axes in (outer, inner))
    return as_permuted(result, (*range(n), *before, *range(of_y, of_y + len(free_y)), *behind))


def tall_product(a: jax.Array, b: jax.Array, params: dict[str, Any]) -> jax.Array | None:
    """lax.dot_general(a, b, **params) of matrices, or batches of them, that are both summed along their first axis and
    make more rows than columns, as a weight's gradient: taken in the other order, since these kernels vectorise along
    the result's rows, and one of 256 x 64 takes 1.7 times as long as of 64 x 256. None of any other product."""
    (summed_a, summed_b), batch = params["dimension_numbers"]
    axes = tuple(range(len(batch[0])))
    matrices = a.ndim == b.ndim == len(axes) + 2 and all(tuple(x) == axes for x in batch)
    if not matrices or {*summed_a, *summed_b} != {len(axes)} or not {str(a.dtype), str(b.dtype)}.issubset(_DTYPES):
        return None
    if a.shape[-1] <= b.shape[-1] or min(b.shape[-2:]) <= _LOOPS:  # else it may abort the process: see above
        return None
    options = {name: params[name] for name in ("dimension_numbers", "precision", "preferred_element_type")}
    return jnp.swapaxes(jax.lax.optimization_barrier(jax.lax.dot_general(b, a, **options)), -1, -2)
