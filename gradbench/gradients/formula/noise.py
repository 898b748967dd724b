"""The band of a small function without a compiler: the interpretation of `rounding`, all its samples at once in NumPy.

Compiling the sampler of `Band` takes seconds for every shape, and its run a millisecond; NumPy takes tens of
milliseconds in all as long as the arrays are small. The rounding rules are the same ones.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gradbench.gradients.formula import reference
from gradbench.gradients.rounding import noise
from gradbench.gradients.rounding import primitives as rounding
from gradbench.gradients.rounding.band import SAMPLES, Spread, noise_scale, reference_share
from gradbench.gradients.rounding.formats import flushes_subnormals
from gradbench.gradients.rounding.interpreter import MAX_TURNS, Interpreter
from gradbench.gradients.rounding.pairs import Flags, Pair, is_float, wide
from gradbench.program.xla.jaxprs import open_jaxpr, scan_counts

# Beside the primitives that round a result of their own.
_ELEMENTWISE = rounding.names(
    "neg abs sign copy copy_p select_n max min stop_gradient is_finite eq ne lt le gt ge and or not xor floor ceil "
    "round clamp convert_element_type reduce_precision name optimization_barrier integer_pow logistic add_any square "
    "real imag conj complex"
)


@dataclasses.dataclass
class Sampled:
    """The spread of a trace's float outputs, and what the samples were: a deviation per sample, leading axis SAMPLES,
    in the size that rounding gives it."""

    spread: Spread
    deviations: list[np.ndarray]


def sample(
    trace: Any, arguments: list[np.ndarray], dtype: str, precision: str, device: jax.Device, worst_case: bool = False
) -> Sampled:
    """How far rounding in `dtype` on `device` takes the outputs of a trace made in it, at these flat arguments.

    Raises what a primitive raises when it cannot be run.
    """
    jaxpr, consts = open_jaxpr(trace)
    scale, _ = noise_scale(trace, dtype)
    flushes = functools.partial(flushes_subnormals, device=device)
    for name in ("float64", "float32", "bfloat16", "float16"):
        flushes(name)
    interpreter = _Samples(device, flushes, scale, worst_case)
    with reference.context(trace), jax.default_matmul_precision(precision):
        given = [np.asarray(x) for x in arguments]
        given = [x.astype(wide(x.dtype)) if is_float(x) else x for x in given]
        outputs, flags = interpreter.run(jaxpr, consts, [Pair(x, x) for x in given])
        exact, deviations, spreads = [], [], []
        for pair in outputs:
            e = np.asarray(pair.exact)
            noisy = np.broadcast_to(pair.noisy, (SAMPLES, *e.shape))
            exact.append(e)
            deviations.append(np.where(np.isfinite(e), noisy - e, 0.0) if is_float(e) else np.zeros(noisy.shape))
            spreads.append(_moments(e, deviations[-1]) if is_float(e) else (np.zeros(e.shape), 0.0, 0.0))
    factor = reference_share(dtype) / scale
    return Sampled(
        Spread(
            exact=exact,
            sigma=[factor * s for s, _, _ in spreads],
            norm=[factor * n for _, n, _ in spreads],
            along=[factor * a for _, _, a in spreads],
            overflow=bool(np.any(flags.overflow)),
            tie=bool(np.any(flags.tie)),
            reciprocal=bool(np.any(flags.reciprocal)),
            unknown=tuple(sorted(interpreter.unknown)),
            stagnating=tuple(sorted(interpreter.stagnating)),
        ),
        [factor * d for d in deviations],
    )


def _moments(exact: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, float, float]:
    """sigma, norm and along of Spread, taken in units of the largest entry so that squares stay in range."""
    finite = np.where(np.isfinite(exact), exact, 0.0)
    unit = float(np.max(np.abs(finite), initial=0.0)) or 1.0
    deviation, relative = deviation / unit, finite / unit
    squares = np.sum(deviation * deviation, axis=0)
    total = float(np.sum(relative * relative))
    product = np.sum(deviation * relative, axis=tuple(range(1, deviation.ndim)))
    along = math.sqrt(float(np.sum((product / (total or 1.0)) ** 2)) / SAMPLES)
    return np.sqrt(squares / SAMPLES) * unit, math.sqrt(float(np.sum(squares)) / SAMPLES) * unit, along


class _Samples(Interpreter):
    """Noisy values have a leading axis of SAMPLES where noise has reached them, and are the exact value elsewhere."""

    def __init__(self, device: jax.Device, flushes: Callable[[str], bool], scale: float, worst_case: bool):
        super().__init__(None, device, flushes, scale, worst_case=worst_case)
        self.seed = np.arange(1, SAMPLES + 1, dtype=np.uint32)
        self._starts = noise.start(self.seed.astype(np.uint64))

    def add(self, noisy: Any, exact: Any, amplitude: Any, salt: int | None = None, picks: Any = None) -> Any:
        self._start = self._starts.reshape(-1, *[1] * np.ndim(exact))
        return super().add(noisy, exact, amplitude, salt, picks)

    def primitive(self, equation: Any, name: str, params: dict[str, Any], ins: list[Pair]) -> tuple[list[Pair], Flags]:
        if _is_elementwise(equation):  # a scalar among arrays
            rank = max(len(v.aval.shape) for v in equation.invars)
            ins = [_with_rank(pair, rank) for pair in ins]
        return super().primitive(equation, name, params, ins)

    def results(self, equation: Any, operands: list[Any], params: dict[str, Any]) -> list[Any]:
        if any(isinstance(x, jax.Array) for x in operands):  # differentiated by a rule of `special`
            return super().results(equation, operands, params)
        sampled = [np.ndim(x) > len(v.aval.shape) for x, v in zip(operands, equation.invars)]
        if not any(sampled) or _is_elementwise(equation):
            return self._once(equation, operands, params)
        if reference.is_known(equation, operands):
            each = [
                self._once(equation, [x[i] if many else x for x, many in zip(operands, sampled)], params)
                for i in range(SAMPLES)
            ]
            return [np.stack(column) for column in zip(*each)]
        axes = [0 if many else None for many in sampled]
        one = functools.partial(super().results, equation, params=params)
        made = jax.vmap(lambda *given: one(list(given)), in_axes=axes)(*operands)
        return [np.asarray(x) for x in made]

    def _once(self, equation: Any, operands: list[Any], params: dict[str, Any]) -> list[Any]:
        if reference.is_known(equation, operands):
            return reference.equation_of(equation, operands)
        if _is_elementwise(equation):  # JAX wants operands of one shape
            operands = list(np.broadcast_arrays(*operands))
        return [np.asarray(x) for x in super().results(equation, operands, params)]

    def scan(self, params: dict[str, Any], ins: list[Pair]) -> tuple[list[Pair], Flags]:
        count, carried = scan_counts(params)
        body, consts = open_jaxpr(params["jaxpr"])
        carry, flags, rows = ins[count : count + carried], Flags(), []
        length = params["length"]
        for step in reversed(range(length)) if params["reverse"] else range(length):
            row = [
                _same(x.exact[step]) if x.noisy is x.exact else Pair(x.exact[step], x.noisy[:, step])
                for x in ins[count + carried :]
            ]
            outputs, raised = self.turn(body, consts, [*ins[:count], *carry, *row], "a scan")
            carry, flags = outputs[:carried], flags.add(raised)
            rows.append(outputs[carried:])
        if not rows:
            avals = [v.aval for v in body.outvars[carried:]]
            return [*carry, *[_same(np.zeros((0, *a.shape), wide(a.dtype))) for a in avals]], flags
        rows = rows[::-1] if params["reverse"] else rows
        return [*carry, *map(_stacked, zip(*rows))], flags

    def loop(self, params: dict[str, Any], ins: list[Pair]) -> tuple[list[Pair], Flags]:
        test, body = open_jaxpr(params["cond_jaxpr"]), open_jaxpr(params["body_jaxpr"])
        tests, bodies = params["cond_nconsts"], params["body_nconsts"]
        carry, flags = list(ins[tests + bodies :]), Flags()
        for _ in range(MAX_TURNS):
            again = self.run(*test, [*ins[:tests], *carry])[0][0]
            flags = flags._replace(tie=flags.tie | np.any(again.exact != again.noisy))
            if not again.exact:
                return carry, flags
            carry, raised = self.turn(*body, [*ins[tests : tests + bodies], *carry], "a while loop")
            flags = flags.add(raised)
        return carry, flags._replace(tie=flags.tie | True)

    def branch(self, params: dict[str, Any], ins: list[Pair]) -> tuple[list[Pair], Flags]:
        index, branches = ins[0], params["branches"]
        chosen = branches[int(np.clip(index.exact, 0, len(branches) - 1))]
        outputs, flags = self.run(*open_jaxpr(chosen), ins[1:])
        return outputs, flags._replace(tie=flags.tie | np.any(index.exact != index.noisy))


def _is_elementwise(equation: Any) -> bool:
    name = equation.primitive.name
    return name in _ELEMENTWISE or rounding.units(name, equation.params) is not None


def _with_rank(pair: Pair, rank: int) -> Pair:
    if pair.noisy is pair.exact or np.ndim(pair.exact) == rank:
        return pair
    ones = [1] * rank
    return Pair(np.reshape(pair.exact, ones), np.reshape(pair.noisy, [SAMPLES, *ones]))


def _same(value: Any) -> Pair:
    return Pair(value, value)


def _stacked(column: tuple[Pair, ...]) -> Pair:
    exact = np.stack([p.exact for p in column])
    if all(p.noisy is p.exact for p in column):
        return _same(exact)
    noisy = [np.broadcast_to(p.noisy, (SAMPLES, *np.shape(p.exact))) for p in column]
    return Pair(exact, np.stack(noisy, axis=1))
