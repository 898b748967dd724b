"""What a function is called with: shapes by letters, `x: f32[n,d], idx: i32[n] in 0..n`, drawn at any size.

In an item `name: dtype[shape]`, `in low..high` is its range: for integers without `high`, as Python's range; for floats
the interval they are drawn from. `name = literal` is passed as it is. `n in 8..256` keeps a letter's sizes inside a
range, `n in 8|16|24` to those. Sizes and bounds may be sums and products of letters, such as `2*n+1`.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradbench.errors import PlanError, nearest

DTYPE_NAMES = {
    "f64": "float64",
    "f32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "f": "float",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int32",
    "u8": "uint8",
    "u32": "uint32",
    "bool": "bool",
    "c64": "complex64",
    "c128": "complex128",
}
COMPLEX = {"float32": "complex64", "float64": "complex128"}  # by the dtype of their parts
_EXAMPLE = 'write --args "x: f32[n,d], idx: i32[n] in 0..n, axis = -1"'
_ARRAY = re.compile(r"(\w+)\s*:\s*(\w+)\s*\[([^\]]*)\]\s*(?:in\s+(.+?)\.\.(.+))?$")
_STATIC = re.compile(r"(\w+)\s*=\s*(.+)$")
_SIZES = re.compile(r"([a-zA-Z]\w*)\s+in\s+([\d|.\s]+)$")


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument: an array of a dtype (a name of NumPy's, or "float" for the dtype under test), or a fixed value."""

    name: str
    dtype: str = ""
    shape: tuple[str, ...] = ()
    bounds: tuple[str, str] | None = None
    value: Any = None

    @property
    def is_float(self) -> bool:
        """True for complex numbers too, whose parts are floats."""
        return "float" in self.dtype or self.is_complex

    @property
    def is_complex(self) -> bool:
        return "complex" in self.dtype

    @property
    def part(self) -> str:
        """The float dtype of its numbers, or of their parts."""
        return next((part for part, whole in COMPLEX.items() if whole == self.dtype), self.dtype)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What `--args` says. `letters` are in order of appearance; `allowed`: the sizes given for some of them."""

    items: tuple[Argument, ...]
    letters: tuple[str, ...]
    allowed: Mapping[str, tuple[int, ...] | range]

    @property
    def own_dtype(self) -> str | None:
        """The narrowest float dtype that is written out: the one under test unless another is asked for."""
        named = [item.part for item in self.items if item.is_float and item.dtype != "float"]
        return max(named, key=lambda dtype: float(jnp.finfo(dtype).eps), default=None)


def parse(text: str) -> Arguments:
    """The arguments that a text of `--args` describes. Raises PlanError that says what cannot be read."""
    items: list[Argument] = []
    allowed: dict[str, tuple[int, ...] | range] = {}
    for part in re.split(r",(?![^\[\](]*[\])])", text):
        part = part.strip()
        if array := _ARRAY.match(part):
            name, kind, shape, low, high = array.groups()
            if kind not in DTYPE_NAMES and kind not in DTYPE_NAMES.values():
                raise PlanError(
                    f"args: {part}: no dtype {kind!r}{nearest(kind, DTYPE_NAMES)} ({', '.join(DTYPE_NAMES)})"
                )
            entries = tuple(entry.strip() for entry in shape.split(",") if entry.strip())
            bounds = (low.strip(), high.strip()) if low else None
            item = Argument(name, DTYPE_NAMES.get(kind, kind), entries, bounds)
            if not (item.is_float or bounds or item.dtype == "bool"):
                raise PlanError(f"args: {part}: whole numbers need their range, as in {part} in 0..8 (8 not included)")
            items.append(item)
        elif sizes := _SIZES.match(part):
            allowed[sizes[1]] = _sizes(part, sizes[2])
        elif static := _STATIC.match(part):
            items.append(Argument(static[1], value=_literal(part, static[2])))
        else:
            raise PlanError(f"args: cannot read {part!r}; {_EXAMPLE}")
    written = [entry for item in items for entry in item.shape]
    letters = list(dict.fromkeys(name for entry in written for name in _names(entry)))
    bounds = [bound for item in items for bound in item.bounds or ()]
    for letter in [*allowed, *(name for bound in bounds for name in _names(bound))]:
        if letter not in letters:
            raise PlanError(f"args: no shape has the letter {letter!r}{nearest(letter, letters)}")
    if not any(item.shape or item.dtype for item in items):
        raise PlanError(f"args: no array in {text!r}; {_EXAMPLE}")
    return Arguments(tuple(items), tuple(letters), allowed)


def _sizes(part: str, text: str) -> tuple[int, ...] | range:
    try:
        if ".." in text:
            low, high = map(int, text.split(".."))
            return range(low, high + 1)
        return tuple(sorted(map(int, text.split("|"))))
    except ValueError:
        raise PlanError(f"args: {part}: write a letter's sizes as n in 8..256 or n in 8|16|24") from None


def _literal(part: str, text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise PlanError(f"args: {part}: {text} is no Python literal, such as -1, 0.5, True or 'relu'") from None


def _names(expression: str) -> list[str]:
    """The letters in a sum or product of letters and numbers. Raises PlanError for anything else."""
    try:
        tree = ast.parse(expression, mode="eval")
    except SyntaxError:
        tree = None
    known = ast.Expression | ast.BinOp | ast.UnaryOp | ast.Name | ast.Constant | ast.operator | ast.unaryop | ast.Load
    if tree is None or not all(isinstance(node, known) for node in ast.walk(tree)):
        raise PlanError(f"args: {expression!r} is no size; write a number, a letter, or a sum such as 2*n+1")
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]


def size_of(expression: str, sizes: Mapping[str, int]) -> Any:
    """The number that an expression of letters stands for."""
    _names(expression)
    return eval(compile(expression, "args", "eval"), {"__builtins__": {}}, dict(sizes))


def draw(arguments: Arguments, sizes: Mapping[str, int], dtype: str, generator: np.random.Generator) -> tuple[Any, ...]:
    """The arguments at these sizes: NumPy arrays, floats normal (or uniform in their range) in `dtype`, or in the
    dtypes written if `dtype` is "". Raises PlanError for a negative size or an empty range."""

    def one(item: Argument) -> Any:
        if not item.dtype:
            return item.value
        shape = tuple(int(size_of(entry, sizes)) for entry in item.shape)
        if min(shape, default=0) < 0:
            raise PlanError(f"args: {item.name} has a negative size at {dict(sizes)}")
        low, high = (size_of(bound, sizes) for bound in item.bounds or ("0", "2"))
        if item.is_float:
            own = dtype or ("float32" if item.dtype == "float" else item.part)
            parts = [
                generator.uniform(low, high, shape) if item.bounds else generator.standard_normal(shape)
                for _ in range(1 + item.is_complex)
            ]
            if item.is_complex:
                return (parts[0] + 1j * parts[1]).astype(COMPLEX.get(own, item.dtype))
            return parts[0].astype(jnp.dtype(own))
        if high <= low and 0 not in shape:
            raise PlanError(f"args: {item.name}: nothing lies in {low}..{high} at {dict(sizes)}")
        return generator.integers(low, max(high, low + 1), shape).astype(item.dtype)

    return tuple(one(item) for item in arguments.items)
