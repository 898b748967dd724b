"""Reads a jaxpr: what it calls and contains, in each supported version of JAX."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from gradbench.errors import users_place
from gradbench.machine.internals import setting

REMATERIALISED = frozenset({"remat", "remat2", "checkpoint"})
CALLS = REMATERIALISED | {
    *("jit", "pjit", "closed_call", "core_closed_call", "core_call", "xla_call", "eval_jaxpr"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}
PLAIN_CALLS = frozenset(name for name in CALLS - REMATERIALISED if not name.startswith("custom"))
# Primitives whose results are computed entry by entry.
TRANSCENDENTAL = {
    *("exp", "exp2", "expm1", "log", "log2", "log1p", "pow", "tanh", "logistic", "erf", "erfc", "erf_inv"),
    *("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh", "acosh", "atanh"),
    *("lgamma", "digamma"),
}
ENTRY_BY_ENTRY = TRANSCENDENTAL | {
    *("add", "add_any", "sub", "mul", "div", "rem", "neg", "abs", "sign", "max", "min", "clamp", "floor", "ceil"),
    *("square", "integer_pow", "sqrt", "rsqrt", "cbrt", "one_minus_square", "round", "nextafter", "is_finite"),
    *("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "xor", "not", "select_n"),
    *("convert_element_type", "reduce_precision", "copy"),
}
_BODIES = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr"), "cond": ("branches",)}


def open_jaxpr(jaxpr: Any) -> tuple[Any, list[Any]]:
    """The jaxpr and its constants, of a closed or an open one."""
    return getattr(jaxpr, "jaxpr", jaxpr), list(getattr(jaxpr, "consts", ()))


def is_literal(variable: Any) -> bool:
    """Whether an equation's operand, or a jaxpr's output, is a literal, whose value is `.val`."""
    return hasattr(variable, "val")


def evaluate(
    jaxpr: Any,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    step: Callable[[Any, list[Any]], Sequence[Any]],
    literal: Callable[[Any, Any], Any] = lambda value, aval: value,
) -> list[Any]:
    """The outputs of an open jaxpr, equation by equation: `step(equation, operands)` gives an equation's results,
    `literal(value, aval)` a literal's value. Values are dropped after their last use."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
    last = {v: number for number, e in enumerate(jaxpr.eqns) for v in e.invars if not is_literal(v)}
    kept = {v for v in jaxpr.outvars if not is_literal(v)}

    def read(variable: Any) -> Any:
        return literal(variable.val, variable.aval) if is_literal(variable) else values[variable]

    for number, equation in enumerate(jaxpr.eqns):
        values.update(zip(equation.outvars, step(equation, [read(v) for v in equation.invars]), strict=True))
        for variable in equation.invars:
            if not is_literal(variable) and last[variable] == number and variable not in kept:
                values.pop(variable, None)
    return [read(v) for v in jaxpr.outvars]


def bind(equation: Any, operands: list[Any], params: dict[str, Any]) -> Sequence[Any]:
    """Bind an equation's primitive with these parameters in the current trace; its results."""
    with equation.ctx.manager:
        results = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(params))
    return results if equation.primitive.multiple_results else [results]


def with_bodies(equation: Any, change: Callable[[Any, list[Any]], list[Any]]) -> dict[str, Any]:
    """The parameters of a loop or a branch with each jaxpr in them replaced by a trace of `change(closed jaxpr,
    arguments)`; those of any other equation unchanged."""

    def body(closed: Any) -> Any:
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in closed.in_avals]
        return jax.make_jaxpr(lambda *args: change(closed, list(args)))(*shapes)

    names, params = _BODIES.get(equation.primitive.name, ()), equation.params
    return params | {name: jax.tree.map(body, params[name]) for name in names}


