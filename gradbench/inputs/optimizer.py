"""An optimizer is a spec: a name of optax or optax.contrib with settings, a schedule, or a user's own function."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from gradbench.errors import OptimizerError, error_text, nearest
from gradbench.inputs.specs import schedules
from gradbench.inputs.specs.axis import OF_PLAN, Axis, concrete, split_axes
from gradbench.inputs.specs.spec import SGD, Spec, check_settings, is_path, load_file, parse_spec
from gradbench.paths import user_path

ALIASES: dict[str, Callable[..., Any]] = {
    **{name: partial(optax.sgd, **settings) for name, settings in SGD.items() if settings},
    "noisy_sgd": partial(optax.noisy_sgd, key=0),  # without a key optax warns, and takes 0
}
REFUSED = {
    "scale_by_learning_rate": "it is a part of optimizers, not one; use sgd",
    "scale_by_rprop": "it is a part of optimizers, not one; use rprop",
    "scale_by_madgrad": "it is a part of optimizers, not one; use madgrad",
    "dpsgd": "it needs a gradient for every example, which a loss that is a mean does not give",
    "optimistic_adam": "optax has replaced it; use optimistic_adam_v2",
    "schedule_free": "it wraps another optimizer; use schedule_free_sgd or schedule_free_adamw",
    "polyak_sgd": "it sets its own learning rate, so there is none to sweep",
}
# Settings of optax whose range it does not hold them to: decays of running averages, momentum, what is added to a
# denominator.
_RANGES = (
    (("b1", "b2", "b3", "adam_b1", "adam_b2", "decay", "rho"), lambda x: 0 <= x < 1, "at least 0 and below 1"),
    (("momentum",), lambda x: -1 < x < 1, "between -1 and 1"),
    (("eps", "eps_root", "adam_eps_root"), lambda x: 0 <= x < math.inf, "finite and at least 0"),
)


Settings = Mapping[str, Any]  # of one trial: its learning rate and the values of its optimizer's axes, by name


@dataclass(frozen=True)
class Optimizer:
    """A spec that can be built for any learning rate, and for any values of its axes.

    `build(learning_rate, steps, values)` gives the optax transformation; `values` has one for each of `axes`, by their
    names, and may be left out where there are none; those of `whole` are whole numbers. The learning rate and the
    values may be traced scalars, so one compiled program serves all of them. `steps` is the length that a schedule
    decays over, and `fall(steps, values)` says where it does (schedules.fall). `from_spec` is whether `spec` can be
    loaded, or only names `function`, which `build` calls.
    """

    spec: str
    build: Callable[..., optax.GradientTransformationExtraArgs]
    axes: tuple[Axis, ...] = ()
    whole: frozenset[str] = frozenset()
    from_spec: bool = True
    function: Callable[..., Any] | None = None
    fall: Callable[[int, Mapping[str, Any]], tuple[Any, Any]] = lambda steps, values: (0, steps)

    def called(self, spec: str) -> Optimizer:
        """An optimizer that is a function, under its name with axes in brackets."""
        assert self.function is not None
        bare, axes = split_axes(parse_spec(spec, OptimizerError), OptimizerError)
        return replace(_optimizer(spec, bare, axes, self.function), from_spec=False)

    def of(self, settings: Settings, steps: int) -> optax.GradientTransformationExtraArgs:
        """What `build` gives for one trial's settings."""
        values = dict(settings)
        return self.build(values.pop("learning_rate"), steps, values)

    def at(self, values: Mapping[str, float]) -> Optimizer:
        """The optimizer of these values of its axes, which its spec has then."""
        spec = concrete(self.spec, values, OptimizerError)
        bound = {
            "build": lambda rate, steps, _=None: self.build(rate, steps, values),
            "fall": lambda steps, _=None: self.fall(steps, values),
        }
        return replace(self, spec=spec, axes=(), **bound)


