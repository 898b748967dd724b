"""The least of timing and of compiling, and made-up limits: those have tests of their own. Also for the processes that
tests start."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax

from gradbench.engine import driver, events, pair, runner, timing, units
from gradbench.engine.compiling import TIMED
from gradbench.engine.roofline import Limits
from gradbench.machine.internals import compiler_options

measure = timing.measure


def measure_once(once: Callable[[int], float], steps: int) -> dict[str, Any]:
    """What timing.measure says of a clock that scales, from one call."""
    seconds = once(1)
    return measure(lambda repeats: repeats * seconds, steps)


def made_up_limits(devices: Any, *_: Any) -> Limits:
    return Limits(len(devices), 1e12, ((1, 1e11),), 1e-7)


def compile_little() -> dict[str, bool | int]:
    """Options of XLA:CPU for what is to compile fast and may run slowly: a network's step in a seventh of the time."""
    wanted = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    return compiler_options("cpu", **wanted, xla_cpu_parallel_codegen_split_count=1)


def jit_quickly(function: Callable[..., Any], **settings: Any) -> jax.stages.Wrapped:
    return jax.jit(function, compiler_options=compile_little(), **settings)


@cache
def observe() -> jax.stages.Wrapped:
    return jit_quickly(inspect.unwrap(events.observe), donate_argnums=0)


OBSERVE = (pair, "_observe", lambda _: observe())  # two fifths of the compiling of a small sweep
SETTINGS = (
    OBSERVE,
    (driver, "TIMED", TIMED | {"full": TIMED["batched"]}),
    (runner, "measure_limits", made_up_limits),
    (units, "measure_limits", made_up_limits),
    (timing, "measure", measure_once),
)


def time_little(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """`put` is a monkeypatch's setattr in a test, and the plain one in a process of its own."""
    for place, name, value in SETTINGS:
        put(place, name, value)


def child_environment(**variables: str) -> dict[str, str]:
    """Of a process that imports this module and this checkout's gradbench."""
    tests = Path(__file__).parent
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tests, tests.parent)))} | variables
