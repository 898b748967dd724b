"""Which products and sums a right program may take in another order. The rules: `primitives`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jax.numpy import promote_types

from gradbench.gradients.rounding.numbers.arrays import jnp, lowest
from gradbench.gradients.rounding.primitives import ADDITIONS, names
from gradbench.program.xla.jaxprs import is_literal

# Products of numbers that many entries share stay such under these; copies of shared numbers are shared.
_LINEAR = names(
    "neg reshape transpose squeeze expand_dims broadcast_in_dim convert_element_type copy rev slice concatenate pad "
    "gather dynamic_slice select_n add sub add_any reduce_sum cumsum dot_general conv_general_dilated div"
)
# Each number of their results is one of an operand's.
_REARRANGED = names(
    "neg reshape transpose squeeze expand_dims broadcast_in_dim convert_element_type copy rev slice concatenate pad "
    "gather dynamic_slice select_n stop_gradient name"
)
_SAME_NUMBERS = names("neg reshape transpose squeeze expand_dims broadcast_in_dim convert_element_type copy")


class Folding:
    """Which products and sums a right program may take in another order: (x a) b is x (a b), whose rounding of a b all
    x share, and (x + a) + b is x + (a + b).

    Follows the variables of a jaxpr: those whose numbers are repeated (a scalar beside an array, a broadcast array),
    those that are such a number times others, whatever is linear in between, and those that are such a number plus
    others.
    """

    def __init__(self):
        self._repeated: set[Any] = set()
        self._scaled: set[Any] = set()
        self._shifted: set[Any] = set()

    def renamed(self, old: Iterable[Any], new: Iterable[Any]) -> None:
        """The variables `new` stand for `old`, as arguments do for those of a call."""
        for one, other in zip(old, new):
            for known in (self._repeated, self._scaled, self._shifted):
                if not is_literal(one) and one in known:
                    known.add(other)

    def see(self, equation: Any) -> None:
        """Notes what an equation's results are."""
        name, ins, (out, *_) = equation.primitive.name, equation.invars, equation.outvars
        if name == "mul" or name in ADDITIONS:
            repeated, known = [self._is_repeated(v, out) for v in ins], self._scaled if name == "mul" else self._shifted
            if any(repeated) or any(self._is(known, v) for v in ins):
                known.add(out)
            if all(repeated):
                self._repeated.add(out)
        if name in _REARRANGED and any(self._is(self._shifted, v) for v in ins):
            self._shifted.add(out)
        if name in _LINEAR and any(self._is(self._scaled, v) for v in ins):
            self._scaled.add(out)
        if name == "broadcast_in_dim" and _size(out) > _size(ins[0]) and not is_literal(ins[0]):
            self._repeated.add(out)
        if name in _SAME_NUMBERS and self._is(self._repeated, ins[0]):
            self._repeated.add(out)

    def of_product(self, equation: Any) -> list[int]:
        """Which operands of a product a right program may multiply by others first: constants, which a compiler folds,
        and repeated numbers where the other operand is a product with some already."""
        one, other = equation.invars
        out = equation.outvars[0]

        def folds(variable: Any, beside: Any) -> bool:
            if is_literal(variable):
                return not _is_power_of_two(variable.val)
            return self._is_repeated(variable, out) and self._is(self._scaled, beside)

        return [place for place, pair in enumerate(((one, other), (other, one))) if folds(*pair)]

    def of_sum(self, equation: Any) -> list[int]:
        """Which operands of a sum a right program may add to others first: repeated numbers where the other operand is
        a sum with some already."""
        one, other = equation.invars
        out = equation.outvars[0]
        pairs = enumerate(((one, other), (other, one)))
        return [place for place, (a, b) in pairs if self._is_repeated(a, out) and self._is(self._shifted, b)]

    def _is_repeated(self, variable: Any, out: Any) -> bool:
        """A literal is none."""
        return not is_literal(variable) and (variable in self._repeated or _size(variable) < _size(out))

    @staticmethod
    def _is(known: set[Any], variable: Any) -> bool:
        return not is_literal(variable) and variable in known


class Addends(NamedTuple):
    """Of what each number of an array is the sum, arrays of float64: the sum of its addends' magnitudes and the root of
    that of their squares, how many there are that are not 0, and the largest power of two of which all are
    multiples."""

    size: Any
    norm: Any
    count: Any
    grid: Any

    @property
    def share(self) -> Any:
        """Times norm^2: the sum of the squares of the partial sums in a random order, but for what grows with the
        whole sum."""
        k = jnp.maximum(self.count, 2.0)
        return (k - 2) * (k + 3) / (6 * k)


