"""The check checks itself: the share of planted faults that it catches, and of right gradients that it calls wrong."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.gradients import faults
from gradbench.gradients.execution import programs
from gradbench.gradients.execution.execution import MANY_REPEATS, Execution
from gradbench.gradients.execution.expectation import Expectation
from gradbench.gradients.formula import derivative as formula
from gradbench.gradients.formula import oracle
from gradbench.gradients.rounding.numbers.formats import format_of
from gradbench.inputs.specs.checks import DTYPES
from gradbench.machine.devices import devices_to_check

LOG = logging.getLogger(__name__)


@dataclasses.dataclass
class Finding:
    """One fault in one dtype.

    `effect` is the largest relative change that the fault makes in a leaf or the value (None for a formula fault, which
    is judged by differences), `resolves` the smallest that the check says it can see. A miss is explained when the
    effect is below that, or the verdict is INCONCLUSIVE.
    """

    fault: str
    kind: str
    dtype: str
    verdict: str
    caught: bool
    effect: float | None
    resolves: float | None
    explained: bool
    finding: str

    @property
    def why(self) -> str:
        """Why a miss is explained; empty if it is not."""
        if self.caught or not self.explained:
            return ""
        if self.effect == 0:
            return "no effect: this device or this dtype does the same"
        if self.effect is not None and self.resolves is not None and self.effect <= self.resolves:
            return f"it moves {self.effect:.1e}, {self.resolves:.1e} can be seen"
        return self.finding


@dataclasses.dataclass
class SelfTest:
    """All findings, and the right gradients judged: {dtype: (false alarms, gradients)}."""

    findings: list[Finding]
    right: dict[str, tuple[int, int]]

    @property
    def passed(self) -> bool:
        """True if there is no false alarm and every miss is explained."""
        return all(f.caught or f.explained for f in self.findings) and not any(a for a, _ in self.right.values())

    def table(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(f) | {"why_missed": f.why} for f in self.findings]

    def rates(self) -> list[dict[str, Any]]:
        """Per dtype: faults caught and planted of each kind, misses explained and not, false alarms."""
        lines = []
        for dtype, (alarms, gradients) in self.right.items():
            mine = [f for f in self.findings if f.dtype == dtype]
            line: dict[str, Any] = {"dtype": dtype}
            for kind in ("formula", "execution"):
                planted = [f for f in mine if f.kind == kind]
                line[kind] = f"{sum(f.caught for f in planted)}/{len(planted)}"
            line["misses_explained"] = sum(not f.caught and f.explained for f in mine)
            line["misses_unexplained"] = sum(not f.caught and not f.explained for f in mine)
            line["false_alarms"] = f"{alarms}/{gradients}"
            lines.append(line)
        return lines

    def __str__(self) -> str:
        lines = [f"{'fault':40} {'dtype':9} {'verdict':13} effect   would have caught"]
        for f in self.findings:
            effect = "" if f.effect is None else f"{f.effect:.1e}"
            sees = "" if f.resolves is None else f"{f.resolves:.1e}"
            mark = "" if f.caught else (f"missed: {f.why}" if f.explained else "MISSED")
            lines.append(f"{f.fault:38} {f.dtype:9} {f.verdict:13} {effect:8} {sees:9} {mark}".rstrip())
        lines.append(f"{'dtype':9} {'formula':>8} {'execution':>10} {'explained':>10} {'MISSED':>7} false alarms")
        for r in self.rates():
            lines.append(
                f"{r['dtype']:9} {r['formula']:>8} {r['execution']:>10} {r['misses_explained']:>10} "
                f"{r['misses_unexplained']:>7} {r['false_alarms']}"
            )
        return "\n".join(lines)


def self_test(
    dtypes: Sequence[str] = DTYPES, *, device: str | None = None, fast: bool = False, seeds: int = 3
) -> SelfTest:
    """Plant every fault in every dtype on one device; with `fast` one seed of right gradients and fewer programs."""
    target = devices_to_check(device)[0]
    findings = _formula_findings(dtypes, fast)
    right: dict[str, tuple[int, int]] = {}
    for dtype in dtypes:
        execution = Execution(faults.planted(), dtype, "highest", target)
        reference = execution.reference(oracle.points(execution.problem, dtype, 1)[0])
        findings += [
            _execution_finding(name, execution, reference, _program(loss))
            for name, loss in faults.execution_faults().items()
        ]
        findings += _special_findings(execution, reference, target)
        right[dtype] = _false_alarms(execution, 1 if fast else seeds, fast)
    return SelfTest(findings, right)


def _formula_findings(dtypes: Sequence[str], fast: bool) -> list[Finding]:
    cpu = jax.devices("cpu")[0]
    share = format_of(jnp.float32).unit / format_of(jnp.float64).unit
    spreads: dict[str, Any] = {}
    found = []
    for name, problem in faults.formula_faults().items():
        LOG.info("planted in the formula: %s", name)
        if problem.name not in spreads:
            good = faults.million() if "million" in problem.name else faults.planted()
            point = oracle.points(good, "float32", 1)[0]
            spreads[problem.name] = (
                Execution(good, "float32", "highest", cpu).band(point).sample(point.params, point.data)
            )
        point = oracle.points(problem, "float64", 1)[0]
        tests, _ = formula.check(problem, point, spreads[problem.name], share, fast)
        failed = [t for t in tests if t.verdict == "FAIL"]
        text = failed[0].finding if failed else "; ".join(t.finding for t in tests)
        verdict = "FAIL" if failed else "PASS"
        # The derivative is judged in float64 whatever the dtype of the programs.
        found += [Finding(name, "formula", d, verdict, bool(failed), None, None, False, text) for d in dtypes]
    return found


def _program(loss: Callable) -> programs.Runner:
    return programs.PROGRAMS["value_and_grad"].build(loss, None)


def _execution_finding(name: str, execution: Execution, reference: Expectation, runner: Callable) -> Finding:
    LOG.info("planted in %s: %s", execution.dtype, name)
    right_runner = execution.runner("value_and_grad", None)
    row = execution.run(name, runner, reference, most=MANY_REPEATS)
    right = execution.run("right", right_runner, reference)
    params, data = execution.place(reference.point)
    answers = []
    for program in (runner, right_runner):
        with jax.enable_x64(execution.dtype == "float64"), jax.default_device(execution.device):
            answers.append([np.asarray(x).astype(np.float64) for x in jax.tree.leaves(program(params, data))])
    effect = 0.0
    with np.errstate(all="ignore"):
        for got, good, wanted in zip(*answers, reference.expected):
            size = float(np.linalg.norm(wanted))
            changed = float(np.linalg.norm(got - good))
            effect = max(effect, changed / size if np.isfinite(size) and size > 0 else float(np.any(got != good)))
    if effect == 0 and any("different answers" in note for note in row.notes):
        effect = faults.INTERMITTENT  # in some calls only
    caught = row.verdict == "FAIL"
    explained = not caught and (effect <= right.resolves or row.verdict == "INCONCLUSIVE")
    return Finding(
        name, "execution", execution.dtype, row.verdict, caught, effect, right.resolves, explained, row.reason
    )


def _special_findings(execution: Execution, reference: Expectation, device: jax.Device) -> list[Finding]:
    """Faults that need a program or a problem of their own."""
    right = execution.runner("value_and_grad", None)

    def wrong_value(params, data):
        value, gradient = right(params, data)
        return value * jnp.asarray(1.25, value.dtype), gradient

    found = [
        _execution_finding("loss value wrong under jit only", execution, reference, wrong_value),
        _execution_finding("a fault in 1 call of 20", execution, reference, faults.every(20, right)),
    ]
    form = format_of(execution.dtype)
    small = Execution(faults.scaled_bowl(form.tiny / 8), execution.dtype, "highest", device)
    large = Execution(faults.scaled_bowl(form.largest / 2.7), execution.dtype, "highest", device)

    def zero(params, data):
        value, gradient = small.runner("value_and_grad", None)(params, data)
        return value, jax.tree.map(lambda g: jnp.where(jnp.abs(g) < form.tiny, 0, g).astype(g.dtype), gradient)

    def finite(params, data):
        value, gradient = large.runner("value_and_grad", None)(params, data)
        return value, jax.tree.map(lambda g: jnp.where(jnp.isinf(g), 0, g).astype(g.dtype), gradient)

    for name, other, runner in (("subnormals flushed", small, zero), ("inf turned into 0", large, finite)):
        point = oracle.points(other.problem, execution.dtype, 2)[1]
        found.append(_execution_finding(name, other, other.reference(point), runner))
    return found


def _false_alarms(execution: Execution, seeds: int, fast: bool) -> tuple[int, int]:
    """(right gradients called wrong, right gradients judged) of the network, over seeds, points and programs."""
    alarms = total = 0
    names = programs.select(None, fast)
    for seed in range(seeds):
        points = oracle.points(execution.problem, execution.dtype, 1 if fast else 2, seed)
        rows, _ = execution.check(points, names)
        total += len(rows) * len(points)
        alarms += sum(row.verdict == "FAIL" for row in rows)
    return alarms, total
