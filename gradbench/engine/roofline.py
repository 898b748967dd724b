"""What a device can do at best, measured: the rate of a large matrix product, of a stream through memory, and the
seconds of a kernel that does next to nothing. No step is faster than the slowest of the three that it needs (the
roofline of Williams, Waterman and Patterson, Communications of the ACM 52(4), 2009, with kernel launches added)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gradbench.machine.internals import kernels_per_row
from gradbench.program.program import loop_options, numerics
from gradbench.program.spread import TRIALS

SAMPLES = 5
SAMPLE_SECONDS = 0.01
STREAM_BYTES = (2**17, 2**21, 2**26)  # a device's array: in its nearest cache, in a shared one, in memory


@dataclass(frozen=True)
class Limits:
    """Of `devices` devices together, in one dtype and matmul precision.

    flops_per_s: of a square matrix product, n = 1024 on a CPU and 8192 elsewhere.
    bytes_per_s: (size, rate) pairs, read and written, of arrays of `size` bytes per device; the rate of a size is at
        least that of every larger one.
    kernel_s: seconds per kernel of a step that does next to nothing.
    """

    devices: int
    flops_per_s: float
    bytes_per_s: tuple[tuple[int, float], ...]
    kernel_s: float

    def rate(self, size: float) -> float:
        """Bytes per second through arrays of `size` bytes per device: of the largest measured size not above it."""
        fitting = [rate for measured, rate in self.bytes_per_s if measured <= size]
        return fitting[-1] if fitting else self.bytes_per_s[0][1]

    def of_step(self, devices: int, flops: float, moved: float, kernels: int) -> tuple[float, str]:
        """The least seconds of a step on `devices` of the devices, and what sets it: flops, bytes or launches.

        `flops` and `moved` (bytes) are of all of them together, `kernels` of each.
        """
        share = devices / self.devices
        least = {
            "flops": flops / (share * self.flops_per_s),
            "bytes": moved / (share * self.rate(moved / devices)),
            "launches": kernels * self.kernel_s,
        }
        which = max(least, key=lambda name: least[name])
        return least[which], which

    def add_roofline(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of timings.parquet with limit_s, limit and of_limit added."""
        least, which = self.of_step(
            row["devices"], row["flops_per_step"] or 0.0, row["moved_bytes"], row["kernels_per_step"]
        )
        return row | {"limit_s": least, "limit": which, "of_limit": least / row["step_s_median"]}


def stored_limits(info: Mapping[str, Any], dtypes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The limits in run.json by dtype; a record whose trials have one dtype holds only its limits, unnamed."""
    found = info.get("limits", {})
    return {dtypes[0]: dict(found)} if "kernel_s" in found else dict(found)


@cache
def measure_limits(devices: tuple[jax.Device, ...], dtype: str, precision: str) -> Limits:
    """The limits of these devices, measured once per process: the best of a few samples, as disturbance only slows."""
    logging.getLogger(__name__).info("measuring what the device allows")
    side = 1024 if devices[0].platform == "cpu" else 8192
    with numerics(dtype, precision):
        matrix = np.full((side, side), 1 / side, jnp.dtype(dtype))
        product, _ = _time_loop(devices, lambda x: x @ x, matrix, products=True)
        rates = []
        for size in STREAM_BYTES:
            array = np.ones(size // jnp.dtype(dtype).itemsize, jnp.dtype(dtype))
            rates.append(2 * array.nbytes * len(devices) / _time_loop(devices, _scaled, array)[0])
        rates = np.maximum.accumulate(rates[::-1])[::-1].tolist()
        few = np.ones(8, jnp.dtype(dtype))
        bodies = (_scaled,) if devices[0].platform == "cpu" else (_scaled, _scaled_often)
        launches = [_time_loop(devices[:1], step, few) for step in bodies]
        return Limits(
            devices=len(devices),
            flops_per_s=2 * side**3 * len(devices) / product,
            bytes_per_s=tuple(zip(STREAM_BYTES, rates)),
            kernel_s=min(seconds / kernels for seconds, kernels in launches),
        )


def _scaled(x: jax.Array) -> jax.Array:
    return x * 0.5 + 0.5


def _scaled_often(x: jax.Array) -> jax.Array:
    """16 kernels in sequence: a GPU launches those of a step together, at less per kernel than one alone."""
    for _ in range(16):
        x = jax.lax.optimization_barrier(_scaled(x))
    return x


def _time_loop(
    devices: Sequence[jax.Device], step: Callable[[jax.Array], jax.Array], start: np.ndarray, products: bool = False
) -> tuple[float, int]:
    """Seconds and kernels of one `step` in a loop on all the devices at once, each on its own array that begins as
    `start`."""
    mesh = Mesh(np.array(devices), (TRIALS,), axis_types=(AxisType.Auto,))
    x = jax.device_put(np.broadcast_to(start, (len(devices), *start.shape)), NamedSharding(mesh, P(TRIALS)))

    def compiled(length: int) -> Any:
        def loop(x: jax.Array) -> jax.Array:
            return jax.lax.scan(lambda x, _: (step(x[0])[None], None), x, length=length)[0]

        spread = jax.shard_map(loop, mesh=mesh, in_specs=P(TRIALS), out_specs=P(TRIALS), check_vma=False)
        return jax.jit(spread, compiler_options=loop_options(devices[0].platform, products)).lower(x).compile()

    def seconds(call: Any) -> float:
        began = time.perf_counter()
        jax.block_until_ready(call(x))
        return time.perf_counter() - began

    call, length = compiled(2), 2
    seconds(call)  # warm
    fitting = min(round(SAMPLE_SECONDS * length / min(seconds(call) for _ in range(2))), 10**5)
    if fitting > length:
        call, length = compiled(fitting), fitting
        seconds(call)
    return min(seconds(call) for _ in range(SAMPLES)) / length, kernels_per_row(call.as_text())
