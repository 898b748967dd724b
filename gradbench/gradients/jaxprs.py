"""Reading a jaxpr: what it calls and holds, whichever version of JAX traced it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from gradbench.gradients.rounding import names

CALLS = names(
    "jit pjit closed_call core_closed_call core_call remat remat2 checkpoint custom_jvp_call custom_vjp_call "
    "custom_vjp_call_jaxpr eval_jaxpr xla_call"
)


def open_jaxpr(jaxpr: Any) -> tuple[Any, list[Any]]:
    """The jaxpr and its constants, of a closed or an open one."""
    return getattr(jaxpr, "jaxpr", jaxpr), list(getattr(jaxpr, "consts", ()))


def equations(trace: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, nested ones included."""
    for equation in open_jaxpr(trace)[0].eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from equations(value)


def called(equation: Any, ins: list[Any]) -> tuple[Any, list[Any], list[Any]] | None:
    """What a call runs in its place: the jaxpr, its constants and its arguments out of `ins`; None of another equation.

    A linear solve is its forward solve: how it is differentiated is decided before it is run.
    """
    name, params = equation.primitive.name, equation.params
    if name in CALLS:
        return *open_jaxpr(next(params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in params)), ins
    if name == "custom_linear_solve":
        lengths = params["const_lengths"]
        start = lengths.matvec + lengths.vecmat
        right = ins[start + lengths.solve + lengths.transpose_solve :]
        return *open_jaxpr(params["jaxprs"].solve), [*ins[start : start + lengths.solve], *right]
    if name == "call_hi_primitive":  # of jax 0.12, such as searchsorted: it is traced where it is lowered
        primitive = params["_prim"]
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), primitive.in_avals)
        with jax.enable_x64(any(v.aval.dtype in (np.float64, np.int64) for v in equation.invars)):
            return *open_jaxpr(jax.make_jaxpr(primitive.expand)(*shapes)), ins
    return None


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """(constants, carried values) of a scan."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carried = (len(part) for part in list(params["ft_in"].unpack())[:2])  # jax 0.12 keeps the groups as a tree
    return consts, carried
