"""A problem: a loss to minimise, with what is known about it. Built-in and users' files go through one loader."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.errors import GradbenchError, GradbenchWarning, ProblemError, error_text, nearest
from gradbench.inputs.built_in import problem_names, problems_folder
from gradbench.inputs.data import as_arrays, check_data, check_holdout
from gradbench.inputs.spec import check_settings, is_path, load_file, parse_spec

LOG = logging.getLogger(__name__)
Params = Any
Data = Any


@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss and the facts known about it.

    Attributes:
        init: `init(key) -> params`, a starting point: any pytree of float arrays. `key` is a jax.random key. Of a
            stateful problem `init(key) -> (params, state)`.
        loss: `loss(params, data) -> scalar`, the mean over examples where there are examples. A third parameter
            without default, `loss(params, data, key)`, gets a fresh key for each trial and step (dropout, noise). It
            may return `(scalar, aux)`, aux a dict of scalars that are recorded as metrics are. Of a stateful problem
            `loss(params, state, data[, key]) -> (scalar, state)`, or `(scalar, (state, aux))`.
        data: a pytree of arrays, passed in and never closed over, so that it is cast to the run's dtype and
            placed on the device. Floats are kept in float64 here. A frame is kept as a dict of its columns, a list of
            numbers or a tensor of torch as an array; what cannot be an array raises ProblemError.
        examples: the number of rows when the data can be cut into minibatches: every leaf of `data` whose first
            dimension equals it is cut, the others are passed whole. None where there are no examples.
        minimum: the lowest loss, exact or from a float64 solve; None if unknown.
        target: the loss that counts as solved where `minimum` is unknown.
        curvature: (mu, L), bounds on the Hessian's eigenvalues, where known.
        gradient: `gradient(params, data) -> params`, the analytic gradient where one is written down.
        holdout: a pytree like `data`, of which only the number of rows may differ, that is never trained on: the loss
            and the metrics are evaluated on it at the recorded points.
        metrics: name -> `f(params, data) -> scalar` (`f(params, state, data)` of a stateful problem), evaluated at the
            recorded points on `data` and `holdout`. One named "loss" stands for the loss there, where a model computes
            otherwise in training than in use.
        maximise: the names of the metrics of which more is better.
        stateful: the problem has state that is not parameters, such as running statistics: any pytree of arrays that
            the loss returns anew at each update and no optimizer touches.
        name: the spec it was loaded from.
    """

    init: Callable[[jax.Array], Any]
    loss: Callable[..., Any]
    data: Data = ()
    examples: int | None = None
    minimum: float | None = None
    target: float | None = None
    curvature: tuple[float, float] | None = None
    gradient: Callable[[Params, Data], Params] | None = None
    holdout: Data | None = None
    metrics: Mapping[str, Callable[..., jax.Array]] = dataclasses.field(default_factory=dict)
    maximise: tuple[str, ...] = ()
    stateful: bool = False
    name: str = "problem"

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", as_arrays(self.data))
        object.__setattr__(self, "holdout", as_arrays(self.holdout))


def problem_path(target: str) -> Path:
    """Where the file of a built-in name, or of a path to a user's file, should be."""
    return Path(target).expanduser() if is_path(target) else problems_folder() / f"{target}.py"


def problem_function(target: str) -> Callable[..., Problem]:
    """The `problem(...)` function of a built-in name or of a path to a user's file."""
    path = problem_path(target)
    if not (is_path(target) or path.is_file()):
        known = problem_names()
        raise ProblemError(
            f"no problem {target!r}{nearest(target, known)} (built in: {', '.join(known)}; or a path ./mine.py)"
        )
    function = getattr(load_file(path, ProblemError), "problem", None)
    if not callable(function):
        raise ProblemError(f"{path}: has no function problem(...) that returns a gradbench.Problem")
    return function


