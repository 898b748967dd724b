"""Which devices a run uses. On a CPU each core is a device, so that trials run on all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from gradbench.errors import PlanError, nearest, one_line
from gradbench.inputs.specs.checks import DEVICES as PLATFORMS
from gradbench.inputs.specs.checks import GPU_NAMES
from gradbench.machine.internals import setting

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # Linux: what a container may use


def cores() -> int:
    """CPU cores this process may use: of those it may run on as many as a container's CPU quota fills, 1 at least."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *map(int, _cpu_quotas())]))  # not rounded up: a throttled core is waited for


def memory() -> int:
    """Bytes of memory this process may use: the machine's, or a container's limit."""
    limits = [int(text) for text in _cgroup_values("memory.max", "memory", "memory.limit_in_bytes") if text.isdigit()]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=2**33)


def _cpu_quotas() -> Iterator[float]:
    """Cores' worth of time in each period, of every limit there is on this process."""
    quotas = _cgroup_values("cpu.max", "cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us")
    for quota, _, period in (text.partition(" ") for text in quotas):
        if quota.isdigit() and period.isdigit() and int(period) > 0:  # "max" and -1 are none
            yield int(quota) / int(period)


def _cgroup_values(unified: str, controller: str, *names: str) -> Iterator[str]:
    """What the kernel's control groups (cgroups(7)) say in `unified` of version 2, or in the files `names` of version
    1's `controller`, joined by a space: of this process's group and of all above it, since each limit holds.

    A container may see its own group as the root, under another path than /proc says: then the root's files are read.
    """
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        files, folders = (names, (controllers, controller)) if controllers else ((unified,), ("", "unified"))
        root = next((CGROUPS / f for f in folders if (CGROUPS / f).is_dir()), CGROUPS)
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError):
                yield " ".join((folder / name).read_text(encoding="utf-8").strip() for name in files)
            if folder == root:
                break


def each_core_a_device() -> None:
    """Make each CPU core a device, before JAX has started; a caller who started JAX first keeps what there is. To be
    called before a user's code is, which may start it."""
    with contextlib.suppress(RuntimeError):  # JAX has started
        if setting("jax_num_cpu_devices") < 1:
            jax.config.update("jax_num_cpu_devices", cores())


def find_devices(platform: str | None) -> list[jax.Device]:
    """This host's devices of one platform ("cpu", "gpu", "tpu"), or of JAX's default one, which starts JAX.

    Raises PlanError where there is no such device.
    """
    each_core_a_device()
    try:
        return jax.local_devices(backend=platform)
    except RuntimeError as error:
        raise PlanError(f"device: {_why_none(platform, error)}") from error


def _why_none(platform: str | None, error: RuntimeError) -> str:
    try:
        here = sorted({device.platform for device in jax.local_devices()} | {"cpu"})
    except RuntimeError:  # JAX_PLATFORMS names one that does not exist
        return f"JAX cannot start: {one_line(error)}"
    return f"no {platform} on this machine (there is {', '.join(here)})"


def devices_to_check(device: str | None) -> list[jax.Device]:
    """The devices to check: JAX's default one; every one of a platform ("cpu", "gpu", "tpu"); or "all" present."""
    try:
        default = jax.devices()
    except RuntimeError as error:
        raise PlanError(f"device: {_why_none(None, error)}") from error
    if device is None:
        return default[:1]
    device = GPU_NAMES.get(device, device)
    present: dict[str, list[jax.Device]] = {}
    for platform in PLATFORMS:
        try:
            present[platform] = jax.devices(platform)
        except RuntimeError:
            continue
    if device == "all":
        return [d for group in present.values() for d in group]
    if device not in present:
        kinds = (*PLATFORMS, "all")
        if device not in kinds:
            raise PlanError(f"device={device}: need one of {', '.join(kinds)}{nearest(device, kinds)}")
        raise PlanError(f"device={device}: JAX finds none here, only {', '.join(present)}")
    return present[device]


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
