"""An axis: a setting of a spec with several values, `adamw[weight_decay=1e-5:1e-1:5,b1=0.8|0.9|0.95]`."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gradbench.errors import GradbenchError, nearest
from gradbench.inputs.specs.spec import Spec, parse_spec, value_of

LINEAR, LOG, ONE_MINUS = "linear", "log", "one-minus"
SCALES = (LINEAR, LOG, ONE_MINUS)
# Spaced so that each step is as much of what the setting does: a decay or a momentum by how far it is from 1.
NEAR_ONE = {"b1", "b2", "b3", "adam_b1", "adam_b2", "beta", "beta1", "beta2", "decay", "decay_rate", "momentum", "rho"}
ORDERS_OF_MAGNITUDE = {"learning_rate", "weight_decay", "eps", "eps_root", "l2"}
WHOLE = {"warmup", "stable"}
OF_PLAN = ("batch_size", "steps", "dtype")  # settings of a plan that a spec may set for the trials of its optimizer
LISTED = "*"  # the values are those of a list of points
MAX_VALUES = 10_000


@dataclass(frozen=True)
class Axis:
    """A setting and its values, in the order they were given; none where a list of points has them. Of a range, `scale`
    says how the values between its ends are spaced, and where a design draws others."""

    name: str
    values: tuple[Any, ...]
    scale: str | None = None

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers, so that they may enter a program as an array."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    def at(self, share: float) -> Any:
        """The value at `share`, from 0 to 1, of the way from the first to the last value of a range; of values, that
        share of them."""
        if self.scale is None:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        return between(self.values[0], self.values[-1], share, self.scale, self.name in WHOLE)

    def beyond(self, end: str) -> str | None:
        """A range that goes on from the "lowest" or "highest" value, as a spec has it: two decades of what is spaced
        by its logarithm, else as far again. None where the values are no range, or none are left."""
        if self.scale is None:
            return None
        low, high, count = self.values[0], self.values[-1], len(self.values)
        up = end == "highest"
        if self.scale == LINEAR:
            start, stop = (high, high + (high - low)) if up else (low - (high - low), low)
        elif self.scale == LOG:
            start, stop = (high, high * 100) if up else (low / 100, low)
        elif up:
            start, stop = high, 1 - (1 - high) / 100
        elif low > 0:
            start, stop = 0.0, low
        else:
            return None
        return f"{start:.12g}:{stop:.12g}:{count}" + (f":{self.scale}" if self.scale != scale_of(self.name) else "")


def scale_of(name: str) -> str:
    """How a range of a setting of this name is spaced where it does not say."""
    return ONE_MINUS if name in NEAR_ONE else LOG if name in ORDERS_OF_MAGNITUDE else LINEAR


def between(low: float, high: float, share: float, scale: str, whole: bool = False) -> float:
    """A value `share` of the way from low to high."""
    if share in (0, 1):
        return high if share else low
    first, last = place_of(low, scale), place_of(high, scale)
    return value_at(first + (last - first) * share, scale, whole)


def place_of(value: float, scale: str) -> float:
    """Where a value lies on its scale, on which equal steps are equal: itself, its logarithm, or -log(1 - value)."""
    return value if scale == LINEAR else math.log(value) if scale == LOG else -math.log1p(-value)


def value_at(place: float, scale: str, whole: bool = False) -> float:
    """The value at a place, to six digits (of 1 - value, where that is what is spaced)."""
    if scale == ONE_MINUS:
        return float(f"{1 - float(f'{math.exp(-place):.6g}'):.12g}")
    value = math.exp(place) if scale == LOG else place
    return round(value) if whole else float(f"{value:.6g}")


def read_axis(name: str, text: str, where: str, error: type[GradbenchError]) -> Axis | None:
    """The axis that a setting's text gives, `a|b|c`, or `low:high:count` with `:log`, `:linear` or `:one-minus` behind
    it where the name's own scale is not meant, or LISTED; None where the text is one value."""
    if text == LISTED:
        return Axis(name, ())
    if "|" in text:
        values = tuple(value_of(item.strip()) for item in text.split("|"))
        if any(item == "" for item in values):
            raise error(f"{where}: {name}={text}: a value is missing; write {name}=a|b|c")
        if len({repr(value) for value in values}) < len(values):
            raise error(f"{where}: {name}={text}: a value is given twice")
        return Axis(name, values)
    low, *rest = text.split(":")
    if not rest or not isinstance(value_of(low), int | float):
        return None
    return _range(name, text, where, error)


