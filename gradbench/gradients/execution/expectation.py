"""What a program should give at a point, and how far rounding may take it from that."""

from __future__ import annotations

import dataclasses

import numpy as np

from gradbench.gradients.formula import oracle
from gradbench.gradients.rounding.band import SAMPLES, Sampling, Spread, quantile


@dataclasses.dataclass
class Expectation:
    """What is expected at a point, flat in float64, its rounding spread, and `doubt`: why it may be wrong, or "".

    `kind` names the band: "reverse" for (value, gradient), "forward" for slopes.
    """

    point: oracle.Point
    expected: list[np.ndarray]
    spread: Spread
    doubt: str = ""
    kind: str = "reverse"
    sampling: Sampling | None = None

    def more(self) -> bool:
        """Doubles the samples; False where all have been taken."""
        if self.sampling is None or self.spread.samples >= SAMPLES:
            return False
        self.spread = self.sampling.spread(2 * self.spread.samples)
        return True


def compare_centre(spread: Spread, expected: list[np.ndarray], dtype: str) -> str:
    """The doubt that the trace in `dtype` computes another function than the float64 one; "" if it does not."""
    factor = quantile(sum(e.size for e in expected)) * spread.share
    for centre, wanted, sigma in zip(spread.exact, expected, spread.sigma):
        if not np.isfinite(sigma[np.isfinite(wanted)]).all():
            return f"the noise of {dtype} takes the interpretation out of float64's range"
        # 2^-40: the two are float64 computations in different orders.
        slack = factor * sigma + 2.0**-40 * np.max(np.abs(wanted), initial=0.0)
        with np.errstate(all="ignore"):
            if np.any(~(np.abs(centre - wanted) <= slack) & np.isfinite(wanted)):
                return (
                    f"the function traced in {dtype} is not the one traced in float64 (random numbers in the loss? a "
                    f"constant that {dtype} cannot hold?)"
                )
    return ""
