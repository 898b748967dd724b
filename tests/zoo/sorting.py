"""Losses that sort, rank and pick."""

import jax
import jax.numpy as jnp
import numpy as np

from gradbench import Problem
from zoo.entries import classes, entry, regression, vector, weights


@entry
def sorted_transport(generator):
    """The squared Wasserstein distance in one dimension: both samples sorted."""
    noise = generator.standard_normal((60, 5))

    def loss(params, data):
        noise, y = data
        x = jnp.tanh(noise @ params["w"]) @ params["v"] + params["b"]
        return jnp.mean((jnp.sort(x) - jnp.sort(y)) ** 2)

    return Problem(weights(w=(5, 8), v=(8,), b=(1,)), loss, (noise, generator.exponential(1.0, 60)))


@entry
def sliced_transport(generator):
    """A cloud of points moved towards another along six fixed directions, sorting along each."""
    directions = generator.standard_normal((3, 6))

    def loss(points, data):
        target, directions = data
        ours, theirs = jnp.sort(points @ directions, axis=0), jnp.sort(target @ directions, axis=0)
        return jnp.mean(jnp.abs(ours - theirs) ** 2)

    init = lambda key: jax.random.normal(key, (40, 3))  # noqa: E731
    data = (2 + generator.standard_normal((40, 3)), directions / np.linalg.norm(directions, axis=0))
    return Problem(init, loss, data)


@entry
def hardest_examples(generator):
    """The mean of the ten largest of sixty log losses, by top_k."""
    x, labels = classes(generator, 60, 8, 2)

    def loss(w, data):
        x, y = data
        losses = jax.nn.softplus(-y * (x @ w))
        return jax.lax.top_k(losses, 10)[0].mean()

    return Problem(vector(8, 0.5), loss, (x, 2.0 * labels - 1))


@entry
def trimmed_squares(generator):
    """Least trimmed squares: the smallest three quarters of the sorted squared residuals."""

    def loss(w, data):
        x, y = data
        return jnp.mean(jnp.sort((y - x @ w) ** 2)[: 3 * len(y) // 4])

    return Problem(vector(8), loss, regression(generator, 60, 8))


@entry
def value_at_risk(generator):
    """A portfolio's 90 % quantile of losses by jnp.quantile, softmax weights."""
    returns = 0.02 * generator.standard_normal((75, 10)) + 0.002

    def loss(logits, returns):
        return jnp.quantile(-returns @ jax.nn.softmax(logits), 0.9)

    return Problem(vector(10, 0.5), loss, returns)


@entry
def soft_ranking(generator):
    """Ranks by pairwise sigmoids, correlated with the true ones."""
    x, y = regression(generator, 30, 8)

    def loss(w, data):
        x, ranks = data
        scores = x @ w
        soft = jnp.sum(jax.nn.sigmoid((scores[:, None] - scores[None, :]) / 0.5), axis=1)
        a, b = soft - soft.mean(), ranks - ranks.mean()
        return 1 - jnp.sum(a * b) / jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2))

    return Problem(vector(8), loss, (x, np.argsort(np.argsort(y)).astype(float)))


@entry
def list_likelihood(generator):
    """ListMLE: the Plackett-Luce likelihood of an order, by a reversed cumulative logsumexp."""
    x = generator.standard_normal((10, 8, 6))

    def loss(params, x):
        scores = jnp.tanh(x @ params["w"]) @ params["v"]
        rest = jax.lax.cumlogsumexp(scores, axis=1, reverse=True)
        return jnp.mean(rest - scores)

    return Problem(weights(w=(6, 8), v=(8,)), loss, x, examples=10)


@entry
def pairwise_ranking(generator):
    """LambdaRank's pairwise log loss weighted by differences of relevance."""
    x = generator.standard_normal((8, 6, 5))

    def loss(w, data):
        x, relevance = data
        scores = x @ w
        better = jax.nn.relu(relevance[:, :, None] - relevance[:, None, :])
        return jnp.mean(better * jnp.log1p(jnp.exp(-(scores[:, :, None] - scores[:, None, :]))))

    return Problem(vector(5), loss, (x, generator.integers(4, size=(8, 6))), examples=8)


@entry
def isotonic(generator):
    """Isotonic regression: a first value and a cumulative sum of squares, against noisy steps."""
    y = np.sort(generator.standard_normal(40)) + 0.2 * generator.standard_normal(40)

    def loss(params, y):
        fitted = params["first"] + jnp.cumsum(params["root"] ** 2)
        return jnp.mean((fitted - y) ** 2)

    init = lambda key: {"first": jnp.float32(-1.0), "root": vector(40, 0.05, 0.2)(key)}  # noqa: E731
    return Problem(init, loss, y)


@entry
def sparsemax(generator):
    """The sparsemax loss of Martins and Astudillo (2016): a sort, a cumulative sum, a threshold."""
    x, labels = classes(generator, 50, 8, 5)

    def loss(w, data):
        x, labels = data
        z = x @ w
        ordered = -jnp.sort(-z, axis=1)
        place = jnp.arange(1, z.shape[1] + 1)
        inside = 1 + place * ordered > jnp.cumsum(ordered, axis=1)
        threshold = (jnp.sum(jnp.where(inside, ordered, 0), axis=1) - 1) / jnp.sum(inside, axis=1)
        part = jnp.sum(jnp.where(z > threshold[:, None], z**2 - threshold[:, None] ** 2, 0), axis=1)
        right = jnp.take_along_axis(z, labels[:, None], axis=1)[:, 0]
        return jnp.mean(0.5 * part + 0.5 - right)

    init = lambda key: weights(w=(8, 5))(key)["w"]  # noqa: E731
    return Problem(init, loss, (x, labels), examples=50)
