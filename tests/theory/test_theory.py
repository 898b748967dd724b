"""Curvature against numpy's eigenvalues, and limits and rates against what the bowl does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import sample

import gradbench
from gradbench.analysis import profiles
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import cast
from gradbench.theory import curvature, quadratic, sharpness
from gradbench.theory.replay import TOGETHER, compile_for, flat_loss, replay, start, within_memory
from gradbench.theory.rising import read_rise


@pytest.mark.parametrize(
    "name", sample(["quadratic_bowl", "linear_regression", "logistic_regression", "mlp[hidden=8]"], 2)
)
def test_lanczos_agrees_with_numpys_eigenvalues(name):
    problem = gradbench.load_problem(name)
    with jax.enable_x64(True):
        gradient, point = jax.grad(flat_loss(problem, "float64")), start(problem, 0, "float64")
        data = cast(problem.data, "float64")
        column = lambda data, v: jax.jvp(lambda p: gradient(p, data), (point,), (v,))[1]  # noqa: E731
        hessian = jax.jit(lambda data: jax.lax.map(lambda v: column(data, v), jnp.eye(point.size), batch_size=16))
        eigenvalues = np.linalg.eigvalsh(hessian(data))
    measured = curvature.measured_curvature(problem)
    np.testing.assert_allclose((measured.mu, measured.largest), eigenvalues[[0, -1]], rtol=1e-4)


@pytest.mark.parametrize("name", ["quadratic_bowl[dim=8]", "linear_regression"])
def test_measured_curvature_of_a_quadratic_is_the_stated_one(name):
    problem = gradbench.load_problem(name)
    assert curvature.curvature(problem).source == "stated"
    np.testing.assert_allclose(curvature.measured_curvature(problem)[:2], problem.curvature, rtol=1e-4)


def test_lanczos_error_bounds_the_distance_to_an_eigenvalue():
    random = np.random.default_rng(1)
    matrix = random.standard_normal((60, 60))
    matrix += matrix.T
    eigenvalues = np.linalg.eigvalsh(matrix)
    low, high, error = curvature.lanczos(lambda v: matrix @ v, 60, products=12)
    assert abs(eigenvalues - low).min() <= error
    assert abs(eigenvalues - high).min() <= error
    assert error > 1e-3  # twelve products are too few, and the bound says so


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("sgd", quadratic.Momentum(0.0, False)),
        ("momentum", quadratic.Momentum(0.9, False)),
        ("nesterov", quadratic.Momentum(0.9, True)),
        ("momentum[momentum=0.5]", quadratic.Momentum(0.5, False)),
        ("sgd[momentum=0.8,nesterov=true]", quadratic.Momentum(0.8, True)),
        ("sgd[schedule=cosine]", None),
        ("adam", None),
    ],
)
def test_momentum_of(optimizer, expected):
    assert quadratic.momentum_of(optimizer) == expected


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "momentum[momentum=0.5]"])
def test_the_bowl_diverges_just_above_the_stable_limit_and_not_below(optimizer):
    limit = quadratic.stable_limit(optimizer, 2.0)
    plan = SweepPlan(dtype="float64", steps=3000)
    problem = gradbench.load_problem("quadratic_bowl[dim=2,condition=10]")
    below, above = replay(problem, optimizer, plan, [(limit * 0.99, 0), (limit * 1.01, 0)], [0, 3000]).losses
    assert below[1] < below[0] < above[1]


@pytest.mark.parametrize("optimizer", sample(["sgd", "momentum", "momentum[momentum=0.5]", "nesterov"]))
def test_the_rate_fitted_from_the_curve_is_the_predicted_one_at_every_converging_learning_rate(sweep, optimizer):
    """On the default bowl, and 1 % is of the decay: of the rate's logarithm, which is the stricter reading.

    From the lowest rate here on, the flattest direction falls by e^-100 in the run, and by e^-50 before the half that
    is fitted. There the next direction, of 1.048 times its curvature, has e^-4.7 of its weight in the loss, so the
    mixture's decay is 0.05 % off. Where momentum oscillates all directions decay alike, and their swings, a factor of
    some e^±2 in the loss, tilt a fit over a decay of e^-350 by less than 1 %.
    """
    name = "quadratic_bowl"
    mu, largest = gradbench.load_problem(name).curvature
    limit, beta = quadratic.stable_limit(optimizer, largest), quadratic.momentum_of(optimizer).beta
    rates = gradbench.log_range(0.05 * (1 - beta), 1.2 * limit, 15)
    run = sweep(name, [optimizer], rates, seeds=1, steps=100_000, dtype="float64")
    trial, step, loss = (run.curves[name].to_numpy() for name in ("trial", "step", "loss"))
    measured, predicted = [], []
    for row in run.trials.to_pylist():
        if row["verdict"] == "converged":
            at = trial == row["trial"]
            measured.append(np.log(profiles.measured_rate(step[at], loss[at])))
            predicted.append(2 * np.log(quadratic.predicted_rate(optimizer, row["learning_rate"], mu, largest)))
    assert len(measured) == 14
    assert run.trials["verdict"].to_pylist()[-1] == "diverged"
    np.testing.assert_allclose(measured, predicted, rtol=0.01)


def test_a_heavy_ball_that_oscillates_in_every_direction_contracts_by_the_root_of_beta():
    """Polyak 1964: where (1 - sqrt(beta))^2 < learning_rate × curvature < (1 + sqrt(beta))^2 at both ends."""
    for rate in ((1 - 0.9**0.5) ** 2 / 0.02 + 1e-6, 0.5, (1 + 0.9**0.5) ** 2 / 2 - 1e-6):
        assert quadratic.predicted_rate("momentum", rate, 0.02, 2.0) == pytest.approx(0.9**0.5, rel=1e-6)
    assert quadratic.predicted_rate("momentum", 0.1, 0.02, 2.0) > 0.9**0.5 + 1e-3


@pytest.mark.parametrize("optimizer", ["momentum", "nesterov"])
def test_momentums_predicted_rate_is_the_spectral_radius_of_its_step(optimizer):
    """The matrix that one step of optax multiplies (x, m) by, from running it on unit vectors, has that radius."""
    mu, largest, learning_rate = 0.2, 2.0, 0.3
    radii = []
    for eigenvalue in (mu, largest):
        columns = []
        for x, m in ((1.0, 0.0), (0.0, 1.0)):
            transformation = gradbench.load_optimizer(optimizer).build(learning_rate, 1)
            state = jax.tree.map(lambda leaf, m=m: np.float64(m), transformation.init(np.float64(0.0)))
            with jax.enable_x64(True):
                update, state = transformation.update(np.float64(eigenvalue * x), state, np.float64(x))
            columns.append([x + float(update), float(jax.tree.leaves(state)[0])])
        radii.append(abs(np.linalg.eigvals(np.array(columns).T)).max())
    assert quadratic.predicted_rate(optimizer, learning_rate, mu, largest) == pytest.approx(max(radii), rel=1e-6)


def test_best_fixed_step_beats_its_neighbours():
    mu, largest = 0.1, 3.0
    best = quadratic.best_fixed_step(mu, largest)
    rate = [quadratic.predicted_rate("sgd", best * scale, mu, largest) for scale in (0.99, 1.0, 1.01)]
    assert rate[1] == min(rate)
    assert rate[1] == pytest.approx((largest - mu) / (largest + mu))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_measured_curvature_in_half_precision(dtype):
    problem = gradbench.load_problem("quadratic_bowl")
    measured = curvature.measured_curvature(problem, dtype=dtype)
    assert measured.largest == pytest.approx(problem.curvature[1], rel=2 * float(jnp.finfo(dtype).eps))


def test_sharpness_along_a_bowl_is_its_curvature_everywhere():
    plan = SweepPlan(steps=20)
    rows = sharpness.sharpness_along("quadratic_bowl[dim=6]", "momentum", 0.5, points=3, plan=plan)
    assert [row["step"] for row in rows] == [0, 10, 20]
    np.testing.assert_allclose([row["sharpness"] for row in rows], 2.0, rtol=1e-3)
    assert rows[0]["edge"] == pytest.approx(2 * 1.9 / 0.5)


def test_sharpness_along_ends_where_the_trial_diverged():
    rows = sharpness.sharpness_along("rosenbrock", "sgd", 1.0, points=5, plan=SweepPlan(steps=40))
    assert [row["step"] for row in rows] == [0]


@pytest.mark.thorough
def test_a_replay_repeats_the_sweeps_losses(sweep):
    name = "logistic_regression[examples=64,features=4]"
    run = sweep(name, ["adam"], (0.01, 0.1), seeds=2, steps=12, batch_size=16)
    problem = gradbench.load_problem(name)
    trials = [(0.01, 0), (0.01, 1), (0.1, 0), (0.1, 1)]
    again = replay(problem, "adam", run.plan, trials, [0, 12]).losses
    rows = run.trials.sort_by("trial").select(["initial_loss", "final_loss"]).to_pydict()
    # 12 steps of float32 in another order of summation: rounding of 2^-24 in sums over 64 examples, times 12
    np.testing.assert_allclose(again, np.array(list(rows.values())).T, rtol=64**0.5 * 12 * 2**-24)


def test_losses_are_found_side_by_side_only_where_memory_allows(monkeypatch):
    """Of points of 4 numbers with data of 1000: either one product's (1000,) at a time, or those of eight."""

    def program(points, data, together):
        groups = points.reshape(-1, together, 4)
        return jax.lax.map(lambda group: jnp.sum(jnp.sort(group @ data.T, axis=1)[:, :9], axis=1), groups)

    arrays = jax.ShapeDtypeStruct((2 * TOGETHER, 4), "float32"), jnp.ones((1000, 4))
    program = jax.jit(program, static_argnums=2)

    def needed(most):
        monkeypatch.setattr("gradbench.theory.replay.TOGETHER_BYTES", most)
        return within_memory(program, *arrays).memory_analysis().temp_size_in_bytes

    several = needed(2**28)
    assert needed(several) == several
    assert needed(several - 1) <= several / 2


