"""Runs a jaxpr in float64 with NumPy: a way that shares no compiler with the programs under test.

Every float is float64 whatever dtype the trace names, so a trace that rounds on purpose gives the exact function it
approximates. A primitive without a line here is run by JAX, alone, on the CPU.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Generator, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import threadpoolctl
from jax import lax

from gradbench.gradients.rounding.interpreter import MAX_ITERATIONS, Interpreter
from gradbench.gradients.rounding.pairs import Pair, lanes, wide
from gradbench.gradients.rounding.primitives import names, sum_terms
from gradbench.program.xla.jaxprs import called, equations, evaluate, is_literal, open_jaxpr, scan_counts


def run(trace: Any, arguments: list[Any]) -> list[np.ndarray]:
    """The outputs of a (closed) jaxpr, flat, float64. Values are dropped after their last use.

    Raises what a primitive raises when it cannot be run.
    """
    with context(trace):
        return [np.asarray(x) for x in _run(*open_jaxpr(trace), arguments)]


def context(trace: Any) -> contextlib.AbstractContextManager[None]:
    """A context to run a trace with NumPy: float64, the CPU for what JAX does of it, no warnings."""
    return _numpy(_threads(trace))


def prepared(trace: Any, arguments: list[Any], moving: Sequence[int]) -> Callable[[list[Any]], list[np.ndarray]]:
    """`run` as a function of only the arguments numbered in `moving`: what depends on none of them is computed once."""
    jaxpr, consts = open_jaxpr(trace)
    threads, moved = _threads(trace), [jaxpr.invars[number] for number in moving]
    reached, before, after = set(moved), [], []
    for equation in jaxpr.eqns:
        depends = any(not is_literal(v) and v in reached for v in equation.invars)
        (after if depends else before).append(equation)
        reached.update(equation.outvars if depends else ())
    read = [*itertools.chain.from_iterable(e.invars for e in after), *jaxpr.outvars]
    used = list(dict.fromkeys(v for v in read if not is_literal(v) and v not in reached))
    first = SimpleNamespace(constvars=jaxpr.constvars, invars=jaxpr.invars, eqns=before, outvars=used)
    rest = SimpleNamespace(constvars=used, invars=moved, eqns=after, outvars=jaxpr.outvars)
    with _numpy(threads):
        values = _run(first, consts, arguments)

    def at(given: list[Any]) -> list[np.ndarray]:
        with _numpy(threads):
            return [np.asarray(x) for x in _run(rest, values, given)]

    return at


_SMALL_PRODUCT = 2**27  # multiplications, about 10 ms on one core


@contextlib.contextmanager
def _numpy(threads: int | None) -> Generator[None]:
    """A context in which NumPy, and JAX for what NumPy lacks, compute in float64 on the CPU."""
    limit = contextlib.nullcontext() if threads is None else _blas().limit(limits=threads)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]), np.errstate(all="ignore"), limit:
        yield


def _threads(trace: Any) -> int | None:
    """One thread for the matrix products of a trace whose products are all small. Where the cores are busy each product
    may wait a time slice for its second thread, 4 ms for 40 microseconds of work, and a second thread that waits for
    the next product keeps a core busy."""
    products = [e for e in equations(trace) if e.primitive.name == "dot_general"]
    sizes = [e.outvars[0].aval.size * sum_terms("dot_general", e.params, [v.aval for v in e.invars]) for e in products]
    return None if max(sizes, default=0) > _SMALL_PRODUCT else 1


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    """The libraries that NumPy multiplies with; finding them takes milliseconds."""
    return threadpoolctl.ThreadpoolController()


def _run(jaxpr: Any, consts: list[Any], arguments: list[Any]) -> list[Any]:
    known, given = [_wide(c) for c in consts], [_wide(x) for x in arguments]
    return evaluate(jaxpr, known, given, equation_of, lambda value, aval: _wide(np.asarray(value, aval.dtype)))


def _wide(x: Any) -> Any:
    if jax.dtypes.issubdtype(getattr(x, "dtype", np.dtype(float)), jax.dtypes.extended):
        return x  # random keys
    array = np.asarray(x)
    return array.astype(wide(array.dtype), copy=False)


def equation_of(equation: Any, ins: list[Any]) -> list[Any]:
    """The results of one equation, float64, of NumPy's arrays."""
    name, params = equation.primitive.name, equation.params
    if not equation.outvars:  # jax.debug.print
        return []
    call = called(equation, ins)
    if call:
        return _run(*call)
    if name in _CONTROL:
        return _CONTROL[name](params, ins)
    if name in _IDENTITIES:
        return ins
    if name == "split":
        return np.split(ins[0], np.cumsum(params["sizes"])[:-1], params["axis"])
    if is_known(equation, ins):
        return [np.asarray(_NUMPY[name](params, *ins))]
    results, _ = Interpreter(None, jax.devices("cpu")[0], lambda dtype: False).primitive(
        equation, name, params, [Pair(x, x) for x in ins]
    )
    return [_wide(p.exact) for p in results]


