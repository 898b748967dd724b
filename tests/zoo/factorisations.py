"""Losses made of linear algebra: low rank, QR, SVD, eigenvalues, solves, determinants, matrix functions."""

import jax
import jax.numpy as jnp
import numpy as np

from gradbench import Problem
from zoo.entries import WIDE, entry, regression, vector, weights


@entry
def matrix_factorisation(generator):
    """Ratings by users and items: rows gathered with duplicates, biases, a ridge."""
    users, items = generator.integers(20, size=120), generator.integers(15, size=120)

    def loss(params, data):
        users, items, rating = data
        u, v = params["users"][users], params["items"][items]
        error = jnp.sum(u * v, axis=1) + params["user_bias"][users] + params["item_bias"][items] - rating
        return jnp.mean(error**2) + 0.01 * (jnp.mean(u**2) + jnp.mean(v**2))

    shapes = {"users": (20, 4), "items": (15, 4), "user_bias": (20,), "item_bias": (15,)}
    ratings = generator.integers(1, 6, 120) - 3.0
    return Problem(weights(2.0, **shapes), loss, (users, items, ratings), examples=120)


@entry
def tensor_factorisation(generator):
    """A canonical decomposition of a 6 x 7 x 8 tensor by one einsum."""
    truth = [generator.standard_normal((n, 3)) for n in (6, 7, 8)]
    tensor = np.einsum("ir,jr,kr->ijk", *truth) + 0.1 * generator.standard_normal((6, 7, 8))

    def loss(params, tensor):
        return jnp.mean((jnp.einsum("ir,jr,kr->ijk", *params) - tensor) ** 2)

    return Problem(lambda key: list(weights(2.0, a=(6, 3), b=(7, 3), c=(8, 3))(key).values()), loss, tensor)


@entry
def nonnegative_factorisation(generator):
    """Non-negative matrix factorisation by softplus with the Kullback-Leibler divergence."""
    counts = generator.poisson(3.0, (12, 14)).astype(float)

    def loss(params, counts):
        rate = jax.nn.softplus(params["w"]) @ jax.nn.softplus(params["h"]) + 1e-6
        return jnp.mean(rate - counts * jnp.log(rate))

    return Problem(weights(w=(12, 4), h=(4, 14)), loss, counts)


@entry
def linear_autoencoder(generator):
    """The reconstruction error of principal components, encoder and decoder tied."""
    x = generator.standard_normal((50, 3)) @ generator.standard_normal((3, 10))

    def loss(w, x):
        return jnp.mean(jnp.sum((x - x @ w @ w.T) ** 2, axis=1))

    init = lambda key: weights(w=(10, 3))(key)["w"]  # noqa: E731
    return Problem(init, loss, x + 0.1 * generator.standard_normal((50, 10)), examples=50)


@entry(dtypes=WIDE)
def orthogonal_by_qr(generator):
    """Principal components with the directions made orthogonal by a QR factorisation."""
    x = generator.standard_normal((40, 8)) * np.linspace(2, 0.5, 8)

    def loss(a, x):
        q, _ = jnp.linalg.qr(a)
        return jnp.mean(jnp.sum((x - x @ q @ q.T) ** 2, axis=1))

    return Problem(lambda key: weights(w=(8, 3))(key)["w"], loss, x, examples=40)


@entry(dtypes=WIDE)
def nuclear_norm(generator):
    """Matrix completion with the sum of singular values as penalty."""
    truth = generator.standard_normal((8, 2)) @ generator.standard_normal((2, 6))
    seen = (generator.random((8, 6)) < 0.6).astype(float)

    def loss(x, data):
        truth, seen = data
        fit = jnp.sum(seen * (x - truth) ** 2) / jnp.sum(seen)
        return fit + 0.05 * jnp.sum(jnp.linalg.svd(x, compute_uv=False))

    return Problem(lambda key: jax.random.normal(key, (8, 6)), loss, (truth, seen))


@entry(dtypes=WIDE)
def eigenvalue_design(generator):
    """Masses and springs: the eigenvalues of a tridiagonal matrix brought to given ones by eigh."""
    target = np.sort(generator.uniform(0.5, 4, 10))

    def loss(params, target):
        springs = jax.nn.softplus(params)
        matrix = jnp.diag(springs[:-1] + springs[1:]) - jnp.diag(springs[1:-1], 1) - jnp.diag(springs[1:-1], -1)
        values, _ = jnp.linalg.eigh(matrix)
        return jnp.mean((values - target) ** 2)

    return Problem(vector(11, 0.3, 1.0), loss, target)


