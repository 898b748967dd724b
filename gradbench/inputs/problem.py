"""A problem: a loss to minimise, with what is known about it. Built-in and users' files go through one loader."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.errors import GradbenchError, ProblemError, nearest, one_line
from gradbench.inputs.spec import check_settings, is_path, load_file, parse_spec

Params = Any
Data = Any


@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss and the facts known about it.

    Attributes:
        init: `init(key) -> params`, a starting point: any pytree of float arrays. `key` is a jax.random key.
        loss: `loss(params, data) -> scalar`, the mean over examples where there are examples.
        data: a pytree of arrays, passed in and never closed over, so that it is cast to the run's dtype and
            placed on the device. Floats are kept in float64 here.
        examples: the number of rows when the data can be cut into minibatches: every leaf of `data` whose first
            dimension equals it is cut, the others are passed whole. None where there are no examples.
        minimum: the lowest loss, exact or from a float64 solve; None if unknown.
        target: the loss that counts as solved where `minimum` is unknown.
        curvature: (mu, L), bounds on the Hessian's eigenvalues, where known.
        gradient: `gradient(params, data) -> params`, the analytic gradient where one is written down.
        name: the spec it was loaded from.
    """

    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, Data], jax.Array]
    data: Data = ()
    examples: int | None = None
    minimum: float | None = None
    target: float | None = None
    curvature: tuple[float, float] | None = None
    gradient: Callable[[Params, Data], Params] | None = None
    name: str = "problem"


def problems_folder() -> Path:
    """Where the built-in problem files are: inside the package in a wheel, beside it in a checkout."""
    inside = Path(__file__).parents[1] / "problems"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "problems"


def problem_names() -> list[str]:
    """The names of the built-in problems, sorted."""
    return sorted(p.stem for p in problems_folder().glob("*.py") if not p.stem.startswith("_"))


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
    parsed = parse_spec(spec, ProblemError)
    function = problem_function(parsed.target)
    check_settings(parsed, function, ProblemError)
    try:
        inspect.signature(function).bind(**parsed.settings)
        problem = function(**parsed.settings)
    except GradbenchError as error:
        raise type(error)(f"{parsed.text}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ProblemError(f"{parsed.text}: problem() raised {type(error).__name__}: {one_line(error)}") from error
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

    _check_data(problem, fault)
    _check_loss(problem, _checked_params(problem, fault), fault)
    _check_facts(problem, fault)
    return problem


_Fault = Callable[[str], ProblemError]


def _check_data(problem: Problem, fault: _Fault) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(problem.data):
        where = "data" + jax.tree_util.keystr(path)
        arrays = isinstance(leaf, np.ndarray | np.generic | jax.Array) or hasattr(leaf, "__jax_array__")
        if not arrays and hasattr(leaf, "__array__"):  # a frame of pandas, a tensor of torch
            kind = f"{type(leaf).__module__.partition('.')[0]}.{type(leaf).__name__}"
            raise fault(f"{where} is a {kind}, which JAX does not take; give np.asarray of it")
        try:
            array = np.asarray(leaf)
        except ValueError as error:
            raise fault(f"{where} is ragged: {one_line(error)}") from error
        except TypeError as error:  # random keys
            raise fault(f"{where} is no array of numbers: {one_line(error)}") from error
        if array.dtype.kind not in "fiub" and not jnp.issubdtype(array.dtype, jnp.floating):
            raise fault(f"{where} holds {array.dtype}; data must be arrays of numbers")
        if array.dtype.kind not in "iub" and not np.isfinite(array).all():
            row = np.argwhere(~np.isfinite(array))[0].tolist()
            raise fault(f"{where} is not finite at index {row}")


def _checked_params(problem: Problem, fault: _Fault) -> Params:
    """What `init` gives, as shapes."""
    try:
        params = jax.eval_shape(lambda: problem.init(jax.random.key(0)))
    except Exception as error:
        raise fault(f"init(key) raised {type(error).__name__}: {one_line(error)}") from error
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise fault("init(key) returned no parameters")
    for path, leaf in leaves:
        if leaf.size == 0:
            raise fault(f"params{jax.tree_util.keystr(path)} is empty, of shape {leaf.shape}")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise fault(f"params{jax.tree_util.keystr(path)} is {leaf.dtype}; parameters must be floats")
    return params


def _check_loss(problem: Problem, params: Params, fault: _Fault) -> None:
    constant: list[str] = []  # what a loss that is no JAX array is; it could not have a gradient

    def traced(params: Params, data: Data) -> Any:
        loss = problem.loss(params, cast(data, jnp.float32))
        constant.extend([] if isinstance(loss, jax.Array) else [type(loss).__name__])
        return loss

    try:
        loss = jax.eval_shape(traced, params, problem.data)
    except Exception as error:
        hint = _list_hint(problem.data)
        raise fault(f"loss(params, data) raised {type(error).__name__}: {one_line(error)}{hint}") from error
    if not hasattr(loss, "shape") or loss.shape != ():
        got = f"shape {loss.shape}" if hasattr(loss, "shape") else f"a {type(loss).__name__}"
        raise fault(f"loss(params, data) must be a scalar, got {got}")
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise fault(f"loss(params, data) must be a float, got {loss.dtype}")
    if constant:
        raise fault(f"loss(params, data) must be a JAX array that depends on params, got a {constant[0]}")
    try:
        jax.eval_shape(jax.grad(traced), params, problem.data)
    except Exception as error:  # JAX says what would do: scan, or a fori_loop of known length, for a while_loop
        raise fault(f"loss(params, data) has no gradient: {type(error).__name__}: {one_line(error)}") from error


def _list_hint(data: Data) -> str:
    """What to do about the first list of numbers in data, if there is one."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        if isinstance(leaf, int | float) and path and isinstance(path[-1], jax.tree_util.SequenceKey):
            depth = next(i for i, key in enumerate(path) if isinstance(key, jax.tree_util.SequenceKey))
            where = "data" + jax.tree_util.keystr(path[:depth])
            return f"; {where} is a list, which JAX takes for separate numbers: give np.asarray of it"
    return ""


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


def _finite(value: Any) -> bool:
    """Whether a fact is one finite number, of Python, numpy or JAX."""
    try:
        return np.ndim(value) == 0 and math.isfinite(value)
    except (TypeError, ValueError):
        return False
