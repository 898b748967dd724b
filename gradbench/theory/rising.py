"""The learning rate range test: what the losses of a run say whose rate rises exponentially, a little at every step
(Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradbench.inputs.specs.schedules import height_of_rise

LEFT = 4.0  # times the loss at the start: a loss beyond this has blown up


@dataclass(frozen=True)
class RangeTest:
    """The rates at which the loss was lowest, and at which it blew up (None where it did not), of the median run."""

    lowest: float
    edge: float | None

    @property
    def suggested(self) -> float:
        """A tenth of the rate where the loss was lowest, as usual: at that rate itself a run begins to be unstable."""
        return float(f"{self.lowest / 10:.2g}")


def risen_rates(high: float, start: float, steps: int) -> np.ndarray:
    """The rate of each update of a run of schedule=rise, (T,), float64."""
    return high * height_of_rise(np.arange(steps), steps, start, np)


def _left(losses: np.ndarray) -> np.ndarray:
    """The first update of each run at which its loss (S, T) has blown up, T where it does not, (S,)."""
    gone = ~(losses <= losses[:, :1] + (LEFT - 1) * np.abs(losses[:, :1]))
    return np.where(gone.any(axis=1), gone.argmax(axis=1), losses.shape[1])


def edge_of_rise(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """The first of the rates (T,) at which the loss (S, T) has blown up, of the median run."""
    place = int(np.median(_left(losses)))
    return float(rates[place]) if place < len(rates) else None


def read_rise(rates: np.ndarray, losses: np.ndarray) -> RangeTest:
    """Of the rates (T,) and the losses (S, T) before the updates at them."""
    before = np.arange(len(rates)) < _left(losses)[:, None]
    lowest = np.where(before, losses, np.inf).argmin(axis=1)
    return RangeTest(float(rates[int(np.median(lowest))]), edge_of_rise(rates, losses))
