"""check_gradient and assert_gradient: every test on one problem."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from gradbench.errors import PlanError, ProblemError, error_text
from gradbench.gradients.execution import programs as program_table
from gradbench.gradients.execution import sandbox
from gradbench.gradients.execution.execution import Execution
from gradbench.gradients.formula import derivative as formula
from gradbench.gradients.formula import oracle
from gradbench.gradients.function import Checked, checked
from gradbench.gradients.lesson import lesson
from gradbench.gradients.report import CheckReport
from gradbench.gradients.rounding.band import FEW, Spread
from gradbench.gradients.rounding.numbers import formats
from gradbench.gradients.second import check as second
from gradbench.inputs.problem import Problem, idle_leaves
from gradbench.inputs.specs import checks
from gradbench.inputs.specs.checks import PRECISIONS, one_of
from gradbench.inputs.specs.rates import as_list
from gradbench.machine.devices import devices_to_check

LOG = logging.getLogger(__name__)


def check_gradient(
    problem: str | Problem | Callable[..., Any],
    *arguments: Any,
    dtype: str | Sequence[str] = "float32",
    precision: str | Sequence[str] = "highest",
    device: str | None = None,
    fast: bool = False,
    programs: Sequence[str] | None = None,
    seed: int = 0,
    order: int = 1,
) -> CheckReport:
    """Check a problem's or a function's gradient and value: the formula in float64, every program against a band.

    Args:
        problem: a spec, a path, a Problem, or a function of the arguments that follow, which returns a scalar.
        arguments: of a function: any pytrees of arrays and numbers. Float leaves are differentiated, and named by the
            argument's name, at the given arguments and near them; arrays of integers and booleans are data, and
            anything else is passed as it is.
        dtype: one or more of float64, float32, bfloat16, float16.
        precision: one or more of highest, tf32, default; how float32 matrix products may be computed.
        device: None for JAX's default device, "cpu", "gpu", "tpu", or "all"; from the second device of a platform on
            only one program is run.
        fast: one point, one program (the training step's value_and_grad), fewer differences.
        programs: names out of eager, jit, value_and_grad, has_aux, vmap, remat, batched, microbatches, forward; None
            for all, but for a function without batched and microbatches, which only sweeps and training use.
        seed: of the starting point and the random step away from it.
        order: 2 checks Hessian-vector products too: forward over reverse, reverse over reverse, reverse over forward.

    Returns a CheckReport; nothing is printed. Raises ProblemError for a bad problem, function or argument and
    PlanError for a bad choice.
    """
    started = time.perf_counter()
    if not 0 <= seed < 2**31:  # JAX's keys are made from 32 bits
        raise PlanError(f"seed={seed}: need a whole number from 0 to {2**31 - 1}")
    second.known(order)
    given = checked(problem, arguments)
    dtypes = [checks.dtype("dtype", d) for d in ([dtype] if isinstance(dtype, str) else as_list(dtype))]
    classes = [precision] if isinstance(precision, str) else list(precision)
    classes = [one_of(PRECISIONS)("precision", p) for p in classes]
    names = program_table.select(None if programs is None else tuple(programs), fast)
    if programs is None and given.is_function:
        names = [name for name in names if name not in ("batched", "microbatches")]
    battery = _Battery(given, dtypes, classes, names, devices_to_check(device), fast, seed, order)
    return replace(battery.report(), seconds=time.perf_counter() - started)


@dataclass
class _Battery:
    """What is checked, in which dtypes, classes of precision and programs, and on which devices."""

    given: Checked
    dtypes: list[str]
    classes: list[str]
    names: list[str]
    targets: list[jax.Device]
    fast: bool
    seed: int
    order: int

    def __post_init__(self) -> None:
        problem = self.given.problem if self.given.is_function else self.given.problem.plain
        self.problem = replace(problem, loss=_traced_anew(problem.loss))

    def report(self) -> CheckReport:
        """The report, but for the time that the check took."""
        problem, fast = self.problem, self.fast
        if "batched" in self.names and any(target.platform == "cpu" for target in self.targets):
            sandbox.child()  # the child process starts while the rest is done
        LOG.info("%s: the gradient in float64", problem.name)
        places = oracle.unrounded(problem, 2, self.seed)
        reference, start = (place.rounded("float64") for place in places)
        try:
            oracle.trace(oracle.value_and_grad(problem.loss), reference.params, reference.data)
        except Exception as error:
            raise ProblemError(f"{problem.name}: the loss has no gradient: {error_text(error)}") from error
        report = self._empty(reference)
        if (not_finite := formula.check_value(problem, start)) is not None:
            return replace(report, formula=[not_finite])
        spreads, share = self._execute(report, places)
        if not spreads:
            spreads, share = _fallback_spreads(problem, places[: 1 if fast else 2])
        LOG.info("%s: the formula, by differences in float64", problem.name)
        self._derive(report, reference, start, spreads, share)
        if self.order == 2:
            found = second.check(problem, places, self.dtypes, self.classes, self.targets, fast)
            report.second, report.rows = found.tests, report.rows + found.rows
            report.skipped |= found.skipped
        return report

    def _empty(self, reference: oracle.Point) -> CheckReport:
        """The report without any findings yet."""
        takes = self.given.problem.objective
        return CheckReport(
            problem=self.problem.name,
            formula=[],
            rows=[],
            skipped={},
            lesson=[],
            examples=reference.examples,
            parameters=sum(x.size for x in jax.tree.leaves(reference.params)),
            seconds=0.0,
            seed=self.seed,
            from_spec=self.given.from_spec,
            call=self.given.call,
            idle=idle_leaves(self.problem),
            fixed=[words for words, fact in (("the key", takes.random), ("the state", takes.stateful)) if fact],
        )

    def _execute(self, report: CheckReport, places: list[oracle.Point]) -> tuple[list[Spread], float]:
        """Adds a row per program; returns the spread of (value, gradient) at each place, and `_share` of its dtype."""
        spreads: list[Spread] = []
        share = 1.0
        for one in self.dtypes:
            points = [place.rounded(one) for place in places[: 1 if self.fast else 2]]
            # Only float32 products have a choice of precision.
            for kind in self.classes if one == "float32" else self.classes[:1]:
                first: set[str] = set()
                for target in self.targets:
                    execution = Execution(self.problem, one, kind, target)
                    asked = self.names if target.platform not in first else _one(self.names)
                    first.add(target.platform)
                    try:
                        found, left_out = execution.check(points, asked)
                    except Exception as error:
                        reason = f"the loss or its band cannot be run: {error_text(error)}"
                        report.rows.append(execution.error_row("all", "INCONCLUSIVE", reason))
                        continue
                    report.rows += found
                    report.skipped |= left_out
                    # The spread of a float64 trace that rounds to a narrower format is that format's: not used.
                    if not spreads and (one == "float32" or (one == "float64" and not execution.band(points[0]).mixed)):
                        spreads, share = execution.spreads, _share(execution)
        return spreads, share

    def _derive(
        self, report: CheckReport, reference: oracle.Point, start: oracle.Point, spreads: list[Spread], share: float
    ) -> None:
        """The tests of the derivative, and the lesson."""
        problem, near = self.problem, spreads[0] if spreads else None
        at_start = spreads[1] if len(spreads) > 1 else None
        try:
            tests, gradient = formula.check(problem, reference, near, share, self.fast)
            if not any(test.verdict == "FAIL" for test in tests):
                tests += formula.check_start(problem, start, at_start, share, self.fast)
            with contextlib.suppress(Exception):  # it moves away from the point, perhaps out of the loss's domain
                report.lesson = lesson(problem, reference, gradient)
        except Exception as error:  # a user's loss may hold anything: a kernel for another device, a raising callback
            reason = f"the loss cannot be run one primitive at a time in float64: {error_text(error)}"
            tests = [formula.Test("finite differences", "INCONCLUSIVE", reason)]
        report.formula = tests


def assert_gradient(
    problem: str | Problem | Callable[..., Any], *arguments: Any, strict: bool = False, **options: Any
) -> None:
    """Raise AssertionError with the report's text if `check_gradient(problem, *arguments, **options)` finds a wrong
    gradient.

    With `strict` an INCONCLUSIVE verdict raises too; without it only where neither the formula nor the execution
    passed, so that nothing was shown. In a test: `assert_gradient(f, x)`, where `f(x)` is a scalar. Raises as
    check_gradient does.
    """
    report = check_gradient(problem, *arguments, **options)
    shown = "PASS" in (report.formula_verdict, report.execution_verdict)
    if report.verdict == "FAIL" or not shown or (strict and report.verdict != "PASS"):
        raise AssertionError(f"\n{report}")


def _traced_anew(loss: Callable[..., Any]) -> Callable[..., Any]:
    """`loss` as another object. JAX keeps what it traced of a function, which is stale where something that the
    function calls has been defined anew since, as in a notebook."""

    @functools.wraps(loss)
    def anew(*arguments: Any) -> Any:
        return loss(*arguments)

    return anew


def _one(names: list[str]) -> list[str]:
    return ["value_and_grad"] if "value_and_grad" in names else names[:1]


def _share(execution: Execution) -> float:
    """The dtype's unit roundoff over float64's."""
    return execution.form.unit / formats.format_of(np.dtype(np.float64)).unit


def _fallback_spreads(problem: Problem, places: list[oracle.Point]) -> tuple[list[Spread], float]:
    """The spreads of (value, gradient) in float32, where no float64 or float32 program was checked."""
    points = [place.rounded("float32") for place in places]
    try:
        execution = Execution(problem, "float32", "highest", jax.devices("cpu")[0])
        spreads = [execution.band(p).sample(p.params, p.data, FEW).as_of_all() for p in points]
        return spreads, _share(execution)
    except Exception:
        return [], 1.0
