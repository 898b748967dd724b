"""Planes, paths and valleys, where geometry says what they are."""

import numpy as np
import pytest
from synthetic import make_run

import gradbench
from gradbench.analysis.landscape import _plane, landscape, valleys
from gradbench.analysis.summary import representative_rates, summarise
from gradbench.errors import PlanError
from gradbench.inputs.plan import SweepPlan


def test_a_two_parameter_surface_is_the_loss_and_its_gradient():
    problem = gradbench.load_problem("quadratic_bowl[dim=2,condition=10]")
    seen = landscape(problem, "sgd", {0.1: "right"}, SweepPlan(steps=50, dtype="float64"), grid=11)
    x, y = np.meshgrid(seen.x, seen.y)
    np.testing.assert_allclose(seen.loss, 0.1 * x**2 + y**2, rtol=1e-12)
    np.testing.assert_allclose(seen.slope, np.stack([0.2 * x, 2 * y], axis=-1), rtol=1e-12)


def test_a_path_is_gradient_descents_and_a_diverging_one_leaves():
    problem = gradbench.load_problem("quadratic_bowl[dim=2,condition=1]")
    rates = {0.25: "right", 1.5: "diverging"}
    seen = landscape(problem, "sgd", rates, SweepPlan(steps=60, dtype="float64"), grid=5)
    right, diverging = seen.paths
    np.testing.assert_allclose(right["x"], 0.5 ** np.array(right["steps"], float), rtol=1e-12)
    assert (right["left"], diverging["left"]) == (False, True)
    np.testing.assert_allclose(diverging["x"], (-2.0) ** np.array(diverging["steps"], float), rtol=1e-12)


def test_the_plane_of_many_parameters_holds_the_start_and_the_best_point():
    problem = gradbench.load_problem("quadratic_bowl[dim=6,condition=10]")
    seen = landscape(problem, "sgd", {0.3: "right", 0.1: "too small"}, SweepPlan(steps=80, dtype="float64"), grid=5)
    path = seen.paths[0]
    # Distances within the plane are true: from the start, all ones, to the best point, close to 0.
    assert (path["x"][-1], path["y"][-1]) == pytest.approx((0.0, 0.0), abs=1e-12)
    end = 1 - 2 * 0.3 * np.geomspace(0.1, 1.0, 6)
    assert np.hypot(path["x"][0], path["y"][0]) == pytest.approx(np.linalg.norm(1 - end**80), rel=1e-12)
    assert path["y"][0] == pytest.approx(0.0, abs=1e-12)
    assert "projected" in seen.note


def test_the_window_holds_the_whole_of_every_best_path():
    """Momentum swings past the minimum, further than gradient descent's path goes."""
    problem = gradbench.load_problem("quadratic_bowl[dim=2,condition=10]")
    rates = {0.3: "right", 3.0: "diverging"}
    seen = landscape(problem, "sgd", rates, SweepPlan(steps=60), others={"momentum": {0.1: "right"}}, grid=5)
    for path in seen.paths:
        if path["word"] == "right":
            assert not path["left"]
            assert seen.x[0] < min(path["x"]) <= max(path["x"]) < seen.x[-1]
            assert seen.y[0] < min(path["y"]) <= max(path["y"]) < seen.y[-1]


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_what_lies_farthest_beside_the_line_is_drawn_below_it(side):
    """An eigenvector's sign hangs on rounding, and with it would the picture's upside."""
    straight, aside = np.eye(3)[0], side * np.eye(3)[1]
    path = np.stack([straight, 0.5 * straight + aside, 0.25 * straight - 0.5 * aside, 0 * straight])[None]
    origin, axes, *_ = _plane(path, np.array([[4.0, 3.0, 2.0, 1.0]]), 3)
    below = (path[0] - origin) @ axes[1]
    assert below.tolist() == pytest.approx([0.0, -1.0, 0.5, 0.0], abs=1e-15)


def test_a_landscape_needs_two_parameters():
    with pytest.raises(PlanError, match="two parameters"):
        landscape(gradbench.load_problem("quadratic_bowl[dim=1]"), "sgd", {0.1: "right"}, SweepPlan())


def test_representative_rates_teach_the_four_cases():
    decay = {1e-3: 0.001, 0.1: 0.5, 0.2: 0.01, 1.0: -1.0}
    pair = summarise(make_run(tuple(decay), optimizers=["sgd"], decay=lambda optimizer, rate: decay[rate]))[0]
    assert representative_rates(pair) == {1e-3: "too small", 0.1: "right", 0.2: "too large", 1.0: "diverging"}


def test_himmelblaus_trials_end_in_its_four_valleys():
    problem = gradbench.load_problem("himmelblau")
    trials = [("sgd", 0.005, seed) for seed in range(24)] + [("sgd", 10.0, 0)]
    rows = valleys(problem, SweepPlan(steps=300), trials)
    found = {row["valley"]: (round(row["x"], 3), round(row["y"], 3)) for row in rows[:-1]}
    # Himmelblau 1972: the four minima
    assert set(found.values()) == {(3.0, 2.0), (-2.805, 3.131), (-3.779, -3.283), (3.584, -1.848)}
    assert rows[-1]["valley"] is None
