"""The band without a compiler: the interpretation of `rounding`, several samples at once in NumPy.

Compiling the sampler of `Band` takes seconds for every shape and its run a millisecond; NumPy takes tens of
milliseconds in all as long as the arrays are small. The rounding rules and the seeds are the same.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gradbench.gradients.formula import reference
from gradbench.gradients.rounding import primitives as rounding
from gradbench.gradients.rounding.band import (
    FEW,
    SAMPLES,
    Band,
    Spread,
    measured_flushing,
    noise_scale,
    reference_share,
)
from gradbench.gradients.rounding.interpreter import MAX_ITERATIONS, Interpreter
from gradbench.gradients.rounding.numbers import noise
from gradbench.gradients.rounding.numbers.formats import precision_context
from gradbench.gradients.rounding.pairs import Flags, Pair, is_float, same, wide
from gradbench.program.xla.jaxprs import equations, nested, open_jaxpr, scan_counts

# Elementwise, like the primitives that round a result of their own.
_ELEMENTWISE = rounding.names(
    "neg abs sign copy copy_p select_n max min stop_gradient is_finite eq ne lt le gt ge and or not xor floor ceil "
    "round clamp convert_element_type reduce_precision name optimization_barrier integer_pow logistic add_any square "
    "real imag conj complex"
)


@dataclasses.dataclass
class Sampled:
    """The spread of a trace's float outputs, and the samples' deviations: one array per output with leading axis
    SAMPLES, at the true size of rounding."""

    spread: Spread
    deviations: list[np.ndarray]


def sample(
    trace: Any, arguments: list[np.ndarray], dtype: str, precision: str, device: jax.Device, worst_case: bool = False
) -> Sampled:
    """How far rounding in `dtype` on `device` takes the outputs of a trace made in `dtype`, at these flat arguments.

    Raises what a primitive raises when it cannot be run.
    """
    jaxpr, consts = open_jaxpr(trace)
    scale, _ = noise_scale(trace, dtype)
    flushes = measured_flushing(trace, dtype, device)
    interpreter = _Samples(np.arange(1, SAMPLES + 1), device, flushes, scale, worst_case=worst_case)
    with reference.context(trace), jax.default_matmul_precision(precision):
        given = [np.asarray(x) for x in arguments]
        given = [x.astype(wide(x.dtype)) if is_float(x) else x for x in given]
        outputs, flags = interpreter.run(jaxpr, consts, [Pair(x, x) for x in given])
        exact, moved, spreads = [], [], []
        for pair in outputs:
            e = np.asarray(pair.exact)
            noisy = np.broadcast_to(pair.noisy, (SAMPLES, *e.shape))
            exact.append(e)
            moved.append(np.where(np.isfinite(e), noisy - e, 0.0) if is_float(e) else np.zeros(noisy.shape))
            spreads.append(deviations(e, moved[-1]) if is_float(e) else (np.zeros(e.shape), 0.0, 0.0))
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
        [factor * d for d in moved],
    )


def deviations(exact: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, float, float]:
    """sigma, norm and along of Spread, from the deviations of all samples of a leaf."""
    unit, squares, norm, along = _moments(exact, deviation)
    return np.sqrt(squares / SAMPLES) * unit, math.sqrt(norm / SAMPLES) * unit, math.sqrt(along / SAMPLES)


def _moments(exact: np.ndarray, deviation: np.ndarray) -> tuple[float, np.ndarray, float, float]:
    """The largest entry and, in units of it so that squares stay in range, the sums of squared deviations: of each
    entry, of the norm, along the leaf."""
    finite = np.where(np.isfinite(exact), exact, 0.0)
    unit = float(np.max(np.abs(finite), initial=0.0)) or 1.0
    deviation, relative = deviation / unit, finite / unit
    squares = np.sum(deviation * deviation, axis=0)
    total = float(np.sum(relative * relative))
    product = np.sum(deviation * relative, axis=tuple(range(1, deviation.ndim)))
    return unit, squares, float(np.sum(squares)), float(np.sum((product / (total or 1.0)) ** 2))


class QuickBand(Band):
    """A band whose samples NumPy takes, where that is less work than compiling them."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        found = list(equations(self.trace))
        inside = {equation.primitive.name for equation in found}
        # Seconds of one core for the samples of two points: NumPy's dozen passes over the entries, and its time per
        # equation in each iteration of a scan, against XLA's time to trace and compile each equation once.
        rows = 2 * FEW * self.entries
        numpy, compiled = 4e-4 * turns(self.trace) + 2e-8 * rows, 2.5e-2 * len(found) + 5e-9 * rows
        self.by_numpy = numpy < compiled and inside.isdisjoint({"while", "conv_general_dilated"})
        if self.by_numpy and self.part > 1:
            self.part = FEW // 2

    def moments(self, start: int, leaves: list[np.ndarray]) -> Any:
        if self.by_numpy:
            try:
                return self._sampled(start, leaves)
            except Exception:  # random keys, what JAX cannot batch: a compiled sampler takes more
                if start:  # too late to change: sums so far are in units of this sampler's exact values
                    raise
                self.by_numpy = False
        return super().moments(start, leaves)

    def _sampled(self, start: int, leaves: list[np.ndarray]) -> Any:
        seeds = np.arange(start + 1, start + self.part + 1)
        interpreter = _Samples(seeds, self.device, self.flushes, self.scale, **self.options)
        with reference.context(self.trace), precision_context(self.precision):
            given = [x.astype(wide(x.dtype)) if is_float(x) else x for x in leaves]
            outputs, flags = interpreter.run(*open_jaxpr(self.trace), [Pair(x, x) for x in given])
            exact = [np.asarray(pair.exact) for pair in outputs]
            noisy = [np.broadcast_to(pair.noisy, (self.part, *e.shape)) for pair, e in zip(outputs, exact)]
            found = [_moments(e, np.where(np.isfinite(e), n - e, 0.0)) for e, n in zip(exact, noisy)]
        self.unknown |= interpreter.unknown
        self.stagnating |= interpreter.stagnating
        units, *sums = map(list, zip(*found))
        return (exact, units), *sums, *(np.any(flag) for flag in flags)


