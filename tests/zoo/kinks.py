"""Losses with kinks: sparse and robust models, many of them started on a kink, as users start them."""

import jax
import jax.numpy as jnp
import numpy as np

from gradbench import Problem
from zoo.entries import classes, entry, regression, vector, weights, zeros


@entry
def lasso(generator):
    """Least squares with a 1-norm penalty, started at zeros, where every |w| has its kink."""

    def loss(w, data):
        x, y = data
        return jnp.mean((x @ w - y) ** 2) + 0.1 * jnp.sum(jnp.abs(w))

    return Problem(zeros(12), loss, regression(generator, 80, 12), examples=80)


@entry
def elastic_net(generator):
    """Half mean squared error with 1-norm and squared 2-norm penalties, an intercept, started at zeros."""

    def loss(params, data):
        x, y = data
        residual = y - x @ params["w"] - params["b"]
        penalty = 0.5 * jnp.abs(params["w"]).sum() + 0.25 * (params["w"] ** 2).sum()
        return 0.5 * jnp.mean(residual**2) + 0.2 * penalty

    init = lambda key: {"w": jnp.zeros(15), "b": jnp.zeros(())}  # noqa: E731
    return Problem(init, loss, regression(generator, 60, 15), examples=60)


@entry
def group_lasso(generator):
    """Least squares plus the 2-norms of five groups of weights, by jnp.linalg.norm away from zero."""

    def loss(w, data):
        x, y = data
        return jnp.mean((x @ w - y) ** 2) + 0.1 * jnp.linalg.norm(w.reshape(5, 4), axis=1).sum()

    return Problem(vector(20), loss, regression(generator, 100, 20), examples=100)


@entry
def group_lasso_at_zero(generator):
    """The group lasso from zeros, the norm's derivative kept finite there by two wheres."""

    def norm(v):
        squares = jnp.sum(v**2, axis=1)
        some = squares > 0
        return jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1.0)), 0.0)

    def loss(w, data):
        x, y = data
        return jnp.mean((x @ w - y) ** 2) + 0.1 * norm(w.reshape(5, 4)).sum()

    return Problem(zeros(20), loss, regression(generator, 100, 20), examples=100)


@entry
def total_variation(generator):
    """1-D total variation denoising, started at the noisy signal itself, where the first term is 0."""
    signal = np.repeat([0.0, 1.0, -0.5, 2.0], 16) + 0.1 * generator.standard_normal(64)

    def loss(u, data):
        return 0.5 * jnp.sum((u - data) ** 2) + 0.3 * jnp.sum(jnp.abs(jnp.diff(u)))

    return Problem(lambda key: jnp.asarray(signal, jnp.float32), loss, signal)


@entry
def total_variation_image(generator):
    """Anisotropic total variation of a blurred 12 x 12 image, started at zeros: every difference at its kink."""
    image = np.zeros((12, 12))
    image[3:9, 4:10] = 1.0

    def loss(u, data):
        blurred = (u + jnp.roll(u, 1, 0) + jnp.roll(u, 1, 1)) / 3
        variation = jnp.abs(u[1:] - u[:-1]).sum() + jnp.abs(u[:, 1:] - u[:, :-1]).sum()
        return jnp.mean((blurred - data) ** 2) + 0.01 * variation / u.size

    return Problem(zeros(12, 12), loss, image + 0.05 * generator.standard_normal((12, 12)))


@entry
def hinge(generator):
    """A linear support vector machine: mean hinge loss and squared norm, started at zeros."""
    x, labels = classes(generator, 90, 8, 2)

    def loss(params, data):
        x, y = data
        margin = y * (x @ params["w"] + params["b"])
        return jnp.mean(jax.nn.relu(1 - margin)) + 0.01 * jnp.sum(params["w"] ** 2)

    init = lambda key: {"w": jnp.zeros(8), "b": jnp.zeros(())}  # noqa: E731
    return Problem(init, loss, (x, 2.0 * labels - 1), examples=90)


@entry
def multiclass_hinge(generator):
    """Crammer and Singer's hinge: the largest violation over the wrong classes, from zeros: all of them tie."""

    def loss(w, data):
        x, labels = data
        scores = x @ w
        right = jnp.take_along_axis(scores, labels[:, None], axis=1)
        violation = scores - right + 1.0 - jax.nn.one_hot(labels, 4, dtype=scores.dtype)
        return jnp.mean(jnp.max(violation, axis=1)) + 1e-3 * jnp.sum(w**2)

    return Problem(zeros(6, 4), loss, classes(generator, 70, 6, 4), examples=70)


@entry
def huber(generator):
    """Huber regression by jnp.where, with a few gross outliers."""
    x, y = regression(generator, 80, 10)
    y[::13] += 20

    def loss(w, data):
        x, y = data
        r = jnp.abs(x @ w - y)
        return jnp.mean(jnp.where(r <= 1.0, 0.5 * r**2, r - 0.5))

    return Problem(vector(10), loss, (x, y), examples=80)