@entry(dtypes=WIDE)
def gaussian_covariance(generator):
    """The likelihood of a full Gaussian: the precision as L L', slogdet and a quadratic form."""
    x = generator.standard_normal((60, 6)) @ generator.standard_normal((6, 6))

    def loss(params, x):
        precision = params["l"] @ params["l"].T + 1e-2 * jnp.eye(6, dtype=x.dtype)
        centred = x - params["mean"]
        square = jnp.einsum("ni,ij,nj->n", centred, precision, centred)
        return 0.5 * jnp.mean(square) - 0.5 * jnp.linalg.slogdet(precision)[1]

    def init(key):
        return {"l": 0.5 * jnp.eye(6) + 0.1 * jax.random.normal(key, (6, 6)), "mean": jnp.zeros(6)}

    return Problem(init, loss, x, examples=60)


@entry(dtypes=WIDE)
def factor_analysis(generator):
    """Factor analysis: a Cholesky factor of W W' + D, and a triangular solve against the data."""
    x = generator.standard_normal((50, 2)) @ generator.standard_normal((2, 7)) + generator.standard_normal((50, 7))

    def loss(params, x):
        cov = params["w"] @ params["w"].T + jnp.diag(jnp.exp(params["log_noise"]))
        factor = jnp.linalg.cholesky(cov)
        white = jax.scipy.linalg.solve_triangular(factor, x.T, lower=True)
        return 0.5 * jnp.mean(jnp.sum(white**2, axis=0)) + jnp.sum(jnp.log(jnp.diagonal(factor)))

    return Problem(weights(w=(7, 2), log_noise=(7,)), loss, x, examples=50)


@entry(dtypes=WIDE)
def ridge_hyperparameters(generator):
    """Validation error of a ridge regression as a function of one log-penalty a feature: jnp.linalg.solve inside."""
    x, y = regression(generator, 60, 10)

    def loss(log_penalty, data):
        x, y, held_x, held_y = data
        w = jnp.linalg.solve(x.T @ x / len(y) + jnp.diag(jnp.exp(log_penalty)), x.T @ y / len(y))
        return jnp.mean((held_x @ w - held_y) ** 2)

    return Problem(vector(10, 0.5, -1.0), loss, (x[:40], y[:40], x[40:], y[40:]))


@entry(dtypes=WIDE)
def variable_projection(generator):
    """Sums of exponentials: decay rates learned, amplitudes by lstsq inside the loss."""
    t = np.linspace(0, 4, 30)
    y = np.stack([np.exp(-t) + 0.5 * np.exp(-0.2 * t), np.exp(-2 * t)], 1) + 0.01 * generator.standard_normal((30, 2))

    def loss(log_rate, data):
        t, y = data
        basis = jnp.exp(-t[:, None] * jnp.exp(log_rate))
        amplitude, *_ = jnp.linalg.lstsq(basis, y)
        return jnp.sum((basis @ amplitude - y) ** 2)

    init = lambda key: jnp.array([-2.0, -0.5, 0.8]) + 0.05 * jax.random.normal(key, (3,))  # noqa: E731
    return Problem(init, loss, (t, y))


@entry(dtypes=WIDE)
def rotation_by_cayley(generator):
    """A rotation (I - A)^-1 (I + A) of a skew A that maps one cloud onto another."""
    x = generator.standard_normal((30, 5))
    rotation, _ = np.linalg.qr(generator.standard_normal((5, 5)))

    def loss(a, data):
        x, y = data
        skew, eye = a - a.T, jnp.eye(5, dtype=a.dtype)
        return jnp.mean((x @ jnp.linalg.solve(eye - skew, eye + skew) - y) ** 2)

    return Problem(lambda key: 0.3 * jax.random.normal(key, (5, 5)), loss, (x, x @ rotation), examples=30)


@entry(dtypes=WIDE)
def matrix_exponential(generator):
    """A Markov chain in continuous time: jax.scipy.linalg.expm of a rate matrix."""
    counts = generator.integers(1, 20, (5, 5)).astype(float)

    def loss(log_rate, counts):
        rate = jnp.exp(log_rate) * (1 - jnp.eye(5, dtype=counts.dtype))
        p = jax.scipy.linalg.expm(rate - jnp.diag(rate.sum(axis=1)))
        return -jnp.sum(counts * jnp.log(p)) / jnp.sum(counts)

    return Problem(lambda key: -1 + 0.3 * jax.random.normal(key, (5, 5)), loss, counts)
