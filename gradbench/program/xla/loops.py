"""What a loop over time steps keeps for its derivative, and where.

JAX keeps every value that an iteration's derivative needs, each as an array over all iterations: for an LSTM twelve of
the size of its state, which XLA:CPU writes and reads one by one, and which do not fit in its cache. Most are a sum or a
product of others. So before a loss is differentiated its loops are made to keep what takes an exp, a matrix product
or the like, and to recompute what is cheap: without this an LSTM's step takes 1.15 times as long.

XLA fills the arrays that a loop stacks its results in with zeros before, one of them, and copies it for each other one,
in every step. So a loop over steps carries them from one to the next: each is overwritten as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.program.xla.jaxprs import REMATERIALISED, bind, equations, evaluate, nested, open_jaxpr, scan_counts
from gradbench.program.xla.switch import enabled

_LEAST = 2**16  # bytes of a stack: smaller ones cost little to fill

# Computed in a few cycles, or only moved. Not comparisons: keeping them, a byte each, saves keeping their operands.
_CHEAP = {
    *("add", "add_any", "sub", "mul", "neg", "abs", "sign", "max", "min", "clamp", "square", "integer_pow", "copy"),
    *("and", "or", "xor", "not", "select_n", "convert_element_type"),
    *("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "slice", "split", "concatenate", "transpose", "iota"),
}
_OWN = {"scan", "while", "cond", "custom_vjp_call", "custom_vjp_call_jaxpr"} | REMATERIALISED


def has_cheap_values(scan: Any) -> bool:
    """Whether a loop has values that are cheap to recompute, and no inner loops, effects, or custom rules for what is
    kept or differentiated."""
    names = {e.primitive.name for inner in nested(scan) for e in equations(inner)}
    return not scan.effects and names.isdisjoint(_OWN) and not names.isdisjoint(_CHEAP)


def keep_less(scan: Any, step: Callable[[Any, list[Any]], Sequence[Any]], operands: Sequence[Any]) -> list[Any]:
    """The results of a loop whose derivative keeps nothing cheap; `step(equation, operands)` evaluates the equations
    inside it."""
    params, (consts, carried) = scan.params, scan_counts(scan.params)
    body = open_jaxpr(params["jaxpr"])

    def one_round(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        results = evaluate(*body, [*operands[:consts], *carry, *x], step)
        return results[:carried], results[carried:]

    keeping = jax.checkpoint(one_round, prevent_cse=False, policy=lambda made, *_, **__: made.name not in _CHEAP)
    start, xs = list(operands[consts : consts + carried]), list(operands[consts + carried :])
    rounds = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = jax.lax.scan(keeping, start, xs, **rounds)
    return [*carry, *ys]


def over_steps(body: Callable[..., Any], start: Any, xs: Any, length: int) -> tuple[Any, Any]:
    """jax.lax.scan(body, start, xs, length), with one memory for what the loops inside stack in each round."""
    if not enabled():
        return jax.lax.scan(body, start, xs, length=length)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
    traced, shape = jax.make_jaxpr(body, return_shape=True)(start, one)
    memory = _stacks(traced)

    def one_step(carry: tuple[Any, list[Any]], x: Any) -> tuple[tuple[Any, list[Any]], Any]:
        results, memory = _evaluate(*open_jaxpr(traced), jax.tree.leaves((carry[0], x)), iter(carry[1]))
        state, seen = jax.tree.unflatten(jax.tree.structure(shape), results)
        return (state, memory), seen

    (state, _), seen = jax.lax.scan(one_step, (start, [jnp.zeros(*of) for of in memory]), xs, length=length)
    return state, seen


def _stacks(jaxpr: Any) -> list[tuple[tuple[int, ...], Any]]:
    """The shapes and types of what the loops in a jaxpr stack, those in loops included."""
    return [of for equation in open_jaxpr(jaxpr)[0].eqns for of in _stacks_of(equation)]


def _stacks_of(equation: Any) -> list[tuple[tuple[int, ...], Any]]:
    """The same of an equation: first what a loop stacks itself. Of a loop that stacks little, is unrolled, has effects,
    or goes over keys none."""
    if equation.primitive.name != "scan" or equation.effects or equation.params["unroll"] != 1:
        return []
    over = [v.aval for v in (*equation.invars, *equation.outvars)]
    if not equation.params["length"] or not all(isinstance(aval.dtype, np.dtype) for aval in over):
        return []
    own = [v.aval for v in equation.outvars[scan_counts(equation.params)[1] :]]
    large, inner = sum(aval.size * aval.dtype.itemsize for aval in own) >= _LEAST, _stacks(equation.params["jaxpr"])
    return [*((aval.shape, aval.dtype) for aval in own), *inner] if large or inner else []


def _evaluate(jaxpr: Any, consts: Any, args: Sequence[Any], memory: Iterator[Any]) -> tuple[list[Any], list[Any]]:
    """The outputs of an open jaxpr, whose loops write into the arrays of `memory`; and those arrays afterwards."""
    after: list[Any] = []

    def step(equation: Any, operands: list[Any]) -> Sequence[Any]:
        if not (stacks := _stacks_of(equation)):
            return bind(equation, operands, equation.params)
        results, written = _in_memory(equation, operands, [next(memory) for _ in stacks])
        after.extend(written)
        return results

    return evaluate(jaxpr, consts, args, step), after


def _in_memory(scan: Any, operands: Sequence[Any], memory: list[Any]) -> tuple[list[Any], list[Any]]:
    """The results of a loop that writes into the arrays of `memory`, and those arrays."""
    params, (consts, carried) = scan.params, scan_counts(scan.params)
    body, own = open_jaxpr(params["jaxpr"]), len(scan.outvars) - carried
    xs, length = operands[consts + carried :], params["length"]

    def one_round(state: tuple[Any, list[Any], list[Any]]) -> tuple[Any, list[Any], list[Any]]:
        number, carry, memory = state
        at = jnp.uint32(length - 1) - number if params["reverse"] else number
        own_xs = [jax.lax.dynamic_index_in_dim(x, at, keepdims=False) for x in xs]
        results, inner = _evaluate(*body, [*operands[:consts], *carry, *own_xs], iter(memory[own:]))
        written = [
            jax.lax.dynamic_update_index_in_dim(array, row, at, 0)
            for array, row in zip(memory[:own], results[carried:])
        ]
        return number + 1, results[:carried], written + inner

    begin = zip(operands[consts : consts + carried], body[0].invars[consts:], strict=False)
    start = jnp.uint32(0), [jnp.asarray(x, v.aval.dtype) for x, v in begin], memory
    _, carry, memory = jax.lax.while_loop(lambda state: state[0] < length, one_round, start)
    return [*carry, *memory[:own]], memory