def is_known(equation: Any, ins: list[Any]) -> bool:
    """Whether NumPy can run the equation on these operands."""
    name, dtypes = equation.primitive.name, {getattr(x, "dtype", None) for x in ins}
    if np.dtype(np.complex128) in dtypes:
        return name in _COMPLEX and dtypes <= _PLAIN | {np.dtype(np.complex128)}
    return (name in _ANY and dtypes <= _PLAIN) or (name in _FLOAT and dtypes == {np.dtype(np.float64)})


def _scan(params: dict[str, Any], ins: list[Any]) -> list[Any]:
    count, carried = scan_counts(params)
    consts, carry, sliced = ins[:count], ins[count : count + carried], ins[count + carried :]
    body, length, rows = open_jaxpr(params["jaxpr"]), params["length"], []
    for step in reversed(range(length)) if params["reverse"] else range(length):
        outputs = _run(*body, [*consts, *carry, *[x[step] for x in sliced]])
        carry = outputs[:carried]
        rows.append(outputs[carried:])
    if not length:
        shapes = [v.aval for v in body[0].outvars[carried:]]
        return [*carry, *[np.zeros((0, *a.shape), wide(a.dtype)) for a in shapes]]
    rows = rows[::-1] if params["reverse"] else rows
    return [*carry, *[np.stack(column) for column in zip(*rows)]]


def _while(params: dict[str, Any], ins: list[Any]) -> list[Any]:
    tests, bodies = params["cond_nconsts"], params["body_nconsts"]
    test, body, carry = open_jaxpr(params["cond_jaxpr"]), open_jaxpr(params["body_jaxpr"]), ins[tests + bodies :]
    turns = 0
    while np.any(going := _run(*test, [*ins[:tests], *carry])[0]):
        if turns == MAX_ITERATIONS:
            raise RuntimeError(f"a while loop has not ended after {MAX_ITERATIONS} iterations")
        carry, turns = lanes(going, _run(*body, [*ins[tests : tests + bodies], *carry]), carry), turns + 1
    return carry


def _cond(params: dict[str, Any], ins: list[Any]) -> list[Any]:
    branches = params["branches"]
    return _run(*open_jaxpr(branches[int(np.clip(ins[0], 0, len(branches) - 1))]), ins[1:])


