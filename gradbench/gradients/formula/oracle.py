"""The reference: float64 on the CPU, one primitive at a time, at inputs already rounded to the dtype under test.

Nothing of it is compiled as a program and most of it is NumPy's (see `reference`), so a fault of the compiler, of
another device or of a narrower format cannot affect it. Whether the derivative itself is right is tested in
`derivative`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.gradients.formula import reference
from gradbench.gradients.rounding.interpreter import Interpreter
from gradbench.gradients.rounding.numbers.formats import round_to, x64_context
from gradbench.gradients.rounding.pairs import Flags, Pair
from gradbench.inputs.problem import Problem
from gradbench.machine.internals import quick_compile
from gradbench.program.minibatch import take_rows
from gradbench.program.xla.jaxprs import equations, open_jaxpr

T = TypeVar("T")


def remembered(make: Callable[[Any], T]) -> Callable[[Any], T]:
    """`make(loss)`, which gives the last loss the same function again: JAX traces a function once per object."""
    last = functools.lru_cache(maxsize=1)(make)

    @functools.wraps(make)
    def made(loss: Any) -> T:
        try:
            return last(loss)
        except TypeError:  # a loss without a hash
            return make(loss)

    return made


value_and_grad = remembered(jax.value_and_grad)

_HALVINGS = 30  # at most, of a step that leads out of the loss's domain
_WORK = 2**28  # parameters x examples; a problem beyond it is checked on fewer of its examples


@dataclasses.dataclass(frozen=True)
class Point:
    """Where a gradient is checked: NumPy pytrees, floats `rounded` to `dtype`; `examples` rows of data, if cut.

    `lost` says which numbers the dtype cannot hold, or is empty.
    """

    label: str
    params: Any
    data: Any
    examples: int | None
    dtype: str
    lost: str = ""

    def rounded(self, dtype: str) -> Point:
        lost = _lost("params", self.params, dtype) or _lost("data", self.data, dtype)
        params, data = rounded(self.params, dtype), rounded(self.data, dtype)
        return dataclasses.replace(self, params=params, data=data, dtype=dtype, lost=lost)


def points(problem: Problem, dtype: str, count: int = 2, seed: int = 0) -> list[Point]:
    """The points where a problem is checked in one dtype; see `unrounded`."""
    return [point.rounded(dtype) for point in unrounded(problem, count, seed)]


def unrounded(problem: Problem, count: int = 2, seed: int = 0) -> list[Point]:
    """`count` points: a random one near the start first (a start such as 0 hides terms), then the start itself.

    Near means a normal step of a tenth of the leaf's root mean square, or of 1 where the leaf is 0; nearer where that
    step leaves the loss's domain.
    """
    with jax.enable_x64(False), jax.default_device(jax.devices("cpu")[0]):
        # XLA:CPU unrolls random bits into long programs, which are run once.
        options = quick_compile("cpu", xla_backend_optimization_level=0)
        init = jax.jit(problem.init, compiler_options=options)
        start = jax.tree.map(lambda x: np.asarray(x, np.float64), init(jax.random.key(seed)))
    data, examples = cut_examples(problem, sum(x.size for x in jax.tree.leaves(start)), seed)
    found = []
    for number in range(count):
        label = f"near the start (seed {seed}, {number})" if number != 1 else f"the start (seed {seed})"
        params = start if number == 1 else _near(problem, start, data, np.random.default_rng([seed, number]))
        found.append(Point(label, params, data, examples, "float64"))
    return found


def _near(problem: Problem, start: Any, data: Any, generator: np.random.Generator) -> Any:
    """A random point near `start`, where the loss is finite if it is finite at `start`."""
    step = jax.tree.map(lambda x: 0.1 * length(x) * generator.standard_normal(x.shape), start)
    for halvings in range(_HALVINGS):
        point = jax.tree.map(lambda x, s, n=halvings: x + 2.0**-n * s, start, step)
        if _is_finite(problem, point, data) or (halvings == 0 and not _is_finite(problem, start, data)):
            return point
    return start


def _is_finite(problem: Problem, params: Any, data: Any) -> bool:
    """Whether the loss is finite; True where it cannot be run, which the check itself reports."""
    try:
        return bool(np.isfinite(evaluate(problem.loss, params, rounded(data, "float64"))[0]))
    except Exception:
        return True


def length(leaf: np.ndarray) -> float:
    """The root mean square of a leaf's entries; 1 where they are all 0, or none."""
    size = float(np.max(np.abs(leaf), initial=0.0))
    return size * float(np.sqrt(np.mean((leaf / size) ** 2))) if size else 1.0


