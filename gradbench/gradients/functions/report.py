"""What the check of a function found: text for a person, a dict for a machine."""

from __future__ import annotations

import dataclasses
import html
import math
import shlex
from typing import Any

from gradbench.analysis.verdicts import CHECK_VERDICTS
from gradbench.gradients.formula.directions import Test
from gradbench.gradients.functions.judging import Finding
from gradbench.gradients.rounding.band import FALSE_ALARM, SAMPLES
from gradbench.tables import Column, html_table

REPRODUCE = "reproduce with: "  # a command or a call of Python follows
_SHOWN = 3  # lines on what was not judged
OUTCOME = (  # of a row of any check
    Column("verdict", "verdict", str),
    Column("error_in_bands", "error (bands)"),
    Column("would_have_caught", "would have caught"),
)
_COLUMNS = (
    Column("check", "check", str),
    Column("program", "program", str),
    Column("dtype", "dtype", str),
    *OUTCOME,
    Column("cases", "cases"),
    Column("finding", "finding", str),
)


@dataclasses.dataclass
class FunctionRow:
    """One check by one program in one dtype, over its cases.

    `worst` is the finding that gives the verdict; of several failures the one with the fewest numbers. `off` is the
    largest error in units of what rounding allows. `resolves` is the smallest relative error of an output that would
    have been seen, at the case with the best resolution.
    """

    check: str
    program: str
    dtype: str
    precision: str
    device: str
    findings: list[Finding]

    @property
    def verdict(self) -> str:
        """The worst verdict; a case that is an edge or coarse counts only if it fails, or if there are no others."""
        verdicts = {f.verdict for f in self.findings if f.verdict == "FAIL" or not (f.edge or f.coarse)}
        verdicts |= {"PASS"} if not verdicts and any(f.verdict == "PASS" for f in self.findings) else set()
        return max(verdicts, key=CHECK_VERDICTS.index, default="INCONCLUSIVE")

    @property
    def worst(self) -> Finding:
        if self.verdict == "FAIL":
            return min(self._decisive, key=lambda f: (f.total, f.edge, -f.off))
        return max(self._decisive, key=lambda f: f.off)

    @property
    def off(self) -> float:
        return max(f.off for f in self._decisive)

    @property
    def _decisive(self) -> list[Finding]:
        return [f for f in self.findings if f.verdict == self.verdict] or self.findings

    @property
    def resolves(self) -> float:
        """The best resolution among the cases that decide."""
        seen = [f.resolves for f in self.findings if not f.edge and 0 < f.resolves < math.inf]
        return min(seen, default=math.inf)

    @property
    def coarse(self) -> bool:
        """Whether it is INCONCLUSIVE only because rounding hides everything in its cases."""
        return self.verdict == "INCONCLUSIVE" and all(f.coarse or f.edge for f in self.findings)

    @property
    def undecided(self) -> list[Finding]:
        """The INCONCLUSIVE cases that do not count in the verdict."""
        return [f for f in self.findings if f.verdict == "INCONCLUSIVE" and self.verdict != "INCONCLUSIVE"]


