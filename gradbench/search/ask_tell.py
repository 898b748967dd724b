"""Any sampler of Optuna, by ask and tell, a batch of points at a time."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np

from gradbench.errors import PlanError, one_line
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.specs.axis import LOG, ONE_MINUS, Axis, place_of, value_at
from gradbench.inputs.specs.searches import ASKED
from gradbench.search.asked import Asked, Searching

WORST = 1e6  # what a sampler is told of a trial that diverged: some take no infinity
_CLASSES = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "cmaes": "CmaEsSampler",
    "gp": "GPSampler",
    "qmc": "QMCSampler",
}


def samplers(name: str) -> tuple[Any, Any]:
    """(optuna, a sampler of this name). Raises PlanError where they are not installed."""
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise PlanError("search: Optuna is not installed (pip install optuna)") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    options = {"constant_liar": True} if name == "tpe" else {}  # points of one batch keep away from each other
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return optuna, getattr(optuna.samplers, _CLASSES[name])(seed=0, **options)
        except ImportError as error:
            raise PlanError(f"search: Optuna's {name} cannot be used: {one_line(error)}") from error


def ask_tell(plan: SweepPlan, optimizer: str, name: str) -> Searching:
    """As many points as the plan allows, each with all seeds; a point's value is the median of its scores."""
    optuna, sampler = samplers(name)
    study = optuna.create_study(sampler=sampler)
    rates = plan.rates
    rate = Axis("learning_rate", tuple(rates), LOG if isinstance(plan.learning_rates, str) else None)
    axes = (*plan.axes_of(optimizer), rate)
    kinds = {axis.name: _distribution(optuna, axis) for axis in axes}
    left = plan.trials_of(optimizer) // plan.seeds
    while left > 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trials = [study.ask(kinds) for _ in range(min(ASKED, left))]
        left -= len(trials)
        points = [{axis.name: _value(axis, trial.params[axis.name]) for axis in axes} for trial in trials]
        told = yield Asked.of(points, range(plan.seeds), f"Optuna's {name}")
        for trial, value in zip(trials, np.median(told.reshape(len(trials), plan.seeds), axis=1)):
            study.tell(trial, float(min(value, WORST)))


def _distribution(optuna: Any, axis: Axis) -> Any:
    kinds = optuna.distributions
    if axis.scale is None or len(axis.values) == 1:
        return kinds.CategoricalDistribution(list(axis.values))
    low, high = axis.values[0], axis.values[-1]
    if axis.scale == ONE_MINUS:
        return kinds.FloatDistribution(1 - high, 1 - low, log=True)
    return kinds.FloatDistribution(low, high, log=axis.scale == LOG)


def _value(axis: Axis, value: float) -> float:
    if axis.scale is None or len(axis.values) == 1:
        return value
    return value_at(place_of(1 - value if axis.scale == ONE_MINUS else value, axis.scale), axis.scale)