class Sums:
    """Follows the variables of a jaxpr that are sums: of what addends."""

    def __init__(self):
        self._known: dict[Any, Addends] = {}
        self._carried: set[Any] = set()

    def renamed(self, old: Iterable[Any], new: Iterable[Any]) -> None:
        """As in `Folding`."""
        for one, other in zip(old, new):
            self._set(other, None if is_literal(one) else self._known.get(one))

    def carried(self, variables: Iterable[Any]) -> None:
        """Of what a loop carries nobody knows the addends: it may be a sum, whose own were counted before."""
        self._carried.update(variables)

    def see(self, equation: Any, bind: Callable[[list[Any]], Any], operands: list[Any]) -> None:
        """Notes what an equation's result is; `operands` without noise."""
        name, ins, found = equation.primitive.name, equation.invars, None
        if name in ADDITIONS and jnp.issubdtype(operands[0].dtype, jnp.floating):
            one, other = map(self._of, ins, operands)
            norm, grid = jnp.hypot(one.norm, other.norm), jnp.minimum(one.grid, other.grid)
            found = Addends(one.size + other.size, norm, one.count + other.count, grid)
        elif name in _REARRANGED and any(map(self._is_sum, ins)) and not _rounds(equation):
            floats = [jnp.issubdtype(x.dtype, jnp.floating) for x in operands]
            each = [self._of(v, x) if f else [x] * len(Addends._fields) for v, x, f in zip(ins, operands, floats)]
            found = Addends(*(jnp.abs(bind(list(column))) for column in zip(*each)))
        for variable in equation.outvars:
            self._set(variable, found)

    def in_other_orders(self, equation: Any, operands: list[Any], exact: Any, form: Any) -> tuple[Any, Any] | None:
        """Of a sum that was seen, of sums: what the partial sums of another order are in size beyond those of its
        operands', 0 where they would be exact; and whether they may leave the format's range where the sum does not.
        None of any other."""
        whole = self._known.get(equation.outvars[0])
        if whole is None or equation.primitive.name not in ADDITIONS or not any(map(self._is_sum, equation.invars)):
            return None
        rest = whole.share
        for variable, value in zip(equation.invars, operands):
            part = self._of(variable, value)
            ratio = jnp.where(whole.norm > 0, part.norm / jnp.where(whole.norm > 0, whole.norm, 1.0), 0.0)
            rest = rest - ratio * ratio * part.share
        largest, known = (whole.size + jnp.abs(exact)) / 2, jnp.isfinite(whole.norm)  # no partial sum is larger
        rounded = known & (largest > whole.grid * 2.0**form.digits)
        beyond = known & (largest > form.largest) & (whole.count > 2)
        return jnp.where(rounded, whole.norm * jnp.sqrt(jnp.maximum(rest, 0.0)), 0.0), jnp.any(beyond)

    def _is_sum(self, variable: Any) -> bool:
        return not is_literal(variable) and (variable in self._known or variable in self._carried)

    def _of(self, variable: Any, value: Any) -> Addends:
        if not is_literal(variable) and variable in self._known:
            return self._known[variable]
        if self._is_sum(variable):
            whole = jnp.where(value == jnp.round(value), lowest(value), 0.0)
            return Addends(jnp.zeros_like(value), jnp.zeros_like(value), jnp.where(value == 0, 0.0, 2.0), whole)
        return Addends(jnp.abs(value), jnp.abs(value), jnp.where(value == 0, 0.0, 1.0), lowest(value))

    def _set(self, variable: Any, addends: Addends | None) -> None:
        if addends is None:
            self._known.pop(variable, None)
        else:
            self._known[variable] = addends


def _rounds(equation: Any) -> bool:
    """Whether a conversion may change numbers: what is added to them later is not added to their own addends."""
    new, (old, *_) = equation.outvars[0].aval.dtype, (v.aval.dtype for v in equation.invars)
    return equation.primitive.name == "convert_element_type" and promote_types(old, new) != new


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _is_power_of_two(constant: Any) -> bool:
    if np.ndim(constant) or np.iscomplexobj(constant):
        return False
    return abs(np.frexp(np.float64(constant))[0]) == 0.5
