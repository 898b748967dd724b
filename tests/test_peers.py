"""Each side of the peers' measurement does the engine's sweep: final losses within the rounding of the whole run."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from sides.cases import Case
from sides.rounding import tolerances
from sides.with_jax import Engine, JittedLoop, ScanPerTrial
from sides.with_numpy import NumpyStacked

SIDES = [NumpyStacked, JittedLoop, ScanPerTrial]
if importlib.util.find_spec("torch"):
    from sides.with_torch import TorchLoop, TorchVmap

    SIDES += [TorchLoop, TorchVmap]


@pytest.mark.parametrize(
    ("problem", "optimizer"),
    [("quadratic_bowl", "momentum"), ("logistic_regression", "sgd"), ("logistic_regression", "adam")],
)
def test_every_side_ends_where_the_engine_does(problem, optimizer):
    case = Case.of(problem, optimizer, count=6, steps=10)
    allowed, (_, expected) = tolerances(case), Engine(case).run()
    assert (allowed < 1e-3 * expected[case.judged]).all()  # a wrong optimizer is further off
    for kind in SIDES:
        side = kind(case)
        _, losses = side.run()
        judged = losses[np.searchsorted(side.indices, case.judged)]
        assert (np.abs(judged - expected[case.judged]) <= allowed).all(), side.name
