"""What a loop over time steps keeps for its derivative.

JAX keeps every value that an iteration's derivative needs, each as an array over all iterations: for an LSTM twelve of
the size of its state, which XLA:CPU writes and reads one by one, and which do not fit in its cache. Most are a sum or a
product of others. So before a loss is differentiated its loops are made to keep what takes an exp, a matrix product
or the like, and to recompute what is cheap: without this an LSTM's step takes 1.15 times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from gradbench.program.xla.jaxprs import REMATERIALISED, equations, evaluate, nested, open_jaxpr, scan_counts

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
