"""An experiment, no part of the engine: many steps of many bowl trials in one GPU launch, sgd, float32.

A trial is a thread: its `dim` parameters stay in registers, so a step reads and writes nothing but its row of
observations, and there is no launch between steps. Pallas' Mosaic GPU backend (its Triton backend is deprecated), whose
entry is plgpu.kernel in jax >= 0.12. To be kept only if it is twice as fast as the best XLA program: UNMEASURED so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TILE = 128  # trials of one block of threads: a warpgroup
MAX_ROWS = 64  # 3 rows of observations of 128 float32 trials, 64 times: 96 KiB of shared memory


def available() -> str | None:
    """Why the kernel cannot be built here, or None."""
    return None if jax.__version_info__ >= (0, 12) else f"plgpu.kernel needs jax 0.12, this is {jax.__version__}"


def many_steps(lambdas: Sequence[float], rows: int, tiles: int, interpret: bool) -> Callable[..., Any]:
    """A function (params (dim, trials), last updates (dim, trials), learning_rates (trials,)) of float32, trials =
    128 tiles -> loss, squared gradient norm and overshot, (rows, trials) each as program.Observation has them, params
    and last updates after `rows` steps. `interpret` runs it on a CPU."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import mosaic_gpu as plgpu

    dim, trials = len(lambdas), tiles * TILE
    if rows > MAX_ROWS:
        raise ValueError(f"rows={rows}: at most {MAX_ROWS} fit a multiprocessor's memory")

    def body(x_in, u_in, rates_in, loss_out, norm_out, turned_out, x_out, u_out, x, u, rates, loss, norm, turned, here):
        part = pl.ds(jax.lax.axis_index("tile") * TILE, TILE)
        for source, target in ((x_in.at[:, part], x), (u_in.at[:, part], u), (rates_in.at[part], rates)):
            plgpu.copy_gmem_to_smem(source, target, here)
            plgpu.barrier_wait(here)
        rate = rates[...]
        zero = rate * 0.0

        def step(n: jax.Array, carry: Any) -> Any:
            points, updates = carry
            value = norm_squared = along = zero
            after, made = [], []
            for scale, point, update in zip(lambdas, points, updates, strict=True):
                slope = point * np.float32(2 * scale)
                value = value + np.float32(scale) * point * point
                norm_squared = norm_squared + slope * slope
                along = along + slope * update
                made.append(-rate * slope)
                after.append(point + made[-1])
            loss[n, :] = value
            norm[n, :] = norm_squared
            turned[n, :] = jnp.where(along > 0.0, 1.0, 0.0)
            return tuple(after), tuple(made)

        start = tuple(x[d, :] for d in range(dim)), tuple(u[d, :] for d in range(dim))
        points, updates = jax.lax.fori_loop(0, rows, step, start)
        for d in range(dim):
            x[d, :], u[d, :] = points[d], updates[d]
        plgpu.commit_smem()
        for source, target in ((loss, loss_out), (norm, norm_out), (turned, turned_out), (x, x_out), (u, u_out)):
            plgpu.copy_smem_to_gmem(source, target.at[:, part])
        plgpu.wait_smem_to_gmem(0)

    row, state = (jax.ShapeDtypeStruct((n, trials), jnp.float32) for n in (rows, dim))
    row_here, state_here = (plgpu.SMEM((n, TILE), jnp.float32) for n in (rows, dim))
    return plgpu.kernel(
        body,
        out_type=(row, row, row, state, state),
        scratch_types=(
            *(state_here, state_here, plgpu.SMEM((TILE,), jnp.float32), row_here, row_here, row_here),
            plgpu.Barrier(),
        ),
        grid=(tiles,),
        grid_names=("tile",),
        interpret=plgpu.InterpretGPUParams() if interpret else None,
    )


def loss_tolerance(lambdas: Sequence[float], steps: int) -> float:
    """How far rounding may take a loss of a trial that does not grow, from params at ones: with u = 2**-24, each step
    rounds a parameter of at most 1 by up to 4 u (two products, a sum, the scale), and the loss changes by at most
    2 lambda a parameter; its sum of dim terms, none negative and of at most sum(lambdas), by up to (dim + 2) u. Twice,
    for the two sides."""
    total = float(np.sum(lambdas))
    return 2 * 2.0**-24 * total * (8 * steps + len(lambdas) + 2)
