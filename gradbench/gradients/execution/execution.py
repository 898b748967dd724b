"""Does this program, on this device, in this dtype and precision, compute the gradient and the loss it should?"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from gradbench.analysis.verdicts import CHECK_VERDICTS
from gradbench.errors import error_text
from gradbench.gradients.execution import loops, programs, sandbox
from gradbench.gradients.execution.expectation import Expectation, compare_centre
from gradbench.gradients.execution.judge import Judgement, judge
from gradbench.gradients.formula import oracle
from gradbench.gradients.formula.derivative import leaf_names
from gradbench.gradients.formula.differences import UNIT
from gradbench.gradients.formula.noise import QuickBand
from gradbench.gradients.rounding.band import FEW, Band, Sampling, Spread, quantile
from gradbench.gradients.rounding.interpreter import MAX_ITERATIONS
from gradbench.gradients.rounding.numbers.formats import (
    flushes_subnormals,
    format_of,
    input_class,
    precision_context,
    x64_context,
)
from gradbench.inputs.problem import Problem
from gradbench.program.minibatch import take_rows

LOG = logging.getLogger(__name__)
REPEATS = 5  # calls of a program at a point; only 2 where they take over _REPEAT_SECONDS
MANY_REPEATS = 100  # calls of one program, where that takes no longer: for faults in some calls only
_REPEAT_SECONDS = 0.5
COMPILING = 2  # threads that compile, beside the one that runs what is compiled


@dataclasses.dataclass
class Row:
    """One line of the report: a program in a dtype and precision on a device, at its worst point and call."""

    program: str
    dtype: str
    precision: str
    device: str
    verdict: str
    reason: str
    off: float
    resolves: float
    calls: int
    point: str
    leaves: list[Any]
    notes: list[str] = dataclasses.field(default_factory=list)
    died: bool = False  # whether the compiler ended its process


class Execution:
    """The check of one problem in one dtype and precision on one device; bands are compiled once for all points.

    `functions`, by kind of Expectation, make of a loss the function of (params, data) that gets a band. `what` names
    what is judged.
    """

    functions: Mapping[str, Callable[[programs.LossFunction], Callable[[Any, Any], Any]]] = {
        "reverse": oracle.value_and_grad,
        "forward": programs.forward,
    }
    what = "gradient"

    def __init__(self, problem: Problem, dtype: str, precision: str, device: jax.Device):
        self.problem, self.dtype, self.precision, self.device = problem, dtype, precision, device
        self.form = format_of(dtype)
        self.flushes = flushes_subnormals(dtype, device)
        self._bands: dict[Any, Band] = {}
        self._runners: dict[str, programs.Runner] = {}
        self._compiled: dict[str, Future[Any]] = {}
        self._references: list[Expectation] = []  # one per point

    @property
    def spreads(self) -> list[Spread]:
        """One per point, for the formula's tests."""
        return [reference.spread.as_of_all() for reference in self._references]

    def band(self, point: oracle.Point, kind: str = "reverse", **options: Any) -> Band:
        key = (kind, *options.items())
        if key not in self._bands:
            function = self.functions[kind](self.problem.loss)
            self._bands[key] = QuickBand(
                function, point.params, point.data, self.dtype, self.precision, self.device, **options
            )
        return self._bands[key]

    def runner(self, name: str, examples: int | None) -> programs.Runner:
        """The program of that name, compiled once; also once for two of the same text (has_aux, value_and_grad)."""
        if name not in self._runners:
            made = self._runners[name] = programs.PROGRAMS[name].build(self.problem.loss, examples)
            if isinstance(made, programs.Jitted):
                made.known = self._compiled
        return self._runners[name]

    @contextlib.contextmanager
    def _compiling(self, names: Sequence[str], point: oracle.Point) -> Generator[None]:
        """Meanwhile the programs that will be called are compiled in other threads, for the point's shapes."""
        threads = ThreadPoolExecutor(COMPILING)
        try:
            for name in dict.fromkeys(names):
                with contextlib.suppress(Exception), self._contexts():  # raised again where the program is called
                    if name == programs.FORWARD:
                        self.forward_runner.begin(*self.place(self._along(point)), threads)
                    elif isinstance(runner := self.runner(name, point.examples), programs.Compiling):
                        runner.begin(*self.place(point), threads)
            yield
        finally:
            threads.shutdown(cancel_futures=True)

    @functools.cached_property
    def forward_runner(self) -> programs.Jitted:
        """The derivatives along directions, by forward mode: see `_along`."""
        return programs.Jitted(jax.jit(programs.forward(self.problem.loss)))

    @contextlib.contextmanager
    def _contexts(self) -> Generator[None]:
        with x64_context(self.dtype), precision_context(self.precision), jax.default_device(self.device):
            yield

    def reference(self, point: oracle.Point) -> Expectation:
        """The expectation at a point. Raises what tracing or interpreting the loss raises."""
        expected = oracle.evaluate(oracle.value_and_grad(self.problem.loss), point.params, point.data, self.dtype)
        reference = self.expectation(point, expected, "reverse", FEW)
        self._references.append(reference)
        return reference

    def expectation(self, point: oracle.Point, expected: list[np.ndarray], kind: str, samples: int) -> Expectation:
        """An Expectation with so many samples of its spread, and more where the trace seems to be another function."""
        sampling = Sampling(self.band(point, kind), point.params, point.data)
        reference = Expectation(point, expected, sampling.spread(samples), kind=kind, sampling=sampling)
        while (doubt := compare_centre(reference.spread, expected, self.dtype)) and reference.more():
            pass
        reference.doubt = point.lost or doubt
        return reference

    def place(self, point: oracle.Point) -> tuple[Any, Any]:
        with x64_context(self.dtype):
            return jax.device_put((point.params, point.data), self.device)

    def judge(self, got: list[Any], reference: Expectation, names: list[str], extra: Any = None) -> Judgement:
        """Judge flat leaves (the value first if there are as many as expected, else only the gradient), with as many
        samples of the spread as the verdict needs."""
        found = self._judged(got, reference, names, extra)
        while not found.settled(reference.spread) and reference.more():
            found = self._judged(got, reference, names, extra)
        return found

    def _judged(self, got: list[Any], reference: Expectation, names: list[str], extra: Any) -> Judgement:
        expected, spread = reference.expected, reference.spread
        if len(got) < len(expected):
            expected, spread, names = expected[1:], _tail(spread), names[1:]
            extra = None if extra is None else extra[1:]
        underflow = self.form.tiny if self.flushes else self.form.spacing / 2
        options = {"extra": extra, "examples": reference.point.examples, "underflow": underflow, "what": self.what}
        verdict = judge(got, expected, spread, names, self.form, **options)
        if verdict.verdict == "FAIL" and spread.stagnating and verdict.off < np.inf:
            point = reference.point
            worst = self.band(point, reference.kind, worst_case=True).sample(point.params, point.data)
            if len(got) < len(reference.expected):
                worst = _tail(worst)
            if judge(got, expected, worst, names, self.form, **options).off <= 1:
                verdict.verdict = "INCONCLUSIVE"
                verdict.reason = f"{'; '.join(spread.stagnating)}; {verdict.reason}"
        if reference.doubt and verdict.verdict != "FAIL":
            verdict.verdict, verdict.reason = "INCONCLUSIVE", reference.doubt
        elif reference.doubt:
            verdict.verdict, verdict.reason = "INCONCLUSIVE", f"{reference.doubt}; {verdict.reason}"
        return verdict

    def run(
        self,
        name: str,
        runner: programs.Runner,
        reference: Expectation,
        *,
        extra: Any = None,
        repeats: int = REPEATS,
        most: int = REPEATS,
        names: list[str] | None = None,
    ) -> Row:
        """Call `runner` `repeats` times, up to `most` if it is fast, and judge every distinct answer."""
        names = names or ["value", *leaf_names(reference.point.params)]
        with self._contexts():
            params, data = self.place(reference.point)
            answers: dict[bytes, list[np.ndarray]] = {}
            calls, started = 0, time.perf_counter()
            while calls < max(repeats, most):
                leaves = [np.asarray(x) for x in jax.tree.leaves(runner(params, data))]
                answers.setdefault(b"".join(x.tobytes() for x in leaves), leaves)
                calls += 1
                if calls == 1:
                    started = time.perf_counter()  # the first call compiles
                elif time.perf_counter() - started > _REPEAT_SECONDS:
                    break
        judged = [self.judge(got, reference, names, extra) for got in answers.values()]
        worst = max(judged, key=lambda j: (CHECK_VERDICTS.index(j.verdict), j.off))
        row = Row(
            program=name,
            dtype=self.dtype,
            precision=self.precision,
            device=f"{self.device.platform}:{self.device.id}",
            verdict=worst.verdict,
            reason=worst.reason,
            off=worst.off,
            resolves=worst.resolves,
            calls=calls,
            point=reference.point.label,
            leaves=worst.leaves,
        )
        if len(answers) > 1:
            row.notes.append(f"{len(answers)} different answers in {calls} calls")
        if worst.verdict == "FAIL":
            row.notes += self.name_precision(list(answers.values())[judged.index(worst)], reference, names, extra)
        return row

    def name_precision(self, got: list[Any], reference: Expectation, names: list[str], extra: Any) -> list[str]:
        """A note if the error is what rounding the inputs of float32 matrix products to TF32 or bfloat16 would give."""
        if self.dtype != "float32" or input_class(self.precision, self.device) != "full":
            return []
        point = reference.point
        for kind, text in (("tf32", "TF32"), ("bf16", "bfloat16")):
            spread = self.band(point, reference.kind, assume=kind).sample(point.params, point.data)
            assumed = dataclasses.replace(reference, spread=spread)
            if max(s / n for s, n in zip(spread.norm, reference.spread.norm) if n > 0) < 2:
                return []  # no float32 matrix product in this loss
            if self.judge(got, assumed, names, extra).verdict != "FAIL":
                return [f"the error is of the size that {text} inputs of the matrix products give"]
        return []

    def precision_seen(self, runner: programs.Runner, reference: Expectation) -> str:
        """A note on the precision that the device used, where it had a choice."""
        point = reference.point
        kind = input_class(self.precision, self.device)
        if self.dtype != "float32" or kind == "full":
            cpu = self.precision != "highest" and self.device.platform == "cpu" and self.dtype == "float32"
            return f"a CPU multiplies in full float32: precision {self.precision} changes nothing" if cpu else ""
        spread = self.band(point, assume="full").sample(point.params, point.data)
        row = Execution.run(self, "", runner, dataclasses.replace(reference, spread=spread))
        if row.off > 1:
            return f"{kind} is in force: the error is {row.off:.0f} times what full float32 allows"
        return "full float32 is in force: the error lies within its band"

    def microbatches(self, reference: Expectation) -> tuple[Any, str]:
        """(extra tolerance, "") of the microbatch program, or (None, why it is skipped)."""
        point = reference.point
        if not point.examples or point.examples < 2:
            return None, "the problem has no examples to cut"
        total = [np.zeros_like(e) for e in reference.expected]
        size = [np.zeros_like(e) for e in reference.expected]
        parts = programs.pieces(point.examples)
        for weight, rows in parts:
            data = take_rows(point.data, rows, point.examples)
            part = oracle.evaluate(oracle.value_and_grad(self.problem.loss), point.params, data, self.dtype)
            total = [t + weight * p for t, p in zip(total, part)]
            size = [s + np.abs(weight * p) for s, p in zip(size, part)]
        for t, e in zip(total, reference.expected):
            if np.linalg.norm(t - e) > 2.0**-30 * max(np.linalg.norm(t), np.linalg.norm(e)):
                return None, "the loss is not the mean of the losses of parts of its examples"
        # Each part is rounded, weighted and added: at most len(parts) + 2 roundings of numbers of this size.
        unit = self.form.unit
        return [(len(parts) + 2) * unit * s + (len(parts) + 1) * self.form.spacing for s in size], ""

    def check(self, points: list[oracle.Point], names: list[str]) -> tuple[list[Row], dict[str, str]]:
        """(one row per program, at its worst point; the skipped programs, with the reason)."""
        rows: dict[str, Row] = {}
        skipped: dict[str, str] = {}
        what = f"{self.problem.name}, {self.dtype} on {self.device.platform}:{self.device.id}"
        with self._compiling(names, points[0]):
            for point in points:
                LOG.info("%s: the rounding band", what)
                reference = self.reference(point)
                if not self.loops_end(point):
                    reason = (
                        f"a while loop has not ended after {MAX_ITERATIONS} iterations in {self.dtype}: no program was "
                        "run"
                    )
                    return [self.error_row("all", "INCONCLUSIVE", reason)], skipped
                for name in names:
                    LOG.info("%s: %s", what, name)
                    if name in skipped or (name in rows and rows[name].died):
                        continue
                    found = self.program(name, point, reference, seen=point is points[0])
                    if isinstance(found, str):
                        skipped[name] = found
                    else:
                        keep(rows, found)
        return list(rows.values()), skipped

    def loops_end(self, point: oracle.Point) -> bool:
        with self._contexts():
            return loops.end(self.band(point).trace, *self.place(point))

    def program(self, name: str, point: oracle.Point, reference: Expectation, seen: bool) -> Row | str:
        """The row of a program at a point, or why it was skipped. With `seen` it notes the precision found in force."""
        try:
            if name == programs.FORWARD:
                return self.forward(point, reference)
            extra = None
            if name == "microbatches":
                extra, why = self.microbatches(reference)
                if extra is None:
                    return why
            runner = self.runner(name, point.examples)
            most = MANY_REPEATS if name == "value_and_grad" else REPEATS
            row = self.run(name, runner, reference, extra=extra, most=most)
            if name == "value_and_grad" and seen:
                note = self.precision_seen(runner, reference)
                row.notes += [note] if note else []
            return row
        except sandbox.CompilerDied as error:
            reason = f"the compiler ends the process on this program ({error})"
            return dataclasses.replace(self.error_row(name, "FAIL", reason), died=True)
        except Exception as error:
            if name == programs.FORWARD and isinstance(error, TypeError):
                return "a custom_vjp has no forward derivative"
            if name in ("vmap", programs.FORWARD) and isinstance(error, NotImplementedError):
                return f"JAX cannot batch this loss: {error_text(error)}"
            return self.error_row(name, "INCONCLUSIVE", f"the program cannot be run: {error_text(error)}")

    def error_row(self, program: str, verdict: str, reason: str) -> Row:
        """The row of a program that gave no answer."""
        where = f"{self.device.platform}:{self.device.id}"
        return Row(program, self.dtype, self.precision, where, verdict, reason, 0.0, float("inf"), 0, "", [])

    @staticmethod
    def _along(point: oracle.Point) -> oracle.Point:
        """The point with data (data, directions), as `forward` takes it."""
        return dataclasses.replace(point, data=(point.data, programs.directions(point.params)))

    def forward(self, point: oracle.Point, reference: Expectation, repeats: int = REPEATS) -> Row:
        """The row of the forward-mode slopes along fixed directions, against <g*, v>."""
        point = self._along(point)
        _, tangents = point.data
        slopes = [
            sum(
                float(np.vdot(g, v[i].astype(np.float64)))
                for g, v in zip(reference.expected[1:], jax.tree.leaves(tangents))
            )
            for i in range(programs.FORWARD_DIRECTIONS)
        ]
        along = self.expectation(point, [np.asarray(slopes)], "forward", FEW // 2)
        # <g*, v> has the float64 rounding of g*, at most sqrt(n) of its norm along +-1, and its own.
        share = UNIT / self.form.unit
        slack = sum(
            quantile(1) * share * np.sqrt(g.size) * norm + UNIT * np.sqrt(g.size) * float(np.sum(np.abs(g)))
            for g, norm in zip(reference.expected[1:], reference.spread.norm[1:])
        )
        extra = [np.full(len(slopes), slack)]
        options: dict[str, Any] = {"extra": extra, "repeats": repeats, "most": repeats}
        return self.run(programs.FORWARD, self.forward_runner, along, names=["slopes"], **options)


def _tail(spread: Spread) -> Spread:
    return dataclasses.replace(
        spread, exact=spread.exact[1:], sigma=spread.sigma[1:], norm=spread.norm[1:], along=spread.along[1:]
    )


def keep(rows: dict[str, Row], row: Row) -> None:
    """Keep the worse of two points, by verdict, then error. The coarser resolving power is reported."""
    old = rows.get(row.program)
    if old is None:
        rows[row.program] = row
        return
    worse = max(old, row, key=lambda r: (CHECK_VERDICTS.index(r.verdict), r.off))
    worse.resolves = max(old.resolves, row.resolves)
    worse.notes = list(dict.fromkeys([*old.notes, *row.notes]))
    worse.calls = old.calls + row.calls
    rows[row.program] = worse
