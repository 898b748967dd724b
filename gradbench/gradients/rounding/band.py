"""The band: how far rounding alone may take each number of a gradient, sampled and turned into tolerances.

The noise samples of `interpreter` give, for each entry, a standard deviation sigma with as many degrees of freedom as
samples (the mean is known: the exact interpretation). A right gradient's error, in units of sigma, then follows
Student's t distribution; the tolerance is its quantile at FALSE_ALARM shared among all the numbers judged together
(Bonferroni).

Samples are taken in parts, and no more than it takes to know that all SAMPLES would give a PASS. This spends none of
the error probability: a sum of squares only grows, so with n = SAMPLES and m taken, n sigma_n^2 >= m sigma_m^2, and
what lies within sqrt(m/n) times the tolerance by sigma_m lies within the tolerance by sigma_n (`share`). Anything else
is judged with more samples, up to all of them. So every verdict is the one that all samples give.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.gradients.rounding.interpreter import Interpreter
from gradbench.gradients.rounding.numbers.formats import (
    Format,
    flushes_subnormals,
    format_of,
    precision_context,
    x64_context,
)
from gradbench.gradients.rounding.pairs import Pair, is_float, wide
from gradbench.machine.internals import quick_compile
from gradbench.program.spread import over_trials
from gradbench.program.xla.jaxprs import equations, nested, open_jaxpr

SAMPLES = 32  # sigma is then known to 1/sqrt(2*32) = 12 %
FALSE_ALARM = 1e-6  # the probability, under the model, that one right gradient is called wrong anywhere
FEW = 8  # samples taken first, where taking all would take longer than compiling the sampler
# Without optimisation an equation compiles 20 ms faster, and an entry takes 10 ns longer per sample (far longer in a
# convolution): the two balance for a part that is sampled twice and has so many entries per equation.
_QUICK = 2**20
_AT_ONCE = 2**24  # entries of a part, which take a fraction of a second
_LARGE = 2**22  # entries; above it the samples are taken one at a time, so that memory stays that of a few gradients


@functools.cache
def quantile(numbers: int, samples: int = SAMPLES) -> float:
    """How many sigma a right number may be off when `numbers` of them are judged together (two-sided Student t)."""
    from scipy.special import stdtrit  # scikit-learn brings scipy; scipy.stats would take a second to load

    return -float(stdtrit(samples, FALSE_ALARM / (2 * max(numbers, 1))))


@dataclasses.dataclass
class Spread:
    """Standard deviations from rounding alone, one array or number per leaf of what the program returns.

    Attributes:
        exact: what the trace computes without rounding, flat leaves, float64.
        sigma: per entry.
        norm: per leaf, of the Euclidean norm of the error.
        along: per leaf, of the error's component along the leaf, divided by the leaf's norm: the spread of beta.
        overflow, tie, reciprocal: whether a value left the format's range; whether rounding can change a decision;
            whether the reciprocal of a divisor leaves the range where the quotient does not.
        unknown, stagnating: primitives without a rule; sums with k u >= 1.
        samples: how many samples the deviations come from.
    """

    exact: list[np.ndarray]
    sigma: list[np.ndarray]
    norm: list[float]
    along: list[float]
    overflow: bool
    tie: bool
    reciprocal: bool
    unknown: tuple[str, ...]
    stagnating: tuple[str, ...]
    samples: int = SAMPLES

    @property
    def share(self) -> float:
        """The least ratio of the tolerance by all SAMPLES to that by these samples."""
        return math.sqrt(self.samples / SAMPLES)

    def as_of_all(self) -> Spread:
        """Deviations scaled so that, times the quantile for SAMPLES, they give the tolerance for the samples taken."""
        factor = quantile(1, self.samples) / quantile(1)
        norm, along = ([factor * x for x in numbers] for numbers in (self.norm, self.along))
        return dataclasses.replace(self, sigma=[factor * s for s in self.sigma], norm=norm, along=along)


class Band:
    """The compiled sampler for one function of (params, data), one dtype, precision class and device.

    Args:
        function: `function(params, data)` -> a pytree of float arrays, traced in `dtype`.
        dtype: one of checks.DTYPES. precision: one of checks.PRECISIONS. device: whose rounding is modelled.
        assume, worst_case: see Interpreter.

    The function is traced at once, which raises what it raises; later calls must have the same shapes.
    """

    def __init__(
        self,
        function: Callable[[Any, Any], Any],
        params: Any,
        data: Any,
        dtype: str,
        precision: str,
        device: jax.Device,
        assume: str | None = None,
        worst_case: bool = False,
    ):
        with x64_context(dtype), precision_context(precision):
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), (params, data))
            trace = jax.make_jaxpr(function)(*shapes)
        self.trace, self.precision, self.device = trace, precision, device
        self.options = {"assume": assume, "worst_case": worst_case}
        self._jaxpr, self._consts = open_jaxpr(trace)
        self._consts = [np.asarray(c) if _is_plain(c) else c for c in self._consts]
        self.scale, self.mixed = noise_scale(trace, dtype)
        self.reference_share = reference_share(dtype)
        self.size = sum(math.prod(v.aval.shape) for v in self._jaxpr.outvars)
        self.unknown: set[str] = set()
        self.stagnating: set[str] = set()
        self.flushes = measured_flushing(trace, dtype, device)

        def sample(seed, arguments):
            interpreter = Interpreter(seed, device, self.flushes, self.scale, assume, worst_case)
            outputs, flags = interpreter.run(self._jaxpr, self._consts, [Pair(x, x) for x in arguments])
            self.unknown |= interpreter.unknown
            self.stagnating |= interpreter.stagnating
            return [p.exact for p in outputs], [p.noisy for p in outputs], flags

        def moments(seeds, arguments):
            exact, noisy, flags = over_trials(sample, (0, None), "cpu")(seeds, arguments)
            exact = [x[0] for x in exact]  # the same for all seeds
            # XLA may round a sum that cancels to 0 otherwise each time: `exact` is returned as it was used for units.
            units, *sums = zip(*map(_moments, exact, noisy))
            return (exact, list(units)), *map(list, sums), *(flag.any() for flag in flags)

        self.entries = max(_entries(self._jaxpr), 1)
        self.part = min(max(_AT_ONCE // self.entries, FEW // 2), SAMPLES)
        self.part = 1 if self.size > _LARGE else 2 ** int(math.log2(self.part))
        inside = [equation.primitive.name for equation in equations(trace)]
        quick = self.part * self.entries <= _QUICK * len(inside) and "conv_general_dilated" not in inside

        def compiled() -> Any:
            # XLA's older fusion emitter halves the compile time on jax 0.10; 0.12 does not have it.
            options = quick_compile("cpu", xla_backend_optimization_level=0 if quick else 1)
            return jax.jit(moments, compiler_options=options)

        self._compiled = functools.cache(compiled)

    def sample(self, params: Any, data: Any, samples: int = SAMPLES) -> Spread:
        """The spread at a point. `params` and `data` are arrays in the band's dtype; the result is float64 NumPy."""
        return Sampling(self, params, data).spread(samples)

    def moments(self, start: int, leaves: list[np.ndarray]) -> Any:
        """What the next part of the samples, after the first `start`, adds to each sum."""
        cpu = jax.default_device(jax.devices("cpu")[0])
        with jax.enable_x64(True), cpu, precision_context(self.precision):  # what is traced only now has it too
            arguments = [jnp.asarray(x.astype(wide(x.dtype)) if is_float(x) else x) for x in leaves]
            return jax.device_get(
                self._compiled()(jnp.arange(start + 1, start + self.part + 1, dtype=np.uint32), arguments)
            )


