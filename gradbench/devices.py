"""Which devices a run uses. On a CPU each core is a device, so that trials run on all of them."""

from __future__ import annotations

import contextlib
import os

import jax

from gradbench.errors import PlanError


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_devices(platform: str | None) -> list[jax.Device]:
    """This host's devices of one platform ("cpu", "gpu", "tpu"), or of JAX's default one.

    Before JAX has started, each CPU core is made a device; a caller who started JAX first keeps what there is.
    Raises PlanError where there is no such device.
    """
    with contextlib.suppress(RuntimeError):  # JAX has started
        if jax.config.values["jax_num_cpu_devices"] < 1:
            jax.config.update("jax_num_cpu_devices", cores())
    try:
        return jax.local_devices(backend=platform)
    except RuntimeError as error:
        here = sorted({device.platform for device in jax.local_devices()} | {"cpu"})
        raise PlanError(f"device: no {platform} on this machine (there is {', '.join(here)})") from error


def describe(device: jax.Device) -> str:
    """The device's kind in words, such as "NVIDIA H200", or the CPU's model."""
    return cpu_model() if device.platform == "cpu" else device.device_kind


def cpu_model() -> str:
    """The CPU's model name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        return platform.processor() or platform.machine()
