"""Runs a jaxpr in float64 twice at once: exactly, and with the rounding noise of the dtypes it was traced in.

Every float of the trace is widened to float64; what the narrower format would have done to it enters as noise, by the
rules of `primitives`. Nothing is executed as traced: calls are inlined, scan, while and cond are rebuilt around their
interpreted bodies, nested to any depth.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import numpy as np
from jax import lax

from gradbench.gradients.rounding import orders, special
from gradbench.gradients.rounding import primitives as rounding
from gradbench.gradients.rounding.numbers import formats, noise
from gradbench.gradients.rounding.numbers.arrays import jnp
from gradbench.gradients.rounding.numbers.formats import INPUT_UNIT, Format, format_of, input_class
from gradbench.gradients.rounding.pairs import (
    Flags,
    Pair,
    decision_can_change,
    is_float,
    is_float_array,
    lanes,
    leaves_range,
    loses_reciprocal,
    reach,
    same,
    wide,
    widen,
)
from gradbench.program.xla.jaxprs import bind, called, evaluate, open_jaxpr, scan_counts, with_combiner

MAX_ITERATIONS = 10**5  # iterations of a while loop, which may never end outside a loss's domain


class Interpreter:
    """One interpretation of one trace.

    Args:
        seed: a uint32 scalar that picks the noise (may be batched by vmap), or None for no noise at all.
        device: the device whose rounding is modelled.
        flushes: `flushes(dtype) -> bool`, whether that device turns subnormals to zero.
        scale: the noise is drawn this many times too large, and the caller divides by it: float64's own noise would
            otherwise be hidden by the rounding of the interpretation itself.
        assume: take this input class for every float32 matrix product instead of the one in force.
        worst_case: sums that may stagnate lose up to the sum of their terms' magnitudes, and a loop rounds each entry
            the same way in every iteration (a constant added within one binade does).

    After a run, `unknown` names the primitives without a rule, and `stagnating` says which sums (k u >= 1) and loops
    the random model may not hold for, and why.
    """

    def __init__(self, seed, device, flushes, scale=1.0, assume=None, worst_case=False):
        self.seed, self.device, self.flushes = seed, device, flushes
        self.scale, self.assume, self.worst_case = scale, assume, worst_case
        self.unknown: set[str] = set()
        self.stagnating: set[str] = set()
        self._start: Any = None if seed is None else noise.start(seed)
        self._salts = itertools.count(1)
        self._loops = 0  # the depth of nested loops
        self._folding, self._sums = orders.Folding(), orders.Sums()

    @np.errstate(all="ignore")  # of constants, which NumPy computes
    def run(self, jaxpr: Any, consts: list[Any], arguments: list[Pair]) -> tuple[list[Pair], Flags]:
        """The outputs of an open jaxpr. Raises what a primitive raises when it cannot be run wide."""
        flags = Flags()

        def step(equation: Any, operands: list[Pair]) -> list[Pair]:
            nonlocal flags
            outputs, raised = self.equation(equation, operands)
            flags = flags.add(raised)
            return outputs

        known = [self.constant(c, v.aval.dtype) for c, v in zip(consts, jaxpr.constvars)]
        outputs = evaluate(jaxpr, known, arguments, step, lambda value, aval: self.constant(value, aval.dtype))
        return outputs, flags

    def constant(self, value: Any, dtype: Any) -> Pair:
        """A constant of the trace: rounded when it was traced, unless it needs at most half the format's digits. In an
        array of which one entry was rounded the others may have been: 1 may be the cosine of a small angle."""
        if not jnp.issubdtype(dtype, jnp.inexact):
            # A whole number of the trace may be Python's, whose own dtype is int64.
            return same(value if isinstance(value, jax.Array) else np.asarray(value, dtype))
        array = np.asarray(value).astype(wide(dtype))
        if self.seed is None or formats.has_few_digits(array, format_of(dtype)):
            return same(jnp.asarray(array))
        if np.iscomplexobj(array):
            real, imaginary = self._rounded_constant(array.real, dtype), self._rounded_constant(array.imag, dtype)
            return Pair(jnp.asarray(array), real.noisy + 1j * imaginary.noisy)
        return self._rounded_constant(array, dtype)

    def _rounded_constant(self, array: np.ndarray, dtype: Any) -> Pair:
        exact, form = jnp.asarray(array), format_of(dtype)
        size = np.where(array == 0, 0.0, np.maximum(np.abs(array) * form.unit, form.spacing / 2))
        return Pair(exact, self.add(exact, exact, jnp.asarray(size), salt=0))

    def add(self, noisy: Any, exact: Any, amplitude: Any, salt: int | None = None, picks: Any = None) -> Any:
        """`noisy` plus noise of that amplitude; zero and infinity stay as they are. The exact value picks the noise,
        or `picks`, which broadcasts to it."""
        if self.seed is None:
            return noisy
        word = self._start * noise.odd(next(self._salts) if salt is None else salt)
        picks = self._picks(exact) if picks is None else picks
        return noise.perturbed(noisy, exact, amplitude, picks, word, self.scale)

    def _picks(self, exact: Any) -> Any:
        """What picks the noise: the value; in a loop's worst case the place, so that every iteration rounds alike."""
        if not (self.worst_case and self._loops):
            return exact
        return noise.places(exact)

    def turn(self, body: Any, consts: list[Any], arguments: list[Pair], kind: str) -> tuple[list[Pair], Flags]:
        """One iteration of a loop."""
        dtype = next((v.aval.dtype for v in body.outvars if jnp.issubdtype(v.aval.dtype, jnp.inexact)), None)
        if dtype is not None:
            self.stagnating.add(f"{kind} in {format_of(dtype).name} may round the same way at each iteration")
        self._loops += 1
        outputs = self.run(body, consts, arguments)
        self._loops -= 1
        return outputs

    def underflow(self, dtype: Any) -> float:
        form = format_of(dtype)
        return form.tiny if self.flushes(form.name) else form.spacing / 2

    def equation(self, equation: Any, ins: list[Pair]) -> tuple[list[Pair], Flags]:
        """The results of one equation: a call is inlined, a loop or branch rebuilt, anything else is a primitive."""
        name, params = equation.primitive.name, equation.params
        if not equation.outvars:  # jax.debug.print
            return [], Flags()
        call = called(equation, ins)
        if call:
            inside = call[0]
            for followed in (self._folding, self._sums):
                followed.renamed(equation.invars, inside.invars)
            found = self.run(*call)
            for followed in (self._folding, self._sums):
                followed.renamed(inside.outvars, equation.outvars)
            return found
        self._folding.see(equation)
        control = {"scan": self.scan, "while": self.loop, "cond": self.branch}.get(name)
        if control:
            return control(params, ins)
        return self.primitive(equation, name, params, ins)

    def primitive(self, equation: Any, name: str, params: dict[str, Any], ins: list[Pair]) -> tuple[list[Pair], Flags]:
        """The results of a primitive, exact and with the noise of its own rounding, and its flags."""
        dtypes = [v.aval.dtype for v in equation.invars]
        outs = [v.aval.dtype for v in equation.outvars]
        as_traced = name in ("bitcast_convert_type", "nextafter")  # these work on the bits of the narrow format
        units = rounding.units(name, params)
        if name in rounding.OF_MODULUS and jnp.issubdtype(dtypes[0], jnp.complexfloating):
            units = rounding.MODULUS_UNITS
        if units is None and name not in _KNOWN and any(jnp.issubdtype(d, jnp.inexact) for d in [*dtypes, *outs]):
            self.unknown.add(name)
            as_traced = True
        if name in ("dot_general", "conv_general_dilated"):
            ins = [self.rounded_input(p, d, params["precision"]) for p, d in zip(ins, dtypes)]
        if name in rounding.BACKWARD_STABLE:
            ins = [self.perturbed_input(p, d) for p, d in zip(ins, dtypes)]

        wide_params = widen(params)
        if params.get("update_jaxpr") is not None:  # a scatter carries its combiner as a trace of the narrow dtype
            combiner = jax.make_jaxpr(rounding.COMBINERS[name.replace("-", "_")])(*[jnp.zeros((), wide(outs[0]))] * 2)
            wide_params = with_combiner(wide_params, combiner)

        def results_of(operands: list[Any]) -> Any:
            if as_traced:
                operands = [x.astype(d) if is_float(x) else x for x, d in zip(operands, dtypes)]
            elif name == "reduce_precision":
                return operands[0]
            results = self.results(equation, operands, params if as_traced else wide_params)
            return results if equation.primitive.multiple_results else results[0]

        exact = results_of([p.exact for p in ins])
        reached = any(p.noisy is not p.exact for p in ins)
        decision = name in rounding.DECISIONS or (name == "convert_element_type" and not is_float(exact))
        noisy_in = [reach(p) if decision and name not in ("eq", "ne") else p.noisy for p in ins]
        noisy = results_of(noisy_in) if reached else exact
        flags = Flags()
        if self.seed is not None:
            self._sums.see(equation, results_of, [p.exact for p in ins])
        if reached and (name in ("eq", "ne") or name in rounding.SELECTIONS):
            flags = flags._replace(tie=decision_can_change(name, ins, exact, noisy))
        if not equation.primitive.multiple_results:
            exact, noisy = [exact], [noisy]
        results = []
        for e, n, dtype in zip(exact, noisy, outs):
            # Only float16's range is so narrow that a right program may leave it in between.
            if is_float_array(e) and dtype == np.float16 and name not in rounding.EXACT | {"reduce_precision"}:
                flags = flags.add(Flags(overflow=leaves_range(e, format_of(dtype))))
            if name == "div" and is_float_array(e):
                flags = flags._replace(reciprocal=loses_reciprocal(e, ins[1].exact, format_of(dtype)))
            amplitude = self.amplitude(name, params, results_of, ins, e, dtypes, dtype, units)
            if amplitude is not None:
                n = self.rounded(equation, ins, Pair(e, n), amplitude, results_of, dtype)
                n, raised = self.reordered(equation, ins, Pair(e, n), format_of(dtype))
                flags = flags.add(raised)
            results.append(Pair(e, n))
        return results, flags

    def rounded(self, equation: Any, ins: list[Pair], found: Pair, amplitude: Any, bind: Any, dtype: Any) -> Any:
        """A result with its operands' noise, plus its own: of that amplitude, and shared."""
        name, form, exact = equation.primitive.name, format_of(dtype), found.exact
        if name in special.IN_STEPS:
            found = Pair(exact, found.noisy + self.accumulated(name, equation.params, ins[0].exact, exact, dtype))
        kept = exact
        if name in rounding.SUMS:  # a sum that cancels to 0 has rounded before; a sum of zeros has not
            kept = jnp.where((exact == 0) & (amplitude > self.underflow(dtype)), 1.0, exact)
        picks = [self._picks(exact)]
        if name in rounding.ADDITIONS and picks[0] is exact and not jnp.iscomplexobj(exact):
            one, other = (p.exact for p in ins)
            other = -other if name == "sub" else other
            picks = [noise.place_on_grid(exact, a, b, form.digits) for a, b in ((one, other), (other, one))]
            amplitude = amplitude * noise.direction(exact)
        noisy, salt = found.noisy, next(self._salts)
        for each in picks:
            noisy = self.add(noisy, kept, amplitude / math.sqrt(len(picks)), salt, each)
        noisy = self.shared(equation, ins, exact, noisy, form)
        if name == "conv_general_dilated" and self.device.platform != "cpu":
            spread = rounding.transform_amplitude(bind, equation.params, [p.exact for p in ins])
            spread = spread * min(form.unit, format_of(jnp.float32).unit)
            noisy = self.add(noisy, jnp.ones_like(exact), spread, picks=noise.places(exact))
        if name in rounding.ONE_ROUNDING and not jnp.iscomplexobj(exact):
            # One correctly rounded operation on exact operands: exact where its result fits the format.
            moved = [p for p in ins if p.noisy is not p.exact]
            noisy = noise.unless_held(exact, noisy, moved, form.digits)
        return noisy

    def reordered(self, equation: Any, ins: list[Pair], found: Pair, form: Format) -> tuple[Any, Flags]:
        """A result with the roundings of other orders of its addends, where it is a sum of sums, and the flag that one
        of these may leave the format's range."""
        others = self._sums.in_other_orders(equation, [p.exact for p in ins], found.exact, form)
        if others is None:
            return found.noisy, Flags()
        size = form.unit * others[0]
        kept = jnp.where(found.exact == 0, 1.0, found.exact)  # a sum that cancels to 0 has rounded before
        noisy = self.add(found.noisy, kept, size)
        for place in self._folding.of_sum(equation):
            noisy = self.add(noisy, kept, size, picks=ins[place].exact)
        return noisy, Flags(overflow=others[1])

    def accumulated(self, name: str, params: dict[str, Any], terms: Any, exact: Any, dtype: Any) -> Any:
        """The errors of what is computed in steps: see `special`."""
        salt, by_value = next(self._salts), not (self.worst_case and self._loops)

        def draw(of: Any, amplitude: Any, *picks: Any) -> Any:
            drawn, picks = jnp.zeros_like(of), picks if by_value else (noise.places(of),)
            for each in picks:
                drawn = self.add(drawn, of, amplitude / math.sqrt(len(picks)), salt, each)
            return drawn

        params, form = params | {"rank": np.ndim(exact)}, format_of(dtype)
        return special.accumulated(name, params, terms, exact, form, self.underflow(dtype), draw)

    def results(self, equation: Any, operands: list[Any], params: dict[str, Any]) -> list[Any]:
        """The primitive's own results, floats as float64."""
        results = bind(equation, operands, params)
        return [x.astype(wide(x.dtype)) if is_float_array(x) else x for x in results]

    def shared(self, equation: Any, ins: list[Pair], exact: Any, noisy: Any, form: Format) -> Any:
        """`noisy` with the roundings that many entries share, by the rules of `primitives`."""
        name = equation.primitive.name  # shared roundings are relative: their amplitudes have the sign of the value
        if name == "div":
            return self.add(noisy, exact, form.unit * exact, rounding.RECIPROCAL, picks=ins[1].exact)
        if name == "mul":
            for place in self._folding.of_product(equation):
                noisy = self.add(noisy, exact, form.unit * exact, picks=ins[place].exact)
        if name == "pow":
            amplitude = math.sqrt(0.5) * form.unit * rounding.factors(ins[1].exact, form.digits) * exact
            noisy = self.add(noisy, exact, amplitude, picks=ins[0].exact)
        if name in rounding.ELEMENTARY:
            amplitude = rounding.SHARED_UNITS * min(form.unit, format_of(jnp.float32).unit) * exact
            return self.add(noisy, exact, amplitude, picks=noise.leading(exact))
        return noisy

    def amplitude(self, name, params, bind, ins, exact, dtypes, dtype, units) -> Any:
        """How far rounding may take this result, or None where it is exact. Rules: the docstring of `primitives`."""
        if self.seed is None or not is_float_array(exact):
            return None
        if units is None and name in rounding.EXACT and name not in ("convert_element_type", "reduce_precision"):
            return None
        form = format_of(dtype)

        def roundings(units: float = 1.0) -> Any:
            return noise.rounding_of(exact, units * form.unit, units * self.underflow(dtype))

        if units is not None:
            own = roundings(units - rounding.SHARED_UNITS * (name in rounding.ELEMENTARY and form.digits >= 24))
            return own + rounding.within(name, ins[0].exact, exact, form) if name in rounding.EXPANDED else own
        if name in special.SPECIAL:
            unit = min(form.unit, format_of(jnp.float32).unit)
            size = special.amplitude(name, bind, [p.exact for p in ins], exact)
            return roundings() + rounding.ELEMENTARY_UNITS * unit * size
        if name == "one_minus_square":  # 1 - x^2, its square rounded too
            return roundings() + form.unit * jnp.abs(1 - exact)
        if name == "polynomial":
            return 2 * (len(ins) - 1) * (form.unit * bind([jnp.abs(p.exact) for p in ins]) + self.underflow(dtype))
        if name == "convert_element_type":
            if not jnp.issubdtype(dtypes[0], jnp.inexact):
                return jnp.where(jnp.abs(exact) <= 2.0**form.digits, 0.0, form.unit * jnp.abs(exact))
            return roundings() if format_of(dtypes[0]).digits > form.digits or form.name == "float16" else None
        if name == "reduce_precision":
            return 2.0 ** -(params["mantissa_bits"] + 1) * jnp.abs(exact)
        if name in rounding.SUMS:
            narrow = form.digits < 24 and name in ("dot_general", "conv_general_dilated")
            unit = format_of(jnp.float32).unit if narrow else form.unit  # matrix units accumulate in float32
            operands = [p.exact for p in ins]
            k = rounding.sum_terms(name, params, operands)
            if k is not None and k * unit >= 1:
                self.stagnating.add(f"the terms of {name} of {k:.0f} terms in {form.name} may be lost")
                if self.worst_case:
                    return bind([jnp.abs(x) if is_float(x) else x for x in operands])
            return roundings() + unit * rounding.sum_amplitude(name, bind, params, operands, exact)
        if name in ("cumprod", "reduce_prod"):
            return jnp.zeros_like(jnp.abs(exact))  # that of its steps: `accumulated`
        if name == "cumlogsumexp":
            return roundings() + special.STEP_UNITS * form.unit * special.from_largest(params, ins[0].exact, exact)
        if name in rounding.PRODUCTS:
            return roundings(rounding.ELEMENTARY_UNITS * math.sqrt(max(1, ins[0].exact.size)))
        if name in rounding.BACKWARD_STABLE:
            return roundings()
        size = jnp.sqrt(jnp.mean(jnp.abs(exact) ** 2))  # of a primitive without a rule
        return rounding.ELEMENTARY_UNITS * (roundings() + form.unit * size)

    def rounded_input(self, pair: Pair, dtype: Any, precision: Any) -> Pair:
        """An operand of a matrix product as the precision class in force may round it."""
        kind = self.assume or input_class(formats.precision_word(precision), self.device)
        if self.seed is None or np.dtype(dtype) != np.float32 or kind == "full":
            return pair
        return Pair(pair.exact, self.add(pair.noisy, pair.exact, INPUT_UNIT[kind] * jnp.abs(pair.exact), salt=0))

    def perturbed_input(self, pair: Pair, dtype: Any) -> Pair:
        """An operand of a backward stable factorisation, changed normwise by sqrt(n) units."""
        if self.seed is None or not is_float(pair.exact):
            return pair
        n = max(pair.exact.shape[-2:], default=1)
        axes = tuple(range(max(pair.exact.ndim - 2, 0), pair.exact.ndim))
        size = jnp.sqrt(jnp.mean(jnp.abs(pair.exact) ** 2, axis=axes, keepdims=True))
        amplitude = math.sqrt(n) * format_of(dtype).unit * size
        return Pair(pair.exact, self.add(pair.noisy, pair.exact, jnp.broadcast_to(amplitude, pair.exact.shape)))

    def scan(self, params: dict[str, Any], ins: list[Pair]) -> tuple[list[Pair], Flags]:
        consts, carried = scan_counts(params)
        body, body_consts = open_jaxpr(params["jaxpr"])
        self._sums.carried(body.invars[consts : consts + carried])

        def step(state, slices):
            carry, flags = state
            outputs, raised = self.turn(body, body_consts, [*ins[:consts], *carry, *slices], "a scan")
            return (outputs[:carried], flags.add(raised)), outputs[carried:]

        start = (ins[consts : consts + carried], Flags())
        (carry, flags), stacked = lax.scan(
            step, start, ins[consts + carried :], length=params["length"], reverse=params["reverse"]
        )
        return [*carry, *stacked], flags

    def loop(self, params: dict[str, Any], ins: list[Pair]) -> tuple[list[Pair], Flags]:
        """A while loop iterates as often as without noise; a noisy condition that disagrees, or stopping at
        MAX_ITERATIONS, raises the tie flag."""
        test, body = open_jaxpr(params["cond_jaxpr"]), open_jaxpr(params["body_jaxpr"])
        tests, bodies = params["cond_nconsts"], params["body_nconsts"]
        test_consts, body_consts = ins[:tests], ins[tests : tests + bodies]
        self._sums.carried(body[0].invars[bodies:])

        def condition(carry):
            return self.run(*test, [*test_consts, *carry])[0][0]

        def step(state):
            carry, flags, turns = state
            outputs, raised = self.turn(*body, [*body_consts, *carry], "a while loop")
            if test[0].outvars[0].aval.shape:
                outputs = lanes(condition(carry).exact, outputs, carry)
            again = condition(outputs)
            differ = jnp.any((again.exact != again.noisy) | (again.exact & (turns + 1 == MAX_ITERATIONS)))
            return outputs, flags.add(raised)._replace(tie=flags.tie | raised.tie | differ), turns + 1

        def goes_on(state):
            return jnp.any(condition(state[0]).exact) & (state[2] < MAX_ITERATIONS)

        return lax.while_loop(goes_on, step, (list(ins[tests + bodies :]), Flags(), 0))[:2]

    def branch(self, params: dict[str, Any], ins: list[Pair]) -> tuple[list[Pair], Flags]:
        """A cond takes the branch it takes without noise; a noisy index that disagrees raises the tie flag."""
        index, operands = ins[0], ins[1:]
        branches = [lambda b=b: self.run(*open_jaxpr(b), operands) for b in params["branches"]]
        outputs, flags = lax.switch(index.exact.astype(jnp.int32), branches)
        return outputs, flags._replace(tie=flags.tie | (index.exact != index.noisy))


_KNOWN = rounding.EXACT | rounding.SUMS | rounding.PRODUCTS | rounding.BACKWARD_STABLE | special.SPECIAL
_KNOWN |= {"one_minus_square", "polynomial"}
