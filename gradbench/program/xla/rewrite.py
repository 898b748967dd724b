"""Rewrites a traced function for the compiler: the same numbers but for rounding.

Divisions. XLA may turn x / y, where y has fewer entries than x, into x * (1 / y): a softmax's division by its sums,
adam's by its bias correction. Whether it does depends on what earlier passes have left of the broadcast, and a program
for one device goes through other passes than one for several: a trial's last bits would depend on the number of
devices, and unstable learning rates amplify them. XLA's reciprocal is also 0 or infinite for some y near the ends of
the range where x / y is an ordinary number. So it is decided here: always the reciprocal, of a scaled y if need be.

Sums. XLA:CPU sums more than 32 entries by windows, in a kernel that does not vectorise: 40 % of a bowl's step. So there
a sum of a few hundred is folded to 32 or fewer first, by adding its parts, and they are summed. Not a sum of exps or
logs: taking them in the folding kernel costs more than it saves. Many longer sums are a product with ones.

Products. On a CPU those of several lanes, or beside convolutions with their images last, may be taken in the order of
axes that suits it, and tall ones are: see layout.py. What is a product without being written as one of two matrices, a
convolution above all, is made one before: see products.py.

Lookups. Rows that a loss looks up in a table are needed again by its derivative: XLA:CPU writes them out once and reads
them twice. Where they are more than a core's caches hold, and the table is much less, they are looked up once more: a
matrix factorisation's step takes 1.13 to 1.24 times as long without.

Scatters. On a CPU large ones are done block by block: see scatters.py. A GPU adds what is scattered to one place in any
order, unless it is told not to, and then takes longer. So where each place gets one term, as a label's logit does, XLA
is told that.

All hold over the whole range of a dtype, non-finite numbers included, with two exceptions that XLA itself makes. Sums
and products whose terms' absolute values add up to more than the largest number may overflow on the way or not, by
the order of adding. And XLA:CPU takes subnormal numbers for zeros, and gives zeros in their place.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gradbench.program.xla.jaxprs import (
    ENTRY_BY_ENTRY,
    TRANSCENDENTAL,
    bind,
    called,
    equations,
    evaluate,
    is_literal,
    kept_apart,
    nested,
    open_jaxpr,
    with_bodies,
)
from gradbench.program.xla.layout import (
    PermutedArray,
    aligned,
    as_permuted,
    broadcast_permuted,
    in_own_order,
    materialize,
    product,
    stored,
    tall_product,
    transpose_permuted,
    without,
)
from gradbench.program.xla.scatters import CACHES, by_blocks, has_large
from gradbench.program.xla.switch import enabled

_WINDOW = 32
_MAX_FOLDED = 32 * _WINDOW  # entries; beyond, the parts would make a long program


def rewritten(function: Callable[..., Any], platform: str, relayout: bool = False) -> Callable[..., Any]:
    """`function`, of pytrees of arrays, changed as above: on a CPU all but its scatters, with `relayout` also its
    matrix products as in layout.py, whose PermutedArray its arguments may be; on a GPU its divisions and scatters.

    Calls, loops and branches inside included; what is under jax.checkpoint stays as it is, unless that has
    prevent_cse=False. `function` itself where rewriting is off.
    """
    if not enabled():
        return function

    def shape(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, PermutedArray) else x

    def changed(*args: Any) -> Any:
        rewrite = _Rewrite(platform == "cpu", relayout, platform == "gpu")
        leaves, tree = jax.tree.flatten(args, is_leaf=lambda x: isinstance(x, PermutedArray))
        traced, result = jax.make_jaxpr(function, return_shape=True)(*jax.tree.unflatten(tree, map(shape, leaves)))

        def results(*leaves: Any) -> list[Any]:
            return [in_own_order(x) for x in rewrite.run(*open_jaxpr(traced), leaves)]

        if platform == "cpu" and has_large(traced):
            found = by_blocks(*open_jaxpr(jax.make_jaxpr(results)(*leaves)), jax.tree.leaves(leaves))
        else:
            found = results(*leaves)
        return jax.tree.unflatten(jax.tree.structure(result), found)

    return changed


class _Rewrite:
    def __init__(self, sums: bool, products: bool, scatters: bool):
        self.sums, self.products, self.scatters = sums, products, scatters
        self.lookups: dict[int, _Lookup] = {}  # by the identity of what was looked up

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        """The outputs of an open jaxpr."""
        transcendental: set[Any] = set()

        def step(equation: Any, operands: list[Any]) -> Sequence[Any]:
            with equation.ctx.manager:
                results = self.results(equation, operands, transcendental)
            if self.sums and _is_transcendental(equation, transcendental):
                transcendental.update(equation.outvars)
            return results

        return evaluate(jaxpr, consts, args, step)

    def results(self, equation: Any, operands: list[Any], transcendental: set[Any]) -> Sequence[Any]:
        """The results of an equation; `transcendental` are the earlier variables computed with exps or the like."""
        primitive, params = equation.primitive, equation.params
        inner = None if kept_apart(equation) else called(equation, operands)
        if inner is not None:
            return self.run(*inner)
        again = {key: self.lookups[key].rows() for key in dict.fromkeys(map(id, operands)) if key in self.lookups}
        operands = [again.get(id(x), x) for x in operands]
        if self.sums and primitive.name == "gather" and _looked_up_again(equation):
            lookup = _Lookup(equation, [materialize(x) for x in operands])
            self.lookups[id(lookup.first)] = lookup
            return [lookup.first]
        if self.products and primitive.name == "transpose":
            return [transpose_permuted(operands[0], params["permutation"])]
        if self.products and primitive.name == "dot_general":
            result = product(*operands, params)
            if result is not None:
                return [result]
        if self.sums and not self.products and primitive.name == "dot_general":
            result = tall_product(*operands, params)
            if result is not None:
                return [result]
        if any(isinstance(x, PermutedArray) for x in operands):
            if primitive.name in ENTRY_BY_ENTRY:
                arrays, order = aligned(operands)
                return [as_permuted(*self.results(equation, arrays, transcendental), order)]
            if primitive.name in _REDUCTIONS:
                axes, order = without(operands[0], params["axes"])
                equation = equation.replace(params=params | {"axes": axes})
                return [as_permuted(*self.results(equation, [operands[0].array], transcendental), order)]
            if primitive.name == "broadcast_in_dim" and isinstance(operands[0], PermutedArray):
                return [broadcast_permuted(operands[0], params["shape"], params["broadcast_dimensions"])]
            if primitive.name == "optimization_barrier":
                arrays = bind(equation, [stored(x)[0] for x in operands], params)
                return [as_permuted(array, stored(x)[1]) for array, x in zip(arrays, operands, strict=True)]
            operands = [materialize(x) for x in operands]
        if primitive.name == "div" and _broadcasts(equation):
            return [_quotient(*operands)]
        if primitive.name == "reduce_sum" and self.sums and (axes := params["axes"]):  # a literal has no axis
            if _folds(operands[0], axes) and transcendental.isdisjoint(equation.invars):
                return [_folded(operands[0], len(axes))]
            if self.products and (last := _last_long(operands[0], axes)):
                total = _by_ones(operands[0], last)
                return [jnp.sum(total, axis=[axis for axis in axes if axis < total.ndim])]
        if primitive.name == "scatter-add" and self.scatters and _once(equation):
            return bind(equation, operands, params | {"unique_indices": True})
        return bind(equation, operands, with_bodies(equation, self.body))

    def body(self, body: Any, args: list[Any]) -> list[Any]:
        """The outputs of a loop's or a branch's jaxpr, rewritten."""
        return [materialize(x) for x in self.run(*open_jaxpr(body), args)]


class _Lookup:
    """Rows of a table, which are looked up again for their uses after the first."""

    def __init__(self, gather: Any, operands: list[Any]):
        self.gather, self.operands, self.uses = gather, operands, 0
        (self.first,) = bind(gather, operands, gather.params)

    def rows(self) -> Any:
        self.uses += 1
        return self.first if self.uses == 1 else self.second

    @functools.cached_property
    def second(self) -> Any:
        table, *places = self.operands
        table = jax.lax.optimization_barrier(table)  # or XLA would merge the two lookups
        return bind(self.gather, [table, *places], self.gather.params)[0]


def _looked_up_again(gather: Any) -> bool:
    """Whether the rows looked up exceed a core's caches, and the table is much smaller."""
    table, rows = gather.invars[0].aval, gather.outvars[0].aval
    return rows.size > 2 * table.size and rows.size * rows.dtype.itemsize > CACHES