def _range(name: str, text: str, where: str, error: type[GradbenchError]) -> Axis:
    ends, scale = text.split(":"), scale_of(name)
    if len(ends) == 4:
        scale = ends.pop()
    if scale not in SCALES:
        raise error(f"{where}: {name}={text}: no scale {scale!r}{nearest(scale, SCALES)} ({', '.join(SCALES)})")
    values = [value_of(end) for end in ends]
    if len(values) != 3 or type(values[2]) is not int or not all(type(value) in (int, float) for value in values):
        raise error(f"{where}: {name}={text}: need low:high:count, such as {name}=0.1:0.9:5, or values, a|b|c")
    low, high, count = values
    if not low < high or not 2 <= count <= MAX_VALUES:
        right = f"{min(low, high):g}:{max(low, high):g}:{min(max(count, 2), MAX_VALUES)}"
        raise error(f"{where}: {name}={text}: need low below high and 2 to {MAX_VALUES:,} values, such as {right}")
    if scale == LOG and low <= 0:
        raise error(
            f"{where}: {name}={text}: spaced by orders of magnitude, so low should be above 0, or write :linear"
        )
    if scale == ONE_MINUS and high >= 1:
        raise error(f"{where}: {name}={text}: spaced by how far they are from 1, so high should be below 1")
    whole = name in WHOLE
    if whole and not type(low) is type(high) is int:
        raise error(f"{where}: {name}={text}: need whole numbers")
    spaced = [between(low, high, i / (count - 1), scale, whole) for i in range(count)]
    if whole and len(set(spaced)) < count:
        raise error(f"{where}: {name}={text}: has no {count} whole numbers")
    if not whole:
        spaced = [float(value) for value in spaced]
    return Axis(name, tuple(spaced), scale)


def split_axes(spec: Spec, error: type[GradbenchError]) -> tuple[Spec, tuple[Axis, ...]]:
    """A spec without its axes, and these."""
    found = {name: read_axis(name, value, repr(spec.text), error) for name, value in _texts(spec)}
    axes = tuple(axis for axis in found.values() if axis is not None)
    taken = {axis.name for axis in axes}
    fixed = {name: value for name, value in spec.settings.items() if name not in taken}
    return dataclasses.replace(spec, settings=fixed), axes


def _texts(spec: Spec) -> Iterator[tuple[str, str]]:
    return ((name, value) for name, value in spec.settings.items() if isinstance(value, str))


def axes_of(text: str, error: type[GradbenchError]) -> tuple[Axis, ...]:
    """The axes of a spec; none where its brackets hold none."""
    return split_axes(parse_spec(text, error), error)[1] if "[" in text else ()


def concrete(text: str, values: Mapping[str, Any], error: type[GradbenchError]) -> str:
    """A spec with `values` for those settings, in their places; a column of a record has numbers of steps as floats."""
    if not values:
        return text
    spec = parse_spec(text, error)
    values = {name: int(of) if name in WHOLE and isinstance(of, float) else of for name, of in values.items()}
    settings = {name: values.get(name, value) for name, value in spec.settings.items()}
    return spec_text(spec.target, settings)


def spec_text(target: str, settings: Mapping[str, Any]) -> str:
    """`target[key=value,...]`."""
    words = ",".join(f"{name}={_word(value)}" for name, value in settings.items())
    return f"{target}[{words}]" if words else target


def _word(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    plain = not isinstance(value, str) or value_of(value) == value
    return str(value) if plain else repr(value)


def without_axes(text: str) -> str:
    """A spec without its axes and without what is the plan's, as text."""
    fixed, axes = split_axes(parse_spec(text, GradbenchError), GradbenchError)
    kept = {name: value for name, value in fixed.settings.items() if name not in OF_PLAN}
    return spec_text(fixed.target, kept) if axes or len(kept) < len(fixed.settings) else text


def expanded(
    text: str, error: type[GradbenchError], chosen: Callable[[Axis], bool] = lambda axis: True
) -> Iterator[str]:
    """The specs of every combination of the values of the `chosen` axes."""
    axes = list(filter(chosen, axes_of(text, error)))
    if not axes:
        yield text
        return
    for values in itertools.product(*(axis.values for axis in axes)):
        yield concrete(text, {axis.name: value for axis, value in zip(axes, values)}, error)


def with_axis(text: str, name: str, values: str | Collection[Any], error: type[GradbenchError]) -> str:
    """A spec with one more setting, which may have several values."""
    spec = parse_spec(text, error)
    if name in spec.settings:
        raise error(f"{text!r}: {name} is given twice")
    if isinstance(values, str):
        given = value_of(values)  # a number, where it is one value
    else:
        given = next(iter(values)) if len(values) == 1 else "|".join(_word(value) for value in values)
    return spec_text(spec.target, dict(spec.settings) | {name: given})