def equations(trace: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, nested ones included."""
    for equation in open_jaxpr(trace)[0].eqns:
        yield equation
        for inner in nested(equation):
            yield from equations(inner)


def uncounted_flops(trace: Any) -> float:
    """FLOP of a traced function that XLA's cost analysis omits, since it counts a loop's body once. Two per term of a
    product, one per entry of anything else; a while loop's body counts once here too."""
    return _total(trace, _terms, every_round=True) - _total(trace, _terms, every_round=False)


def emitted(trace: Any) -> float:
    """Entries that a traced function computes by code that XLA:CPU writes for it, in every round of its loops (a while
    loop's body counts once); of a convolution and of a matrix-vector product the terms, since only products of two
    matrices are a library's."""

    def per_entry(equation: Any) -> float:
        if equation.primitive.name == "dot_general":
            (contracted, batch) = equation.params["dimension_numbers"]
            free = (
                v.aval.size / max(1, math.prod(v.aval.shape[axis] for axis in (*summed, *along)))
                for v, summed, along in zip(equation.invars, contracted, batch)
            )
            return 1.0 if min(free) > 1 else _terms(equation)
        return _terms(equation)

    return _total(trace, per_entry, every_round=True)


def _total(trace: Any, per_entry: Callable[[Any], float], every_round: bool) -> float:
    """What `per_entry` says of an equation, for each entry of its results, summed."""
    total = 0.0
    for equation in open_jaxpr(trace)[0].eqns:
        if inside := nested(equation):
            rounds = equation.params.get("length", 1) if every_round else 1
            total += rounds * sum(_total(inner, per_entry, every_round) for inner in inside)
        else:
            total += per_entry(equation) * sum(getattr(v.aval, "size", 0) for v in equation.outvars)
    return total


def _terms(equation: Any) -> float:
    """FLOP per entry of an equation's results."""
    name, operands = equation.primitive.name, [v.aval for v in equation.invars]
    if name == "dot_general":
        (summed, _), _ = equation.params["dimension_numbers"]
        return 2.0 * math.prod(operands[0].shape[axis] for axis in summed)
    if name == "conv_general_dilated":
        kernel, spec = operands[1], equation.params["dimension_numbers"].rhs_spec
        return 2.0 * kernel.size / kernel.shape[spec[0]]
    return 1.0


def nested(equation: Any) -> list[Any]:
    """The jaxprs in an equation's parameters."""
    if equation.primitive.name == "call_hi_primitive":
        return [_expanded(equation)]
    values = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns"))
    return [value for value in values if hasattr(value, "eqns") or hasattr(value, "jaxpr")]


def _expanded(equation: Any) -> Any:
    """The jaxpr of a primitive of jax 0.12, such as searchsorted, that JAX traces only when it lowers it."""
    dtypes = [str(v.aval.dtype) for v in (*equation.invars, *equation.outvars)]
    wide = any(dtype in ("float64", "complex128", "int64", "uint64") for dtype in dtypes)
    primitive, precision = equation.params["_prim"], setting("jax_default_matmul_precision")
    # A primitive and its batched version may be equal, so the operands are part of the cache's key.
    return _trace(primitive, tuple(jax.tree.leaves(primitive.in_avals)), wide, precision)


@functools.lru_cache(maxsize=256)
def _trace(primitive: Any, operands: tuple[Any, ...], wide: bool, precision: str | None) -> Any:
    def shape(aval: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)

    with jax.enable_x64(wide), jax.default_matmul_precision(precision):
        return jax.make_jaxpr(primitive.expand)(*jax.tree.map(shape, primitive.in_avals))


class CustomRule(NamedTuple):
    """A custom derivative rule in a trace: its name, whether it has a while loop (then it and its derivative may be
    iterated to a tolerance), and `file:line` of a user's own function, else ""."""

    name: str
    iterates: bool
    place: str


def custom_rules(trace: Any) -> list[CustomRule]:
    """The custom derivative rules in a trace of a loss, sorted by name."""
    found: dict[str, CustomRule] = {}
    for equation in equations(trace):
        name, params, place = equation.primitive.name, equation.params, ""
        if name == "call_hi_primitive":
            name = f"the rule of {type(params['_prim']).__name__}"
        elif has_rule(equation):
            source = _source(equation)
            function, place = params.get("name") or getattr(source, "func_name", None), place_of_rule(equation)
            name = f"{name.split('_call')[0]} of {function or 'a function'}"
        elif name != "custom_linear_solve":
            continue
        inside = {e.primitive.name for inner in nested(equation) for e in equations(inner)}
        iterates = "while" in inside or (name in found and found[name].iterates)
        found[name] = CustomRule(name, iterates, place)
    return sorted(found.values())


def has_rule(equation: Any) -> bool:
    """Whether an equation calls a function with a custom derivative rule."""
    return equation.primitive.name in CALLS and equation.primitive.name.startswith("custom")


def place_of_rule(equation: Any) -> str:
    """Where the user wrote the function that has this custom rule; "" for a library's."""
    source = _source(equation)
    return users_place(getattr(source, "func_filename", None) or "<frozen", getattr(source, "func_lineno", None))


def _source(equation: Any) -> Any:
    inner, _ = open_jaxpr(_body(equation.params))
    return getattr(inner, "debug_info", None)


def _body(params: dict[str, Any]) -> Any:
    """The jaxpr among a call's parameters."""
    return next(params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params)


def called(equation: Any, ins: list[Any]) -> tuple[Any, list[Any], list[Any]] | None:
    """What a call runs: (its jaxpr, the constants, its arguments among `ins`); None for an equation that is no call.

    A linear solve counts as its forward solve: it is differentiated before this is asked.
    """
    name, params = equation.primitive.name, equation.params
    if name in CALLS:
        return *open_jaxpr(_body(params)), ins
    if name == "custom_linear_solve":
        lengths = params["const_lengths"]
        start = lengths.matvec + lengths.vecmat
        right = ins[start + lengths.solve + lengths.transpose_solve :]
        return *open_jaxpr(params["jaxprs"].solve), [*ins[start : start + lengths.solve], *right]
    if name == "call_hi_primitive":
        return *open_jaxpr(_expanded(equation)), ins
    return None


def kept_apart(equation: Any) -> bool:
    """Whether an equation recomputes its jaxpr on purpose, so that XLA must not merge it with the first computation."""
    return equation.primitive.name in REMATERIALISED and equation.params["prevent_cse"]


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """(constants, carried values) of a scan."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carried = (len(part) for part in list(params["ft_in"].unpack())[:2])  # jax 0.12 keeps the groups as a tree
    return consts, carried


def with_combiner(params: dict[str, Any], combiner: Any) -> dict[str, Any]:
    """A scatter's parameters with the closed jaxpr `combiner` for combining updates, opened if its own is open."""
    own = params["update_jaxpr"]
    return params | {"update_jaxpr": combiner if type(own) is type(combiner) else combiner.jaxpr}
