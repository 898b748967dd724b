"""What people have, as a plan takes it: problems and optimizers that are objects or functions get names."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optax

from gradbench.errors import GradbenchError, OptimizerError, PlanError, ProblemError, one_line
from gradbench.inputs.optimizer import Optimizer, optimizer_functions, own_optimizer
from gradbench.inputs.plan import SweepPlan, steps_per_epoch
from gradbench.inputs.problem import Problem, load_problem
from gradbench.machine.devices import each_core_a_device

_PROBLEM = 'give a spec such as "mlp", a gradbench.Problem, or a function that returns one'
_NEEDS = "set what it needs with functools.partial, or make a problem of a loss: gradbench.Problem(init, loss)"
_OPTIMIZER = 'give a spec such as "adam[b1=0.8]", a function of the learning rate such as optax.adam, or {"mine": make}'


def take_problems(given: Any) -> tuple[tuple[str, ...], dict[str, Problem]]:
    """The names of problems given as specs, Problem objects, functions that return one, or a mix of them; and those
    that are objects, by name. Raises ProblemError for anything else."""
    names, objects = [], {}
    for item in _listed(given):
        if not isinstance(item, str):
            item = item if isinstance(item, Problem) else _called(item)
            if objects.get(item.name, item) is not item:
                raise ProblemError(f'problems: two are called {item.name!r}; write Problem(..., name="mine")')
            objects[item.name] = item
        names.append(item if isinstance(item, str) else item.name)
    return tuple(names), objects


def _called(function: Any) -> Problem:
    if not callable(function) or inspect.isclass(function):
        raise ProblemError(f"problems: got {_kind(function)}; {_PROBLEM}")
    name = _name(function).replace(LAMBDA, "lambda")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ProblemError(f"{name}: {one_line(error)}; {_NEEDS}") from error
    try:
        problem = function()
    except GradbenchError as error:
        raise type(error)(f"{name}: {error}") from error
    except Exception as error:
        raise ProblemError(f"{name}() raised {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(problem, Problem):
        raise ProblemError(f"{name}() returned {_kind(problem)}, not a gradbench.Problem")
    return replace(problem, name=name) if problem.name == Problem.name else problem


def plan_of_epochs(
    values: Mapping[str, Any], objects: Mapping[str, Problem] | None = None, where: str = "plan"
) -> SweepPlan:
    """A plan of settings that say how long a trial is by `epochs`: passes over a problem's examples, or without
    minibatches steps. `objects`: problems given as objects, by name.

    Raises PlanError where steps are given too, a problem states no examples, or an epoch has not as many steps for each
    problem, since a plan has one number of steps."""
    chosen = dict(values)
    epochs = chosen.pop("epochs")
    if "steps" in chosen:
        raise PlanError("epochs: the steps are given too; give one of epochs and steps")
    plan = SweepPlan.from_dict(chosen, where=where)
    if type(epochs) is not int or epochs < 1:
        raise PlanError(f"epochs: need a whole number of at least 1, got {epochs!r}")
    each_core_a_device()
    found = {}
    for name in plan.problems:
        examples = load_problem((objects or {}).get(name, name)).examples
        if examples is None:
            raise PlanError(f"epochs: {name} states no Problem(examples=N), so it has no epochs; give steps")
        if plan.batch_size is not None and plan.batch_size > examples:
            raise PlanError(f"batch_size: {plan.batch_size} is more than the {examples} examples of {name}")
        found[name] = 1 if plan.batch_size is None else steps_per_epoch(examples, plan.batch_size)
    if len(set(found.values())) > 1:
        each = ", ".join(f"{steps} steps of {name}" for name, steps in found.items())
        raise PlanError(f"epochs: an epoch is {each}; a run has one number of steps: run them apart, or give steps")
    return replace(plan, steps=epochs * next(iter(found.values())))


def take_optimizers(given: Any) -> tuple[tuple[str, ...], dict[str, Optimizer]]:
    """The names of optimizers given as specs, functions of the learning rate, {"name": function}, or a mix of them; and
    those that are functions, by name. A function of optax, also a partial one, is its spec. Raises OptimizerError."""
    names, functions = [], {}
    for item in _listed(given):
        for name, function in item.items() if isinstance(item, Mapping) else [(None, item)]:
            spec = function if isinstance(function, str) else optax_spec(function)
            if name is None and spec is not None:
                names.append(spec)
                continue
            if not callable(function) or (name is not None and not isinstance(name, str)):
                raise OptimizerError(f"optimizers: got {_kind(function)}; {_OPTIMIZER}")
            name = _name(function) if name is None else name
            if name == LAMBDA:
                raise OptimizerError('optimizers: a lambda has no name; write {"mine": lambda learning_rate: ...}')
            functions[name] = own_optimizer(name, function)
            names.append(name)
    return tuple(names), functions


def optax_spec(function: Any) -> str | None:
    """The spec of an optimizer of optax given as its function, or as functools.partial of it with numbers and switches
    set; None for every other."""
    known = optimizer_functions()
    for name, its in known.items():
        if its is function:
            return name
    if not isinstance(function, partial) or function.args or "learning_rate" in function.keywords:
        return None
    name = optax_spec(function.func)
    if name is None or not all(isinstance(value, int | float | None) for value in function.keywords.values()):
        return None
    return _with_settings(name, function.keywords)


def _with_settings(name: str, settings: Mapping[str, Any]) -> str:
    """As a spec has them; what is no number or switch is not shown."""
    words = [
        f"{key}={str(value).lower() if isinstance(value, int | float | None) else '…'}"
        for key, value in settings.items()
    ]
    return f"{name}[{','.join(words)}]" if words else name


LAMBDA = "<lambda>"


def _name(function: Any) -> str:
    """A function's name as Python qualifies it, within the function that it is made in; with a partial's settings. A
    function called `problem`, as every problem file has one, is called as its file."""
    if isinstance(function, partial):
        return _with_settings(_name(function.func), function.keywords)
    name = getattr(function, "__qualname__", type(function).__qualname__).rpartition("<locals>.")[2]
    file = getattr(sys.modules.get(getattr(function, "__module__", "")), "__file__", None)
    if name == Problem.name and file:
        return Path(file).stem
    return f"optax.{name}" if str(getattr(function, "__module__", "")).partition(".")[0] == "optax" else name


def _kind(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, optax.GradientTransformation):
        return "an optax.GradientTransformation, whose learning rate is set already"
    return f"the class {value.__name__}" if inspect.isclass(value) else f"a value of type {type(value).__name__}"


def _listed(given: Any) -> list[Any]:
    """One thing, or the things of a list of them. An optax.GradientTransformation is a tuple, but one thing."""
    one = (str, Problem, Mapping, optax.GradientTransformation)
    return [given] if isinstance(given, one) or not isinstance(given, Iterable) else list(given)