def _dot(params: dict[str, Any], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    (left, right), (batch_left, batch_right) = params["dimension_numbers"]
    free_a = [i for i in range(a.ndim) if i not in (*left, *batch_left)]
    free_b = [i for i in range(b.ndim) if i not in (*right, *batch_right)]
    batch = [a.shape[i] for i in batch_left]
    shape = [*batch, *[a.shape[i] for i in free_a], *[b.shape[i] for i in free_b]]
    terms = int(np.prod([a.shape[i] for i in left], dtype=int))
    rows, columns = (int(np.prod([x.shape[i] for i in free], dtype=int)) for x, free in ((a, free_a), (b, free_b)))
    a = a.transpose(*batch_left, *free_a, *left).reshape(*batch, rows, terms)
    b = b.transpose(*batch_right, *right, *free_b).reshape(*batch, terms, columns)
    return (a @ b).reshape(shape)


def _broadcast(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    shape = [1] * len(params["shape"])
    for size, axis in zip(x.shape, params["broadcast_dimensions"]):
        shape[axis] = size
    return np.broadcast_to(x.reshape(shape), params["shape"])


def _logistic(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def _converted(x: np.ndarray, dtype: Any) -> np.ndarray:
    return (x.real if np.iscomplexobj(x) and dtype != np.complex128 else x).astype(dtype)


def _complex(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    made = np.empty(np.broadcast_shapes(x.shape, y.shape), np.complex128)
    made.real, made.imag = x, y  # x + 1j * y makes NaN of infinities
    return made


def _iota(params: dict[str, Any]) -> np.ndarray:
    shape, axis = params["shape"], params["dimension"]
    line = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.broadcast_to(line, shape).astype(wide(np.dtype(params["dtype"])))


def _slice(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    strides = params["strides"] or [1] * x.ndim
    return x[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


def _windows(
    shape: tuple[int, ...], indices: np.ndarray, sizes: Sequence[int], numbers: Any, scatters: bool
) -> tuple[list[np.ndarray], np.ndarray, int]:
    """Where the windows of a gather or a scatter lie: for each axis of the operand its positions, which broadcast to
    (*batch, *window); which windows start inside (*batch), the others being moved inside; and the rank of the batch."""
    missing, starts = (
        ("inserted_window_dims", "scatter_dims_to_operand_dims")
        if scatters
        else ("collapsed_slice_dims", "start_index_map")
    )
    theirs = "scatter_indices_batching_dims" if scatters else "start_indices_batching_dims"
    missing, starts, shared = (getattr(numbers, name) for name in (missing, starts, "operand_batching_dims"))
    batch, free = indices.shape[:-1], [d for d in range(len(shape)) if d not in (*missing, *shared)]
    rank, inside, places = len(batch) + len(free), np.ones(batch, bool), []

    def along(axis: int, size: int) -> np.ndarray:
        return np.arange(size).reshape([size if i == axis else 1 for i in range(rank)])

    for axis, size in enumerate(shape):
        place = np.zeros([1] * rank, int)
        if axis in starts:
            start = indices[..., starts.index(axis)].astype(np.int64)
            inside &= (start >= 0) & (start <= size - sizes[axis])
            place = np.reshape(np.clip(start, 0, size - sizes[axis]), (*batch, *[1] * len(free)))
        if axis in shared:
            place = place + along(getattr(numbers, theirs)[shared.index(axis)], size)
        if axis in free:
            place = place + along(len(batch) + free.index(axis), sizes[axis])
        places.append(place)
    return places, inside, len(batch)


def _gather(params: dict[str, Any], x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    numbers = params["dimension_numbers"]
    places, inside, batch = _windows(x.shape, indices, params["slice_sizes"], numbers, scatters=False)
    found = x[tuple(places)]
    if params["mode"] == lax.GatherScatterMode.FILL_OR_DROP and not inside.all():
        shape = (*np.shape(inside), *[1] * (found.ndim - batch))
        found = np.where(np.reshape(inside, shape), found, _fill(params, x.dtype))
    return np.moveaxis(found, range(batch, found.ndim), numbers.offset_dims)


def _fill(params: dict[str, Any], dtype: np.dtype) -> Any:
    """What a gather gives beyond its operand."""
    if params["fill_value"] is not None:
        return params["fill_value"]
    if dtype.kind == "f":
        return np.nan
    return True if dtype.kind == "b" else np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max


def _scatter_add(params: dict[str, Any], x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
    numbers = params["dimension_numbers"]
    window, missing = numbers.update_window_dims, (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    given = iter(window)
    sizes = [1 if axis in missing else updates.shape[next(given)] for axis in range(x.ndim)]
    places, inside, batch = _windows(x.shape, indices, sizes, numbers, scatters=True)
    terms = np.moveaxis(updates, window, range(batch, updates.ndim))
    if params["mode"] != lax.GatherScatterMode.CLIP and not inside.all():
        places, terms = [np.broadcast_to(place, terms.shape)[inside] for place in places], terms[inside]
    total = x.copy()
    np.add.at(total, tuple(places), terms)
    return total


def _ufunc(function: Callable) -> Callable:
    return lambda params, *operands: function(*operands)


def _reduction(function: Callable) -> Callable:
    return lambda params, x: function(x, axis=tuple(params["axes"]))


def _cumulative(function: Callable) -> Callable:
    def run(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
        axis = params["axis"]
        return np.flip(function(np.flip(x, axis), axis=axis), axis) if params["reverse"] else function(x, axis=axis)

    return run


_PLAIN = set(map(np.dtype, (np.float64, np.int32, np.int64, np.uint32, np.bool_)))
_CONTROL = {"scan": _scan, "while": _while, "cond": _cond}
_IDENTITIES = {"copy", "copy_p", "stop_gradient", "name", "optimization_barrier", "pvary", "reduce_precision"}


def _reshape(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    order = params["dimensions"]  # in which the numbers are read, as by the derivative of a product over an axis
    return (x if order is None else x.transpose(order)).reshape(params["new_sizes"])


# For floats, integers and booleans.
_ANY: dict[str, Callable] = {
    "reshape": _reshape,
    "broadcast_in_dim": lambda params, x, *sizes: _broadcast(params, x),
    "transpose": lambda params, x: x.transpose(params["permutation"]),
    "squeeze": lambda params, x: x.squeeze(params["dimensions"]),
    "expand_dims": lambda params, x: np.expand_dims(x, params["dimensions"]),
    "concatenate": lambda params, *xs: np.concatenate(xs, params["dimension"]),
    "rev": lambda params, x: np.flip(x, params["dimensions"]),
    "slice": _slice,
    "iota": lambda params: _iota(params),
    "convert_element_type": lambda params, x: _converted(x, wide(np.dtype(params["new_dtype"]))),
    "select_n": lambda params, which, *cases: np.choose(which.astype(np.int32), cases),
    "gather": _gather,
    "scatter-add": _scatter_add,
    "reduce_and": _reduction(np.all),
    "reduce_or": _reduction(np.any),
}
_ANY |= {
    name: _ufunc(function)
    for name, function in {
        "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal,
        "ne": np.not_equal, "add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum,
        "min": np.minimum, "and": np.bitwise_and, "or": np.bitwise_or, "not": np.invert, "neg": np.negative,
    }.items()
}  # fmt: skip
# For floats only.
_FLOAT: dict[str, Callable] = {
    "dot_general": _dot,
    "integer_pow": lambda params, x: x ** params["y"],
    "clamp": lambda params, low, x, high: np.minimum(np.maximum(x, low), high),
    "reduce_sum": _reduction(np.sum),
    "reduce_max": _reduction(np.max),
    "reduce_min": _reduction(np.min),
    "reduce_prod": _reduction(np.prod),
    "cumsum": _cumulative(np.cumsum),
}
_FLOAT |= {
    name: _ufunc(function)
    for name, function in {
        "add_any": np.add, "div": np.divide, "rem": np.fmod, "abs": np.abs, "sign": np.sign, "square": np.square,
        "floor": np.floor, "ceil": np.ceil, "exp": np.exp, "exp2": np.exp2, "log": np.log, "log1p": np.log1p,
        "expm1": np.expm1, "tanh": np.tanh, "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin,
        "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2, "sinh": np.sinh, "cosh": np.cosh, "pow": np.power,
        "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh, "sqrt": np.sqrt, "cbrt": np.cbrt,
        "rsqrt": lambda x: 1.0 / np.sqrt(x), "logistic": _logistic, "is_finite": np.isfinite,
    }.items()
}  # fmt: skip
# For complex numbers too. JAX runs their quotients, and functions with a branch cut.
_COMPLEX = names(
    "reshape broadcast_in_dim transpose squeeze expand_dims concatenate rev slice convert_element_type select_n add "
    "sub mul neg eq ne add_any exp sin cos reduce_sum cumsum dot_general real imag conj abs"
)
_FLOAT |= {
    "real": lambda params, x: x.real,
    "imag": lambda params, x: x.imag,
    "conj": lambda params, x: np.conj(x),
    "complex": lambda params, x, y: _complex(x, y),
}
_NUMPY = _ANY | _FLOAT
