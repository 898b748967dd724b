"""Which products a right program may take in another order: (x a) b is x (a b), whose rounding of a b all x share.

`Folding` follows the variables of a jaxpr: those whose numbers are repeated (a scalar beside an array, a broadcast
array), and those that are such a number times others, whatever is linear in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from gradbench.gradients.rounding.primitives import names
from gradbench.program.xla.jaxprs import is_literal

_LINEAR = names(
    "neg reshape transpose squeeze expand_dims broadcast_in_dim convert_element_type copy rev slice concatenate pad "
    "gather dynamic_slice select_n add sub add_any reduce_sum cumsum dot_general conv_general_dilated div"
)
_SAME_NUMBERS = names("neg reshape transpose squeeze expand_dims broadcast_in_dim convert_element_type copy")


class Folding:
    """What is known of the variables seen so far."""

    def __init__(self):
        self._repeated: set[Any] = set()
        self._scaled: set[Any] = set()

    def renamed(self, old: Iterable[Any], new: Iterable[Any]) -> None:
        """The variables `new` stand for `old`, as arguments do for those of a call."""
        for one, other in zip(old, new):
            for known in (self._repeated, self._scaled):
                if not is_literal(one) and one in known:
                    known.add(other)

    def see(self, equation: Any) -> None:
        """Notes what an equation's results are."""
        name, ins, (out, *_) = equation.primitive.name, equation.invars, equation.outvars
        if name == "mul":
            repeated = [self._is_repeated(v, out) for v in ins]
            if any(repeated) or any(self._is(self._scaled, v) for v in ins):
                self._scaled.add(out)
            if all(repeated):
                self._repeated.add(out)
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

    def _is_repeated(self, variable: Any, out: Any) -> bool:
        """A literal is none."""
        return not is_literal(variable) and (variable in self._repeated or _size(variable) < _size(out))

    @staticmethod
    def _is(known: set[Any], variable: Any) -> bool:
        return not is_literal(variable) and variable in known


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _is_power_of_two(constant: Any) -> bool:
    if np.ndim(constant) or np.iscomplexobj(constant):
        return False
    return abs(np.frexp(np.float64(constant))[0]) == 0.5
