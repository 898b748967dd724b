"""Losses at odd scales: tiny and huge parameters, losses and lengths, offsets, divisions by constants, temperatures."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import hilbert

from gradbench import Problem
from zoo.entries import classes, entry, regression, vector, weights


@entry
def division_by_a_constant(generator):
    """sum((p / 3)^2) over a thousand parameters."""
    return Problem(vector(1000), lambda p, data: jnp.sum((p / 3.0) ** 2))


@entry
def wells_of_small_width(generator):
    """Lorentzian wells a ten-thousandth wide, started inside them: a natural length of 1e-4."""

    def loss(p, data):
        return jnp.sum(1 / (1 + (p / 1e-4 - 0.7) ** 2))

    return Problem(vector(10, 1e-4), loss)


@entry
def parameters_of_a_million(generator):
    """Least squares in unscaled units: weights of a million, features of a millionth."""
    x, y = regression(generator, 60, 10)

    def loss(w, data):
        x, y = data
        return jnp.mean((x @ w - y) ** 2)

    return Problem(vector(10, 1e6), loss, (1e-6 * x, y), examples=60)


@entry
def loss_of_1e_minus_30(generator):
    """Mean squared error of lengths in femtometres, in metres: a loss of about 1e-30."""
    x, y = regression(generator, 50, 10)

    def loss(w, data):
        x, y = data
        return jnp.mean((1e-15 * (x @ w - y)) ** 2)

    return Problem(vector(10), loss, (x, y), examples=50)


@entry
def loss_of_1e30(generator):
    """Squared error of forces in newtons on masses of 1e15: a loss of about 1e30."""
    x, y = regression(generator, 50, 10)

    def loss(w, data):
        x, y = data
        return 0.5 * jnp.mean((1e15 * (x @ w) - y) ** 2)

    return Problem(vector(10), loss, (x, 1e15 * y), examples=50)


@entry
def hilbert_least_squares(generator):
    """Least squares with a 12 x 12 Hilbert matrix, whose condition number is 1.7e16."""
    matrix = hilbert(12)

    def loss(w, data):
        a, b = data
        return jnp.sum((a @ w - b) ** 2)

    return Problem(vector(12), loss, (matrix, matrix.sum(axis=1)))


@entry
def constant_offset(generator):
    """A small squared error on top of an energy of a million."""

    def loss(w, data):
        x, y = data
        return 1e6 + jnp.mean((x @ w - y) ** 2)

    return Problem(vector(10), loss, regression(generator, 64, 10), examples=64)


@entry
def below_zero(generator):
    """A quadratic whose minimum is -100 and is not known to the problem."""
    return Problem(vector(16), lambda p, data: jnp.sum(p**2) - 100)


@entry
def negative_log_density(generator):
    """The negative log-density of narrow Gaussians, well below zero, with their log-widths as parameters."""
    x = 1e-3 * generator.standard_normal((100, 6)) + np.arange(6)

    def loss(params, data):
        scaled = (data - params["mean"]) / jnp.exp(params["log_width"])
        return jnp.mean(jnp.sum(0.5 * scaled**2 + params["log_width"] + 0.5 * jnp.log(2 * jnp.pi), axis=1))

    def init(key):
        drawn = jax.random.normal(key, (6,))
        return {"mean": jnp.arange(6.0) + 1e-3 * drawn, "log_width": jnp.full(6, -6.5)}

    return Problem(init, loss, x, examples=100)


@entry
def softmax_of_low_temperature(generator):
    """Cross-entropy of a linear classifier whose logits are divided by a temperature of 0.07."""

    def loss(params, data):
        x, labels = data
        log_p = jax.nn.log_softmax(x @ params["w"] / 0.07)
        return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1))

    return Problem(weights(w=(8, 5)), loss, classes(generator, 60, 8, 5), examples=60)


@entry
def learned_temperature(generator):
    """Cross-entropy with one temperature shared by all logits, itself a parameter."""

    def loss(params, data):
        x, labels = data
        logits = (x @ params["w"]) / params["temperature"]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(labels)), labels])

    def init(key):
        return {**weights(w=(8, 5))(key), "temperature": jnp.float32(0.7)}

    return Problem(init, loss, classes(generator, 60, 8, 5), examples=60)


@entry
def brown_badly_scaled(generator):
    """Brown's badly scaled function, six of it (Moré, Garbow and Hillstrom 1981, number 4)."""

    def loss(p, data):
        x, y = p[:, 0], p[:, 1]
        return jnp.sum((x - 1e6) ** 2 + (y - 2e-6) ** 2 + (x * y - 2) ** 2)

    return Problem(lambda key: jnp.ones((6, 2)), loss)


