"""Which values XLA:CPU computes once, of those that several operations use.

XLA fuses what is computed entry by entry into every operation that uses it, and so computes it again in each: the
gradient of a transformer's residual stream, a sum of terms of all the layers above, was computed from all of them in
every layer, a twelfth of a step. And what a product takes in another order of axes it computes in that order, entry by
entry. A barrier does not prevent it, since XLA:CPU removes barriers before it fuses. So what is better computed once is
made a function that XLA is told not to inline, with all that is fused into it. Its operations stay the same; whether a
product and a sum are rounded once or twice is the compiler's choice, as it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax

from gradbench.program.xla.jaxprs import bind, equations, evaluate, is_literal, open_jaxpr, scan_counts, with_bodies

_LEAST = 2**18  # bytes: less stays in a core's cache, and costs little to read again
_SMALL = 4  # what is so many times smaller than a value adds nothing to what it costs
_RESHAPES = {"reshape", "squeeze", "expand_dims"}
_MOVES = _RESHAPES | {"broadcast_in_dim", "transpose", "slice"}
_CHEAP = _MOVES | {
    *("add", "add_any", "sub", "mul", "neg", "abs", "sign", "max", "min", "clamp", "square", "integer_pow"),
    *("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "xor", "not", "select_n", "is_finite"),
    *("convert_element_type", "reduce_precision", "copy"),
}
# XLA does not compute these twice: with a second use they are written to memory.
_DEAR = {
    *("div", "exp", "exp2", "expm1", "log", "log1p", "pow", "tanh", "logistic", "erf", "sqrt", "rsqrt", "cbrt"),
    *("sin", "cos", "tan"),
}


def has_large(jaxpr: Any) -> bool:
    """Whether a jaxpr, closed or open, has values that may be better computed once."""
    return any(_bytes(v) >= _LEAST for equation in equations(jaxpr) for v in equation.outvars)


def computed_once(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], sliced: Iterable[Any] = ()) -> list[Any]:
    """The outputs of an open jaxpr, loops and branches in it included, with functions for what is better computed once.

    `sliced` are those of its arguments that a loop cuts out of a larger array in each round, as part of what uses them:
    for a function they would be copied first.
    """
    functions = _functions(jaxpr, set(sliced))
    needed = {v for function in functions.values() for v in function.leaves}
    known: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def step(equation: Any, operands: list[Any]) -> Sequence[Any]:
        if len(equation.outvars) == 1 and (function := functions.get(equation.outvars[0])):
            results = [function.call([known[v] for v in function.leaves])]
        else:
            results = bind(equation, operands, with_bodies(equation, partial(_body, equation)))
        known.update((v, x) for v, x in zip(equation.outvars, results, strict=True) if v in needed)
        return results

    return evaluate(jaxpr, consts, args, step)


def _body(equation: Any, body: Any, args: list[Any]) -> list[Any]:
    """The outputs of a loop's or a branch's jaxpr."""
    jaxpr, consts = open_jaxpr(body)
    sliced = jaxpr.invars[sum(scan_counts(equation.params)) :] if equation.primitive.name == "scan" else ()
    return computed_once(jaxpr, consts, args, sliced)


class _Function:
    """The equations of a value and of all that is fused into it, in order, as a function of its `leaves`."""

    def __init__(self, equations: list[Any], leaves: list[Any]):
        self.equations, self.leaves = equations, leaves

    def call(self, values: Sequence[Any]) -> Any:
        from jax.experimental.xla_metadata import set_xla_metadata

        with set_xla_metadata(inlineable="false"):
            return jax.jit(self.computed, inline=False)(*values)

    def computed(self, *values: Any) -> Any:
        own = dict(zip(self.leaves, values, strict=True))
        for equation in self.equations:
            operands = [x.val if is_literal(x) else own[x] for x in equation.invars]
            own.update(zip(equation.outvars, bind(equation, operands, equation.params), strict=True))
        return own[self.equations[-1].outvars[0]]


def _functions(jaxpr: Any, sliced: set[Any]) -> dict[Any, _Function]:
    """The values of a jaxpr that are computed by functions, and these."""
    uses = _Uses(jaxpr)
    read: dict[Any, dict[Any, int]] = {}  # what is read from memory to compute a value that is fused, in bytes
    functions: dict[Any, _Function] = {}
    for equation in jaxpr.eqns:
        if not uses.fuses(equation):
            continue
        (v,) = equation.outvars
        operands = [x for x in equation.invars if not is_literal(x)]
        read[v] = {y: min(n, _bytes(v)) for x in operands for y, n in read.get(x, {x: _bytes(x)}).items()}
        if equation.primitive.name in _MOVES or v in uses.outputs or not uses.pays(v, list(read[v].values())):
            continue
        function = uses.function(v, read)
        if sliced.isdisjoint(x for x in function.leaves if _bytes(x) >= _LEAST):
            functions[v] = function
            del read[v]
    return functions


class _Uses:
    """How the values of a jaxpr are made and used."""

    def __init__(self, jaxpr: Any):
        self.of: dict[Any, list[Any]] = defaultdict(list)
        for equation in jaxpr.eqns:
            for v in {v for v in equation.invars if not is_literal(v)}:
                self.of[v].append(equation)
        self.outputs = {v for v in jaxpr.outvars if not is_literal(v)}
        self.made = {v: (number, e) for number, e in enumerate(jaxpr.eqns) for v in e.outvars}

    def fuses(self, equation: Any) -> bool:
        """Whether an equation is fused into what uses its result."""
        name = equation.primitive.name
        return name in _CHEAP or (name in _DEAR and len(self.of[equation.outvars[0]]) == 1)

    def pays(self, v: Any, read: list[int]) -> bool:
        """Whether less is read and written if `v` is computed once, from so many bytes of each value; or whether it is
        computed in the order of its own axes only so."""
        size = _bytes(v)
        if size < _LEAST or sum(_SMALL * n > size for n in read) < 2:
            return False
        fused, others = self.readers(v)
        again = (fused + bool(others)) * sum(read) + bool(others) * size
        once = sum(read) + size + fused * size
        return again > once or any(_in_another_order(x, equation) for x, equation in others)

    def readers(self, v: Any) -> tuple[float, list[tuple[Any, Any]]]:
        """How many times what `v` is fused into reads it as a whole; and each other equation that does, with the
        variable in it."""
        fused, others = 0.0, []
        for equation in self.of[v]:
            name = equation.primitive.name
            if name in _RESHAPES and equation.outvars[0] not in self.outputs:
                more, further = self.readers(equation.outvars[0])
                fused, others = fused + more, others + further
            elif name in _CHEAP | _DEAR or name.startswith("reduce_"):
                fused += _bytes(equation.outvars[0]) / _bytes(v) if name == "slice" else 1
            else:
                others.append((v, equation))
        return fused, others

    def function(self, v: Any, fused: dict[Any, Any]) -> _Function:
        """The function of a value: of what is `fused`, all but what is small."""
        equations, leaves, todo = {}, {}, [v]
        while todo:
            x = todo.pop()
            if x in fused and _SMALL * x.aval.size > v.aval.size:
                number, equation = self.made[x]
                equations[number] = equation
                todo += [y for y in equation.invars if not is_literal(y)]
            else:
                leaves[x] = None
        return _Function([equations[number] for number in sorted(equations)], list(leaves))


def _bytes(v: Any) -> int:
    return v.aval.size * v.aval.dtype.itemsize if hasattr(v.aval, "size") else 0


def _in_another_order(x: Any, equation: Any) -> bool:
    """Whether an equation is a batch of products that takes `x` in another order of axes than its own: XLA wants the
    batch's axes first, and the summed ones last on the left side and next on the right side."""
    if equation.primitive.name != "dot_general":
        return False
    summed, batch = equation.params["dimension_numbers"]
    for side, v in enumerate(equation.invars):
        free = [axis for axis in range(v.aval.ndim) if axis not in (*batch[side], *summed[side])]
        order = (*batch[side], *free, *summed[side]) if side == 0 else (*batch[side], *summed[side], *free)
        if v is x and batch[side] and order != tuple(range(v.aval.ndim)):
            return True
    return False
