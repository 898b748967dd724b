"""What the problems state of themselves, against other libraries, closed forms and statistics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import threadpoolctl
from quick import jit_quickly

from gradbench import datasets
from gradbench.errors import ProblemError
from gradbench.inputs.problem import cast, load_problem


def trained(problem, optimizer, steps, batch_size=None):
    """Params after `steps` updates in float32, on all the data or on minibatches in the order of the rows."""
    rows = None if batch_size is None else np.arange(steps * batch_size).reshape(steps, -1) % problem.examples

    @jax.jit
    def run(data):
        def step(carry, chosen):
            params, state = carry
            batch = data if chosen is None else jax.tree.map(lambda leaf: leaf[chosen], data)
            updates, state = optimizer.update(jax.grad(problem.loss)(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = problem.init(jax.random.key(0))
        return jax.lax.scan(step, (params, optimizer.init(params)), rows, length=steps)[0][0]

    return run(cast(problem.data, jnp.float32))


def metric(problem, name, params):
    return float(problem.metrics[name](params, cast(problem.holdout, jnp.float32)))


def gradient64(loss, params, data):
    """The loss and its gradient in float64."""
    with jax.enable_x64(True):
        both = jit_quickly(jax.value_and_grad(loss))
        value, grads = both(*cast((params, data), jnp.float64))
    return float(value), jax.tree.map(np.asarray, grads)


def test_a_split_is_two_parts_of_the_whole_and_always_the_same():
    rows = {"a": np.arange(50), "b": 2 * np.arange(50)}
    train, holdout = datasets.split(rows, share=0.3)
    assert len(holdout["a"]) == 15
    assert sorted([*train["a"], *holdout["a"]]) == list(range(50))
    np.testing.assert_array_equal(train["b"], 2 * train["a"])
    np.testing.assert_array_equal(datasets.split(rows, share=0.3)[0]["a"], train["a"])


def test_softmax_minimum_brackets_scikit_learns():
    """With an l2 penalty, f(w) - min f <= |grad f(w)|² / (2 l2) (Boyd and Vandenberghe, 9.1.2)."""
    from sklearn.linear_model import LogisticRegression

    problem = load_problem("softmax_regression[l2=0.1]")
    few = {"X": problem.data["X"][:200, 20:30], "y": problem.data["y"][:200]}
    minimum = datasets.softmax_minimum(few["X"], few["y"], 10, l2=0.1)
    model = LogisticRegression(C=1 / (0.1 * 200), fit_intercept=False, tol=1e-7, max_iter=1000)
    value, gradient = gradient64(problem.loss, model.fit(few["X"], few["y"]).coef_.T, few)
    slack = 1e-14
    assert value - np.sum(gradient**2) / (2 * 0.1) - slack <= minimum <= value + slack


def newton(problem, params):
    with jax.enable_x64(True):
        data = cast(problem.data, jnp.float64)
        loss = problem.loss
        step = jit_quickly(lambda w: jnp.linalg.solve(jax.hessian(loss)(w, data), jax.grad(loss)(w, data)))
        for _ in range(20):
            params = params - np.asarray(step(params))
    return params


def test_demand_elasticities_are_scikit_learns():
    from sklearn.linear_model import PoissonRegressor

    problem = load_problem("poisson_regression")
    design, counts = problem.data["X"], problem.data["y"]
    found = newton(problem, np.linalg.lstsq(design, np.log(counts + 0.5))[0])
    model = PoissonRegressor(alpha=0, solver="newton-cholesky", tol=1e-12, max_iter=100).fit(design[:, :-1], counts)
    np.testing.assert_allclose(found, [*model.coef_, model.intercept_], rtol=0, atol=1e-6)
    assert problem.minimum == pytest.approx(gradient64(problem.loss, found, problem.data)[0], rel=1e-12)


def test_demand_elasticities_are_the_true_ones_within_their_errors():
    """Maximum likelihood estimates are normal with covariance (n H)^-1; five standard errors."""
    problem = load_problem("poisson_regression")
    design = problem.data["X"]
    found = newton(problem, np.linalg.lstsq(design, np.log(problem.data["y"] + 0.5))[0])
    information = (design.T * np.exp(design @ found)) @ design
    errors = np.sqrt(np.diag(np.linalg.inv(information)))
    assert np.all(np.abs(found - [-1.8, 0.7, 0.5, 0.3, np.log(8)])[:4] < 5 * errors[:4])


def test_poisson_regression_takes_a_users_counts_and_refuses_others(tmp_path):
    (tmp_path / "a.csv").write_text("price,sold\n" + "\n".join(f"{i / 9},{10 - i}" for i in range(10)))
    assert load_problem(f"poisson_regression[data={tmp_path / 'a.csv'}]").data["X"].shape == (8, 2)
    (tmp_path / "b.csv").write_text("price,sold\n1,2\n2,-1\n3,0\n")
    with pytest.raises(ProblemError, match="must hold counts"):
        load_problem(f"poisson_regression[data={tmp_path / 'b.csv'}]")


def test_the_rods_exact_solution_solves_its_equation():
    """By central differences, whose error is h²/12 of a fourth derivative: at most (3 pi)^4 h² / 24 of each term."""
    h = 1e-3
    x, t = np.array([0.2, 0.7]), np.array([0.1, 0.5])

    def u(dx=0.0, dt=0.0):
        return datasets.heat_rod(x + dx, t + dt, conductivity=0.1, source=1.0)

    u_t = (u(dt=h) - u(dt=-h)) / (2 * h)
    u_xx = (u(dx=h) - 2 * u() + u(dx=-h)) / h**2
    np.testing.assert_allclose(u_t, 0.1 * u_xx + np.sin(np.pi * x), atol=(3 * np.pi) ** 4 * h**2 / 24)
    np.testing.assert_allclose(datasets.heat_rod(np.array([0.0, 1.0]), t, 0.1, 1.0), 0, atol=1e-15)


@pytest.mark.thorough
def test_the_rods_conductivity_and_source_are_recovered_within_the_noise():
    """Least squares estimates have covariance (n H)^-1 in units of the noise; five standard errors."""
    problem = load_problem("heat_rod")
    logs = trained(problem, optax.adam(0.1), 200)
    with jax.enable_x64(True):
        hessian = np.asarray(jax.jit(jax.hessian(problem.loss))(cast(logs, jnp.float64), problem.data))
    errors = np.sqrt(np.diag(np.linalg.inv(hessian)) / problem.data["reading"].size)
    assert np.all(np.abs(np.asarray(logs) - np.log([0.1, 1.0])) < 5 * errors)
    assert problem.loss(logs, cast(problem.data, jnp.float32)) < problem.target


def test_matrix_factorisation_states_its_noise():
    """A mean of n squares of a normal has a relative standard deviation of sqrt(2/n); five of them."""
    problem = load_problem("matrix_factorisation[users=30,items=20,rank=2,ratings=5000]")
    assert problem.target == pytest.approx(0.5 * 0.3**2, rel=5 * (2 / problem.examples) ** 0.5)
    assert np.var(problem.data["rating"]) == pytest.approx(1, abs=0.5)


def test_the_autoencoders_target_is_scikit_learns_principal_components():
    from sklearn.decomposition import PCA

    problem = load_problem("autoencoder[code=5]")
    images = problem.data["x"]
    model = PCA(5, svd_solver="full").fit(images)
    error = np.mean((model.inverse_transform(model.transform(images)) - images) ** 2)
    assert problem.target == pytest.approx(error, rel=1e-10)


@pytest.mark.thorough
def test_the_cnn_beats_the_support_vector_machine_of_scikit_learns_example():
    """Whose accuracy on digits held out is 0.97 (scikit-learn's example "Recognizing hand-written digits")."""
    problem = load_problem("cnn")
    assert metric(problem, "accuracy", trained(problem, optax.adam(1e-2), 150, batch_size=128)) > 0.97


@pytest.mark.thorough
def test_the_lstm_beats_the_constant_answer_on_held_out_sequences():
    problem = load_problem("lstm[hidden=16,length=8]")
    assert metric(problem, "rmse", trained(problem, optax.adam(0.03), 300)) < (1 / 6) ** 0.5


def test_the_languages_entropy_is_that_of_its_text():
    """The entropy of the counts of (token two before, token), whose bias is (16 - 1) 16 / 2n (Miller 1955), and whose
    standard deviation is that of -log p, at most log(16 / 0.1) / 2, over sqrt(n)."""
    length = 32
    problem = load_problem(f"transformer[examples=512,length={length}]")
    tokens = np.concatenate([problem.data["tokens"], problem.holdout["tokens"]])
    counts = np.zeros((16, 16))
    np.add.at(counts, (tokens[:, :-2].ravel(), tokens[:, 2:].ravel()), 1)
    n = counts.sum()
    share = counts / counts.sum(axis=1, keepdims=True)
    entropy = -np.sum(counts * np.log(np.where(counts > 0, share, 1))) / n
    floor = (np.log(16) + (length - 1) * entropy) / length
    assert problem.target / 1.05 == pytest.approx(floor, abs=15 * 16 / (2 * n) + 5 * np.log(160) / 2 / n**0.5)


@pytest.mark.thorough
def test_the_transformer_reaches_the_languages_entropy_on_held_out_text():
    problem = load_problem("transformer[layers=1,width=32,heads=2,length=8,examples=12800]")
    params = trained(problem, optax.adam(1e-2), 200, batch_size=64)
    assert np.log(metric(problem, "perplexity", params)) < problem.target


def test_the_transformer_reads_a_users_text(tmp_path):
    (tmp_path / "a.txt").write_text("abcd" * 60, encoding="utf-8")
    problem = load_problem(f"transformer[data={tmp_path / 'a.txt'},length=15]")
    assert problem.target is None
    assert (problem.examples, len(problem.holdout["tokens"])) == (13, 2)  # of 15 rows of 16
    np.testing.assert_array_equal(np.unique(problem.data["tokens"]), range(4))
    with pytest.raises(ProblemError, match="has 240 characters; needs 330, ten rows of 33"):
        load_problem(f"transformer[data={tmp_path / 'a.txt'}]")


def sklearns_process(problem, params):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    length, signal, noise = (float(np.exp(params[f"log_{name}"])) for name in ("length", "signal", "noise"))
    kernel = ConstantKernel(signal) * RBF(length) + WhiteKernel(noise)
    return GaussianProcessRegressor(kernel, alpha=0, optimizer=None).fit(problem.data["X"], problem.data["y"])


# The maximum of scikit-learn's GaussianProcessRegressor(ConstantKernel(1) * RBF(10**0.5) + WhiteKernel(1), alpha=0).
OPTIMUM = {"log_length": 1.6054431183, "log_signal": 0.1204983297, "log_noise": -0.9071318617}


def test_the_marginal_likelihood_is_scikit_learns_and_highest_at_its_optimum():
    problem = load_problem("gaussian_process")
    model = sklearns_process(problem, OPTIMUM)
    value, grads = gradient64(problem.loss, OPTIMUM, problem.data)
    assert value == pytest.approx(-model.log_marginal_likelihood_value_ / len(problem.data["y"]), rel=1e-10)
    assert value < problem.target < value + 2e-3
    np.testing.assert_allclose(jax.tree.leaves(grads), 0, atol=1e-5)  # scikit-learn's L-BFGS stops there


def test_leave_one_out_errors_are_those_of_leaving_each_one_out():
    problem = load_problem("gaussian_process")
    x, y = problem.data["X"][:20], problem.data["y"][:20]
    length, signal, noise = (np.exp(OPTIMUM[f"log_{name}"]) for name in ("length", "signal", "noise"))
    k = signal * np.exp(-((x[:, None] - x[None]) ** 2).sum(axis=2) / (2 * length**2)) + noise * np.eye(20)
    errors = []
    for i in range(20):
        rest = np.arange(20) != i
        errors.append(y[i] - k[i, rest] @ np.linalg.solve(k[np.ix_(rest, rest)], y[rest]))
    with jax.enable_x64(True):
        found = jit_quickly(problem.metrics["leave_one_out_rmse"])(
            cast(OPTIMUM, jnp.float64), {"X": jnp.array(x), "y": jnp.array(y)}
        )
    assert found == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-10)


def test_the_flower_is_scikit_learns():
    pytest.importorskip("PIL")
    from sklearn.datasets import load_sample_image

    problem = load_problem("image_network")
    grey = load_sample_image("flower.jpg").mean(axis=2)[20:404, 120:504].reshape(48, 8, 48, 8).mean(axis=(1, 3)) / 255
    for split in (problem.data, problem.holdout):
        rows, columns = (split["place"] * 48).astype(int).T
        np.testing.assert_allclose(split["value"], grey[rows, columns], atol=0.5 / 255 + 1e-12)


@pytest.mark.parametrize("name", ["logistic_regression", "linear_regression", "poisson_regression"])
def test_a_minimum_does_not_depend_on_how_many_threads_numpy_has(name):
    found = []
    for threads in (1, 2):
        with threadpoolctl.threadpool_limits(threads, "blas"):
            found.append(load_problem(name).minimum)
    assert found[0] == found[1]