def load_problem(spec: str | Problem) -> Problem:
    """Load `name`, `name[key=value]` or `./file.py[key=value]`, checked against the contract.

    A Problem is passed through after the same check. Raises ProblemError with one line that says what is wrong.
    """
    if isinstance(spec, Problem):
        return validate(spec)
    if not isinstance(spec, str):
        text = f"{type(spec).__name__} is no problem; give a name, a path or a gradbench.Problem"
        raise ProblemError(text + framework_hint(spec))
    parsed = parse_spec(spec, ProblemError)
    LOG.info("loading %s", parsed.text)
    function = problem_function(parsed.target)
    check_settings(parsed, function, ProblemError)
    try:
        inspect.signature(function).bind(**parsed.settings)
        problem = function(**parsed.settings)
    except GradbenchError as error:
        raise type(error)(f"{parsed.text}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ProblemError(f"{parsed.text}: problem() raised {error_text(error)}") from error
    if not isinstance(problem, Problem):
        raise ProblemError(f"{parsed.text}: problem() returned {type(problem).__name__}, not a gradbench.Problem")
    return validate(dataclasses.replace(problem, name=parsed.text))


def cast(tree: Any, dtype: Any) -> Any:
    """Every float leaf as `dtype`; the others as they are."""

    def leaf(x: Any) -> Any:
        return jnp.asarray(x, dtype) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else jnp.asarray(x)

    return jax.tree.map(leaf, tree)


def shapes(problem: Problem, dtype: str) -> tuple[Params, Data]:
    """What a run in `dtype` starts from and what it reads, as shapes: nothing is drawn or placed."""
    with jax.enable_x64(dtype == "float64"):
        return jax.eval_shape(lambda: cast((problem.init(jax.random.key(0)), problem.data), dtype))


def validate(problem: Problem) -> Problem:
    """The problem itself if it keeps the contract, else ProblemError. Nothing is computed, only shapes."""

    def fault(text: str) -> ProblemError:
        return ProblemError(f"{problem.name}: {text}")

    check_data(problem.data, fault)
    _check_loss(problem, _checked_params(problem, fault), fault)
    _check_facts(problem, fault)
    return problem


def check_batch(problem: Problem, size: int) -> None:
    """ProblemError unless the loss can be traced on `size` of the problem's examples."""
    total = problem.examples

    def cut(leaf: Any) -> Any:
        whole = leaf.ndim == 0 or leaf.shape[0] != total
        return leaf if whole else jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)

    params, data = shapes(problem, "float32")
    try:
        jax.eval_shape(problem.loss, params, jax.tree.map(cut, data))
    except Exception as error:
        where = f"on a minibatch of {size} of its {total} examples"
        raise ProblemError(f"{problem.name}: {where} the loss raised {error_text(error)}") from error


def idle_leaves(problem: Problem) -> list[str]:
    """The leaves of params, by their paths, whose gradient is 0 at every point: the loss does not use them, or only
    through operations without a derivative. Read off the traced gradient, so a gradient that happens to be 0 at some
    point, as of a dead relu or an embedding's unused row, is none."""
    params = jax.eval_shape(lambda: problem.init(jax.random.key(0)))
    trace = jax.make_jaxpr(jax.grad(lambda params, data: problem.loss(params, cast(data, jnp.float32))))
    jaxpr = trace(params, problem.data).jaxpr
    zeros = {  # jax.grad broadcasts a literal 0 for what nothing reaches
        equation.outvars[0]
        for equation in jaxpr.eqns
        if equation.primitive.name == "broadcast_in_dim" and getattr(equation.invars[0], "val", None) == 0
    }
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return [
        f"params{path}"
        for path, out in zip(paths, jaxpr.outvars)
        if (out.val == 0 if hasattr(out, "val") else out in zeros)
    ]


def warn_of_idle_leaves(problem: Problem) -> None:
    """One GradbenchWarning that names `idle_leaves`, where there are any."""
    if idle := idle_leaves(problem):
        warnings.warn(f"{problem.name}: {idle_text(idle)}", GradbenchWarning, stacklevel=2)


def idle_text(idle: list[str]) -> str:
    """What is said of leaves that no gradient reaches."""
    named = ", ".join(idle[:4]) + (f" and {len(idle) - 4} more" if len(idle) > 4 else "")
    return f"no gradient reaches {named}: always 0, so not trained; is it state? (docs/recipes.md)"


_Fault = Callable[[str], ProblemError]


# What holds parameters in other libraries, by where its class comes from, and what to give instead.
_FRAMEWORKS = {
    "flax.linen": 'init should return model.init(key, x)["params"]',
    "flax.nnx": "init should return the params of graphdef, params, rest = nnx.split(model, nnx.Param, ...)",
    "equinox": "init should return the params of params, static = eqx.partition(model, eqx.is_inexact_array)",
    "haiku": "init should return hk.without_apply_rng(hk.transform(forward)).init(key, x)",
}


def _framework(value: Any) -> str | None:
    """The library of _FRAMEWORKS that an object's class, or one it derives from, belongs to."""
    places = [f"{kind.__module__}." for kind in type(value).__mro__]
    return next((name for name in _FRAMEWORKS if any(p.startswith(f"{name}.") for p in places)), None)


def framework_hint(*values: Any) -> str:
    """How the params of a module of another library are had, where one of `values` is or holds one; else empty."""
    for leaf in jax.tree.leaves(values, is_leaf=lambda x: _framework(x) is not None):
        if name := _framework(leaf):
            return f"; for {name}, {_FRAMEWORKS[name]} (docs/recipes.md)"
    return ""