def test_code_is_optimised_only_where_the_program_computes_enough_to_repay_it(monkeypatch):
    """A sine of 1000 numbers, 100 times over: 33,000 entries for each of its equations."""
    asked = []
    monkeypatch.setattr("gradbench.theory.replay.quick_compile", lambda _, **more: asked.append(more) or {})
    traced = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda _, y: jnp.sin(y), x)).trace(np.ones(1000, "float32"))
    for times in (1, 1000):
        compile_for(traced, times)
    assert asked == [{"xla_backend_optimization_level": 0}, {}]


@pytest.mark.usefixtures("compiled_quickly")
def test_a_run_records_the_sharpness_of_the_bowl(sweep):
    run = sweep("quadratic_bowl", ["sgd"], (0.01, 0.1, 0.9, 1.5), seeds=1, steps=50, sharpness=True)
    rows = run.sharpness.to_pylist()
    # The bowl's Hessian is the same everywhere and its top eigenvalue L = 2; what is measured may be off by `error`
    # and by Hessian-vector products in float32: 2^-24 in each of a few operations.
    assert all(abs(row["sharpness"] - 2.0) <= row["error"] + 1e-6 for row in rows)
    assert max(row["error"] for row in rows) < 0.01
    assert {row["learning_rate"]: round(row["edge"], 6) for row in rows} == {0.01: 200.0, 0.9: 2.222222, 1.5: 1.333333}
    assert [row["step"] for row in rows if row["learning_rate"] == 0.9] == [0, 7, 14, 21, 29, 36, 43, 50]


@pytest.mark.thorough
@pytest.mark.usefixtures("compiled_quickly")
def test_a_run_records_the_sharpness_of_a_network(sweep):
    run = sweep("mlp[hidden=2]", ["adam"], (0.01, 1.0), seeds=1, steps=20, sharpness=True)
    rows = run.sharpness.to_pylist()
    first = curvature.measured_curvature(gradbench.load_problem("mlp[hidden=2]")).largest
    for row in rows:
        if row["step"] == 0:
            assert abs(row["sharpness"] - first) <= row["error"] + 1e-4 * first
        assert row["edge"] is None  # there is no such theory for adam
    assert len({row["sharpness"] for row in rows}) > 4  # it moves along the path


def test_a_rise_is_read_before_it_leaves():
    """Two runs that fall to 0.5 at the third rate and leave at the fifth, though the second comes back lower later."""
    rates = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    losses = np.array([[1.0, 0.8, 0.5, 2.0, 9.0, np.nan], [1.0, 0.7, 0.5, 3.0, 8.0, 0.1]])
    found = read_rise(rates, losses)
    assert (found.lowest, found.edge, found.suggested) == (4.0, 16.0, 0.4)
    assert read_rise(rates[:4], losses[:, :4]).edge is None
