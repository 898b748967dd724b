"""A plain function and its arguments as a problem: their float leaves are its parameters, the others its data."""

from __future__ import annotations

import collections
import dataclasses
import inspect
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.errors import ProblemError
from gradbench.inputs.problem import Problem, framework_hint, load_problem


@dataclasses.dataclass(frozen=True)
class Checked:
    """What is checked: the problem, and what a call of Python that checks it again has before its options."""

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
    except (TypeError, ValueError):  # Python cannot tell that of some built-in ones
        signature = inspect.signature(lambda *args: None)
    try:
        bound = signature.bind(*arguments).arguments
    except TypeError as error:
        raise ProblemError(f"{name}: {error}; write check_gradient({name}, its arguments, dtype=...)") from error
    # A namedtuple, so that paths begin with the argument's name.
    made = collections.namedtuple("Arguments", bound, rename=True)(*bound.values())
    for path, leaf in jax.tree_util.tree_leaves_with_path(made):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | numbers.Number) or _is(leaf, jnp.complexfloating):
            where = jax.tree_util.keystr(path).lstrip(".")
            kind = jnp.result_type(leaf) if isinstance(leaf, jax.Array | np.ndarray) else type(leaf).__name__
            raise ProblemError(
                f"{name}: {where} is of type {kind}; arguments are pytrees of real arrays and numbers, and a lambda "
                f"fixes others{framework_hint(made)}"
            )
    floats = jax.tree.map(lambda leaf: np.asarray(leaf) if _is(leaf, jnp.floating) else None, made)
    others = jax.tree.map(lambda leaf: None if _is(leaf, jnp.floating) else np.asarray(leaf), made)
    if not jax.tree.leaves(floats):
        raise ProblemError(
            f"{name}: no float among its arguments, so there is nothing to differentiate; write 3.0 for 3"
        )

    def loss(params: Any, data: Any) -> Any:
        whole = jax.tree.map(lambda p, d: d if p is None else p, params, data, is_leaf=lambda x: x is None)
        return function(*inspect.BoundArguments(signature, collections.OrderedDict(zip(bound, whole))).args)

    problem = load_problem(Problem(init=lambda key: floats, loss=loss, data=others, name=name))
    return Checked(problem, ", ".join([name, *bound]), is_function=True)


def _is(leaf: Any, kind: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), kind)