def _checked_params(problem: Problem, fault: _Fault) -> Params:
    """What `init` gives, as shapes."""

    def start() -> Params:
        params = problem.init(jax.random.key(0))
        leaves = jax.tree_util.tree_leaves_with_path(params)
        if not leaves:
            raise fault("init(key) returned no parameters")
        for path, leaf in leaves:
            where, wrong = "params" + jax.tree_util.keystr(path), ""
            if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int | complex):
                wrong = f"is of type {type(leaf).__name__}; parameters must be arrays of floats"
            elif np.size(leaf) == 0:
                wrong = f"is empty, of shape {np.shape(leaf)}"
            elif not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                wrong = f"is {jnp.result_type(leaf)}; parameters must be floats"
            if wrong:
                raise fault(f"{where} {wrong}{framework_hint(params)}")
        return params

    try:
        return jax.eval_shape(start)
    except GradbenchError:
        raise
    except Exception as error:
        raise fault(f"init(key) raised {error_text(error)}{framework_hint(problem.init)}") from error


def _check_loss(problem: Problem, params: Params, fault: _Fault) -> None:
    constant: list[str] = []  # what a loss that is no JAX array is; it could not have a gradient

    def traced(params: Params, data: Data) -> Any:
        loss = problem.loss(params, cast(data, jnp.float32))
        constant.extend([] if isinstance(loss, jax.Array) else [type(loss).__name__])
        return loss

    try:
        loss = jax.eval_shape(traced, params, problem.data)
    except Exception as error:
        raise fault(f"the loss raised {error_text(error)}") from error
    if not hasattr(loss, "shape") or loss.shape != ():
        got = f"shape {loss.shape}" if hasattr(loss, "shape") else f"a {type(loss).__name__}"
        raise fault(f"the loss must be a scalar, got {got}")
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise fault(f"the loss must be a float, got {loss.dtype}")
    if constant:
        raise fault(f"the loss must be a JAX array that depends on params, got a {constant[0]}")
    try:
        trace = jax.make_jaxpr(jax.grad(traced))(params, problem.data)
    except Exception as error:  # JAX says what would do: scan, or a fori_loop of known length, for a while_loop
        raise fault(f"the loss has no gradient: {error_text(error)}") from error
    if any(str(effect).startswith("Ordered") for effect in trace.effects):
        raise fault(
            "the loss has a callback with ordered=True, and trials that run side by side have no order; "
            "leave ordered out of its jax.debug.print, jax.debug.callback or io_callback"
        )


def _check_facts(problem: Problem, fault: _Fault) -> None:
    for fact in ("minimum", "target"):
        value = getattr(problem, fact)
        if value is not None and not _finite(value):
            raise fault(f"{fact} is {value!r}; give a finite number or None")
    if problem.curvature is not None:
        bounds = problem.curvature
        right = isinstance(bounds, tuple | list) and len(bounds) == 2 and all(map(_finite, bounds))
        if not (right and bounds[0] <= bounds[1] and bounds[1] > 0):
            raise fault(f"curvature is {bounds!r}; give (mu, L) with mu at most L and L above 0, or None")
    if problem.gradient is not None and not callable(problem.gradient):
        raise fault(f"gradient is a {type(problem.gradient).__name__}; give a function gradient(params, data) or None")
    if problem.examples is not None:
        rows = {np.shape(leaf)[0] for leaf in jax.tree.leaves(problem.data) if np.ndim(leaf) > 0}
        if not isinstance(problem.examples, int) or problem.examples < 1 or problem.examples not in rows:
            raise fault(f"examples={problem.examples!r}, but no array of data has that many rows")
    if problem.holdout is not None:
        check_holdout(problem.holdout, problem.data, fault)
    _check_metrics(problem, fault)


def _check_metrics(problem: Problem, fault: _Fault) -> None:
    metrics, maximise = problem.metrics, problem.maximise
    if not isinstance(metrics, Mapping):
        raise fault(f'metrics is a {type(metrics).__name__}; give functions by name, {{"accuracy": accuracy}}')
    for name, function in metrics.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise fault(f"metrics has the name {name!r}; give letters, digits and underscores")
        if not callable(function):
            raise fault(f"metrics[{name!r}] is a {type(function).__name__}; give a function f(params, data)")
    if not isinstance(maximise, tuple | list) or not all(isinstance(name, str) for name in maximise):
        raise fault(f'maximise is {maximise!r}; give names of metrics, ("accuracy",)')
    if type(problem.stateful) is not bool:
        raise fault(f"stateful is {problem.stateful!r}; give True or False")


def _finite(value: Any) -> bool:
    """Whether a fact is one finite number, of Python, numpy or JAX."""
    try:
        return np.ndim(value) == 0 and math.isfinite(value)
    except (TypeError, ValueError):
        return False
