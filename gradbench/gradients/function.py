"""A plain function and its arguments as a problem: their float leaves are its parameters, the others its data."""

from __future__ import annotations

import collections
import dataclasses
import inspect
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.errors import ProblemError
from gradbench.inputs.problem import Problem, load_problem


@dataclasses.dataclass(frozen=True)
class Checked:
    """What is checked: the problem, and in `call` how a call of check_gradient that repeats it begins, up to the
    options."""

    problem: Problem
    call: str
    from_spec: bool = False
    is_function: bool = False


def checked(given: Any, arguments: tuple[Any, ...]) -> Checked:
    """What `check_gradient(given, *arguments)` checks. Raises ProblemError where they do not go together."""
    if callable(given) and not isinstance(given, str | Problem):
        return _of_function(given, arguments)
    problem = load_problem(given)
    if arguments:
        raise ProblemError(
            f"{problem.name}: {len(arguments)} arguments beside a problem, which takes none; "
            "options are named, as in dtype='float32'"
        )
    return Checked(problem, "problem", from_spec=isinstance(given, str))


def _of_function(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Checked:
    name = getattr(function, "__name__", type(function).__name__).replace("<lambda>", "f")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have no signature
        signature = inspect.signature(lambda *args: None)
    try:
        bound = signature.bind(*arguments).arguments
    except TypeError as error:
        raise ProblemError(f"{name}: {error}; write check_gradient({name}, its arguments, dtype=...)") from error
    # A namedtuple, so that paths begin with the argument's name.
    made = collections.namedtuple("Arguments", bound, rename=True)(*bound.values())
    floats = jax.tree.map(_float, made)
    arrays = jax.tree.map(lambda leaf: np.asarray(leaf) if _is_data(leaf) else None, made)
    if not jax.tree.leaves(floats):
        raise ProblemError(f"{name}: no float among its arguments, so nothing to differentiate; write 3.0 for 3")

    def loss(params: Any, data: Any) -> Any:
        def first(*given: Any) -> Any:
            found = next((value for value in given if value is not None), None)
            return jax.lax.complex(*found) if isinstance(found, Parts) else found

        whole = jax.tree.map(first, params, data, made, is_leaf=lambda x: x is None or isinstance(x, Parts))
        return function(*inspect.BoundArguments(signature, collections.OrderedDict(zip(bound, whole))).args)

    problem = load_problem(Problem(init=lambda key: floats, loss=loss, data=arrays, name=name))
    return Checked(problem, ", ".join([name, *bound]), is_function=True)


class Parts(NamedTuple):
    """The parts of a complex argument, by which it is differentiated."""

    real: Any
    imag: Any


def _float(leaf: Any) -> Any:
    """What of a leaf is differentiated: all of it, its parts, or None."""
    if _is(leaf, jnp.complexfloating):
        return Parts(np.asarray(leaf).real.copy(), np.asarray(leaf).imag.copy())
    return np.asarray(leaf) if _is(leaf, jnp.floating) else None


def _is(leaf: Any, kind: Any) -> bool:
    """Whether a leaf is a number or an array of numbers of a kind of dtype."""
    known = isinstance(leaf, jax.Array | np.ndarray | np.generic | numbers.Number)
    return known and jax.dtypes.issubdtype(getattr(leaf, "dtype", np.dtype(type(leaf)) if known else None), kind)


def _is_data(leaf: Any) -> bool:
    """Whether a leaf is an array of integers or booleans. What is neither this nor a float stays as it is: a Python
    number may be an axis or a power, a text or a function an option."""
    return isinstance(leaf, jax.Array | np.ndarray) and (_is(leaf, jnp.integer) or _is(leaf, jnp.bool_))