class Sampling:
    """The samples of a band at one point that were taken so far."""

    def __init__(self, band: Band, params: Any, data: Any):
        self._band, self._leaves = band, [np.asarray(x) for x in jax.tree.leaves((params, data))]
        self._taken = 0
        self._sums: Any = None

    def spread(self, samples: int) -> Spread:
        """The spread of at least so many samples, in whole parts."""
        band = self._band
        while self._taken < samples:
            exact, *part = band.moments(self._taken, self._leaves)
            if self._sums is None:
                (self._exact, self._units), self._sums = exact, part
            else:
                self._sums = jax.tree.map(
                    lambda a, b: a | b if np.asarray(a).dtype == bool else a + b, self._sums, part
                )
            self._taken += band.part
        squares, norms, along, overflow, tie, reciprocal = self._sums

        def deviation(total: Any) -> Any:
            return np.sqrt(np.asarray(total) / self._taken) / band.scale * band.reference_share

        return Spread(
            exact=[np.asarray(e) for e in self._exact],
            sigma=[deviation(s) * u for s, u in zip(squares, self._units)],
            norm=[float(deviation(n) * u) for n, u in zip(norms, self._units)],
            along=[float(deviation(a)) for a in along],
            overflow=bool(overflow),
            tie=bool(tie),
            reciprocal=bool(reciprocal),
            unknown=tuple(sorted(band.unknown)),
            stagnating=tuple(sorted(band.stagnating)),
            samples=self._taken,
        )


