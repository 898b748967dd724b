"""Each side of the peers' measurement does the engine's sweep: final losses within the rounding of the whole run."""

from __future__ import annotations

import importlib.util
import time

import jax
import numpy as np
import peers
import pytest
from sides.cases import PROBLEMS, Case, named, short
from sides.rounding import tolerances
from sides.with_jax import Engine, JittedLoop, ScanPerTrial
from sides.with_numpy import NumpyStacked

from gradbench.inputs.problem import load_problem

SIDES = [NumpyStacked, JittedLoop, ScanPerTrial]
if importlib.util.find_spec("torch"):
    from sides.with_torch import TorchLoop, TorchVmap

    SIDES += [TorchLoop, TorchVmap]

TINY = {  # settings for tests of what is slow as measured
    "cnn": "cnn[channels=2]",
    "transformer": "transformer[width=8,length=5,examples=3]",
    "lstm": "lstm[hidden=3,length=4,examples=5]",
    "matrix_factorisation": "matrix_factorisation[users=6,items=5,rank=2,ratings=40]",
}
SPECS = [TINY.get(short(spec), spec) for spec in PROBLEMS]


CASES = [
    *[Case.of("logistic_regression", "sgd", 6, 10), Case.of("quadratic_bowl", "momentum", 6, 10)],
    Case.of("logistic_regression", "adam", 6, 10),
    Case(TINY["matrix_factorisation"], "sgd", np.geomspace(0.01, 1, 6, dtype=np.float32), 10),  # has metrics
]


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{short(case.problem_name)}-{case.optimizer_name}")
def test_every_side_ends_where_the_engine_does(case):
    allowed, (_, expected) = tolerances(case), Engine(case).run()
    assert (allowed < 1e-3 * expected[case.judged]).all()  # a wrong optimizer is further off
    for kind in (kind for kind in SIDES if kind.takes(case)):
        side = kind(case)
        _, losses = side.run()
        judged = losses[np.searchsorted(side.indices, case.judged)]
        assert (np.abs(judged - expected[case.judged]) <= allowed).all(), side.name


@pytest.mark.parametrize("spec", SPECS, ids=short)
def test_losses_in_torch_are_the_problems(spec):
    torch = pytest.importorskip("torch")
    from sides.torch_losses import LOSSES

    problem = load_problem(spec)
    with jax.enable_x64(True):
        start = jax.tree.map(lambda leaf: leaf.astype("float64"), problem.init(jax.random.key(0)))
        # Moved off the start, where biases are 0, and with a seed: where two leaves are swapped, values differ.
        leaves, tree = jax.tree.flatten(start)
        draw = np.random.default_rng(0)
        params = jax.tree.unflatten(tree, [leaf + 0.1 * draw.normal(size=leaf.shape) for leaf in leaves])
        value, grads = jax.jit(jax.value_and_grad(problem.loss))(params, problem.data)
    given = {name: torch.tensor(leaf, requires_grad=True) for name, leaf in named(params).items()}
    data = {name: torch.tensor(leaf) for name, leaf in named(problem.data).items()}
    loss = LOSSES[short(spec)](given, data)
    loss.backward()
    # Rounding of float64 in sums of up to 1e5 terms.
    np.testing.assert_allclose(loss.item(), float(value), rtol=1e-11)
    for name, expected in named(grads).items():
        off = np.linalg.norm(given[name].grad.numpy() - expected)
        assert off <= 1e-11 * np.linalg.norm(expected), name


def test_numpy_is_for_the_small_problems():
    assert NumpyStacked.takes(Case.of("mlp", "sgd"))
    assert not NumpyStacked.takes(Case.of("cnn", "sgd"))


def test_what_takes_too_long_to_set_up_is_stopped():
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"), peers.deadline(0.01):
        time.sleep(10)


def test_table_has_the_share_of_the_limit_and_old_records_a_dash():
    row = {"problem": "cnn", "optimizer": "sgd", "side": "engine", "steps": 10, "step_s": 5e-3, "void": None}
    row |= {"loss_share": 0.0, "end_to_end_s": 1.0}
    other = row | {"side": "PyTorch loop", "step_s": 2e-2, "loss_share": 0.5, "end_to_end_s": 3.0}
    (new,), (old,) = peers.ratios([row | {"of_limit": 0.345}, other]), peers.ratios([row, other])
    assert (new["engine_us"], new["of_limit"], old["of_limit"]) == ("5000", "34 %", "–")
    assert new["PyTorch loop"] == "4 (3)"
