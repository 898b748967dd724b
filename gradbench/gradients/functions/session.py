"""One function in one dtype on one device: every case through every program, each answer judged."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterable
from typing import Any

import jax
import numpy as np

from gradbench.errors import PlanError, ProblemError, error_text
from gradbench.gradients.functions import programs
from gradbench.gradients.functions.cases import BOTH, Case, Source
from gradbench.gradients.functions.expected import MANY, Expected, Part, Reference, described
from gradbench.gradients.functions.judging import Finding, compare, inner, with_infinities
from gradbench.gradients.functions.programs import Flat, Layout
from gradbench.gradients.fuzz.search import smallest
from gradbench.gradients.rounding.band import formats, quantile
from gradbench.gradients.rounding.numbers.formats import flushes_subnormals, format_of, precision_context, x64_context
from gradbench.program.xla.jaxprs import equations

REPEATS = 5  # calls of the values at the first case, which must agree
_MAX_SEARCHED = 200  # cases tried beyond the examples, to shrink the first that fails
_MAX_SHRINKING = 12  # runs of the bisection between a size that passes and one that fails
Answer = list[np.ndarray]


class Session:
    """Judges `mine` against `reference`, both functions of (float arrays, other arrays) by `layout`, with `names` for
    printing; with `fast` without programs that take long to compile.

    Raises ProblemError where the reference cannot be called, or `mine` cannot at the first case.
    """

    def __init__(
        self,
        mine: Flat,
        reference: Flat,
        source: Source,
        layout: Layout,
        dtype: str,
        precision: str,
        device: jax.Device,
        names: tuple[str, str],
        order: int = 1,
        fast: bool = False,
    ):
        self.source, self.layout, self.dtype, self.precision, self.device = source, layout, dtype, precision, device
        self.names, self.form, self.fast = names, format_of(dtype), fast
        self.underflow = self.form.tiny if flushes_subnormals(dtype, device) else self.form.spacing / 2
        self.findings: list[Finding] = []
        self.skipped: dict[str, str] = {}
        self.notes: list[str] = []
        self.smallest = ""  # the case that a search found
        self.mine, self._plain = mine, reference
        self._runners: dict[Any, Callable[..., Any]] = {}
        base = source.case(source.base(), "given" if source.given else "random", 0)
        self.reference = Reference(
            names[1], self._plain, layout, base, dtype, precision, programs.CHECKS[1:] if order == 2 else BOTH
        )
        self.traced = self._trace(base)
        self.how = "eager" if self.traced is None else "jit"
        self.checks = ["value", *(mode for mode in self.reference.modes if self._has(mode, base))]
        # What rounds to a coarser format than the one that is claimed gets no room: that may be the fault.
        fine = self.traced is not None and all(f.unit <= self.form.unit for f in formats(self.traced))
        self._extremal = [*self.reference.extremal, *(programs.extremal(mine, self.traced) if fine else [])]

    def run(self, cases: Iterable[Case]) -> None:
        """Runs the cases and fills `findings`."""
        lanes: list[Expected] = []
        first: tuple[Expected, Answer] | None = None
        for case in cases:
            expected = self._expected(case)
            if expected is None:
                continue
            answer = self.judge("value", self.how, expected, repeats=1 if first else REPEATS, must_run=first is None)
            if first is None:
                first = expected, answer or []
                self._every_program(expected)
            elif len(lanes) == 1 and first[1]:  # after another input: shows a cached answer, or state
                self._again(*first)
            self.derivatives(expected)
            if not case.edge and dict(case.sizes) == self.source.base():
                lanes.append(expected)
        if lanes and self.traced is not None:
            for check in [check for check in self.checks[:2] if check in lanes[0].parts]:
                self._vmap(check, lanes if len(lanes) > 1 else lanes * 2)

    def _trace(self, base: Case) -> Any:
        """The jaxpr of `mine`, or None where JAX cannot trace it: it is then called as it is."""
        try:
            with self._context():
                return jax.make_jaxpr(self.mine)(*self._place(base))
        except Exception as error:
            self.skipped["jit, vmap, derivatives"] = f"JAX cannot trace {self.names[0]}: {error_text(error)}"
            return None

    def _has(self, mode: str, base: Case) -> bool:
        """Whether `mine` has this derivative. A custom rule that raises is a FAIL."""
        if self.traced is None:
            return False
        try:
            with self._context():
                programs.differentiate(self.mine, mode, self.traced, *self._place(base))
        except Exception as error:
            text = error_text(error)
            if any(e.primitive.name.startswith(f"custom_{mode}_call") for e in equations(self.traced)):
                self._fail(self._finding(mode, "jit", base), f"its rule raises {text}")
            else:
                self.skipped[mode] = f"{self.names[0]} has none: {text}"
            return False
        return True

    def _expected(self, case: Case) -> Expected | None:
        try:
            return self.reference.at(case, self.layout, self.device)
        except Exception as error:
            if not self.findings:
                text = f"{self.names[1]}: the reference cannot be interpreted: {error_text(error)}"
                raise ProblemError(text) from error
            self.skipped[case.label] = f"the reference refuses it: {error_text(error)}"
            return None

    def _every_program(self, expected: Expected) -> None:
        """The programs that are run at the first case only, since each is compiled."""
        if self.traced is None:
            return
        self.judge("value", "eager", expected)
        if "vjp" in self.checks and "vjp" in expected.parts:
            self.judge("vjp", "eager", expected)
            self.judge("vjp", "remat", expected)
            for number, name in enumerate(self.layout.names if len(self.layout.names) > 1 else ()):
                self.judge("vjp", f"of {name} alone", expected, only=number)

    def derivatives(self, expected: Expected) -> None:
        """The derivatives under jit, and one against the other: <w, Jv> = <J^T w, v>."""
        answers = {c: self.judge(c, self.how, expected) for c in self.checks[1:] if c in expected.parts}
        back, along = answers.get("vjp"), answers.get("jvp")
        if back is None or along is None or expected.case.edge:
            return
        count = len(expected.cotangents)
        with np.errstate(all="ignore"):
            one = [inner(w, t) for w, t in zip(expected.cotangents, along[count:])]
            other = [inner(t, b) for t, b in zip(expected.tangents, back[count:])]
        gap, size = abs(sum(one) - sum(other)), sum(map(abs, [*one, *other]))
        allowed = quantile(1) * expected.adjoint + 2.0**-40 * size + self.underflow
        if gap > allowed and self._extremal:
            allowed += quantile(1) * (self._with_extrema(expected).adjoint - expected.adjoint)
        if np.isfinite(gap) and np.isfinite(allowed):
            finding = self._finding("vjp against jvp", self.how, expected.case)
            verdict = "PASS" if gap <= allowed else "INCONCLUSIVE" if expected.doubt else "FAIL"
            reason = "" if verdict == "PASS" else f"<w, Jv> = {sum(one):.9g}, <J^T w, v> = {sum(other):.9g}"
            resolves = 2 * allowed / size if size else 0.0
            off = gap / allowed if gap else 0.0
            found = dataclasses.replace(finding, verdict=verdict, reason=reason, off=off, resolves=resolves)
            self.findings.append(found)

    def _again(self, expected: Expected, before: Answer) -> None:
        after = self._call("value", self.how, expected)
        if any(a.tobytes() != b.tobytes() for a, b in zip(before, after)):
            self.notes.append(f"called again at {expected.case.label}, after another input, it gives another answer")
            self._add(self._finding("value", "called again", expected.case), after, expected)

    def judge(
        self,
        check: str,
        how: str,
        expected: Expected,
        repeats: int = 1,
        must_run: bool = False,
        only: int | None = None,
    ) -> Answer | None:
        """Judge one program at one case; its answer, None where it raises. `only`: the number of one float argument."""
        case = expected.case
        finding = self._finding(check, how, case)
        try:
            answers = [self._call(check, how, expected, only) for _ in range(repeats)]
        except _Changed as error:
            self._fail(finding, str(error))
            return None
        except Exception as error:
            if must_run:
                where = f"at {described(case.arguments)}"
                raise ProblemError(f"{self.names[0]} raised {error_text(error)}; {where}") from error
            reason = f"it raises {error_text(error)}"
            if case.is_empty:  # refused with an error: no wrong number
                self.skipped[case.label] = reason
                return None
            self.findings.append(dataclasses.replace(finding, verdict="INCONCLUSIVE", reason=reason))
            return None
        distinct = {b"".join(x.tobytes() for x in leaves): leaves for leaves in answers}
        if len(distinct) > 1:
            self.notes.append(f"{check} under {how}: {len(distinct)} different answers in {repeats} calls")
        for answer in distinct.values():
            self._add(finding, answer, expected, only)
        return answers[0]

    def _call(self, check: str, how: str, expected: Expected, only: int | None = None) -> Answer:
        """The flat answer. Raises _Changed where the call changed its arguments."""
        key = (check, how)
        if key not in self._runners:
            self._runners[key] = self._build(check, how, only)
        with self._context():
            floats, others = self._place(expected.case)
            rest = _rest(check, others, expected)
            answer = [np.array(x) for x in self._runners[key](floats, rest)]
        for now, was in zip((floats, others), self.layout.split(expected.case.arguments)):
            for a, b in zip(now, was):
                if isinstance(a, jax.Array) and a.is_deleted():
                    raise _Changed("an argument is gone after the call (donated?)")
                held = self._host(a)
                if held.tobytes() != np.asarray(b).astype(held.dtype).tobytes():  # integers may be held wider
                    raise _Changed(f"an argument, {described([b])}, is changed by the call")
        return answer

    def _build(self, check: str, how: str, only: int | None) -> Callable[..., Any]:
        if only is not None:
            return jax.jit(programs.part_of(self.mine, only))
        if how == "remat":
            return jax.jit(programs.vjp(programs.remat(self.mine)))
        program = programs.BUILD[check](self.mine)
        return jax.jit(program) if how == "jit" else program

    def _place(self, case: Case) -> tuple[list[Any], list[Any]]:
        """Copies of a case's (floats, others) for one call: on the device, or NumPy arrays if `mine` is not traced."""
        split = jax.tree.map(np.array, self.layout.split(case.arguments))
        return split if getattr(self, "traced", True) is None else jax.device_put(split, self.device)

    def _host(self, array: Any) -> np.ndarray:
        return np.asarray(array)

    @contextlib.contextmanager
    def _context(self) -> Generator[None]:
        device = jax.default_device(self.device)
        with x64_context(self.dtype), precision_context(self.precision), device, np.errstate(all="ignore"):
            yield

    def _finding(self, check: str, how: str, case: Case) -> Finding:
        return Finding(check, how, case.label, "", edge=case.edge, total=case.total)

    def _fail(self, finding: Finding, reason: str) -> None:
        self.findings.append(dataclasses.replace(finding, verdict="FAIL", reason=reason, off=np.inf))

    def _compare(self, finding: Finding, got: Answer, part: Part) -> Finding:
        return compare(got, part, self.form, self.underflow, finding)

    def _add(self, finding: Finding, got: Answer, expected: Expected, only: int | None = None) -> None:
        def part(of: Expected) -> Part:
            whole = of.parts[finding.check]
            return whole if only is None else whole.some([*range(len(of.cotangents)), len(of.cotangents) + only])

        found = self._compare(finding, got, part(expected))
        if found.verdict == "FAIL" and part(expected).spread.stagnating and np.isfinite(found.off):
            worst = self.reference.at(expected.case, self.layout, self.device, worst_case=True)
            if self._compare(finding, got, part(worst)).off <= 1:
                reason = f"{'; '.join(part(expected).spread.stagnating)}; {found.reason}"
                found = dataclasses.replace(found, verdict="INCONCLUSIVE", reason=reason)
        if found.verdict == "FAIL" and np.isfinite(found.off) and self._extremal and finding.check != "value":
            wider = self._compare(finding, got, part(self._with_extrema(expected)))
            found = found if wider.off > 1 else wider
        if found.verdict == "FAIL" and only is None:
            found = (self._excused if expected.case.edge else self._between)(found, got, expected)
        if expected.doubt:
            reason = f"{expected.doubt}; {found.reason}".strip("; ")
            found = dataclasses.replace(found, verdict="INCONCLUSIVE", reason=reason)
        self.findings.append(found)

    def _with_extrema(self, expected: Expected) -> Expected:
        """The same with room for the rounding of a derivative through a maximum that cancels, which is 0: in `mine`,
        and in what the reference's own rules stand for. Sampled only for an answer that is off."""
        if expected.wider is None:
            expected.wider = self.reference.at(expected.case, self.layout, self.device, extremal=self._extremal)
        return expected.wider

    def _excused(self, found: Finding, got: Answer, expected: Expected) -> Finding:
        """INCONCLUSIVE in place of FAIL where the reference itself, run in the dtype, leaves its range or has no
        derivative; where a NaN stands for a number beyond the range; and where the reference has a kink, at which there
        is more than one derivative."""
        with self._context():
            floats, others = jax.device_put(self.layout.split(expected.case.arguments), self.device)
            program = programs.BUILD[found.check](self._plain)
            own = [np.asarray(x) for x in program(floats, _rest(found.check, others, expected))]
        part = expected.parts[found.check]
        if self._compare(found, own, part).verdict == "FAIL":
            reason = f"the reference itself, run in {self.dtype}, leaves its band here"
        elif self.dtype == "float64" and expected.case.kind == "overflow":
            reason = f"near overflow, and no wider format says what is right; {found.reason}"
        elif self._compare(found, with_infinities(got, part, self.form), part).verdict != "FAIL":
            reason = f"the right number lies beyond {self.dtype}'s range, and so may parts that add up to it"
        elif found.check != "value" and self.reference.kinked and np.isfinite(found.off):
            reason = f"the reference may have a kink here, and another derivative; {found.reason}"
        else:
            return found
        return dataclasses.replace(found, verdict="INCONCLUSIVE", reason=reason)

    def _between(self, found: Finding, got: Answer, expected: Expected) -> Finding:
        """INCONCLUSIVE in place of FAIL where another derivative is due to inputs that are equal by chance."""
        if found.check == "value" or not self.reference.kinked or not np.isfinite(found.off):
            return found
        between = self.reference.between(expected, self.layout, found.check, got)
        decides = self._compare(found, between, expected.parts[found.check]).verdict == "FAIL"
        reason = f"inputs are equal, and the reference may have a kink there; {found.reason}"
        return found if decides else dataclasses.replace(found, verdict="INCONCLUSIVE", reason=reason)

    def _vmap(self, check: str, lanes: list[Expected]) -> None:
        """The cases of the base sizes in one vmap, each lane judged separately."""
        try:
            with self._context():
                each = [(floats, _rest(check, others, e)) for e in lanes for floats, others in [self._place(e.case)]]
                batch = jax.tree.map(lambda *xs: np.stack(list(map(np.asarray, xs))), *each)
                out = [np.asarray(x) for x in jax.jit(jax.vmap(programs.BUILD[check](self.mine)))(*batch)]
        except Exception as error:
            self.skipped[f"{check} under vmap"] = error_text(error)
            return
        for lane, expected in enumerate(lanes):
            finding = self._finding(check, "vmap", expected.case)
            self._add(finding, [x[lane] for x in out], expected)

    def search(self, examples: int) -> None:
        """Judge the values and derivatives at up to `examples` cases beyond the list; the smallest that fails is kept.

        All their answers together have the error probability of one (Bonferroni): what fails must be off by more than
        the ratio of the two quantiles. A case has an answer for each check, and one for VJP against JVP.
        """
        if not examples:
            return
        answers = len(self.checks) + (set(BOTH) <= set(self.checks))
        share = quantile(answers * examples) / quantile(1)
        counts, chosen = self.source.searched()
        tried: dict[str, list[Finding]] = {}

        def fails(choice: tuple[int, ...]) -> bool | None:
            try:
                case = chosen(choice)
            except PlanError:  # sizes at which nothing lies in a declared range
                return None
            if case.total > MANY:
                return None
            if case.label not in tried and len(tried) < examples + _MAX_SEARCHED:
                before = len(self.findings)
                expected = self._expected(case)
                if expected is not None:
                    self.judge("value", self.how, expected)
                    self.derivatives(expected)
                new = self.findings[before:]
                self.findings[before:] = [f for f in new if f.verdict != "FAIL"]
                tried[case.label] = [f for f in new if f.verdict == "FAIL" and f.off > share]
            return bool(tried.get(case.label))

        found = smallest(fails, counts, examples)
        self.notes.append(f"{len(tried)} cases beyond the list were searched in {self.dtype}")
        if found is not None:
            self.smallest = chosen(found).label
            self.findings += tried[self.smallest]

    def shrink(self, worst: Finding) -> Finding:
        """The failure with its letters' sizes reduced one after another, by bisection from a size that passes."""
        case = self.source.one(worst.case)
        runs = _MAX_SHRINKING
        for letter, size in dict(case.sizes).items():
            passing = max((s for s in self._passing(worst, letter, case) if s < size), default=0)
            while size - passing > 1 and runs:
                runs -= 1
                middle = (passing + size) // 2
                tried = self._once(worst, {**case.sizes, letter: middle})
                if tried is None or tried.verdict != "FAIL":
                    passing = middle
                else:
                    worst, size, case = tried, middle, self.source.one(tried.case)
        return worst

    def _passing(self, worst: Finding, letter: str, case: Case) -> list[int]:
        """Sizes of a letter at which the same program passes, with the other letters as they are in `case`."""
        like = (worst.check, worst.program, "PASS")
        same = [f for f in self.findings if (f.check, f.program, f.verdict) == like]
        sizes = [dict(self.source.one(f.case).sizes) for f in same]
        return [s[letter] for s in sizes if {**s, letter: 0} == {**case.sizes, letter: 0}]

    def _once(self, like: Finding, sizes: dict[str, int]) -> Finding | None:
        """The finding of one program at other sizes; None where they are not allowed, or nothing is found."""
        if not self.source.allows(sizes) or like.check not in self.checks or like.program != self.how:
            return None
        expected = self._expected(self.source.case(sizes, "random", 0, (like.check,)))
        if expected is None:
            return None
        self.judge(like.check, self.how, expected)
        return self.findings[-1]


class _Changed(Exception):
    """A call changed one of its arguments."""


def _rest(check: str, others: list[Any], expected: Expected) -> Any:
    if check == "value":
        return others
    return others, programs.rest(check, expected.cotangents, expected.tangents)
