"""Whether jaxprs are rewritten before they are compiled."""

from __future__ import annotations

import functools
import os
import warnings

import jax
import jax.numpy as jnp

from gradbench.errors import GradbenchWarning, PlanError

VARIABLE = "GRADBENCH_REWRITE"


@functools.cache
def enabled() -> bool:
    """Whether jaxprs are rewritten. Not with GRADBENCH_REWRITE=0, nor where this JAX lacks the internals that rewriting
    reads: steps are then compiled as written, slower on a CPU, with one GradbenchWarning. Raises PlanError for
    another value of the variable."""
    chosen = os.environ.get(VARIABLE, "1")
    if chosen not in ("0", "1"):
        raise PlanError(f"{VARIABLE}={chosen}: need 0 (steps are compiled as they are written) or 1")
    if chosen == "0":
        return False
    try:
        from jax.experimental.layout import Layout, with_layout_constraint

        def example(x: jax.Array) -> jax.Array:
            return jax.lax.fori_loop(0, 2, lambda _, y: y / jnp.sum(y), with_layout_constraint(x, Layout((0,))))

        traced = jax.make_jaxpr(example)(jax.ShapeDtypeStruct((3,), jnp.float32))
        for equation in traced.jaxpr.eqns:
            with equation.ctx.manager:
                equation.primitive.get_bind_params(equation.params)
    except Exception as error:
        text = (
            f"jax {jax.__version__} lacks internals that rewriting reads ({type(error).__name__}): steps run as written"
        )
        warnings.warn(text, GradbenchWarning, stacklevel=2)
        return False
    return True
