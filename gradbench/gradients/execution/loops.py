"""Whether a program's while loops end in the dtype that it is to run in: a program whose loop does not can only be
killed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gradbench.gradients.formula import oracle
from gradbench.gradients.rounding.interpreter import Interpreter
from gradbench.gradients.rounding.pairs import Flags, Pair
from gradbench.program.xla.jaxprs import bind, open_jaxpr


class _AsWritten(Interpreter):
    """Runs a trace in its own dtypes. A loop is stopped after MAX_ITERATIONS iterations, which sets the tie flag."""

    def __init__(self) -> None:
        super().__init__(None, jax.devices("cpu")[0], lambda dtype: False)

    def constant(self, value: Any, dtype: Any) -> Pair:
        known = value if isinstance(value, jax.Array) else jnp.asarray(value, dtype)
        return Pair(known, known)

    def primitive(self, equation: Any, name: str, params: dict[str, Any], ins: list[Pair]) -> tuple[list[Pair], Flags]:
        return [Pair(x, x) for x in bind(equation, [p.exact for p in ins], params)], Flags()


def end(trace: Any, params: Any, data: Any) -> bool:
    """Whether every while loop in a trace of a function of (params, data) ends within MAX_ITERATIONS at these arrays.
    To be called in the program's context: its precision, and x64 for float64."""
    if "while" not in oracle.primitives(trace):
        return True
    jaxpr, consts = open_jaxpr(trace)

    @jax.jit
    def stopped(*leaves):
        outputs, flags = _AsWritten().run(jaxpr, consts, [Pair(x, x) for x in leaves])
        return flags.tie, [p.exact for p in outputs]

    return not stopped(*jax.tree.leaves((params, data)))[0]