@entry
def quantile_regression(generator):
    """The pinball loss at three levels at once, targets in whole numbers, started at zeros."""
    x, y = regression(generator, 75, 6)

    def loss(w, data):
        x, y, levels = data
        r = y[:, None] - x @ w
        return jnp.mean(jnp.maximum(levels * r, (levels - 1) * r))

    return Problem(zeros(6, 3), loss, (x, np.round(y), np.array([0.1, 0.5, 0.9])), examples=75)


@entry
def absolute_error_of_sparse_targets(generator):
    """Mean absolute error of counts that are mostly 0, from zeros: most residuals start on the kink."""
    x, _ = regression(generator, 64, 10)
    y = generator.poisson(0.4, 64).astype(float)

    def loss(w, data):
        x, y = data
        return jnp.abs(y - jnp.einsum("ni,i->n", x, w)).mean()

    return Problem(zeros(10), loss, (x, y), examples=64)


@entry
def epsilon_insensitive(generator):
    """Support vector regression: residuals below 0.5 cost nothing, a ridge does."""

    def loss(w, data):
        x, y = data
        return jnp.mean(jnp.clip(jnp.abs(x @ w - y) - 0.5, 0.0)) + 0.05 * w @ w

    return Problem(vector(9, 0.1), loss, regression(generator, 66, 9), examples=66)


@entry
def largest_residual(generator):
    """Chebyshev regression: the largest absolute residual."""

    def loss(w, data):
        x, y = data
        return jnp.max(jnp.abs(y - x @ w))

    return Problem(vector(10), loss, regression(generator, 40, 10))


@entry
def infinity_norm_penalty(generator):
    """Least squares with the largest |w| as penalty, from zeros, where all weights tie."""

    def loss(w, data):
        x, y = data
        return jnp.mean((x @ w - y) ** 2) + 0.5 * jnp.linalg.norm(w, ord=jnp.inf)

    return Problem(zeros(11), loss, regression(generator, 55, 11), examples=55)


@entry
def median_of_squares(generator):
    """Least median of squares by jnp.median over an odd number of examples."""

    def loss(w, data):
        x, y = data
        return jnp.median((x @ w - y) ** 2)

    return Problem(vector(10), loss, regression(generator, 41, 10))


@entry
def relu_net_at_zero(generator):
    """A relu network whose parameters all start at zero: a saddle with every unit on its kink."""

    def loss(params, data):
        x, y = data
        hidden = jax.nn.relu(x @ params["w1"] + params["b1"])
        return jnp.mean((hidden @ params["w2"] + params["b2"] - y) ** 2)

    shapes = {"w1": (7, 12), "b1": (12,), "w2": (12,), "b2": ()}
    init = lambda key: {name: jnp.zeros(shape) for name, shape in shapes.items()}  # noqa: E731
    return Problem(init, loss, regression(generator, 50, 7), examples=50)


@entry
def relu_net(generator):
    """A relu classifier with biases at zero and one all-zero example, whose units all start on their kinks."""
    x, labels = classes(generator, 64, 10, 3)
    x[0] = 0.0

    def init(key):
        drawn = weights(w1=(10, 16), w2=(16, 3))(key)
        return {**drawn, "b1": jnp.zeros(16), "b2": jnp.zeros(3)}

    def loss(params, data):
        x, labels = data
        logits = jnp.maximum(x @ params["w1"] + params["b1"], 0) @ params["w2"] + params["b2"]
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])

    return Problem(init, loss, (x, labels), examples=64)


@entry
def maxout_net(generator):
    """Maxout units (the larger of three linear maps) under a leaky relu."""

    def loss(params, data):
        x, y = data
        hidden = jnp.max(jnp.einsum("ni,ikh->nkh", x, params["w"]), axis=1)
        return jnp.mean((jax.nn.leaky_relu(hidden, 0.1) @ params["v"] - y) ** 2)

    return Problem(weights(w=(6, 3, 10), v=(10,)), loss, regression(generator, 48, 6), examples=48)


@entry
def exact_penalty(generator):
    """A portfolio: risk minus return, with penalties for negative weights and for a sum above 1, from zeros."""
    factors = generator.standard_normal((20, 20))

    def loss(w, data):
        covariance, mean = data
        risk = 0.5 * w @ covariance @ w - mean @ w
        return risk + 10 * jnp.sum(jnp.maximum(-w, 0)) + 10 * jnp.maximum(jnp.sum(w) - 1, 0)

    data = (factors @ factors.T / 20, 0.1 * np.abs(generator.standard_normal(20)))
    return Problem(zeros(20), loss, data)
