"""Learning rates as a plan keeps them: `low:high:count`, log-spaced, or the values."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from gradbench.errors import PlanError


def log_range(low: float, high: float, count: int) -> str:
    """`count` learning rates from `low` to `high`, both in, log-spaced: "low:high:count", as --lr and run.json have it.

    `SweepPlan(learning_rates=log_range(1e-4, 10, 25)).rates` are the values. Raises PlanError for a range that is none.
    """
    try:
        text = f"{float(low)!r}:{float(high)!r}:{count}"
    except (TypeError, ValueError):
        raise PlanError(
            f"learning rates: a range needs two numbers and a count, got {low!r}, {high!r}, {count!r}"
        ) from None
    return str(rates_as_kept(text))


def parse_rates(text: str) -> str | tuple[float, ...]:
    """`1e-4:10:25` as it is, `0.1,0.3,1` as numbers."""
    if ":" in text:
        return text
    items = text.split(",")
    try:
        return tuple(map(float, items)) if any(item.strip() for item in items) else ()
    except ValueError:
        raise PlanError(f"learning rates {text!r}: need low:high:count or numbers with commas") from None


def rate_range(text: str) -> tuple[float, float, int]:
    parts = text.split(":")
    try:
        if len(parts) != 3:
            raise ValueError
        low, high, count = float(parts[0]), float(parts[1]), int(parts[2])
    except ValueError:
        raise PlanError(f"learning rates {text!r}: need low:high:count, such as 1e-4:10:25") from None
    return low, high, count


def _frames_inside() -> int:
    """How many frames up from here the first one outside this package is: a warning is about the caller's line."""
    frame, count = sys._getframe(1), 1
    while frame.f_back and str(frame.f_globals.get("__name__")).split(".")[0] == "gradbench":
        frame, count = frame.f_back, count + 1
    return count - 1


def as_list(value: Any) -> list[Any]:
    """The values of a sequence or an array as Python's; one value alone as a list."""
    value = _plain(value)
    return list(map(_plain, value)) if isinstance(value, Iterable) else [value]


def _plain(value: Any) -> Any:
    """An array or a scalar of numpy, JAX or pandas as Python's numbers; everything else as it is."""
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, type) else value


def rate_values(rates: str | tuple[float, ...]) -> list[float]:
    """The learning rates as numbers, in the order given."""
    if not isinstance(rates, str):
        return list(rates)
    low, high, count = rate_range(rates)
    if count == 1:
        return [low]
    step = math.log(high / low) / (count - 1)
    return [low, *(low * math.exp(step * i) for i in range(1, count - 1)), high]


def rates_as_kept(rates: Any) -> str | tuple[float, ...]:
    """The text of a range, or the values; PlanError for what is neither."""
    if isinstance(rates, Real) and not isinstance(rates, bool):
        rates = (rates,)
    if isinstance(rates, tuple) and len(rates) == 3 and type(rates[2]) is int and rates[2] >= 2:
        text, call, values = (form.format(*rates) for form in ('"{}:{}:{}"', "log_range({}, {}, {})", "[{}, {}, {}]"))
        warnings.warn(
            f"learning_rates={rates!r} is read as a range, and from the next version on as three values: "
            f"write {text} or gradbench.{call} for the range, {values} for the values",
            FutureWarning,
            stacklevel=_frames_inside() + 1,
        )
        rates = text.strip('"')
    if isinstance(rates, str):
        rates = parse_rates(rates)
    if isinstance(rates, str):
        low, high, count = rate_range(rates)
        if not (0 < low < math.inf and 0 < high < math.inf):
            raise PlanError(f"learning rates {rates!r}: both ends must be above 0 and finite")
        if count < 1 or (low > high) or (low == high) != (count == 1):
            right = f"{min(low, high):g}:{max(low, high):g}:{max(count, 2)}"
            raise PlanError(f"learning rates {rates!r}: need low below high and a count of at least 2, such as {right}")
        return rates
    rates = _plain(rates)
    try:
        if isinstance(rates, Mapping):
            raise TypeError
        rates = [rates] if isinstance(rates, int | float) else [_plain(rate) for rate in rates]
    except TypeError:
        raise PlanError(f"learning rates: need low:high:count or numbers, got {type(rates).__name__}") from None
    values = []
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < rate < math.inf:
            raise PlanError(f"learning rates: {rate!r} is not a number above 0")
        values.append(float(rate))
    if not values:
        raise PlanError("learning rates: none given; write 1e-4:10:25 or 0.1,0.3,1")
    if len(set(values)) < len(values):
        raise PlanError(f"learning rates: {next(v for v in values if values.count(v) > 1):g} is given twice")
    return tuple(values)


def check_rates_fit(rates: str | tuple[float, ...], dtypes: Sequence[str]) -> None:
    """Learning rates are float32 on the device, float64 in a float64 run: each has to be a number of its own."""
    single = any(dtype != "float64" for dtype in dtypes)
    least, most, spacing = (2.0**-126, 2.0**128, 2.0**-23) if single else (2.0**-1022, math.inf, 2.0**-52)
    low, high, count = rate_range(rates) if isinstance(rates, str) else (min(rates), max(rates), 1)
    kind = "float32" if single else "float64"
    for rate in (low, high):
        if not least <= rate < most:
            raise PlanError(f"learning rates: {rate:g} is outside the range of {kind}, which holds them in this run")
    if count > 1 and math.log(high / low) / (count - 1) < spacing:
        raise PlanError(f"learning rates {rates!r}: {count:,} of them are too many to tell apart in {kind}")