@entry
def powell_badly_scaled(generator):
    """Powell's badly scaled function, six of it, near its start (Moré, Garbow and Hillstrom 1981, number 3)."""

    def loss(p, data):
        x, y = p[:, 0], p[:, 1]
        return jnp.mean((1e4 * x * y - 1) ** 2 + (jnp.exp(-x) + jnp.exp(-y) - 1.0001) ** 2)

    return Problem(lambda key: jnp.array([0.0, 1.0]) + 0.01 * jax.random.normal(key, (6, 2)), loss)


@entry
def standardised_inside(generator):
    """A logistic regression that standardises ages and incomes in the loss."""
    x, labels = classes(generator, 80, 6, 2)
    x = x * [10, 3e4, 1, 1e-2, 5, 1e3] + [40, 6e4, 0, 1, 100, 1e4]

    def loss(params, data):
        x, y = data
        z = (x - x.mean(axis=0)) / x.std(axis=0)
        logits = z @ params["w"] + params["b"]
        return jnp.mean(jnp.logaddexp(0, logits) - y * logits)

    def init(key):
        return {"w": vector(6)(key), "b": jnp.zeros(())}

    return Problem(init, loss, (x, labels.astype(float)))


@entry
def arrhenius(generator):
    """Reaction rates exp(log A - E / (R T)) fitted in logarithms of A, with energies of 1e4 to 1e5 J/mol."""
    temperature = np.linspace(300.0, 600.0, 40)
    rate = np.exp(20.0 - 6e4 / (8.314 * temperature)) * np.exp(0.1 * generator.standard_normal((8, 40)))

    def loss(params, data):
        temperature, log_rate = data
        fitted = params["log_a"][:, None] - params["energy"][:, None] / (8.314 * temperature)
        return jnp.mean((fitted - log_rate) ** 2)

    def init(key):
        return {"log_a": 18 + vector(8)(key), "energy": 5e4 * jnp.ones(8)}

    return Problem(init, loss, (temperature, np.log(rate)))


@entry
def ions_in_si_units(generator):
    """Coulomb and Born-Mayer energy of eight ions in joules, positions in metres: 1e-18 over 1e-10."""
    charges = 1.602e-19 * np.where(np.arange(8) % 2, -1.0, 1.0)
    grid = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(8, 3) * 3e-10

    def loss(x, data):
        q, i, j = data
        r = jnp.sqrt(jnp.sum((x[i] - x[j]) ** 2, axis=1))
        return jnp.sum(8.988e9 * q[i] / r * q[j] + 2e-16 * jnp.exp(-r / 0.3e-10))

    def init(key):
        return jnp.asarray(grid, jnp.float32) + 1e-11 * jax.random.normal(key, (8, 3))

    i, j = np.triu_indices(8, 1)
    return Problem(init, loss, (charges, i, j))


@entry
def rayleigh_quotient(generator):
    """x'Ax / x'x, the same along every ray."""
    a = generator.standard_normal((20, 20))

    def loss(x, data):
        return (x @ data @ x) / (x @ x)

    return Problem(vector(20), loss, a + a.T)


@entry
def shares_of_large_sums(generator):
    """Squared error of shares x / sum(x) of numbers of 1e15."""

    def loss(p, data):
        x = 1e15 * jnp.exp(p)
        return jnp.mean((x / jnp.sum(x) - data) ** 2)

    return Problem(vector(24), loss, generator.dirichlet(np.ones(24)))


@entry
def softmax_by_hand(generator):
    """Cross-entropy by exp(z) / sum(exp(z)) and a log with 1e-7 against zero."""
    x, labels = classes(generator, 50, 8, 4)

    def loss(w, data):
        x, target = data
        e = jnp.exp(x @ w)
        p = e / jnp.sum(e, axis=1, keepdims=True)
        return -jnp.mean(jnp.sum(target * jnp.log(p + 1e-7), axis=1))

    init = lambda key: weights(w=(8, 4))(key)["w"]  # noqa: E731
    return Problem(init, loss, (x, np.eye(4)[labels]), examples=50)


@entry
def angles_in_degrees(generator):
    """Forward kinematics of a planar arm, its twelve joints in degrees."""

    def loss(angles, data):
        heading = jnp.cumsum(jnp.deg2rad(angles))
        tip = jnp.stack([jnp.cos(heading).sum(), jnp.sin(heading).sum()]) / 12
        return jnp.sum((tip - data) ** 2) + 1e-4 * jnp.mean((angles / 180) ** 2)

    return Problem(vector(12, 30.0), loss, np.array([0.4, 0.5]))
