"""Schedules: the shape that an optimizer's spec gives its learning rate, whose peak is swept."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

from gradbench.errors import OptimizerError, PlanError, nearest
from gradbench.inputs.specs.axis import with_axis
from gradbench.inputs.specs.spec import parse_spec

SCHEDULES = ("constant", "cosine", "linear", "exponential", "wsd", "rise")
COOLING = ("stable", "cooldown")  # of wsd: they change nothing before the fall
SETTINGS = ("schedule", "warmup", "end", *COOLING, "start")
DECAY = 0.2  # updates of wsd's fall, by default, as a share of those before
START = 1e-5  # of rise, the first rate as a share of the last
_ROUNDING = 1 - 2.0**-20  # 0.1 × 100 is a little over 10 in float32, and no step more


def check(text: str, shape: Mapping[str, Any]) -> None:
    """Raises OptimizerError for settings of a schedule that are none."""
    kind, warmup, end = shape.get("schedule", "constant"), shape.get("warmup", 0), shape.get("end", 0.0)
    if kind not in SCHEDULES:
        raise OptimizerError(f"{text!r}: no schedule {kind!r}{nearest(str(kind), SCHEDULES)} ({', '.join(SCHEDULES)})")
    if type(warmup) is not int or warmup < 0:
        raise OptimizerError(f"{text!r}: warmup={warmup} should be a number of steps, such as warmup=100")
    if not isinstance(end, int | float) or not 0 <= end <= 1 or (kind == "exponential" and end == 0 and "end" in shape):
        raise OptimizerError(f"{text!r}: end={end} should be the last learning rate as a share of the peak, 0 to 1")
    if others := [name for name in ("stable", "cooldown") if name in shape and kind != "wsd"]:
        raise OptimizerError(f"{text!r}: {others[0]} is a setting of schedule=wsd")
    start = shape.get("start", 0.5)
    if ("start" in shape and kind != "rise") or not isinstance(start, int | float) or not 0 < start < 1:
        raise OptimizerError(
            f"{text!r}: start={start} is the first rate of schedule=rise as a share of the last, 0 to 1"
        )
    if "stable" in shape and (type(shape["stable"]) is not int or shape["stable"] < 1):
        raise OptimizerError(f"{text!r}: stable={shape['stable']} should be a number of steps, such as stable=200")
    cooldown = shape.get("cooldown", 1)
    if not isinstance(cooldown, int | float) or not 0 < cooldown < math.inf:
        raise OptimizerError(
            f"{text!r}: cooldown={cooldown} should be a share of the steps before, such as cooldown=0.2"
        )


def rate(
    peak: Any,
    steps: int,
    schedule: str = "constant",
    warmup: Any = 0,
    end: Any = None,
    stable: Any = None,
    cooldown: Any = DECAY,
    start: Any = START,
) -> Callable[[Any], Any]:
    """`peak` times a shape of height 1: a linear rise over `warmup` steps, then a fall to `end` at the last step. The
    fall of wsd (warm-up, stable, decay; Hu et al., MiniCPM, 2024) is linear, begins after `stable` steps and takes
    `cooldown` times as many, by default so that it ends at the last step. rise goes the other way, exponentially from
    `start` of the peak at the first update to the peak at the last one: the learning rate range test (Smith, WACV
    2017). All but `schedule` may be traced."""
    import jax.numpy as jnp  # a plan does not wait for JAX

    end = end if end is not None else 0.01 if schedule == "exponential" else 0.0
    stable = steps / (1 + cooldown) if stable is None else stable

    def shape(count: Any) -> Any:
        count = jnp.asarray(count, jnp.result_type(float))  # a quotient of whole numbers would be float32
        done = jnp.clip((count - warmup) / jnp.maximum(steps - warmup, 1), 0.0, 1.0)
        fall = {
            "constant": lambda: jnp.ones_like(done),
            "cosine": lambda: end + (1.0 - end) * (0.5 + 0.5 * jnp.cos(jnp.pi * done)),
            "linear": lambda: 1.0 + (end - 1.0) * done,
            "exponential": lambda: jnp.exp(jnp.log(end) * done),
            "wsd": lambda: 1.0 + (end - 1.0) * jnp.clip((count - stable) / (cooldown * stable), 0.0, 1.0),
            "rise": lambda: height_of_rise(count, steps, start, jnp),
        }[schedule]()
        return jnp.where(count < warmup, count / jnp.maximum(warmup, 1), fall)

    return lambda count: peak * shape(count)


def height_of_rise(count: Any, steps: int, start: Any, of: ModuleType) -> Any:
    """Of the updates `count` of a run of so many `steps`, as a share of the peak; `of` is numpy or jax.numpy."""
    return of.exp(of.log(start) * (1.0 - count / max(steps - 1, 1)))


def fall(
    steps: int,
    schedule: str = "constant",
    warmup: Any = 0,
    end: Any = None,
    stable: Any = None,
    cooldown: Any = DECAY,
    start: Any = None,
) -> tuple[Any, Any]:
    """Of a schedule's settings: until which step the rate does not depend on `stable` and `cooldown`, and the step from
    which on it is 0, `steps` at the most. (0, steps) of all but wsd. All but `schedule` may be traced, or arrays."""
    import jax.numpy as jnp

    if schedule != "wsd" or stable is None:
        return 0, steps
    over = jnp.maximum(stable + jnp.ceil(cooldown * stable * _ROUNDING), warmup)
    last = jnp.minimum(jnp.where((0 if end is None else end) == 0, over, steps), steps)
    return jnp.minimum(stable, steps), last.astype(jnp.int32)


def branched(
    optimizers: Sequence[str], stable: Collection[Any] | None, decay: Collection[Any] | None
) -> tuple[tuple[str, ...], int]:
    """Optimizers whose rates fall after `stable` steps over `decay` times as many, and the steps of the longest."""
    if stable is None:
        raise PlanError("decay: give the steps at which the rates begin to fall too, such as branch_at 100,200")
    decay, specs = decay or (DECAY,), []
    for spec in optimizers:
        if parse_spec(spec, OptimizerError).settings.get("schedule") != "wsd":
            spec = with_axis(spec, "schedule", ("wsd",), OptimizerError)
        spec = with_axis(spec, "stable", stable, OptimizerError)
        specs.append(with_axis(spec, "cooldown", decay, OptimizerError))
    return tuple(specs), max(stable) + math.ceil(max(decay) * max(stable) * _ROUNDING)


def rising(optimizers: Sequence[str], rates: Sequence[float]) -> tuple[str, ...]:
    """Optimizers whose learning rate rises from the lowest of these rates to the highest. Raises PlanError where one
    has a schedule, or where there is one rate."""
    specs = []
    for spec in optimizers:
        settings = parse_spec(spec, OptimizerError).settings
        schedule = settings.get("schedule", "constant")
        if schedule == "rise":
            specs.append(spec)
            continue
        if schedule != "constant" or "warmup" in settings:
            raise PlanError(f"search: range-test raises the rate at every step, so {spec!r} cannot have a schedule")
        if min(rates) == max(rates):
            raise PlanError("search: range-test needs the lowest and the highest learning rate, such as 1e-4:10:25")
        spec = with_axis(spec, "schedule", ["rise"], OptimizerError)
        specs.append(with_axis(spec, "start", [float(f"{min(rates) / max(rates):.6g}")], OptimizerError))
    return tuple(specs)


def risen(optimizer: str, values: Mapping[str, float] | None = None) -> float | None:
    """Of an optimizer whose rate rises, at these values of its axes, its first rate as a share of the last (1 where
    that is an axis without a value); None of others."""
    settings = parse_spec(optimizer, OptimizerError).settings if "rise" in optimizer else {}
    if settings.get("schedule") != "rise":
        return None
    start = {**settings, **(values or {})}.get("start", START)
    return float(start) if isinstance(start, int | float) else 1.0
