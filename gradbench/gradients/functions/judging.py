"""A function's answer against what is expected of it: PASS, FAIL or INCONCLUSIVE, and why."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradbench.gradients.execution.judge import LeafFinding, judge
from gradbench.gradients.formula.scale import meaning
from gradbench.gradients.functions.expected import Part
from gradbench.gradients.rounding.band import quantile
from gradbench.gradients.rounding.numbers.formats import Format


@dataclasses.dataclass
class Finding:
    """What one program gave at one case.

    `off` is the largest error in units of what rounding allows, `resolves` the smallest relative error of an output
    that would have been seen, `coarse` whether rounding alone may change an output by half of itself, `edge` as in
    Case.
    """

    check: str
    program: str
    case: str
    verdict: str
    reason: str = ""
    off: float = 0.0
    resolves: float = 0.0
    coarse: bool = False
    edge: bool = False
    total: int = 0  # numbers in the arguments
    worst: LeafFinding | None = None

    def evidence(self) -> list[str]:
        """The worst entries."""
        leaf = self.worst
        if leaf is None:
            return []
        return [
            f"{leaf.path}{entry['index'] or ''}: got {entry['got']:.9g}, expected {entry['expected']:.9g}, "
            f"off by {entry['bands']:.3g} bands"
            for entry in leaf.worst
        ]


def compare(got: list[Any], part: Part, form: Format, underflow: float, finding: Finding) -> Finding:
    """`finding` with the verdict on flat leaves `got`, whose NaNs must be where the reference's are."""
    expected, spread = list(part.expected), part.spread
    if len(got) != len(expected):
        return _fail(finding, f"{len(got)} arrays instead of {len(expected)}")
    for g, e, name in zip(got, expected, part.names):
        if np.shape(g) != e.shape:
            return _fail(finding, f"{name} has shape {np.shape(g)} instead of {e.shape}")
        if jnp.issubdtype(g.dtype, jnp.floating) != (e.dtype.kind == "f"):
            return _fail(finding, f"{name} is {g.dtype} instead of {'a float' if e.dtype.kind == 'f' else e.dtype}")
    whole = [i for i, e in enumerate(expected) if e.dtype.kind != "f"]
    for i in whole:
        wrong = np.asarray(got[i]) != expected[i]
        if wrong.any():
            index = tuple(int(k) for k in np.argwhere(wrong)[0])
            text = f"{part.names[i]}{list(index) or ''} is {got[i][index]} instead of {expected[i][index]}"
            if spread.tie:
                return dataclasses.replace(
                    finding, verdict="INCONCLUSIVE", reason=f"rounding can turn a choice; {text}"
                )
            return _fail(finding, text)
    floats = [i for i in range(len(expected)) if i not in whole]
    if not floats:
        return dataclasses.replace(finding, verdict="PASS")
    got = [np.asarray(got[i]).astype(np.float64) for i in floats]
    expected, names = [expected[i] for i in floats], [part.names[i] for i in floats]
    undefined = [np.isnan(e) for e in expected]
    for g, nan, name in zip(got, undefined, names):
        if (lost := nan & ~np.isnan(g)).any():
            index = tuple(int(k) for k in np.argwhere(lost)[0])
            return _fail(finding, f"{name}{list(index) or ''} is {g[index]:.6g} where the reference is NaN")
    # Entries that are NaN in both are judged already.
    got, expected = ([np.where(n, 0.0, x) for n, x in zip(undefined, xs)] for xs in (got, expected))
    judged = dataclasses.replace(
        spread,
        exact=[np.where(n, 0.0, spread.exact[i]) for n, i in zip(undefined, floats)],
        sigma=[spread.sigma[i] for i in floats],
        norm=[spread.norm[i] for i in floats],
        along=[spread.along[i] for i in floats],
    )
    with np.errstate(all="ignore"):
        found = judge(got, expected, judged, names, form, underflow=underflow)
    coarse = found.verdict == "INCONCLUSIVE" and found.off <= 1 and not spread.unknown
    reason, worst = found.reason, max(found.leaves, key=lambda leaf: (leaf.fault is not None, leaf.off))
    if found.off > 1 and not worst.fault:
        factor = quantile(4 * len(expected))
        told = meaning(worst.beta, None, factor * judged.along[names.index(worst.path)])
        text = f"{worst.path} is off by {worst.off:.3g} times what rounding allows, beta = {worst.beta:.5g}"
        reason = reason.split("; ")[0] + f"; {text}" if found.verdict == "INCONCLUSIVE" else text
        reason += f": {told}" if told else ""
    return dataclasses.replace(
        finding,
        verdict=found.verdict,
        reason=reason,
        off=np.inf if worst.fault else found.off,
        resolves=found.resolves,
        coarse=coarse,
        worst=worst,
    )


def inner(one: Any, other: Any) -> float:
    return float(np.vdot(np.asarray(one).astype(np.float64), np.asarray(other).astype(np.float64)))


def with_infinities(got: list[Any], part: Part, form: Format) -> list[Any]:
    """An answer with infinity for each NaN that stands where the right number is finite and beyond the format's range:
    what adds up to it may leave the range on both sides."""

    def one(g: Any, e: np.ndarray) -> Any:
        if e.dtype.kind != "f" or np.shape(g) != e.shape:
            return g
        wide = np.asarray(g).astype(np.float64)
        lost = np.isnan(wide) & np.isfinite(e) & (np.abs(e) > form.largest)
        return np.where(lost, np.copysign(np.inf, e), wide)

    return [*map(one, got, part.expected)]


def _fail(finding: Finding, reason: str) -> Finding:
    return dataclasses.replace(finding, verdict="FAIL", reason=reason, off=np.inf)
