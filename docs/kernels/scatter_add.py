"""Rows added to a table's rows, and three faults of such kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

TILE = 16
PLATFORMS = {"cpu": {"interpret": True}, "gpu": {"compiler_params": triton.CompilerParams()}}
OPTIONS = PLATFORMS.get(jax.default_backend(), {})


def plain(table, x, index):
    return table.at[index].add(x)


def kernel(table_ref, x_ref, index_ref, out_ref, *, updates, add):
    del table_ref  # out_ref is the same memory

    def turn(i, _):
        row = pl.ds(index_ref[i], 1)
        new = x_ref[pl.ds(i, 1), :]
        out_ref[row, :] = out_ref[row, :] + new if add else new
        return 0

    lax.fori_loop(0, updates, turn, 0)  # one after another: programs side by side would race for a row


def forward(table, x, index, add=True, tail=True):
    if 0 in (*table.shape, *x.shape):
        return table
    updates = len(x) if tail else max(len(x) - len(x) % TILE, len(x) if len(x) < TILE else 0)
    run = functools.partial(kernel, updates=updates, add=add)
    columns = table.shape[1]
    wide = [(0, 0), (0, pl.next_power_of_2(columns) - columns)]  # Triton's rows
    table, x = jnp.pad(table, wide), jnp.pad(x, wide)
    shape = jax.ShapeDtypeStruct(table.shape, table.dtype)
    return pl.pallas_call(run, out_shape=shape, input_output_aliases={0: 0}, **OPTIONS)(table, x, index)[:, :columns]


def with_backward(forward, rows=lambda ct, index: ct[index]):
    def back(index, ct):
        return ct, rows(ct, index), np.zeros(index.shape, jax.dtypes.float0)

    made = jax.custom_vjp(lambda table, x, index: forward(table, x, index))
    made.defvjp(lambda table, x, index: (forward(table, x, index), index), back)
    return made


mine = with_backward(forward)
set_for_add = with_backward(functools.partial(forward, add=False))
tail_dropped = with_backward(functools.partial(forward, tail=False))
backward_of_the_next_row = with_backward(forward, lambda ct, index: ct[(index + 1) % len(ct)])