@cache
def optimizer_functions() -> dict[str, Callable[..., Any]]:
    """Every function a name may stand for: those of optax and optax.contrib that take a learning rate, and ours."""
    found = {}
    for module in (optax.contrib, optax):  # optax wins where both have a name
        for name, function in inspect.getmembers(module, callable):  # nadam is a partial, no function
            if not (name.startswith("_") or inspect.isclass(function)) and "learning_rate" in _parameters(function):
                found[name] = function
    return {name: function for name, function in sorted((found | ALIASES).items()) if name not in REFUSED}


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """A callable's parameters by name; none where Python cannot tell them, as of some built-in ones."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a callable takes `name=`."""
    parameters = _parameters(function)
    named = name in parameters and parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY
    return named or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def load_optimizer(text: str) -> Optimizer:
    """Read a spec such as `adam`, `sgd[momentum=0.9,nesterov=true]`, `adam[schedule=cosine,warmup=100]`,
    `./mine.py:make` or `package.module:make`. Raises OptimizerError with one line."""
    if not isinstance(text, str):
        raise OptimizerError(f'{type(text).__name__} is no spec; give one, such as "adam[b1=0.8]" or "./mine.py:make"')
    spec, axes = split_axes(parse_spec(text, OptimizerError), OptimizerError)
    optimizer = _optimizer(text, spec, axes, _find(spec))
    if ":" not in spec.target:  # what a user's own function calls so is the user's
        for settings in (spec.settings, *_each_value(axes)):
            _check_ranges(text, settings)
    return optimizer


def _each_value(axes: Iterable[Axis]) -> Iterator[dict[str, Any]]:
    return ({axis.name: value} for axis in axes for value in axis.values)


def own_optimizer(name: str, function: Callable[..., Any]) -> Optimizer:
    """An optimizer that is a function of the learning rate, here and now: a plan names it `name`.

    The function is handed `learning_rate=`, or the rate alone where its one parameter has another name. Raises
    OptimizerError for any other function, and for a name that optax's optimizers or theory go by.
    """
    spec = parse_spec(name, OptimizerError)
    if spec.target in optimizer_functions() or spec.target in REFUSED:
        raise OptimizerError(f"{name!r}: this is optax's {spec.target}; give your own function another name")
    if inspect.isclass(function):
        raise OptimizerError(f"{name!r}: a class; {_FUNCTION}")
    if isinstance(function, partial) and (function.args or "learning_rate" in function.keywords):
        raise OptimizerError(f"{name!r}: its learning rate is set, which a sweep does; set the others by their names")
    needed = [p for p in _parameters(function).values() if p.default is p.empty]
    if not _takes(function, "learning_rate") and len(needed) == 1 and needed[0].kind in _BY_POSITION:
        of_rate = function
        function = lambda learning_rate: of_rate(learning_rate)  # noqa: E731
    return replace(_optimizer(name, Spec(name, name, {}), (), function), from_spec=False)


_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_FUNCTION = "give a function of the learning rate that returns an optax.GradientTransformation, such as optax.adam"


def _optimizer(text: str, spec: Spec, axes: tuple[Axis, ...], function: Callable[..., Any]) -> Optimizer:
    """An optimizer by the name `text`, whose fixed settings `spec` has."""
    if not _takes(function, "learning_rate"):
        raise OptimizerError(
            f"{text!r}: {spec.target} has no parameter learning_rate, which a sweep sets; "
            "write def make(learning_rate, ...)"
        )
    own = _parameters(function)
    scheduled = [name for name in schedules.SETTINGS if name not in own]
    shape = {key: value for key, value in spec.settings.items() if key in scheduled}
    if taken := [key for key in OF_PLAN if key in spec.settings and key in own]:
        raise OptimizerError(f"{text!r}: {taken[0]} is the plan's; give the parameter of {spec.target} another name")
    settings = {key: value for key, value in spec.settings.items() if key not in (*scheduled, *OF_PLAN)}
    for given in (settings, *_each_value(axis for axis in axes if axis.name not in scheduled)):
        check_settings(Spec(text, spec.target, given), function, OptimizerError, reserved=("learning_rate",))
    taken = {axis.name for axis in axes} | settings.keys() | {"learning_rate"}
    missing = [
        name
        for name, p in own.items()
        if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and name not in taken
    ]
    if missing:
        needs = ", ".join(f"{name}=" for name in missing)
        raise OptimizerError(f"{text!r}: {spec.target} has no default for {needs}; write {spec.target}[{needs}...]")
    for given in ({}, *_each_value(axis for axis in axes if axis.name in scheduled)):
        schedules.check(text, shape | given)

    def build(
        learning_rate: Any, steps: int, values: Mapping[str, Any] | None = None
    ) -> optax.GradientTransformationExtraArgs:
        given = values or {}
        shaped = shape | {name: value for name, value in given.items() if name in scheduled}
        others = settings | {name: value for name, value in given.items() if name not in scheduled}
        rate = schedules.rate(learning_rate, steps, **shaped) if shaped else learning_rate
        transformation = function(learning_rate=rate, **others)
        if not (callable(getattr(transformation, "init", None)) and callable(getattr(transformation, "update", None))):
            raise OptimizerError(f"{text!r}: did not return an optax.GradientTransformation")
        return _without_empty_arrays(_with_what_it_takes(transformation))

    def falls(steps: int, values: Mapping[str, Any]) -> tuple[Any, Any]:
        return schedules.fall(steps, **shape | {name: value for name, value in values.items() if name in scheduled})

    defaults = {name: p.default for name, p in own.items()} | {"warmup": 0, "stable": 1}
    whole = frozenset(a.name for a in axes if type(defaults.get(a.name)) is int)
    return Optimizer(text, build, axes, whole, fall=falls, function=function)