@dataclasses.dataclass
class FunctionReport:
    """The findings on one function.

    Attributes:
        name, against: the function, and its reference ("" if judged against itself). rows: one per check, program and
            dtype. formula: tests of the derivative in float64, if there is no reference. second: those of
            Hessian-vector products, if asked for.
        skipped: what was not done or judged, and why. notes: what else was seen. cases: how many. seconds: how long
            it took. command: reproduces a finding, once dtype and case are added; Python code if `call` is true.
    """

    name: str
    against: str
    rows: list[FunctionRow]
    formula: list[Test]
    second: list[Test]
    skipped: dict[str, str]
    notes: list[str]
    cases: int
    seconds: float
    command: str
    call: bool = False

    @property
    def verdict(self) -> str:
        """The worst of all; a coarse row (rounding hides everything) counts only if all rows are coarse."""
        passed = {row.check for row in self.rows if row.verdict == "PASS"}
        verdicts = [test.verdict for test in (*self.formula, *self.second) if test.name != "suspects"]
        verdicts += [row.verdict for row in self.rows if not (row.coarse and row.check in passed)]
        return max(verdicts, key=CHECK_VERDICTS.index, default="INCONCLUSIVE")

    @property
    def passed(self) -> bool:
        """True unless something failed; INCONCLUSIVE is not a failure (see `verdict`)."""
        return self.verdict != "FAIL"

    @property
    def smallest(self) -> tuple[FunctionRow, Finding] | None:
        """The failure with the fewest numbers, the first row's of equal ones; None where nothing failed."""
        failed = [(row, row.worst) for row in self.rows if row.verdict == "FAIL"]
        return min(failed, key=lambda pair: pair[1].total, default=None)

    @property
    def culprit(self) -> str:
        """What fails, and the smallest case that shows it; empty unless the verdict is FAIL."""
        if self.smallest is not None:
            row, finding = self.smallest
            return f"{row.check} under {row.program} in {row.dtype} at {finding.case}"
        tests = (*self.formula, *self.second)
        return next((test.culprit or test.name for test in tests if test.verdict == "FAIL"), "")

    def reproduce(self, row: FunctionRow, finding: Finding) -> str:
        """The command, or the Python call, that runs only this case."""
        if self.call:
            return f"{self.command}, dtype={row.dtype!r}, case={finding.case!r})"
        return f"{self.command} --dtype {row.dtype} --case {shlex.quote(finding.case)}"

    def table(self) -> list[dict[str, Any]]:
        """One dict per row."""
        lines = [
            self._line(t.name, "float64", "float64", t.verdict, None, t.resolves, 1, t.finding)
            for t in (*self.formula, *self.second)
        ]
        for row in self.rows:
            reason = row.worst.reason if row.verdict != "PASS" else ""
            found = (row.verdict, row.off, row.resolves, len(row.findings), reason)
            lines.append(self._line(row.check, row.program, row.dtype, *found))
        return lines

    def _line(self, check, program, dtype, verdict, off, resolves, cases, finding) -> dict[str, Any]:
        return {
            "function": self.name,
            "check": check,
            "program": program,
            "dtype": dtype,
            "verdict": verdict,
            "error_in_bands": off,
            "would_have_caught": resolves,
            "cases": cases,
            "finding": finding,
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, in numbers, strings, lists and dicts; what is not finite as a string."""
        rows = [
            {**dataclasses.asdict(row), "verdict": row.verdict, "would_have_caught": row.resolves} for row in self.rows
        ]
        return plain(
            {
                "function": self.name,
                "against": self.against,
                "verdict": self.verdict,
                "culprit": self.culprit,
                "cases": self.cases,
                "seconds": self.seconds,
                "false_alarm_probability": FALSE_ALARM,
                "noise_samples": SAMPLES,
                "formula": [dataclasses.asdict(test) for test in self.formula],
                "second": [dataclasses.asdict(test) for test in self.second],
                "rows": rows,
                "skipped": self.skipped,
                "notes": self.notes,
            }
        )

    def _headline(self) -> str:
        against = f" against {self.against}" if self.against else ""
        head = f"{self.verdict}: {self.culprit}" if self.culprit else self.verdict
        return f"{self.name}{against}: {head}   ({self.cases} cases, {self.seconds:.1f} s)"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self._headline())}</p>{html_table(self.table(), _COLUMNS)}"

    def __str__(self) -> str:
        lines = [self._headline()]
        if self.formula:
            lines.append("  formula: is this the derivative of what it computes? In float64")
        lines += map(formula_line, self.formula)
        if self.second:
            lines.append("  second order: is H v the derivative of its gradient? In float64")
        lines += map(formula_line, self.second)
        where, wide = "", max([16, *(len(row.check) for row in self.rows)])
        for row in self.rows:
            here = f"{row.dtype}, precision {row.precision}, on {row.device}"
            if here != where:
                where = here
                lines.append(f"  {where}")
                head = f"{'check':{wide}} {'program':18} {'verdict':13}"
                lines.append(f"    {head} {'error (bands)':>13}  {'would have caught':>17}  cases")
            sees = "" if math.isinf(row.resolves) else f"{row.resolves:.1e}"
            numbers = f"{row.off:13.3g}  {sees:>17}  {len(row.findings):5}"
            lines.append(f"    {row.check:{wide}} {row.program:18} {row.verdict:13} {numbers}")
            lines += [f"      {line}" for line in self._reasons(row)]
        for name, why in list(self.skipped.items())[:_SHOWN]:
            lines.append(f"  not judged: {name}: {why}")
        if len(self.skipped) > _SHOWN:
            lines.append(f"  not judged: {len(self.skipped) - _SHOWN} more")
        lines += [f"  note: {text}" for text in dict.fromkeys(self.notes)]
        return "\n".join(lines)

    @property
    def _shown(self) -> dict[str, FunctionRow]:
        """By check the failure whose numbers are printed: the smallest. A wrong value that a derivative repeats is not
        printed again."""
        shown: dict[str, FunctionRow] = {}
        for row in sorted((row for row in self.rows if row.verdict == "FAIL"), key=lambda row: row.worst.total):
            told = row.check != "value" and row.worst.worst is not None and row.worst.worst.path.startswith("value")
            if not told:
                shown.setdefault(row.check, row)
        return shown

    def _reasons(self, row: FunctionRow) -> list[str]:
        lines = []
        if row.verdict != "PASS":
            failed = sum(f.verdict == row.verdict for f in row.findings)
            lines = [f"{row.worst.reason} (at {row.worst.case}; {failed} of {len(row.findings)} cases)"]
        if row.verdict == "FAIL" and row is self._shown.get(row.check):
            lines += [*row.worst.evidence(), f"{REPRODUCE}{self.reproduce(row, row.worst)}"]
        undecided = [f for f in row.undecided if not f.coarse]
        reasons = list(dict.fromkeys(f"{f.case}: {f.reason}" for f in undecided))
        lines += (
            [f"undecided at {reasons[0]}" + (f" ({len(reasons)} such)" if len(reasons) > 1 else "")] if reasons else []
        )
        return lines

    def __repr__(self) -> str:
        against = f" against {self.against}" if self.against else ""
        return f"FunctionReport {self.name}{against}: {self.verdict}, {self.cases} cases, {self.seconds:.1f} s"


def formula_line(test: Test) -> str:
    """A test of the derivative in one line of a report."""
    sees = f"; would have caught {test.resolves:.1e}" if test.resolves else ""
    return f"    {test.name:24} {test.verdict:12} {test.finding}{sees}"


def plain(value: Any) -> Any:
    """Numbers, strings, lists and dicts; what is not finite as a string."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
