"""What the settings of a plan may be: each check(name, value) returns the value as it is kept, or raises PlanError."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from gradbench.errors import OptimizerError, PlanError, nearest
from gradbench.inputs.specs.axis import OF_PLAN, Axis, expanded
from gradbench.inputs.specs.rates import as_list
from gradbench.inputs.specs.spec import value_of

DTYPES = ("float32", "float64", "bfloat16", "float16")
BITS = {"float64": 64, "float32": 32, "bfloat16": 16, "float16": 16}
# Of matrix products, by what jax.default_matmul_precision calls it; None leaves it to the device.
PRECISIONS = {"highest": "highest", "tf32": "tensorfloat32", "default": None}
DEVICES = ("cpu", "gpu", "tpu")
GPU_NAMES = {"cuda": "gpu", "rocm": "gpu"}  # JAX's names of its two kinds


def specs_of(what: str, example: str) -> Callable[[str, Any], tuple[str, ...]]:
    def check(name: str, value: Any) -> tuple[str, ...]:
        value = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
        if not value or not all(isinstance(item, str) and item.strip() for item in value):
            raise PlanError(f"{name}: need at least one {what}, each a spec such as {example}")
        if len(set(value)) < len(value):
            raise PlanError(f"{name}: {next(v for v in value if value.count(v) > 1)!r} is named twice")
        return value

    return check


def needs_a_program(axis: Axis) -> bool:
    return not axis.numeric or axis.name in OF_PLAN


def optimizers(name: str, value: Any) -> tuple[str, ...]:
    """Axes that are no numbers are programs of their own: each of their values is an optimizer."""
    specs = specs_of("optimizer", "adam")
    return specs(name, [one for spec in specs(name, value) for one in expanded(spec, OptimizerError, needs_a_program)])


def whole(low: int, high: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if not isinstance(value, Integral) or isinstance(value, bool) or not low <= value <= high:
            raise PlanError(f"{name}: need a whole number from {low} to {high:,}, got {value!r}")
        return int(value)  # of numpy too

    return check


def several(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """One value, or several that a plan spreads over its optimizers."""

    def check_each(name: str, value: Any) -> Any:
        values = [text.strip() for text in value.split(",")] if isinstance(value, str) else as_list(value)
        if not values or len(set(values)) < len(values):
            raise PlanError(f"{name}: need values, each once, got {value!r}")
        found = tuple(check(name, each) for each in values)
        return found if len(found) > 1 else found[0]

    return check_each


def listed(check: Callable[[str, Any], Any]) -> Callable[[str, Any], tuple[Any, ...]]:
    """Values, of numbers, or of a text with commas."""
    each = several(lambda name, value: check(name, value_of(value) if isinstance(value, str) else value))

    def check_all(name: str, value: Any) -> tuple[Any, ...]:
        found = each(name, value)
        return found if isinstance(found, tuple) else (found,)

    return check_all


def share(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
        raise PlanError(f"{name}: need shares of the steps before, such as 0.1,0.2, got {value!r}")
    return float(value)


def largest(values: Collection[Any]) -> Any:
    """Of several values of a plan's setting the one that stands for all: the largest number, the widest dtype."""
    return max(values, key=lambda value: BITS.get(value, value))


def one_of(known: Collection[str]) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if value not in known:
            raise PlanError(f"{name}: no {value!r}{nearest(str(value), known)} ({', '.join(known)})")
        return str(value)

    return check


def dtype(name: str, value: Any) -> str:
    """By its name, or as numpy and JAX have it: numpy.dtype("float32"), jax.numpy.float32."""
    return one_of(DTYPES)(name, getattr(value, "__name__", getattr(value, "name", value)))


def device(name: str, value: Any) -> str:
    return one_of(DEVICES)(name, GPU_NAMES.get(str(value), value))


def or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise PlanError(f"{name}: need true or false, got {value!r}")
    return value


def gap(name: str, value: Any) -> float:
    if not isinstance(value, Real) or not 0 < value < 1:
        raise PlanError(f"{name}: need a gap between 0 and 1, such as 1e-4, got {value!r}")
    return float(value)


def loss(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise PlanError(f"{name}: need a loss such as 0.35, got {value!r}")
    return float(value)


def losses(name: str, value: Any) -> dict[str, float]:
    """A loss for each problem, by its spec."""
    if not isinstance(value, Mapping):
        raise PlanError(f'{name}: need a table of losses by problem, such as {{"mlp": 0.35}}, got {value!r}')
    return {str(problem): loss(f"{name}: {problem}", of) for problem, of in value.items()}


def axis_texts(name: str, value: Any) -> tuple[str, ...]:
    """Axes by their texts, `adamw.b2=0.9:0.9999:4`, or a table of them by their names."""
    if isinstance(value, Mapping):
        value = [f"{key}={of if isinstance(of, str) else '|'.join(map(str, as_list(of)))}" for key, of in value.items()]
    texts: tuple[Any, ...] = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    for text in texts:
        if not isinstance(text, str) or not all(part.strip() for part in text.partition("=")):
            raise PlanError(f"{name}: {text!r} should be NAME=VALUES, such as adamw.b2=0.9:0.9999:4 or b1=0.8|0.9")
    return texts


def as_written(read: Callable[[str], Any], text: Any) -> str:
    """The text, which `read` can read."""
    read(str(text))
    return str(text)