def _with_what_it_takes(inner: Any) -> optax.GradientTransformationExtraArgs:
    """The same transformation, whose update may be handed any extra arguments and passes on those that `inner`'s names,
    or all where it takes any. optax's plain kind takes none but what it names."""
    parameters = list(_parameters(inner.update).values())
    named = {p.name for p in parameters[3:] if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    named |= {p.name for p in parameters[:3] if p.kind is p.KEYWORD_ONLY}
    takes_any = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters)
    takes_any = takes_any and isinstance(inner, optax.GradientTransformationExtraArgs)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        given = extra if takes_any else {name: value for name, value in extra.items() if name in named}
        return inner.update(updates, state, params, **given)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _without_empty_arrays(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """The same transformation whose state has a 0 where `inner`'s has an array without entries (galore's projectors of
    vectors): JAX forgets how such arrays are sharded, and then refuses the state of a sweep on several devices."""

    def init(params: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype) if np.size(leaf) == 0 else leaf, inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        shapes = jax.eval_shape(inner.init, updates if params is None else params)
        if all(leaf.size for leaf in jax.tree.leaves(shapes)):
            return inner.update(updates, state, params, **extra)
        full = jax.tree.map(lambda s, leaf: leaf if s.size else jnp.zeros(s.shape, s.dtype), shapes, state)
        updates, full = inner.update(updates, full, params, **extra)
        return updates, jax.tree.map(lambda s, leaf: leaf if s.size else jnp.zeros((), s.dtype), shapes, full)

    return optax.GradientTransformationExtraArgs(init, update)


def _find(spec: Spec) -> Callable[..., Any]:
    if ":" in spec.target:
        place, _, name = spec.target.rpartition(":")
        if is_path(place):
            module: Any = load_file(user_path(place), OptimizerError)
        else:
            try:
                module = importlib.import_module(place)
            except Exception as error:
                raise OptimizerError(f"{spec.text!r}: cannot import {place}: {error_text(error)}") from error
        function = getattr(module, name, None)
        if not callable(function):
            raise OptimizerError(f"{spec.text!r}: {place} has no function {name!r}")
        return function
    if spec.target in REFUSED:
        raise OptimizerError(f"{spec.text!r}: cannot be swept: {REFUSED[spec.target]}")
    functions = optimizer_functions()
    if spec.target not in functions:
        if is_path(spec.target):
            raise OptimizerError(f"{spec.target!r}: name its function too, such as {spec.target}:make")
        if all(name.strip() in functions for name in spec.target.split(",")):
            raise OptimizerError(
                f"no optimizer {spec.target!r}: name each by itself, -o {' -o '.join(spec.target.split(','))}"
            )
        raise OptimizerError(
            f"no optimizer {spec.target!r}{nearest(spec.target, functions)} "
            "(any of optax and optax.contrib, see gradbench list; or ./mine.py:make)"
        )
    return functions[spec.target]


def _check_ranges(text: str, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        for names, inside, wanted in _RANGES:
            if name in names and isinstance(value, int | float) and not inside(value):
                raise OptimizerError(f"{text!r}: {name}={value} should be {wanted}")
