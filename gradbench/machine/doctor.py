"""Is this machine fit to measure on? Versions, devices, precision in force, canaries for known compiler faults."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.inputs.specs.checks import PRECISIONS
from gradbench.machine.cache import cache_folder
from gradbench.machine.devices import find_devices
from gradbench.machine.environment import environment
from gradbench.tables import Column, check_format, render, to_json


def product_error(precision: str | None) -> float:
    """Relative error of a float32 matrix product on the default device, against float64 on the host.

    About 1e-7 where float32 is float32, 1e-4 or more where the inputs are rounded to TF32, 1e-3 to bfloat16.
    """
    generator = np.random.default_rng(0)
    left, right = (generator.standard_normal((256, 256)).astype(np.float32) for _ in range(2))
    exact = left.astype(np.float64) @ right.astype(np.float64)
    with jax.default_matmul_precision(precision):
        product = np.asarray(jax.jit(jnp.matmul)(left, right), np.float64)
    return float(np.linalg.norm(product - exact) / np.linalg.norm(exact))


def jit_canary() -> str | None:
    """A fault of jax 0.10.2 (github.com/jax-ml/jax/issues/39103): a vmapped matrix-vector product that is then
    reduced, over more than 32,768 float32 rows, is wrong under jit on a CPU, silently.

    Every number here is a whole one below 2**24, which float32 holds exactly: nothing may round.
    """
    rows = jnp.stack([jnp.arange(40_000) % 1000, jnp.ones(40_000), jnp.zeros(40_000)], axis=1).astype(jnp.float32)
    matrix = jnp.array([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])

    def squares(rows: jax.Array) -> jax.Array:
        return jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(rows)

    with jax.default_matmul_precision("highest"):
        got = np.asarray(jax.jit(squares)(rows))
    expected = ((np.asarray(rows) @ np.asarray(matrix).T) ** 2).sum(axis=1)
    wrong = int((got != expected).sum())
    return f"{wrong} of {len(got)} values are wrong" if wrong else None


def scan_canary() -> str | None:
    """A fault of jax 0.11.1 (github.com/jax-ml/jax/issues/40101): on a CPU, a loop that stacks outputs of under 256
    bytes a step copies the whole stack at every step, so a step costs more the longer the loop."""

    def seconds_a_step(length: int) -> float:
        def body(carry: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            carry = carry * 0.999 + 1.0
            return carry, carry

        run = jax.jit(lambda start: jax.lax.scan(body, start, length=length)[1])
        start = jnp.ones(())
        jax.block_until_ready(run(start))
        times = []
        for _ in range(5):
            began = time.perf_counter()
            jax.block_until_ready(run(start))
            times.append(time.perf_counter() - began)
        return min(times) / length

    ratio = seconds_a_step(40_000) / seconds_a_step(4_000)
    return f"a step of a scan 10 times longer costs {ratio:.1f} times more" if ratio > 4 else None


CANARIES: tuple[tuple[str, Callable[[], str | None]], ...] = (
    ("values under jit (wrong in jax 0.10.2)", jit_canary),
    ("outputs of scan (copied at every step in jax 0.11.1)", scan_canary),
)


def examine(output_format: str) -> tuple[str, bool]:
    """The report as text, and whether every canary test passes."""
    check_format(output_format)
    devices = find_devices(None)
    found = environment(devices, "highest")
    rows: list[dict[str, Any]] = [{"what": package, "found": version} for package, version in found["versions"].items()]
    rows += [
        {"what": "git commit", "found": found["git_commit"]},
        {"what": "device", "found": f"{found['device_count']} × {found['device_kind']} ({found['platform']})"},
        {"what": "driver", "found": found["driver"]},
        {"what": "cpu", "found": f"{found['cpu_cores']} cores of {found['cpu_model']}"},
        {"what": "flags", "found": ", ".join(f"{k}={v}" for k, v in found["flags"].items()) or "none"},
        {"what": "compilation cache", "found": str(cache_folder() or "off")},
    ]
    for name, precision in PRECISIONS.items():
        rows.append({"what": f"float32 product, {name}", "found": f"relative error {product_error(precision):.1e}"})
    healthy = True
    for name, canary in CANARIES:
        fault = canary()
        healthy &= fault is None
        rows.append({"what": name, "found": "ok" if fault is None else f"FAULT: {fault}"})
    if output_format == "json":
        return to_json({"rows": rows, "healthy": healthy, "environment": found}), healthy
    columns = [Column("what", "what", str, prose=True), Column("found", "found", _or_dash, prose=True)]
    return render(rows, columns, output_format), healthy


def _or_dash(value: Any) -> str:
    return "–" if value is None else str(value)
