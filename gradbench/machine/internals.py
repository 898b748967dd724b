"""What is used of JAX and XLA beyond their public interfaces, each use a function with a test on every JAX that is
supported. What is read of jaxprs is in program/xla."""

from __future__ import annotations

import os
import re
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

import jax


def setting(name: str) -> Any:
    """The value in force of one of JAX's settings, such as "jax_enable_x64"."""
    return getattr(jax.config, name)


def hide_errors_of_loading() -> None:
    """Have XLA log nothing that does not end the process, unless the environment says what to log. Before 0.12 it logs
    as an error, for each CPU program that it loads from the compilation cache, that it may not fit the machine: it
    takes a preference of LLVM's, prefer-no-gather, for instructions that the CPU lacks. What fails still raises."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # which JAX itself sets
        from jax._src.lib import utils  # of JAX before 0.12, the only one that is asked

        utils.absl_set_min_log_level(3)


def has_accelerators() -> bool:
    """Whether JAX's plugin for a GPU or a TPU is installed."""
    return bool(entry_points(group="jax_plugins")) or any(map(find_spec, ("jax_plugins", "libtpu")))


# All that are asked for, with any values: a compiler is asked once which of them it knows.
_OPTIONS: dict[str, dict[str, bool | int]] = {
    "cpu": {
        "xla_backend_optimization_level": 1,
        "xla_cpu_copy_insertion_use_region_analysis": True,
        "xla_cpu_parallel_codegen_split_count": 1,
        "xla_cpu_prefer_vector_width": 512,
        "xla_cpu_use_fusion_emitters": False,
    },
    "gpu": {"xla_gpu_exclude_nondeterministic_ops": True},
}


def compiler_options(platform: str, **wanted: bool | int) -> dict[str, bool | int]:
    """Those of the wanted options, of _OPTIONS, that the platform's compiler knows; none without a device of that
    platform."""
    return {name: value for name, value in wanted.items() if name in _known(platform)}


@cache
def _known(platform: str) -> frozenset[str]:
    every = _OPTIONS[platform].items()
    if _are_known(platform, *every):
        return frozenset(_OPTIONS[platform])
    return frozenset(name for name, value in every if _are_known(platform, (name, value)))


def quick_compile(platform: str, **more: bool | int) -> dict[str, bool | int]:
    """Options for programs that run once and are compiled for it: on a CPU without XLA's newer emitters of fusions,
    and as one module of LLVM's, which takes a fifth off the compiling. With the emitters loops are up to a third
    faster, and most compile longer, but not all programs: a transformer's loss and its Hessian product compile in 0.6
    of the time with them. `more`: other options of a CPU's."""
    if platform != "cpu":
        return {}
    return compiler_options(platform, xla_cpu_use_fusion_emitters=False, xla_cpu_parallel_codegen_split_count=1, **more)


def _are_known(platform: str, *options: tuple[str, bool | int]) -> bool:
    try:
        with jax.default_device(jax.local_devices(backend=platform)[0]):
            jax.jit(lambda: None, compiler_options=dict(options)).lower().compile()
    except RuntimeError:
        return False
    return True


_IDLE = re.compile(r"\s(parameter|constant|get-tuple-element|tuple|bitcast|while|after-all|partition-id)\(")


def kernels_per_row(compiled_text: str) -> int:
    """Kernels of one iteration of a compiled program's loops, from its HLO: instructions of the loops' bodies that
    compute, each loop's counted once."""
    bodies = set(re.findall(r"\bbody=%?([\w.\-]+)", compiled_text))
    count, inside = 0, False
    for line in compiled_text.splitlines():
        if inside and line.startswith("}"):
            inside = False
        elif inside:
            count += _IDLE.search(line) is None
        elif line.endswith("{"):
            inside = line.lstrip("%").split(" ", 1)[0] in bodies
    return count
