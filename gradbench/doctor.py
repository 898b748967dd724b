"""Is this machine fit to measure on? Versions, devices, precision in force, canaries for known compiler faults."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.devices import find_devices
from gradbench.environment import environment
from gradbench.problem import cast, load_problem
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
    """A fault of jax 0.10.2: jitted code computes wrong values on a CPU, silently.

    Compares the four problems' jitted loss and gradient with the same operations one by one. Rounding differs
    between the two by a few units of the sums' lengths, under 1e-4; the fault is of the size of the values.
    """
    for name in ("quadratic_bowl", "linear_regression", "logistic_regression", "mlp"):
        problem = load_problem(name)
        params = jax.tree.map(lambda p: p + 0.1, cast(problem.init(jax.random.key(0)), jnp.float32))
        data = cast(problem.data, jnp.float32)
        with jax.default_matmul_precision("highest"):
            jitted = jax.jit(jax.value_and_grad(problem.loss))(params, data)
            with jax.disable_jit():
                eager = jax.value_and_grad(problem.loss)(params, data)
        for got, expected in zip(jax.tree.leaves(jitted), jax.tree.leaves(eager), strict=True):
            error = float(jnp.linalg.norm(got - expected) / jnp.linalg.norm(expected))
            if not error < 1e-3:
                return f"{name}: jitted values are off by {error:.1e}"
    return None


def scan_canary() -> str | None:
    """A fault of jax 0.11.1: a scan copies its whole stacked output at every step, so time grows with its square."""

    def run(length: int) -> Callable[[jax.Array], jax.Array]:
        def body(carry: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            carry = carry * 0.999
            return carry, carry

        return jax.jit(lambda start: jax.lax.scan(body, start, length=length)[1])

    start, best = jnp.ones(64), {}
    for length in (1_000, 16_000):
        compiled = run(length)
        jax.block_until_ready(compiled(start))
        times = []
        for _ in range(5):
            began = time.perf_counter()
            jax.block_until_ready(compiled(start))
            times.append(time.perf_counter() - began)
        best[length] = min(times) / length
    ratio = best[16_000] / best[1_000]
    return f"a step of a scan 16 times longer costs {ratio:.1f} times more" if ratio > 4 else None


CANARIES: tuple[tuple[str, Callable[[], str | None]], ...] = (
    ("values under jit (wrong in jax 0.10.2)", jit_canary),
    ("outputs of scan (copied at every step in jax 0.11.1)", scan_canary),
)


def examine(output_format: str) -> tuple[str, bool]:
    """The report as text, and whether every canary lives."""
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
        {"what": "compilation cache", "found": jax.config.values["jax_compilation_cache_dir"] or "off"},
    ]
    for name, precision in (("highest", "highest"), ("tf32", "tensorfloat32"), ("default", None)):
        rows.append({"what": f"float32 product, {name}", "found": f"relative error {product_error(precision):.1e}"})
    healthy = True
    for name, canary in CANARIES:
        fault = canary()
        healthy &= fault is None
        rows.append({"what": name, "found": "ok" if fault is None else f"FAULT: {fault}"})
    if output_format == "json":
        return to_json({"rows": rows, "healthy": healthy, "environment": found}), healthy
    columns = [Column("what", "what", str), Column("found", "found", _or_dash)]
    return render(rows, columns, output_format), healthy


def _or_dash(value: Any) -> str:
    return "–" if value is None else str(value)
