"""What a check found: text for a person, a dict for a machine."""

from __future__ import annotations

import dataclasses
import html
import math
import shlex
from typing import Any

from gradbench.analysis.verdicts import CHECK_VERDICTS
from gradbench.gradients.execution.execution import Row
from gradbench.gradients.execution.judge import LeafFinding
from gradbench.gradients.formula.directions import Test
from gradbench.gradients.functions.report import OUTCOME, REPRODUCE, formula_line, plain
from gradbench.gradients.rounding.band import FALSE_ALARM, SAMPLES
from gradbench.gradients.second.products import OVER
from gradbench.inputs.problem import idle_text
from gradbench.tables import Column, html_table

SHOWN = (
    Column("program", "test or program", str),
    Column("dtype", "dtype", str),
    Column("device", "on", str),
    *OUTCOME,
    Column("finding", "finding", str),
)


@dataclasses.dataclass
class CheckReport:
    """The findings on one problem.

    Attributes:
        problem: its spec. formula: tests of the derivative in float64. rows: one per program, dtype, precision and
            device. skipped: programs that were not run, and why. lesson: lines on what a gradient is.
        examples: rows of data used, if the problem has examples. parameters: how many numbers the gradient has.
        seconds: how long the check took. seed: of the points. from_spec: whether the command line can load the problem;
            if not, `call` is how a call of check_gradient begins, up to its options. idle: leaves whose gradient is
            always 0. fixed: the loss's inputs beside params and data (key, state), the same in every program.
            second: tests of Hessian-vector products in float64, if asked for.
    """

    problem: str
    formula: list[Test]
    rows: list[Row]
    skipped: dict[str, str]
    lesson: list[str]
    examples: int | None
    parameters: int
    seconds: float
    seed: int = 0
    from_spec: bool = True
    call: str = "problem"
    idle: list[str] = dataclasses.field(default_factory=list)
    fixed: list[str] = dataclasses.field(default_factory=list)
    second: list[Test] = dataclasses.field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The worst of all verdicts: FAIL, else INCONCLUSIVE, else PASS. Suspects only explain another test's FAIL."""
        each = [self.formula_verdict, *([self.second_verdict] if self.second else [])]
        return _worst([*each, self.execution_verdict] if self.rows else each)

    @property
    def formula_verdict(self) -> str:
        """Whether the derivative is that of the loss."""
        return _worst([test.verdict for test in self.formula if test.name != "suspects"])

    @property
    def second_verdict(self) -> str:
        """Whether the Hessian-vector products are derivatives of the gradient."""
        return _worst([test.verdict for test in self.second if test.name != "suspects"])

    @property
    def execution_verdict(self) -> str:
        """Whether the programs compute the value and the derivative as written, whether or not the formula is right."""
        return _worst([row.verdict for row in self.rows])

    @property
    def culprit(self) -> str:
        """What is wrong, in a few words; empty unless the verdict is FAIL."""
        found = []
        for tests, verdict in ((self.formula, self.formula_verdict), (self.second, self.second_verdict)):
            tests = sorted(tests, key=lambda test: test.name != "suspects")  # what explains a failure goes first
            found += [next((test.culprit for test in tests if test.culprit), "")] if verdict == "FAIL" else []
        failed = [row for row in self.rows if row.verdict == "FAIL"]
        return "; ".join(filter(None, [*found, self._where(failed) if failed else ""]))

    def _where(self, failed: list[Row]) -> str:
        """The dtypes and programs that failed, and the leaf that is furthest off."""
        dtypes = list(dict.fromkeys(row.dtype for row in failed))
        programs = list(dict.fromkeys(row.program for row in failed))
        named = ", ".join(programs[:3]) + (f" and {len(programs) - 3} more" if len(programs) > 3 else "")
        every = len(failed) > 1 and len(failed) == sum(row.dtype in dtypes for row in self.rows)
        found = [leaf for row in failed for leaf in row.leaves]
        leaf = max(found, key=_badness).path if found else ""
        what = "the loss" if leaf == "value" else f"leaf {leaf}" if leaf else "the compiler dies"
        return f"{', '.join(dtypes)} under {'every program' if every else named}: {what}"

    @property
    def passed(self) -> bool:
        """True unless something failed; INCONCLUSIVE is not a failure (see `verdict`)."""
        return self.verdict != "FAIL"

    @property
    def leaves(self) -> dict[str, LeafFinding]:
        """By leaf: the finding of the program where the leaf is furthest off."""
        worst: dict[str, LeafFinding] = {}
        for leaf in (leaf for row in self.rows for leaf in row.leaves if row.program not in ("forward", *OVER)):
            if leaf.path != "value" and (leaf.path not in worst or leaf.off > worst[leaf.path].off):
                worst[leaf.path] = leaf
        return worst

    def command(self, row: Row | None = None) -> str:
        """The smallest command that reproduces the finding; for a problem made in Python the smallest call."""
        choice = {"dtype": "float64", "program": "value_and_grad"}
        if row is not None:
            device = row.device.split(":")[0]
            choice = {"dtype": row.dtype, "precision": row.precision, "device": device, "program": row.program}
        if choice["program"] in ("all", *OVER):  # the band could not be made, or --program has no such name
            del choice["program"]
        choice |= {"order": "2"} if (row.program in OVER if row else self.second_verdict == "FAIL") else {}
        if not self.from_spec:
            options = [f"{key}={text!r}" for key, text in choice.items() if key not in ("program", "order")]
            options += ["order=2"] if "order" in choice else []
            options += [f"programs=[{choice['program']!r}]"] if "program" in choice else []
            return f"gradbench.check_gradient({', '.join([self.call, *options, f'seed={self.seed}'])})"
        choice |= {"seed": str(self.seed)} if self.seed else {}
        return f"gradbench check {shlex.quote(self.problem)} " + " ".join(f"--{k} {v}" for k, v in choice.items())

    def table(self) -> list[dict[str, Any]]:
        """One dict per line: problem, test or program, dtype, precision, device, verdict, off, resolves, finding."""
        lines = []
        for kind, tests in (("formula", self.formula), ("second order", self.second)):
            lines += [self._line(t.name, "float64", "", kind, t.verdict, None, t.resolves, t.finding) for t in tests]
        for row in self.rows:
            finding = "; ".join([row.reason, *row.notes]).strip("; ")
            lines.append(
                self._line(
                    row.program, row.dtype, row.precision, row.device, row.verdict, row.off, row.resolves, finding
                )
            )
        return lines

    def _line(self, name, dtype, precision, device, verdict, off, resolves, finding) -> dict[str, Any]:
        return {
            "problem": self.problem,
            "program": name,
            "dtype": dtype,
            "precision": precision,
            "device": device,
            "verdict": verdict,
            "error_in_bands": off,
            "would_have_caught": resolves,
            "finding": finding,
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, in numbers, strings, lists and dicts; what is not finite as a string."""
        return plain(
            {
                "problem": self.problem,
                "verdict": self.verdict,
                "culprit": self.culprit,
                "idle": self.idle,
                "fixed": self.fixed,
                "parameters": self.parameters,
                "examples": self.examples,
                "seconds": self.seconds,
                "seed": self.seed,
                "false_alarm_probability": FALSE_ALARM,
                "noise_samples": SAMPLES,
                "formula": [dataclasses.asdict(t) for t in self.formula],
                "second": [dataclasses.asdict(t) for t in self.second],
                "programs": [dataclasses.asdict(r) for r in self.rows],
                "skipped": self.skipped,
                "lesson": self.lesson,
            }
        )

    def __str__(self) -> str:
        rows = f", {self.examples} examples" if self.examples else ""
        head = f"{self.verdict}: {self.culprit}" if self.culprit else self.verdict
        lines = [f"{self.problem}: {head}   ({self.parameters} parameters{rows}, {self.seconds:.1f} s)"]
        lines += [f"  fixed throughout: {' and '.join(self.fixed)}"] if self.fixed else []
        lines.append(f"  formula: is this the derivative of the loss? In float64: {self.formula_verdict}")
        lines += map(formula_line, self.formula)
        if self.second:
            lines.append(f"  second order: is H v the derivative of the gradient? In float64: {self.second_verdict}")
            lines += map(formula_line, self.second)
        lines += self._execution_lines()
        lines += [f"      {name:{self._width}}  skipped: {why}" for name, why in self.skipped.items()]
        if any(t.verdict == "FAIL" for t in (*self.formula, *self.second)):
            lines.append(f"  {REPRODUCE}{self.command()}")
        lines += [f"  warning: {idle_text(self.idle)}"] if self.idle else []
        lines += [f"  {text}" for text in self.lesson]
        return "\n".join(lines)

    @property
    def _width(self) -> int:
        return max([14, *(len(name) for name in (*self.skipped, *(row.program for row in self.rows)))])

    def _execution_lines(self) -> list[str]:
        """Lines for the programs, grouped by dtype, precision and device; none where none was run."""
        if not self.rows:
            return []
        lines = [f"  execution: is it computed as it is written? {self.execution_verdict}"]
        if self.formula_verdict == "FAIL" and self.execution_verdict == "PASS":
            lines.append("    (a wrong formula, computed rightly)")
        where = ""
        for row in self.rows:
            here = f"{row.dtype}, precision {row.precision}, on {row.device}"
            if here != where:
                where = here
                lines.append(f"    {where}")
                lines.append(f"      {'program':{self._width}}  {'verdict':12}  error in bands  would have caught")
            lines.append(f"      {row.program:{self._width}}  {row.verdict:12}  {row.off:14.3g}  {row.resolves:17.1e}")
            lines += [f"        {text}" for text in (row.reason, *row.notes) if text]
            if row.verdict == "FAIL":
                lines += [f"        {text}" for text in self._evidence(row)]
        return lines

    def __repr__(self) -> str:
        formula = [(test.verdict, test.name) for test in self.formula if test.name != "suspects"]
        execution = [(row.verdict, f"{row.program} in {row.dtype}") for row in self.rows]
        lines = [f"CheckReport {self.problem}: {self.verdict}, {self.parameters} parameters, {self.seconds:.1f} s"]
        for name, found in (("formula", formula), ("execution", execution)):
            worst, what = max(
                found, key=lambda each: CHECK_VERDICTS.index(each[0]), default=("INCONCLUSIVE", "not run")
            )
            lines.append(f"  {name}: {worst}, {f'{len(found)} of {len(found)}' if worst == 'PASS' else what}")
        return "\n".join([*lines, "  print() shows the report"])

    def _repr_html_(self) -> str:
        head = f"{self.problem}: {self.verdict} ({self.parameters} parameters, {self.seconds:.1f} s)"
        return f"<p>{html.escape(head)}</p>{html_table(self.table(), SHOWN)}"

    def _evidence(self, row: Row) -> list[str]:
        reproduce = f"{REPRODUCE}{self.command(row)}"
        if not row.leaves:  # the program gave no answer
            return [reproduce]
        lines = [f"at {row.point}"]
        leaf = max(row.leaves, key=_badness)
        for entry in leaf.worst:
            index = entry["index"] or ""
            lines.append(
                f"{leaf.path}{index}: got {entry['got']:.9g}, expected {entry['expected']:.9g}, "
                f"off by {entry['bands']:.3g} bands"
            )
        return [*lines, reproduce]


def _worst(verdicts: list[str]) -> str:
    return max(verdicts, key=CHECK_VERDICTS.index, default="INCONCLUSIVE")


def _badness(leaf: LeafFinding) -> float:
    return math.inf if leaf.fault else leaf.off
