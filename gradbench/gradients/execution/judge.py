"""A computed value and gradient against the oracle within the band: PASS, FAIL or INCONCLUSIVE, and why."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from gradbench.gradients.formula.scale import meaning
from gradbench.gradients.rounding.band import Spread, quantile
from gradbench.gradients.rounding.numbers.formats import Format

# A gradient whose scale is known no better than this may as well be half or double: INCONCLUSIVE.
COARSEST = 0.5


@dataclasses.dataclass
class LeafFinding:
    """One leaf: the errors of its worst entry and of its norm in units of what is allowed (1 is the limit), and beta,
    the scale <g, g*>/<g*, g*>.

    `resolves` is the smallest error of the whole leaf, relative to its norm, that would have been seen.
    """

    path: str
    entry: float
    norm: float
    beta: float
    beta_off: float
    resolves: float
    scale_resolves: float
    worst: list[dict[str, Any]]
    fault: str | None = None

    @property
    def off(self) -> float:
        return max(self.entry, self.norm, self.beta_off)


@dataclasses.dataclass
class Judgement:
    """The verdict on one computed (value, gradient)."""

    verdict: str
    reason: str
    off: float
    resolves: float
    leaves: list[LeafFinding]

    def settled(self, spread: Spread) -> bool:
        """Whether all samples of `spread` would give a PASS, whatever the missing ones are (see `band`). Scales are
        only estimated: those near COARSEST wait for all samples."""
        clear = all(leaf.scale_resolves < COARSEST / 2 for leaf in self.leaves)
        return self.verdict == "PASS" and self.off <= spread.share and clear


def judge(
    got: list[Any],
    expected: list[np.ndarray],
    spread: Spread,
    names: list[str],
    form: Format,
    extra: list[Any] | None = None,
    examples: int | None = None,
    underflow: float = 0.0,
    what: str = "gradient",
) -> Judgement:
    """Judge flat leaves `got` (any float dtype) against `expected` (float64).

    Args:
        spread: of the same leaves. extra: tolerance per entry, on top of the band.
        form: the format they were computed in, for overflow. examples: how many there are, to explain beta.
        underflow: the underflow of a finished entry (absolute). what: what the leaves are, for the texts.

    Half of the false-alarm budget is shared by the entries, half by the norms and scales of the leaves.
    """
    count = sum(e.size for e in expected)
    entry_factor, leaf_factor = quantile(2 * count), quantile(4 * len(expected))
    findings, reasons = [], []
    for position, (g, e, name) in enumerate(zip(got, expected, names)):
        g = np.asarray(g).astype(np.float64)
        extra_tolerance = 0.0 if extra is None else extra[position]
        findings.append(
            _leaf(g, e, spread, position, name, form, extra_tolerance, entry_factor, leaf_factor, underflow)
        )
        if findings[-1].fault:
            reasons.append(f"{name}: {findings[-1].fault}")
    off = max(f.off for f in findings)
    resolves = max(f.resolves for f in findings)
    if reasons:
        verdict, reason = "FAIL", reasons[0]
        if spread.overflow and "finite" in reason:
            verdict, reason = "INCONCLUSIVE", f"a value on the way leaves {form.name}'s range; {reason}"
    elif off > 1:
        worst = max(findings, key=lambda f: f.off)
        verdict, reason = "FAIL", _explain(worst, leaf_factor, spread, names.index(worst.path), examples, what)
        if spread.tie:
            verdict, reason = "INCONCLUSIVE", f"rounding can turn a choice (equality, sort, branch); {reason}"
    else:
        coarse = [f for f in findings if f.scale_resolves >= COARSEST]
        verdict, reason = "PASS", ""
        if coarse:
            verdict = "INCONCLUSIVE"
            reason = (
                f"rounding alone may change {coarse[0].path} by {coarse[0].scale_resolves:.3g} times its norm: "
                "this point decides nothing"
            )
    if verdict == "FAIL" and spread.reciprocal:
        reason += f"; a quotient x / y has a reciprocal 1 / y beyond {form.name}'s range: compilers take x * (1 / y)"
    undefined = [name for e, name in zip(expected, names) if np.isnan(e).any()]
    if undefined and verdict == "PASS":
        verdict, reason = "INCONCLUSIVE", f"the exact {_of(undefined[0], what)} is not a number"
    for unexplained in spread.unknown:
        verdict, reason = "INCONCLUSIVE", f"no rounding rule for the primitive {unexplained!r}" + _and(reason)
    return Judgement(verdict, reason, off, resolves, findings)


def _of(name: str, what: str) -> str:
    return "loss" if name == "value" else f"{what} of {name}"


def _and(reason: str) -> str:
    return f"; {reason}" if reason else ""


def _leaf(g, e, spread, position, name, form, extra_tolerance, entry_factor, leaf_factor, underflow) -> LeafFinding:
    # Where the samples leave float64's range (a root of a sum that cancels to 0) nothing is known.
    sigma = np.where(np.isfinite(spread.sigma[position]), spread.sigma[position], np.inf)
    allowed = entry_factor * sigma + extra_tolerance + underflow
    with np.errstate(all="ignore"):
        # A number beyond the format's range rounds to infinity; near the limit both answers are right.
        beyond = np.abs(e) - allowed > form.largest
        edge = (np.abs(e) + allowed > form.largest) & ~beyond
        wanted = np.where(beyond, np.copysign(np.inf, e), e)
        finite = np.isfinite(wanted) & ~(edge & np.isinf(g))
        error = np.where(finite & np.isfinite(g), g - wanted, 0.0)
        units = np.where(error != 0, np.abs(error) / np.maximum(allowed, 1e-320), 0.0)
    usable = finite & np.isfinite(g)
    # Norms and products are of e / largest, so that numbers near the end of float64's range do not overflow.
    largest = float(np.max(np.abs(e[usable]), initial=0.0))
    unit = largest if largest > 0 else 1.0
    relative, miss = e[usable] / unit, float(np.linalg.norm(error / unit))
    size = float(np.linalg.norm(relative))
    added = np.broadcast_to(np.asarray(extra_tolerance + underflow) / unit, e.shape)
    slack = float(np.linalg.norm(added))
    norm_sigma, along = spread.norm[position] / unit, spread.along[position]
    # `along` is relative to the leaf the noise was added to, which rounded constants may make larger than e.
    centre = spread.exact[position]
    centre_size = float(np.linalg.norm(np.where(np.isfinite(centre), centre, 0.0) / unit))
    along *= max(1.0, centre_size / size) if size > 0 else 1.0
    if not (np.isfinite(norm_sigma) and np.isfinite(along)):  # some entries overflow: the others are judged alone
        with np.errstate(over="ignore"):  # infinite: nothing is known
            norm_sigma = float(np.linalg.norm(sigma[usable] / unit))
        along = norm_sigma / size if size > 0 else 0.0
    if centre_size == 0 and size > 0:  # the leaf cancels to 0 in the trace, here to rounding: 0 has no direction
        along = norm_sigma / size
    norm_allowed = leaf_factor * norm_sigma + slack
    # Summed from the errors, so that a leaf right to the last bit gives exactly 1, whatever its size.
    beta = 1.0 + float(np.sum(error[usable] / unit * relative) / size**2) if size > 0 else 1.0
    # 2^-49: the sums here round in float64.
    beta_allowed = leaf_factor * along + 2.0**-49 + (slack / size if size > 0 else 0.0)
    return LeafFinding(
        path=name,
        entry=float(units.max(initial=0.0)),
        norm=_ratio(miss, norm_allowed),
        beta=beta,
        beta_off=_ratio(abs(beta - 1), beta_allowed) if size > 0 else 0.0,
        resolves=(norm_allowed + miss) / size if size > 0 else 0.0,
        scale_resolves=beta_allowed if size > 0 else 0.0,
        worst=_worst(units, g, e),
        fault=_fault(g, e, wanted, finite),
    )


def _fault(g: np.ndarray, e: np.ndarray, wanted: np.ndarray, finite: np.ndarray) -> str | None:
    """A text on the entries that are finite where they should not be, or the reverse; None if there are none."""
    wrong = (finite & ~np.isfinite(g)) | (np.isinf(wanted) & (g != wanted) & ~np.isnan(e))
    if not wrong.any():
        return None
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    what = "is not finite" if not np.isfinite(g[index]) else "is finite where it overflows"
    return f"entry {list(index)} {what}: got {g[index]:.6g}, expected {wanted[index]:.6g} ({int(wrong.sum())} such)"


def _worst(units: np.ndarray, g: np.ndarray, e: np.ndarray) -> list[dict[str, Any]]:
    """Up to three entries that are furthest off, in units of what is allowed."""
    few = min(3, units.size)
    order = np.argpartition(units, units.size - few, axis=None)[units.size - few :] if few else []
    places = [np.unravel_index(flat, e.shape) for flat in sorted(order, key=lambda i: -units.flat[i])]
    return [
        {
            "index": [int(i) for i in place],
            "got": float(g[place]),
            "expected": float(e[place]),
            "bands": float(units[place]),
        }
        for place in places
        if units[place] > 0
    ]


def _ratio(value: float, allowed: float) -> float:
    if value == 0:
        return 0.0
    # Where nothing rounds the answer is exact; only the float64 sums here round.
    return value / allowed if allowed > 0 else (math.inf if value > 1e-12 else 0.0)


def _explain(worst: LeafFinding, factor: float, spread: Spread, position: int, examples: int | None, what: str) -> str:
    if worst.path == "value":
        entry = worst.worst[0]
        return (
            f"the loss is {entry['got']:.7g}, expected {entry['expected']:.7g}: {entry['bands']:.3g} times "
            "what rounding allows"
        )
    told = meaning(worst.beta, examples, factor * spread.along[position])
    text = f"the {what} of {worst.path} is off by {worst.off:.3g} times what rounding allows, beta = {worst.beta:.5g}"
    return text + (f": {told}" if told else "")