def cut_examples(problem: Problem, parameters: int, seed: int) -> tuple[Any, int | None]:
    """The problem's data, or a random part of its examples where parameters x examples is beyond _WORK."""
    total = problem.examples
    if total is None or parameters * total <= _WORK:
        return problem.data, total
    keep = max(8, _WORK // parameters)
    if keep >= total:
        return problem.data, total
    rows = np.sort(np.random.default_rng(seed).choice(total, keep, replace=False))
    return take_rows(problem.data, rows, total), keep


def rounded(tree: Any, dtype: str) -> Any:
    """Every float leaf rounded to `dtype`; integers as int32, which they are without x64."""

    def leaf(x: Any) -> np.ndarray:
        array = np.asarray(x)
        if jnp.issubdtype(array.dtype, jnp.floating):
            return round_to(array, dtype)
        return array.astype(np.int32) if array.dtype == np.int64 else array

    return jax.tree.map(leaf, tree)


def _lost(word: str, tree: Any, dtype: str) -> str:
    """A leaf with a number too large for `dtype`, or whose numbers all become 0 in it; else the empty string."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        given = np.asarray(leaf)
        if not jnp.issubdtype(given.dtype, jnp.floating):
            continue
        kept, where = round_to(given, dtype), word + jax.tree_util.keystr(path)
        if np.any(np.isinf(kept) & np.isfinite(given)):
            return f"{where} has numbers too large for {dtype}"
        if given.any() and not kept.any():
            return f"all numbers of {where} become 0 in {dtype}"
    return ""


def float64(tree: Any) -> Any:
    """The same numbers as float64 JAX arrays (call it under x64)."""
    return jax.tree.map(
        lambda x: jnp.asarray(np.asarray(x).astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x), tree
    )


def evaluate(function: Callable[[Any, Any], Any], params: Any, data: Any, drawn: str = "float64") -> list[np.ndarray]:
    """The flat leaves of `function(params, data)` in float64, one primitive at a time, on the CPU. Random numbers are
    those that the function draws in the dtype `drawn`: from the same key JAX draws others in float64.

    Where the function itself rounds to a narrower format (mixed precision), the exact function that it approximates is
    evaluated. Raises what a primitive raises when it cannot be run.
    """
    found = trace(function, params, data)
    if drawn != "float64" and primitives(found) & _DRAWS:
        found = _traced(function, params, data, "float32")
    return reference.run(found, jax.tree.leaves((params, data)))


_DRAWS = {"random_bits", "threefry2x32"}


def trace(function: Callable[[Any, Any], Any], params: Any, data: Any) -> Any:
    """The jaxpr of `function(params, data)` in float64, or in float32 where it names float32 itself and takes no other.

    `evaluate` widens both. Raises what tracing in float32 raises where neither is possible.
    """
    try:
        return _traced(function, params, data, "float64")
    except Exception:
        return _traced(function, params, data, "float32")


def _traced(function: Callable[[Any, Any], Any], params: Any, data: Any, dtype: str) -> Any:
    def shape(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(x), dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)

    with x64_context(dtype), jax.default_device(jax.devices("cpu")[0]):
        return jax.make_jaxpr(function)(*jax.tree.map(shape, (params, data)))


class _WithoutStops(Interpreter):
    """Differentiates through stop_gradient."""

    def primitive(self, equation: Any, name: str, params: dict[str, Any], ins: list[Pair]) -> Any:
        return (ins, Flags()) if name == "stop_gradient" else super().primitive(equation, name, params, ins)


def widened(trace: Any, arguments: Any, stops: bool = True) -> list[Any]:
    """The outputs of a trace with every float in float64, calls (custom rules too) inlined; can be differentiated.

    Without `stops` a derivative passes through stop_gradient as well.
    """
    jaxpr, consts = open_jaxpr(trace)
    leaves = [Pair(x, x) for x in jax.tree.leaves(arguments)]
    interpreter = (Interpreter if stops else _WithoutStops)(None, jax.devices("cpu")[0], lambda dtype: False)
    outputs, _ = interpreter.run(jaxpr, consts, leaves)
    return [p.exact for p in outputs]


def primitives(trace: Any) -> set[str]:
    """The names of all primitives in a trace, nested ones included."""
    return {equation.primitive.name for equation in equations(trace)}