def _moments(exact: Any, noisy: Any) -> tuple[Any, Any, Any, Any]:
    """For a leaf and its samples (leading axis): the largest entry and, in units of it so that squares stay inside
    float64's range, the sums of squared deviations: of each entry, of the norm, along the leaf."""
    finite, unit = jnp.isfinite(exact), _largest(exact)
    relative = jnp.where(finite, exact, 0.0) / unit
    deviation = jnp.where(finite, noisy - exact, 0.0) / unit
    total = jnp.sum(relative * relative)
    product = jnp.sum(deviation * relative, axis=tuple(range(1, deviation.ndim)))
    along = jnp.sum((product / jnp.where(total > 0, total, 1.0)) ** 2)
    return unit, jnp.sum(deviation * deviation, axis=0), jnp.sum(deviation * deviation), along


def noise_scale(trace: Any, dtype: str) -> tuple[float, bool]:
    """How many times too large the noise is drawn, and whether a format narrower than `dtype` is in the trace.

    Deviations of 2^-40 stand 12 bits above the rounding of the interpretation itself (2^-53). Formats narrower than the
    program's own (mixed precision) may not be moved so far that a function bends: by 2^-6 of a value at the most, and 4
    units of float64 are still seen.
    """
    unit = format_of(dtype).unit
    coarsest = max([unit, *(form.unit for form in formats(trace))])
    return max(1.0, min(2.0**-40 / unit, max(4.0, 2.0**-6 / coarsest))), coarsest > unit


def measured_flushing(trace: Any, dtype: str, device: jax.Device) -> Callable[[str], bool]:
    """`flushes_subnormals` of the device, measured now, not amid tracing, for `dtype` and the trace's formats."""
    flushes = functools.partial(flushes_subnormals, device=device)
    for form in {format_of(dtype), *formats(trace)}:
        flushes(form.name)
    return flushes


def reference_share(dtype: str) -> float:
    """The reference is a float64 computation with rounding of its own, in proportion of the units."""
    return 1.0 + format_of(jnp.float64).unit / format_of(dtype).unit


def formats(trace: Any) -> set[Format]:
    """Every format that results of the trace are rounded to."""
    dtypes = {v.aval.dtype for e in equations(trace) for v in e.outvars if hasattr(v.aval, "dtype")}
    return {format_of(d) for d in dtypes if jnp.issubdtype(d, jnp.inexact)}


def _entries(jaxpr: Any) -> int:
    """How many entries a jaxpr's results have, counting a scan's body once per iteration."""
    total = 0
    for equation in open_jaxpr(jaxpr)[0].eqns:
        inside = sum(map(_entries, nested(equation)))
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += turns * inside or sum(math.prod(getattr(v.aval, "shape", ())) for v in equation.outvars)
    return total


def _is_plain(constant: Any) -> bool:
    return not jax.dtypes.issubdtype(getattr(constant, "dtype", np.dtype(float)), jax.dtypes.extended)


def _largest(array: Any) -> Any:
    """The largest finite magnitude in `array`, or 1 where all is 0."""
    largest = jnp.max(jnp.where(jnp.isfinite(array), jnp.abs(array), 0.0))
    return jnp.where(largest > 0, largest, 1.0)