def _once(scatter: Any) -> bool:
    """Whether a scatter has one index in each of its batches, so that no place gets two updates."""
    _, indices, _ = (v.aval.shape for v in scatter.invars)
    batches = scatter.params["dimension_numbers"].scatter_indices_batching_dims
    return math.prod(n for axis, n in enumerate(indices[:-1]) if axis not in batches) <= 1


def _broadcasts(division: Any) -> bool:
    result = division.outvars[0].aval
    return jnp.issubdtype(result.dtype, jnp.inexact) and division.invars[1].aval.size < result.size


def _quotient(x: Any, y: Any) -> jax.Array:
    """x / y by the reciprocal of y, one rounding more: in at least float32, since float16 cannot hold the reciprocals
    of small numbers. Where y is far from 1, its reciprocal may be subnormal or infinite though x / y is not: y is
    scaled by a power of two, exactly, and the product scaled back."""
    dtype = jnp.result_type(x)
    wide = jnp.promote_types(dtype, jnp.float32)
    known = not isinstance(y, Tracer)
    numbers: Any = np if known else jnp
    y = numbers.asarray(y, wide)
    far = 2.0 ** (jnp.finfo(wide).maxexp // 2)  # its reciprocal is normal, and so are those of all numbers nearer to 1
    size = numbers.abs(y)
    if float(jnp.finfo(dtype).max) < far or (known and np.all((1 / far <= size) & (size <= far))):
        return jnp.multiply(x, jnp.reciprocal(y)).astype(dtype)
    power = numbers.where(size > far, 1 / far, numbers.where(size < 1 / far, far, 1.0)).astype(wide)
    if known:  # or XLA would multiply two constants into a subnormal one
        power = jax.lax.optimization_barrier(jnp.asarray(power))
    return (jnp.multiply(x, jnp.reciprocal(y * power)) * power).astype(dtype)


def _folds(x: jax.Array, axes: Sequence[int]) -> bool:
    """Whether a sum of `x` over `axes` is worth folding."""
    return _WINDOW < _entries(x, axes) <= _MAX_FOLDED


def _long(x: jax.Array, axes: Sequence[int]) -> bool:
    """Whether sums of `x` over `axes` are many, and too long to fold."""
    return _MAX_FOLDED < _entries(x, axes) <= min(_MAX_FOLDED * _WINDOW, x.size - 1)


def _last_long(x: jax.Array, axes: Sequence[int]) -> int:
    """Over how many of its last axes a sum over `axes` is long, at most; 0 if over none."""
    last = next(count for count in range(x.ndim + 1) if count == x.ndim or x.ndim - 1 - count not in axes)
    return next((count for count in range(last, 0, -1) if _long(x, range(x.ndim - count, x.ndim))), 0)


def _entries(x: jax.Array, axes: Sequence[int]) -> int:
    """How many entries a sum over `axes` has; 0 if these are not the last axes, or for other dtypes."""
    last = range(x.ndim - len(axes), x.ndim)
    changes = set(axes) == set(last) and x.dtype in (jnp.float32, jnp.float64)
    return math.prod(x.shape[axis] for axis in last) if changes else 0


def _by_ones(x: jax.Array, axes: int) -> jax.Array:
    """The sums over the last `axes` axes, as a product with ones."""
    x = jnp.reshape(x, (*x.shape[: x.ndim - axes], -1))
    return jnp.matmul(x, jnp.ones(x.shape[-1], x.dtype), precision="highest")


_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"}
_FUSION_BOUNDARIES = {
    "dot_general",
    "conv_general_dilated",
    "reduce_sum",
    "reduce_max",
    "reduce_min",
    "scan",
    "while",
    "cond",
}


def _is_transcendental(equation: Any, transcendental: set[Any]) -> bool:
    """Whether an equation's results need exps or the like, in itself or in what XLA fuses into it."""
    if equation.primitive.name in _FUSION_BOUNDARIES:
        return False
    names = {e.primitive.name for e in (equation, *(e for body in nested(equation) for e in equations(body)))}
    return not TRANSCENDENTAL.isdisjoint(names) or any(
        v in transcendental for v in equation.invars if not is_literal(v)
    )


def _folded(x: jax.Array, axes: int) -> jax.Array:
    """The sum over the last `axes` axes. Parts are slices, since padding them to one size would not vectorise."""
    x = jnp.reshape(x, (*x.shape[: x.ndim - axes], -1))
    count = -(-x.shape[-1] // _WINDOW)
    width = x.shape[-1] // count
    parts = [x[..., part * width : (part + 1) * width] for part in range(count)]
    while len(parts) > 1:
        parts = [jnp.add(*pair) for pair in zip(parts[::2], parts[1::2])] + parts[len(parts) & ~1 :]
    total, rest = jnp.sum(parts[0], axis=-1), x[..., count * width :]
    return total + jnp.sum(rest, axis=-1) if rest.shape[-1] else total
