"""Searches and budgets: which trials are made where not all of a design are, and how many at the most."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from gradbench.errors import PlanError, nearest
from gradbench.inputs.specs.spec import value_of

REFINE, HALVING, OPTUNA, RANGE_TEST = "refine", "halving", "optuna", "range-test"
ASKING = (REFINE, OPTUNA)  # what they try is known only as they are told what was found
FACTOR = 1.1  # to which refine knows the best learning rate
ETA = 3  # of halving: one of so many goes on at a rung
RUNGS = 2  # of halving: the first at 1 / ETA^RUNGS of the steps; earlier than that the best are often not ahead yet
SAMPLERS = ("tpe", "random", "cmaes", "gp", "qmc")
OPTUNA_POINTS = 64
ASKED = 8  # points that a search asks for at once, about
REFINE_POINTS = 64  # for each axis, the learning rate among them
UNITS = {"s": "seconds", "steps": "steps", "trials": "trials"}


class Search(NamedTuple):
    """A search and its argument: refine's factor, halving's eta, or the sampler of Optuna."""

    kind: str
    argument: Any


def read_search(text: str) -> Search:
    """`refine`, `refine:1.05`, `halving`, `halving:4`, `optuna`, `optuna:cmaes`. Raises PlanError for another."""
    kind, colon, rest = text.partition(":")
    value = value_of(rest) if colon else None
    if kind == REFINE and (value is None or (isinstance(value, int | float) and 1 < value < 10)):
        return Search(kind, float(value or FACTOR))
    if kind == HALVING and (value is None or (type(value) is int and 2 <= value <= 10)):
        return Search(kind, value or ETA)
    if kind == OPTUNA and (value is None or value in SAMPLERS):
        return Search(kind, value or SAMPLERS[0])
    if kind == RANGE_TEST and not colon:
        return Search(kind, None)
    kinds = (REFINE, HALVING, OPTUNA, RANGE_TEST)
    if kind == RANGE_TEST:
        raise PlanError(f"search: {text!r}: range-test takes no argument")
    if kind in kinds:
        right = {REFINE: "a factor above 1, as refine:1.05", HALVING: "a whole number, as halving:3"}
        samplers = f"one of {', '.join(SAMPLERS)}, as optuna:tpe"
        raise PlanError(f"search: {text!r} needs {right.get(kind, samplers)}")
    raise PlanError(f"search: no {kind!r}{nearest(kind, kinds)} ({', '.join(kinds)})")


class Budget(NamedTuple):
    """How much of `unit` (seconds, steps or trials) the sweep of a pair may take."""

    amount: float
    unit: str


def read_budget(text: str) -> Budget:
    """`60s`, `1e6steps` or `500trials`. Raises PlanError for another."""
    text = text.replace(" ", "")
    for suffix, unit in sorted(UNITS.items(), key=lambda item: -len(item[0])):
        number: Any = value_of(text.removesuffix(suffix)) if text.endswith(suffix) else None
        if isinstance(number, int | float) and not isinstance(number, bool) and 0 < number < math.inf:
            return Budget(float(number), unit)
    raise PlanError(f"budget: {text!r} should be a time, steps or trials, such as 60s, 1e6steps or 500trials")
