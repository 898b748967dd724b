"""A problem's data: what people have (frames, lists, tensors) as arrays, and the line that refuses the rest."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.errors import ProblemError, one_line

_NUMBERS = "data must be arrays of numbers"


def as_arrays(data: Any) -> Any:
    """The same pytree with a frame (pandas, polars) as a dict of one array (n,) per column, a series or a tensor of
    torch as its array, and a list of nothing but numbers, nested or not, as one array.

    Raises ProblemError where the rows of a list differ in length.
    """
    return jax.tree.map(_leaf, data, is_leaf=_is_numbers)


def _leaf(leaf: Any) -> Any:
    if isinstance(leaf, list):
        try:
            return np.array(leaf)
        except ValueError as error:
            raise ProblemError(f"data is a list whose rows differ in length: {one_line(error)}") from error
    if hasattr(leaf, "to_numpy"):
        if hasattr(leaf, "columns"):
            return {name: leaf[name].to_numpy() for name in leaf.columns}
        return leaf.to_numpy()
    return leaf.detach().cpu().numpy() if hasattr(leaf, "detach") else leaf


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, numbers.Real) or _is_numbers(x) for x in value)


def cast(tree: Any, dtype: Any) -> Any:
    """Every float leaf as `dtype`; the others as they are."""

    def leaf(x: Any) -> Any:
        return jnp.asarray(x, dtype) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else jnp.asarray(x)

    return jax.tree.map(leaf, tree)


def check_data(data: Any, fault: Callable[[str], ProblemError], name: str = "data") -> None:
    """Raise what `fault` makes of a line unless every leaf is an array of finite numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        where = name + jax.tree_util.keystr(path)
        if not (hasattr(leaf, "__array__") or isinstance(leaf, numbers.Number | str)):
            items = hasattr(leaf, "__iter__") or hasattr(leaf, "__getitem__")  # a data set or a loader
            stack = "; stack its items into arrays first" if items else ""
            stack = "; give its .toarray()" if hasattr(leaf, "toarray") else stack  # a sparse matrix of SciPy
            raise fault(f"{where} is a {type(leaf).__name__}; {_NUMBERS}{stack}")
        try:
            array = np.asarray(leaf)
        except (TypeError, ValueError) as error:  # random keys
            raise fault(f"{where} is no array of numbers: {one_line(error)}") from error
        if array.dtype.kind not in "fiub" and not jnp.issubdtype(array.dtype, jnp.floating):
            raise fault(f"{where} holds {_contents(array)}")
        if array.dtype.kind not in "iub" and not np.isfinite(array).all():
            row = np.argwhere(~np.isfinite(array))[0].tolist()
            raise fault(f"{where} is not finite at index {row}")


def check_holdout(holdout: Any, data: Any, fault: Callable[[str], ProblemError]) -> None:
    """Raise what `fault` makes of a line unless `holdout` is like `data`: only the number of rows may differ."""
    check_data(holdout, fault, "holdout")
    if jax.tree.structure(holdout) != jax.tree.structure(data):
        raise fault(f"holdout is {jax.tree.structure(holdout)}, and data {jax.tree.structure(data)}; make them alike")
    for (path, leaf), like in zip(jax.tree_util.tree_leaves_with_path(holdout), jax.tree.leaves(data)):
        found, expected = _kind(leaf), _kind(like)
        if found != expected:
            where = "holdout" + jax.tree_util.keystr(path)
            raise fault(f"{where} is {found} and that of data {expected}; only the number of rows may differ")


def _kind(leaf: Any) -> str:
    """What a leaf of data is beside its number of rows, in words."""
    array = np.asarray(leaf)
    dtype = "float" if jnp.issubdtype(array.dtype, jnp.floating) else str(array.dtype)  # floats are cast to the run's
    return f"{dtype} of shape ({', '.join(['rows', *map(str, array.shape[1:])])})" if array.ndim else f"one {dtype}"


def _contents(array: np.ndarray) -> str:
    """What an array that is not of numbers holds, and what would do."""
    entries = (x for x in array.flat if not isinstance(x, numbers.Real))
    entry = next(entries, None)
    kinds = {"M": "dates", "m": "durations", "c": "complex numbers"}
    if isinstance(entry, str):
        return f"text, such as {str(entry)!r}; {_NUMBERS} (labels: numpy.unique(labels, return_inverse=True)[1])"
    parts = " (complex ones: their .real and .imag)" if array.dtype.kind == "c" else ""
    return f"{kinds.get(array.dtype.kind) or f'objects, such as {entry!r}'}; {_NUMBERS}{parts}"
