"""check_function and assert_function: a function of arrays against a reference, or against itself."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.errors import GradbenchError, PlanError, ProblemError, error_text
from gradbench.gradients.formula import derivative as formula
from gradbench.gradients.formula import oracle
from gradbench.gradients.formula.noise import sample
from gradbench.gradients.functions import programs
from gradbench.gradients.functions.arguments import COMPLEX
from gradbench.gradients.functions.cases import ONE_BY_ONE, Case, Source, from_letters, is_complex_array, is_float_array
from gradbench.gradients.functions.programs import Layout
from gradbench.gradients.functions.report import FunctionReport, FunctionRow
from gradbench.gradients.functions.session import Session
from gradbench.gradients.fuzz.search import known
from gradbench.gradients.rounding.band import Spread
from gradbench.gradients.rounding.numbers.formats import format_of, round_to
from gradbench.gradients.second import check as second
from gradbench.inputs.problem import Problem
from gradbench.inputs.specs import checks
from gradbench.inputs.specs.checks import DTYPES, PRECISIONS, one_of
from gradbench.inputs.specs.rates import as_list
from gradbench.machine.devices import devices_to_check

LOG = logging.getLogger(__name__)
# What the check cannot see into.
OPAQUE = frozenset(
    {"pallas_call", "pure_callback", "io_callback", "ffi_call", "custom_partitioning", "tpu_custom_call"}
)
Inputs = str | Callable[[jax.Array], Any]


def check_function(
    mine: Callable[..., Any],
    *arguments: Any,
    reference: Callable[..., Any] | None = None,
    inputs: Inputs | None = None,
    dtype: str | Sequence[str] | None = None,
    precision: str = "highest",
    device: str | None = None,
    fast: bool = False,
    case: str | None = None,
    order: int = 1,
    search: int = 0,
) -> FunctionReport:
    """Judge the values, VJP and JVP of `mine`, over sizes and inputs that hide faults, within what rounding allows.

    Args:
        mine: a function of pytrees of arrays that returns one. It may be opaque (a Pallas kernel, an FFI call, a
            callback, a function of NumPy's arrays); what cannot be differentiated is judged by its values.
        arguments: it is called with these, and near them: arrays and, passed as they are, anything else. Floats are
            cast to the dtype under test.
        reference: a function of the same arguments, written with jax.numpy, that says what is right. Where it is None
            `mine` is judged against itself: its custom rules taken out and differentiated natively, by differences in
            float64, and every program against float64.
        inputs: in place of arguments: shapes by letters, "x: f32[n,d], idx: i32[n] in 0..n" (see
            `functions.arguments`), or a function `cases(key)` that returns a tuple of arguments, or a list of tuples.
        dtype: one or more of float64, float32, bfloat16, float16; None for that of the arguments.
        precision: highest, tf32 or default; how float32 matrix products may be computed.
        device: None for JAX's default device, "cpu", "gpu" or "tpu".
        fast: only the base sizes and one more than a tile; no special inputs.
        case: run only this case, as a report names it: "n=129,d=3,random,0".
        order: 2 judges Hessian-vector products of <w, mine> too, w random, at random inputs.
        search: how many more cases, at most, Hypothesis draws (sizes, inputs, seeds); it shrinks one that fails. It
            must be installed.

    Returns a FunctionReport; nothing is printed. Raises ProblemError for functions and arguments that do not fit
    together, and PlanError for a bad option.
    """
    return Check(mine, arguments, reference, inputs).run(dtype, precision, device, fast, case, order, search)


def assert_function(mine: Callable[..., Any], *arguments: Any, strict: bool = False, **options: Any) -> None:
    """Raise AssertionError with the report's text if `check_function(mine, *arguments, **options)` finds a fault.

    With `strict` an INCONCLUSIVE verdict raises too.
    """
    report = check_function(mine, *arguments, **options)
    if report.verdict == "FAIL" or (strict and report.verdict != "PASS"):
        raise AssertionError(f"\n{report}")


class Check:
    """The functions and their inputs; `names` are for printing, `command` reproduces a finding."""

    def __init__(
        self,
        mine: Callable[..., Any],
        arguments: tuple[Any, ...],
        reference: Callable[..., Any] | None,
        inputs: Inputs | None,
        names: tuple[str, str] | None = None,
        command: str = "",
    ):
        if not callable(mine) or not (reference is None or callable(reference)):
            raise ProblemError(f"{mine if not callable(mine) else reference!r}: not a function")
        if bool(arguments) == (inputs is not None):
            raise PlanError(
                "give arguments, or inputs: shapes by letters such as 'x: f32[n,d], w: f32[d,k]', or cases(key)"
            )
        if not (inputs is None or isinstance(inputs, str) or callable(inputs)):
            raise PlanError(f"inputs is a {type(inputs).__name__}; give arguments one by one: check_function(f, x, y)")
        self.mine, self.arguments, self.reference, self.inputs = mine, arguments, reference, inputs
        self.names = names or (_name(mine), "" if reference is None else _name(reference))
        self.command, self.call = command, not command

    def run(
        self,
        dtype: str | Sequence[str] | None,
        precision: str,
        device: str | None,
        fast: bool,
        case: str | None,
        order: int = 1,
        search: int = 0,
    ) -> FunctionReport:
        """See `check_function`."""
        started = time.perf_counter()
        asked = [dtype] if isinstance(dtype, str) else as_list(dtype)
        asked = [checks.or_none(checks.dtype)("dtype", d) for d in asked]
        one_of(PRECISIONS)("precision", precision)
        second.known(order)
        known(search, case)
        target = devices_to_check(device)[0]
        report = FunctionReport(*self.names, [], [], [], {}, [], 0, 0.0, self.command or self._call(), self.call)
        for one in asked:
            source, used = self.source(one)
            LOG.info("%s in %s", self.names[0], used)
            base = source.case(source.base(), "given" if source.given else "random", 0)
            layout = Layout.of(base.arguments, self._argument_names(len(base.arguments)))
            if "complex" in layout.kinds and used not in COMPLEX:
                raise PlanError(f"dtype={used}: an argument is complex; complex numbers have {' or '.join(COMPLEX)}")
            layout = layout.with_outputs(self.reference or self.mine, base.arguments)
            session_in = functools.partial(
                getattr(self.mine, "session", Session),  # a function of another library has its own
                mine=layout.flat(self.mine),
                reference=layout.flat(self.reference) if self.reference else self._itself(base, layout),
                source=source,
                layout=layout,
                precision=precision,
                device=target,
                names=(self.names[0], self.names[1] or f"{self.names[0]} without its rules"),
                order=order,
                fast=fast,
            )
            session = session_in(dtype=used)
            session.run(iter([source.one(case)]) if case else source.cases(fast))
            session.search(search)
            report.rows += _rows(session, shrink=case is None)
            report.cases = len({f.case for f in session.findings})
            report.skipped |= session.skipped
            told = [session.reference.holomorphic(base, layout), _lost_digits(session, report.rows, session_in)]
            told += [_not_finite([row for row in report.rows if row.dtype == used])]
            report.notes += [*session.notes, *filter(None, told)]
            self._in_float64(report, session, base, layout, order, fast)
        report.seconds = time.perf_counter() - started
        return report

    def _in_float64(
        self, report: FunctionReport, session: Session, base: Case, layout: Layout, order: int, fast: bool
    ) -> None:
        """Once: tests of its derivative, where there is no reference, and with `order` 2 of its Hessian-vector
        products."""
        if self.reference is None and not report.formula:
            try:
                report.formula += self._formula(*self._scalar(base, layout), fast)
            except Exception as error:
                reason = f"its derivative cannot be run in float64: {error_text(error)}"
                report.formula.append(formula.Test("finite differences", "INCONCLUSIVE", reason))
        if order == 2 and not report.second and session.traced is not None:
            try:
                report.second += self._second(*self._scalar(base, layout), fast)
            except Exception as error:
                report.second.append(second.undecided(error))

    def source(self, dtype: str | None) -> tuple[Source, str]:
        """Where cases come from, and the dtype under test."""
        if isinstance(self.inputs, str):
            return from_letters(self.inputs, dtype)
        if self.inputs is None:
            given, letters = [self.arguments], ()
        else:
            given, letters = _listed(self.inputs, 0), ("case",) * (len(_listed(self.inputs, 0)) > 1)
        leaves = jax.tree.leaves(given)
        own = [str(x.dtype) for x in leaves if is_float_array(x)]
        own += [str(x.real.dtype) for x in leaves if is_complex_array(x)]
        used = dtype or min(own, key=lambda d: (format_of(d).digits, DTYPES.index(d)), default="float32")

        def draw(sizes: Any, generator: np.random.Generator) -> tuple[Any, ...]:
            drawn = _listed(self.inputs, int(generator.integers(2**31))) if callable(self.inputs) else given
            chosen = drawn[sizes.get("case", 0)]
            return jax.tree.map(lambda x: _cast(x, dtype, used), chosen)

        allowed = {"case": tuple(range(len(given)))} if letters else {}
        return Source(draw, letters, allowed, given=self.inputs is None), used

    def _argument_names(self, count: int) -> tuple[str, ...]:
        try:
            names = [name for name, p in inspect.signature(self.mine).parameters.items() if p.kind != p.VAR_POSITIONAL]
        except (TypeError, ValueError):  # some built-in functions have no signature
            names = []
        return tuple([*names, *(f"argument{i}" for i in range(len(names), count))][:count])

    def _call(self) -> str:
        if self.inputs is None:
            given = ", ".join(self._argument_names(len(self.arguments)))
        else:
            given = f"inputs={self.inputs!r}" if isinstance(self.inputs, str) else f"inputs={_name(self.inputs)}"
        against = f", reference={self.names[1]}" if self.reference else ""
        return f"gradbench.check_function({self.names[0]}, {given}{against}"

    def _itself(self, base: Case, layout: Layout) -> programs.Flat:
        """The function without its custom rules. Raises ProblemError where it is opaque."""
        try:
            trace = oracle.trace(layout.flat(self.mine), *layout.split(base.arguments))
        except Exception as error:
            text = f"{self.names[0]}: JAX cannot trace it ({error_text(error)})"
            raise ProblemError(f"{text}; give a reference: --against FILE.py:plain, reference=plain") from error
        hidden = sorted(OPAQUE & oracle.primitives(trace))
        if hidden:
            text = f"{self.names[0]}: nothing is known of what {', '.join(hidden)} should compute"
            raise ProblemError(f"{text}; give a reference: --against FILE.py:plain, reference=plain")
        return programs.without_rules(layout.flat(self.mine))

    def _scalar(self, base: Case, layout: Layout) -> tuple[Problem, oracle.Point]:
        """<w, mine>, w random, as a problem, and the point of its check. Raises what tracing in float64 raises."""
        floats, others = layout.split(base.arguments)
        flat, generator = layout.flat(self.mine), np.random.default_rng(3)
        params = {name: round_to(x, "float64") for name, x in zip(layout.names, floats)}
        with jax.enable_x64(True):
            shapes = [o for o in jax.eval_shape(flat, [*params.values()], others) if programs.is_float(o)]
        weights = [generator.standard_normal(o.shape) for o in shapes]

        def loss(params: Any, data: Any) -> Any:
            return programs.weighted(flat)([params[name] for name in layout.names], data)

        problem = Problem(init=lambda key: params, loss=loss, data=(others, weights), name=self.names[0])
        return problem, oracle.Point("base", params, problem.data, None, "float64")

    def _formula(self, problem: Problem, point: oracle.Point, fast: bool) -> list[formula.Test]:
        """Tests of its derivative in float64."""
        spread = _spread(jax.value_and_grad(problem.loss), point)
        return formula.check(problem, point, spread, 1.0, fast)[0]

    def _second(self, problem: Problem, point: oracle.Point, fast: bool) -> list[formula.Test]:
        """Tests of its Hessian-vector products in float64."""
        missing = second.missing(problem, point)
        if missing is not None:
            return [missing]
        spread = _spread(second.PRODUCTS[second.OVER[1]](problem.loss), second.along(point))
        return second.tests(problem, point, spread, 1.0, fast)


def _spread(function: Callable[[Any, Any], Any], point: oracle.Point) -> Spread:
    """The rounding spread of its outputs in float64."""
    with jax.enable_x64(True):
        trace = oracle.trace(function, point.params, point.data)
    given = jax.tree.leaves((point.params, point.data))
    return sample(trace, given, "float64", "highest", jax.devices("cpu")[0]).spread


def _rows(session: Session, shrink: bool) -> list[FunctionRow]:
    """The session's findings by check and program; with `shrink` the sizes of a failure are minimised."""
    kinds = list(dict.fromkeys((f.check, f.program) for f in session.findings))
    where = f"{session.device.platform}:{session.device.id}"

    def row(check: str, program: str) -> FunctionRow:
        found = [f for f in session.findings if (f.check, f.program) == (check, program)]
        return FunctionRow(check, program, session.dtype, session.precision, where, found)

    for kind in kinds if shrink else ():
        first = row(*kind)
        if first.verdict == "FAIL" and not first.worst.edge and first.worst.case != session.smallest:
            session.shrink(first.worst)
    return sorted(
        (row(*kind) for kind in kinds), key=lambda r: programs.CHECKS.index(r.check.removesuffix(" against jvp"))
    )


def _lost_digits(session: Session, rows: list[FunctionRow], session_in: Callable[..., Session]) -> str:
    """A note on the failures, the smallest of each check, whose error falls with the unit of rounding: that of a wrong
    formula is in float64 what it is in the dtype under test."""
    failed = [row for row in rows if row.verdict == "FAIL" and row.dtype == session.dtype]
    failed = [row for row in failed if row.check in session.checks and np.isfinite(row.off) and not row.worst.edge]
    if session.dtype == "float64" or not failed:
        return ""
    found, less = [], (format_of(np.float64).unit / format_of(session.dtype).unit) ** 0.5  # between 1 and the ratio
    with contextlib.suppress(Exception):  # what may not run in float64
        wide = session_in(dtype="float64")
        for check in dict.fromkeys(row.check for row in failed):
            finding = min((row.worst for row in failed if row.check == check), key=lambda f: f.total)
            case = session.source.one(finding.case)
            arguments = jax.tree.map(lambda x: _cast(x, "float64", "float64"), case.arguments)
            expected = wide.reference.at(dataclasses.replace(case, arguments=arguments), wide.layout, wide.device)
            answer = wide.judge(check, wide.how, expected)
            if answer is None or finding.worst is None:
                continue
            # Not in units of what rounding allows, which is nothing where the reference is exact.
            now = max(np.max(np.abs(a - e)) for a, e in zip(answer, expected.parts[check].expected) if np.size(e))
            was = max(abs(entry["got"] - entry["expected"]) for entry in finding.worst.worst)
            found += [f"{check} at {finding.case}"] if now <= less * was else []
    where = f"with the same numbers in float64 the error is as much less as the unit of rounding: {', '.join(found)}"
    return f"{where}: no formula is wrong there; it loses digits that the reference keeps" if found else ""


def _not_finite(rows: list[FunctionRow]) -> str:
    """A note where all that fails does so with a NaN or an infinity among the inputs: then no formula is wrong."""
    kinds = {f.case.split(",")[-2].partition(":")[0] for row in rows for f in row.findings if f.verdict == "FAIL"}
    if not kinds or not kinds <= {*ONE_BY_ONE}:
        return ""
    return (
        "at finite inputs nothing is off: what fails is where NaN and infinity go. A product with zeros (of a one-hot "
        "matrix, of merged weights) spreads them, since 0 times infinity is NaN; a range for the inputs, as in "
        "'x: f32[n] in -4..4', leaves them out"
    )


def _listed(inputs: Callable[[jax.Array], Any], seed: int) -> list[tuple[Any, ...]]:
    """What cases(key) gives, as a list of tuples of arguments."""
    try:
        made = inputs(jax.random.key(seed))
    except GradbenchError:
        raise
    except Exception as error:
        raise ProblemError(f"{_name(inputs)}(key) raised {error_text(error)}") from error
    listed = made if isinstance(made, list) else [made]
    return [one if isinstance(one, tuple) else (one,) for one in listed]


def _cast(leaf: Any, dtype: str | None, used: str) -> Any:
    """A float array as NumPy's in the dtype under test; if none was asked for, only a float64 one is cast."""
    if not programs.is_array(leaf):
        return leaf
    array = np.asarray(leaf)
    if is_complex_array(array):
        narrow = dtype or (used if array.dtype == np.complex128 else str(array.real.dtype))
        return array.astype(COMPLEX.get(narrow, array.dtype))
    if jnp.issubdtype(array.dtype, jnp.floating):
        return round_to(array, dtype or (used if array.dtype == np.float64 else str(array.dtype)))
    return array.astype(np.int32) if array.dtype == np.int64 else array


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__).replace("<lambda>", "f")
