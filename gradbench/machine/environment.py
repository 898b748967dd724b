"""What a run ran on: versions, devices, driver, flags. Stored in run.json, shown by doctor."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax

from gradbench.machine.devices import cores, cpu_model, describe
from gradbench.version import __version__

# Where a process finds its job and its devices; no result depends on them.
PLACES = {"JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS", "JAX_LOCAL_DEVICE_IDS"}
FLAGS = ("XLA_FLAGS", "GRADBENCH_REWRITE")  # beside JAX's own, what the arithmetic depends on
PACKAGES = ("jax", "jaxlib", "optax", "numpy", "pyarrow", "scikit-learn")


def environment(devices: Sequence[jax.Device], precision: str) -> dict[str, Any]:
    """Everything about this process and machine that a result may depend on."""
    versions: dict[str, str | None] = {"gradbench": __version__, "python": platform.python_version()}
    versions |= {package: _version(package) for package in PACKAGES}
    flags = {key for key in os.environ if key in FLAGS or key.startswith("JAX_")} - PLACES
    return {
        "versions": versions,
        "git_commit": git_commit(),
        "platform": devices[0].platform,
        "device_kind": describe(devices[0]),
        "device_count": len(devices),
        "driver": driver(),
        "cpu_model": cpu_model(),
        "cpu_cores": cores(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "precision": precision,
        "flags": {key: os.environ[key] for key in sorted(flags)},
    }


def difference(began: Mapping[str, Any], now: Mapping[str, Any], strictly: bool = True) -> str | None:
    """Which fact of the environment `now` forbids it to go on with what `began` elsewhere, in words; None if none does.

    Unless `strictly`, gradbench's commit and the version of numpy, which older records were not held to, may differ.
    """
    facts = ["platform", "device_kind", "device_count", "precision", "flags"]
    for fact in facts:
        if fact in now and began.get(fact) != now[fact]:
            return f"began with {fact} {began.get(fact)}, here it is {now[fact]}"
    if strictly and began.get("git_commit") != now["git_commit"]:
        return f"began with gradbench's commit {began.get('git_commit')}, here it is {now['git_commit']}"
    for package in ("gradbench", "jax", "jaxlib", "optax", *(["numpy"] if strictly else [])):
        before = began.get("versions", {}).get(package)
        if before != now["versions"][package]:
            return f"began with {package} {before}, here it is {now['versions'][package]}"
    return None


@cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache  # of the code this process has loaded, whatever is committed meanwhile
def git_commit() -> str | None:
    """The commit of the checkout gradbench runs from, with "-dirty" if tracked files differ; None outside one."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        ask = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty"]
        return subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def driver() -> str | None:
    """The NVIDIA driver's version, where there is one."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split("\n", 1)[0]
    except OSError:
        return None
    return next((word for word in first.split() if word[:1].isdigit() and "." in word), None)