def turns(trace: Any) -> int:
    """How many equations a trace runs, counting a scan's body once per iteration."""
    total = 0
    for equation in open_jaxpr(trace)[0].eqns:
        inside = sum(map(turns, nested(equation)))
        total += (equation.params["length"] * inside if equation.primitive.name == "scan" else inside) or 1
    return total


class _Samples(Interpreter):
    """Noisy values have a leading axis, one sample per seed, where noise has reached them, and are the exact value
    elsewhere."""

    def __init__(
        self, seeds: np.ndarray, device: jax.Device, flushes: Callable[[str], bool], scale: float, **options: Any
    ):
        super().__init__(None, device, flushes, scale, **options)
        self.seed = seeds
        self._starts = noise.start(seeds.astype(np.uint64))
        self._blocks: dict[tuple[int, int], int] = {}

    def add(self, noisy: Any, exact: Any, amplitude: Any, salt: int | None = None, picks: Any = None) -> Any:
        self._start = self._starts.reshape(-1, *[1] * np.ndim(exact))
        return super().add(noisy, exact, amplitude, salt, picks)

    def same_salts(self, place: int, part: int, run: Callable[..., Any], *given: Any) -> Any:
        """Runs a loop's test or body, or a branch, with salts of its own, the same each time: a compiled sampler traces
        each part once, so its operations keep their salts from iteration to iteration."""
        outside, block = self._salts, self._blocks.setdefault((place, part), len(self._blocks) + 1)
        self._salts = itertools.count(block << 32)
        found = run(*given)
        self._salts = outside
        return found

    def primitive(self, equation: Any, name: str, params: dict[str, Any], ins: list[Pair]) -> tuple[list[Pair], Flags]:
        if _is_elementwise(equation):  # a scalar among arrays
            rank = max(len(v.aval.shape) for v in equation.invars)
            ins = [self._with_rank(pair, rank) for pair in ins]
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
                for i in range(len(self.seed))
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
        self._sums.carried(body.invars[count : count + carried])
        carry, flags, rows = ins[count : count + carried], Flags(), []
        length, place = params["length"], next(self._salts)
        for step in reversed(range(length)) if params["reverse"] else range(length):
            row = [
                same(x.exact[step]) if x.noisy is x.exact else Pair(x.exact[step], x.noisy[:, step])
                for x in ins[count + carried :]
            ]
            given = [*ins[:count], *carry, *row]
            outputs, raised = self.same_salts(place, 0, self.turn, body, consts, given, "a scan")
            carry, flags = outputs[:carried], flags.add(raised)
            rows.append(outputs[carried:])
        if not rows:
            avals = [v.aval for v in body.outvars[carried:]]
            return [*carry, *[same(np.zeros((0, *a.shape), wide(a.dtype))) for a in avals]], flags
        rows = rows[::-1] if params["reverse"] else rows
        return [*carry, *map(self._stacked, zip(*rows))], flags

    def loop(self, params: dict[str, Any], ins: list[Pair]) -> tuple[list[Pair], Flags]:
        test, body = open_jaxpr(params["cond_jaxpr"]), open_jaxpr(params["body_jaxpr"])
        tests, bodies = params["cond_nconsts"], params["body_nconsts"]
        carry, flags, place = list(ins[tests + bodies :]), Flags(), next(self._salts)
        self._sums.carried(body[0].invars[bodies:])
        for _ in range(MAX_ITERATIONS):
            again = self.same_salts(place, 0, self.run, *test, [*ins[:tests], *carry])[0][0]
            flags = flags._replace(tie=flags.tie | np.any(again.exact != again.noisy))
            if not again.exact:
                return carry, flags
            given = [*ins[tests : tests + bodies], *carry]
            carry, raised = self.same_salts(place, 1, self.turn, *body, given, "a while loop")
            flags = flags.add(raised)
        return carry, flags._replace(tie=flags.tie | True)

    def branch(self, params: dict[str, Any], ins: list[Pair]) -> tuple[list[Pair], Flags]:
        index, branches = ins[0], params["branches"]
        chosen = int(np.clip(index.exact, 0, len(branches) - 1))
        outputs, flags = self.same_salts(next(self._salts), chosen, self.run, *open_jaxpr(branches[chosen]), ins[1:])
        return outputs, flags._replace(tie=flags.tie | np.any(index.exact != index.noisy))

    def _with_rank(self, pair: Pair, rank: int) -> Pair:
        if pair.noisy is pair.exact or np.ndim(pair.exact) == rank:
            return pair
        ones = [1] * rank
        return Pair(np.reshape(pair.exact, ones), np.reshape(pair.noisy, [len(self.seed), *ones]))

    def _stacked(self, column: tuple[Pair, ...]) -> Pair:
        exact = np.stack([p.exact for p in column])
        if all(p.noisy is p.exact for p in column):
            return same(exact)
        noisy = [np.broadcast_to(p.noisy, (len(self.seed), *np.shape(p.exact))) for p in column]
        return Pair(exact, np.stack(noisy, axis=1))


def _is_elementwise(equation: Any) -> bool:
    name = equation.primitive.name
    return name in _ELEMENTWISE or rounding.units(name, equation.params) is not None
