"""What is expected of a function at a case: the reference in float64, and how far rounding may take each number."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gradbench.errors import ProblemError, error_text
from gradbench.gradients.execution.expectation import compare_centre
from gradbench.gradients.formula import oracle
from gradbench.gradients.formula.directions import KINKED
from gradbench.gradients.formula.noise import Sampled, deviations, sample
from gradbench.gradients.formula.suspects import alike
from gradbench.gradients.functions import programs
from gradbench.gradients.functions.cases import BOTH, Case
from gradbench.gradients.rounding.band import SAMPLES, Band, Spread, quantile
from gradbench.gradients.rounding.numbers.formats import format_of, precision_context, round_to, x64_context

BY_LEAF = ("exact", "sigma", "norm", "along")  # of a Spread
BESIDE = 8  # inputs, at each of which two equal numbers come in either order
MANY = 2**16  # numbers in a call from which sampling in NumPy takes longer than compiling a sampler


@dataclasses.dataclass
class Part:
    """One check's numbers at a case: what is expected, flat in float64 (integers and booleans as they are), the spread
    of each, and their names."""

    expected: list[np.ndarray]
    spread: Spread
    names: list[str]
    places: list[int] = dataclasses.field(default_factory=list)  # among all that is traced together

    def some(self, places: list[int]) -> Part:
        return Part([self.expected[i] for i in places], some(self.spread, places), [self.names[i] for i in places])


@dataclasses.dataclass
class Expected:
    """What is expected at a case: the parts by check; `doubt`, why they may be wrong, or ""; `adjoint`, how far
    rounding may take <w, Jv> from <J^T w, v>, one standard deviation; and `wider`, the same with room for derivatives
    through extrema, once that is asked for."""

    case: Case
    cotangents: list[np.ndarray]
    tangents: list[np.ndarray]
    parts: dict[str, Part]
    doubt: str
    adjoint: float
    wider: Expected | None = None


class Reference:
    """The reference in one dtype, traced once for each shape.

    Args:
        flat: a function of (float arrays, other arrays). base: the case by which it is found which of the derivatives
            `asked` it has: `modes`.

    Raises ProblemError where it cannot be called at `base`.
    """

    def __init__(
        self,
        name: str,
        flat: programs.Flat,
        layout: programs.Layout,
        base: Case,
        dtype: str,
        precision: str,
        asked: tuple[str, ...] = BOTH,
    ):
        self._base = dict(base.sizes)
        self.flat, self.names, self.dtype, self.precision = flat, layout.names, dtype, precision
        self._traces: dict[Any, Any] = {}
        self._cpu = jax.devices("cpu")[0]
        split = layout.split(base.arguments)
        try:
            outputs = self.outputs(*split)
        except Exception as error:
            at = f" at {described(base.arguments)}"
            raise ProblemError(f"{name}: the reference raised {error_text(error)}{at}") from error
        kinds = sorted({str(o.dtype) for o in outputs})
        if not any(programs.is_float(o) for o in outputs):
            raise ProblemError(f"{name}: it returns no float ({', '.join(kinds) or 'nothing'}), so nothing can be off")
        trace = self._trace(flat, split, ())[0]
        self.kinked = not KINKED.isdisjoint(oracle.primitives(trace))
        self._natives = programs.natives(flat, trace)
        self.extremal = programs.extremal(flat, trace, strip=True)
        self.modes: tuple[str, ...] = ()
        with x64_context(dtype), precision_context(precision):
            for mode in asked if split[0] else ():
                with contextlib.suppress(Exception):
                    programs.differentiate(flat, mode, trace, *_shapes(split))
                    self.modes += (mode,)

    def outputs(self, floats: list[Any], others: list[Any]) -> list[jax.ShapeDtypeStruct]:
        """The shapes and dtypes that it returns in the dtype under test. Raises what the reference raises."""
        with x64_context(self.dtype), precision_context(self.precision):
            return jax.eval_shape(self.flat, *map(_shapes, (floats, others)))

    def at(
        self,
        case: Case,
        layout: programs.Layout,
        device: jax.Device,
        worst_case: bool = False,
        extremal: Sequence[programs.Flat] = (),
    ) -> Expected:
        """What is expected at a case on a device; `worst_case` as in `Interpreter`, `extremal` are functions of
        `programs.extremal`, for whose rounding there is room too. Raises what tracing or interpreting the reference
        raises."""
        floats, others = layout.split(case.arguments)
        outputs = self.outputs(floats, others)
        kinds = [programs.is_float(o) for o in outputs]
        generator = np.random.default_rng([case.seed, 1])
        cotangents = self._cotangents([o for o, k in zip(outputs, kinds) if k], case.seed, generator)
        tangents = [round_to(generator.standard_normal(x.shape), str(x.dtype)) for x in floats]
        modes = self._modes(case)
        function, given = programs.whole(self.flat, modes), (floats, (others, cotangents, tangents))
        trace, exact = self._trace(function, given, modes)
        expected = oracle.reference.run(exact, jax.tree.leaves(given))
        sampled = [self._sample(function, trace, given, device, worst_case)]
        for native in self._natives if modes else ():
            sampled += self._natively(native, sampled[0], modes, given, device, worst_case)
        through = []
        for path in extremal if modes else ():
            through += self._through_extrema(path, sampled[0], len(outputs), modes, given, device, worst_case)
        spread = added(widest(*(one.spread for one in sampled)), *(one.spread for one in through))
        own = ["value" if len(outputs) == 1 else f"value[{i}]" for i in range(len(outputs))]
        own = [*layout.outputs] if len(layout.outputs) == len(outputs) else own
        floating = [i for i, kind in enumerate(kinds) if kind]
        places, after = {"value": (list(range(len(outputs))), own)}, len(outputs)
        for mode in modes:
            names = [f"tangent of {own[i]}" for i in floating] if mode == "jvp" else list(self.names)
            names = names if mode in BOTH else [f"H v of {name}" for name in names]
            mine = range(after, after := after + len(names))
            before = floating if mode in BOTH else []
            places[mode] = [*before, *mine], [*(own[i] for i in before), *names]
        parts = {
            check: Part([expected[i] for i in where], some(spread, where), names, where)
            for check, (where, names) in places.items()
        }
        doubt = ""
        if not case.edge:
            numbers = [i for i, e in enumerate(expected) if e.dtype.kind == "f"]
            doubt = compare_centre(some(spread, numbers), [expected[i] for i in numbers], self.dtype)
        adjoint = math.inf
        if set(BOTH) <= set(modes):
            along, back = (places[mode][0][len(floating) :] for mode in ("jvp", "vjp"))
            weights = [*zip(along, cotangents), *zip(back, (-t for t in tangents))]
            adjoint = max(_deviation_of_sum(one.deviations, weights) for one in sampled)
            adjoint += sum(_deviation_of_sum(one.deviations, weights) for one in through)
        return Expected(case, cotangents, tangents, parts, doubt, adjoint)

    def between(self, expected: Expected, layout: programs.Layout, check: str, got: list[Any]) -> list[np.ndarray]:
        """An answer, its numbers that lie between those at inputs beside the case's replaced by what is expected.

        The inputs are closer than rounding can tell apart, and no two are equal, as random ones in 16 bits may be: of
        the greater of two equal numbers the derivative is that of the one, of the other, or lies between."""
        floats, others = layout.split(expected.case.arguments)
        modes, part = self._modes(expected.case), expected.parts[check]
        generator, unit = np.random.default_rng(4), format_of(self.dtype).unit * 2.0**-10
        rest = (others, expected.cotangents, expected.tangents)
        _, exact = self._trace(programs.whole(self.flat, modes), (floats, rest), modes)
        low = high = part.expected
        for _ in range(BESIDE):
            moved = [x.astype(np.float64) * (1 + unit * generator.standard_normal(x.shape)) for x in floats]
            found = oracle.reference.run(exact, jax.tree.leaves((moved, rest)))
            found = [found[i] for i in part.places]
            low, high = [*map(np.minimum, low, found)], [*map(np.maximum, high, found)]
        wide = [np.asarray(g).astype(np.float64) if e.dtype.kind == "f" else g for g, e in zip(got, part.expected)]
        return [
            e + (g - np.clip(g, a, b)) if e.dtype.kind == "f" else g
            for g, e, a, b in zip(wide, part.expected, low, high)
        ]

    def _natively(
        self, native: programs.Flat, own: Sampled, modes: tuple[str, ...], given: Any, *where: Any
    ) -> list[Sampled]:
        """The samples of the reference differentiated in another way that is as right; see `programs.natives`.

        It rounds where the reference need not: the gradient through the maximum of a softmax is a sum that cancels to
        0; without it the largest entry is the difference of numbers that are nearly equal. Leaves that it computes
        otherwise are those of `own`; an empty list where it has no derivative."""
        found = self._other(native, modes, given, *where)
        if found is None:
            return []
        one, other = found.spread, own.spread
        same = [
            alike(a, b) or self._is_rounding(a, b, s + t)
            for a, b, s, t in zip(one.exact, other.exact, one.sigma, other.sigma)
        ]

        def leaves(native: list[Any], others: list[Any]) -> list[Any]:
            return [n if is_same else o for n, o, is_same in zip(native, others, same)]

        columns = {c: leaves(getattr(one, c), getattr(other, c)) for c in BY_LEAF}
        return [Sampled(dataclasses.replace(one, **columns), leaves(found.deviations, own.deviations))]

    def _through_extrema(
        self, path: programs.Flat, own: Sampled, values: int, modes: tuple[str, ...], given: Any, *where: Any
    ) -> list[Sampled]:
        """The samples of a derivative through extrema alone, of a function whose first `values` outputs are no
        derivatives: how far each leaf that is 0 but for rounding moves what it is added to, which is `own`."""
        found = self._other(path, modes, given, *where)
        if found is None:
            return []
        for i, (exact, sigma) in enumerate(zip(found.spread.exact, found.spread.sigma)):
            of = own.spread.exact[i]
            if i < values or not (alike(of + exact, of) or self._is_rounding(exact, 0.0, sigma)):
                found.spread.sigma[i], found.spread.norm[i] = np.zeros_like(sigma), 0.0
                found.deviations[i : i + 1] = [np.zeros_like(d) for d in found.deviations[i : i + 1]]
        sizes = [float(np.linalg.norm(e)) for e in own.spread.exact]
        along = [n / size if size else 0.0 for n, size in zip(found.spread.norm, sizes)]
        if found.deviations:
            along = [deviations(e, d)[2] for e, d in zip(own.spread.exact, found.deviations)]
        return [Sampled(dataclasses.replace(found.spread, along=along), found.deviations)]

    def _other(
        self, flat: programs.Flat, modes: tuple[str, ...], given: Any, device: jax.Device, worst_case: bool
    ) -> Sampled | None:
        """The samples of another function with the same outputs; None where it has no derivative, or no rule."""
        function, key = programs.whole(flat, modes), (flat, modes, *_key(given))
        try:  # what a user's code raises where it has no such derivative
            if key not in self._traces:
                self._traces[key] = None
                self._traces[key] = self._own_trace(function, given)
            if self._traces[key] is None:
                return None
            found = self._sample(function, self._traces[key], given, device, worst_case)
        except Exception:
            return None
        return None if found.spread.unknown else found

    def _is_rounding(self, one: np.ndarray, other: Any, sigma: np.ndarray) -> bool:
        """Whether leaves in float64, each of which rounding in the dtype under test would move, together by `sigma`,
        differ by no more than rounding in float64 does, in proportion of the units: of leaves that cancel to 0 nothing
        else is left."""
        share = format_of(np.float64).unit / format_of(self.dtype).unit
        with np.errstate(all="ignore"):
            gap = np.abs(np.asarray(one, np.float64) - other)
            return bool(np.all(gap <= quantile(gap.size) * share * sigma))

    def holomorphic(self, case: Case, layout: programs.Layout) -> str:
        """A note on the complex arguments in which the complex results are holomorphic at a case; "" where there are
        none, or no forward derivative.

        They are where J(iw) = i J(w) for a random w (Cauchy and Riemann), tested in float64 to 2^-26, far above its
        rounding and far below the difference of the two for a function of the conjugate.
        """
        pairs = [(i, i + 1) for i, name in enumerate(layout.outputs[:-1]) if name.endswith(".real")]
        floats, others = layout.split(case.arguments)
        kinds = [kind for kind in layout.kinds if kind != "other"]
        if not pairs or "complex" not in kinds or "jvp" not in self.modes:
            return ""
        place, found = 0, []
        generator = np.random.default_rng(5)
        for kind in kinds:
            if kind == "complex":
                real, imaginary = (generator.standard_normal(floats[place].shape) for _ in range(2))
                one, other = (self._along(floats, others, place, w) for w in ((real, imaginary), (-imaginary, real)))
                gap = [abs(other[i] + one[j]).sum() + abs(other[j] - one[i]).sum() for i, j in pairs]
                size = [abs(one[i]).sum() + abs(one[j]).sum() for i, j in pairs]
                found.append((self.names[place].removesuffix(".real"), bool(sum(gap) <= 2.0**-26 * sum(size))))
            place += 2 if kind == "complex" else 1
        words = {True: "holomorphic in", False: "not holomorphic in"}
        told = [
            f"{words[yes]} {', '.join(n for n, y in found if y is yes)}"
            for yes in words
            if any(y is yes for _, y in found)
        ]
        return f"the reference is {' and '.join(told)} at {case.label}: real and imaginary parts are judged"

    def _along(self, floats: list[Any], others: list[Any], place: int, direction: tuple[Any, Any]) -> list[np.ndarray]:
        """The tangents of the outputs in float64 as both parts at `place` move along a direction."""
        tangents = [np.zeros(x.shape) for x in floats]
        tangents[place : place + 2] = direction
        found = oracle.evaluate(programs.jvp(self.flat), floats, (others, tangents))
        return found[len(found) // 2 :]

    def _modes(self, case: Case) -> tuple[str, ...]:
        """The derivatives judged at a case, of those that it has. Of the products all at random inputs of the base
        sizes, but one at other sizes, since each is compiled."""
        products = [mode for mode in self.modes if mode not in BOTH]
        if case.edge or "vjp" not in case.modes:
            products = []
        return (
            *(mode for mode in self.modes if mode in case.modes),
            *products[: None if dict(case.sizes) == self._base else 1],
        )

    def _sample(self, function: Any, trace: Any, given: Any, device: jax.Device, worst_case: bool) -> Sampled:
        """The samples by NumPy or, for MANY numbers, by a compiled sampler, which keeps no deviations."""
        leaves = jax.tree.leaves(given)
        if sum(x.size for x in leaves) <= MANY:
            return sample(trace, leaves, self.dtype, self.precision, device, worst_case)

        def numbers(floats: Any, rest: Any) -> list[Any]:
            return [x.astype("int32") if x.dtype == bool else x for x in function(floats, rest)]

        band = Band(numbers, *given, self.dtype, self.precision, device, worst_case=worst_case)
        return Sampled(band.sample(*given), [])

    def _trace(self, function: Any, given: Any, modes: tuple[str, ...]) -> tuple[Any, Any]:
        """The jaxprs in the dtype under test and in float64."""
        key = (modes, *_key(given))
        if key not in self._traces:
            self._traces[key] = self._own_trace(function, given), oracle.trace(function, *given)
        return self._traces[key]

    def _own_trace(self, function: Any, given: Any) -> Any:
        with x64_context(self.dtype), precision_context(self.precision), jax.default_device(self._cpu):
            return jax.make_jaxpr(function)(*_shapes(given))

    def _cotangents(self, outputs: list[Any], seed: int, generator: np.random.Generator) -> list[np.ndarray]:
        """Random cotangents; for odd seeds 1 at a single entry of one output, 0 elsewhere."""
        if seed % 2 == 0 or not any(o.size for o in outputs):
            return [round_to(generator.standard_normal(o.shape), str(o.dtype)) for o in outputs]
        made = [np.zeros(o.shape, o.dtype) for o in outputs]
        chosen = made[int(generator.choice([i for i, o in enumerate(outputs) if o.size]))]
        chosen.reshape(-1)[generator.integers(chosen.size)] = 1
        return made


def widest(spread: Spread, *others: Spread) -> Spread:
    """`spread` with the largest deviations of all."""
    for other in others:
        spread = dataclasses.replace(
            spread,
            sigma=[*map(np.maximum, spread.sigma, other.sigma)],
            norm=[*map(max, spread.norm, other.norm)],
            along=[*map(max, spread.along, other.along)],
            stagnating=tuple(sorted({*spread.stagnating, *other.stagnating})),
        )
    return spread


def added(spread: Spread, *others: Spread) -> Spread:
    """`spread` with the deviations of others added, which no dependence between them can exceed (the triangle
    inequality)."""
    for other in others:
        sums = {c: [a + b for a, b in zip(getattr(spread, c), getattr(other, c))] for c in BY_LEAF[1:]}
        spread = dataclasses.replace(spread, **sums)
    return spread


def _deviation_of_sum(deviations: list[np.ndarray], weights: list[tuple[int, np.ndarray]]) -> float:
    """One standard deviation of the sum of leaves, each times its weights; infinite where no deviations were kept."""
    if not deviations:
        return math.inf
    total = np.zeros(SAMPLES)
    for place, weight in weights:
        total += deviations[place].reshape(SAMPLES, -1) @ weight.astype(np.float64).reshape(-1)
    return math.sqrt(float(np.mean(total**2)))


def _key(given: Any) -> tuple[Any, ...]:
    return tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(given))


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)


def some(spread: Spread, places: list[int]) -> Spread:
    """The spread of some of its leaves."""

    def of(column: list[Any]) -> list[Any]:
        return [column[i] for i in places]

    changed = {key: of(getattr(spread, key)) for key in BY_LEAF}
    return dataclasses.replace(spread, **changed)


def described(arguments: Any) -> str:
    """The arrays of a call in a few words: their dtypes and shapes."""
    arrays = [x for x in jax.tree.leaves(arguments) if programs.is_array(x)]
    return ", ".join(f"{x.dtype}{list(np.shape(x))}" for x in arrays)
