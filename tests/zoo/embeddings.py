"""Gathers, graphs, masks, contrastive losses and alignments: what is made of indices, wheres and similarities."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from gradbench import Problem
from zoo.entries import WIDE, classes, entry, regression, vector, weights


@entry
def bag_of_words(generator):
    """Text classification by the mean of word embeddings, words repeated, padding masked out."""
    words = generator.integers(0, 30, (20, 9)) ** 2 // 30
    lengths = generator.integers(1, 10, 20)

    def loss(params, data):
        words, lengths, labels = data
        mask = (jnp.arange(words.shape[1]) < lengths[:, None])[..., None]
        mean = jnp.sum(params["embedding"][words] * mask, axis=1) / lengths[:, None]
        log_p = jax.nn.log_softmax(mean @ params["out"])
        return -jnp.mean(log_p[jnp.arange(len(labels)), labels])

    data = (words, lengths, generator.integers(3, size=20))
    return Problem(weights(3.0, embedding=(30, 8), out=(8, 3)), loss, data, examples=20)


@entry
def skip_gram(generator):
    """Word vectors by negative sampling, jnp.take with many duplicates."""
    centre, context = generator.integers(12, size=(2, 60))
    negative = generator.integers(12, size=(60, 4))

    def loss(params, data):
        centre, context, negative = data
        v, u = jnp.take(params["in"], centre, axis=0), jnp.take(params["out"], context, axis=0)
        against = jnp.einsum("nd,nkd->nk", v, jnp.take(params["out"], negative, axis=0))
        return -jnp.mean(jax.nn.log_sigmoid(jnp.sum(v * u, axis=1)) + jnp.sum(jax.nn.log_sigmoid(-against), axis=1))

    return Problem(weights(3.0, **{"in": (12, 6), "out": (12, 6)}), loss, (centre, context, negative), examples=60)


@entry
def factorisation_machine(generator):
    """A factorisation machine over categorical features given as whole numbers."""
    fields = generator.integers(5, size=(50, 4)) + 5 * np.arange(4)

    def loss(params, data):
        fields, clicked = data
        v = params["v"][fields]
        pairs = 0.5 * jnp.sum(jnp.sum(v, axis=1) ** 2 - jnp.sum(v**2, axis=1), axis=1)
        logits = params["b"] + jnp.sum(params["w"][fields], axis=1) + pairs
        return jnp.mean(jnp.logaddexp(0, logits) - clicked * logits)

    init = lambda key: {**weights(v=(20, 3), w=(20,))(key), "b": jnp.zeros(())}  # noqa: E731
    return Problem(init, loss, (fields, generator.integers(2, size=50)), examples=50)


def graph(generator, nodes, edges):
    """Node features (nodes, 5), senders and receivers (edges,), and a label a node."""
    senders, receivers = generator.integers(nodes, size=(2, edges))
    return generator.standard_normal((nodes, 5)), senders, receivers, generator.integers(3, size=nodes)


@entry
def graph_convolution(generator):
    """Two rounds of messages by segment_sum over the receivers, divided by their degree."""

    def loss(params, data):
        h, senders, receivers, labels = data
        degree = jax.ops.segment_sum(jnp.ones_like(senders), receivers, num_segments=len(labels)) + 1
        for w in (params["w1"], params["w2"]):
            h = (h + jax.ops.segment_sum(h[senders], receivers, num_segments=len(labels))) / degree[:, None]
            h = jnp.tanh(h @ w)
        log_p = jax.nn.log_softmax(h @ params["out"])
        return -jnp.mean(jnp.sum(jax.nn.one_hot(labels, 3, dtype=log_p.dtype) * log_p, axis=1))

    return Problem(weights(w1=(5, 10), w2=(10, 10), out=(10, 3)), loss, graph(generator, 18, 50))


@entry
def graph_attention(generator):
    """Attention over edges: segment_max for the largest score, exp, segment_sum, a division."""

    def loss(params, data):
        x, senders, receivers, labels = data
        count, h = len(labels), x @ params["w"]
        scores = jax.nn.leaky_relu(h[senders] @ params["a"] + h[receivers] @ params["b"], 0.2)
        largest = lax.stop_gradient(jax.ops.segment_max(scores, receivers, num_segments=count))
        e = jnp.exp(scores - largest[receivers])
        share = e / jax.ops.segment_sum(e, receivers, num_segments=count)[receivers]
        h = jax.nn.elu(h + jax.ops.segment_sum(share[:, None] * h[senders], receivers, num_segments=count))
        return optax.softmax_cross_entropy_with_integer_labels(h @ params["out"], labels).mean()

    shapes = {"w": (5, 8), "a": (8,), "b": (8,), "out": (8, 3)}
    return Problem(weights(**shapes), loss, graph(generator, 16, 48))


@entry
def scattered_histogram(generator):
    """Masses moved to places: a soft histogram by .at[].add, against a wanted one."""
    places = generator.integers(12, size=60)

    def loss(params, data):
        places, wanted = data
        mass = jax.nn.softmax(params)
        histogram = jnp.zeros(12, mass.dtype).at[places].add(mass).at[(places + 1) % 12].add(0.5 * mass)
        return jnp.sum((histogram / 1.5 - wanted) ** 2)

    return Problem(vector(60, 0.5), loss, (places, generator.dirichlet(np.ones(12))))


@entry(dtypes=WIDE)
def table_interpolation(generator):
    """A calibration curve by jnp.interp, its knots' values learned."""
    x = generator.uniform(0, 10, 60)

    def loss(values, data):
        x, y, knots = data
        return jnp.mean((jnp.interp(x, knots, values) - y) ** 2)

    return Problem(vector(12), loss, (x, np.sin(x), np.linspace(0, 10, 12)))


@entry
def masked_regression(generator):
    """Missing targets by a where on both sides of the square root: no NaN from what is masked."""
    x, y = regression(generator, 50, 8)
    known = generator.random(50) < 0.7

    def loss(w, data):
        x, y, known = data
        squares = jnp.where(known, (x @ w - y) ** 2, 1.0)
        return jnp.sum(jnp.where(known, jnp.sqrt(squares + 1e-4), 0.0)) / jnp.sum(known)

    return Problem(vector(8), loss, (x, np.where(known, y, 0), known))


@entry
def double_where(generator):
    """log x where x > 0 and a line elsewhere, the argument of the log made safe first."""

    def loss(w, data):
        x, y = data
        z = x @ w
        safe = jnp.where(z > 0.1, z, 1.0)
        return jnp.mean((jnp.where(z > 0.1, jnp.log(safe), 10 * z - 1 + np.log(0.1)) - y) ** 2)

    return Problem(vector(8), loss, regression(generator, 60, 8), examples=60)


@entry
def info_nce(generator):
    """Contrastive pairs: cosine similarities over a temperature of 0.1, cross-entropy both ways."""
    x = generator.standard_normal((16, 8))

    def loss(params, data):
        a, b = data
        za, zb = jnp.tanh(a @ params["w1"]) @ params["w2"], jnp.tanh(b @ params["w1"]) @ params["w2"]
        za, zb = (z / jnp.linalg.norm(z, axis=1, keepdims=True) for z in (za, zb))
        logits = za @ zb.T / 0.1
        right = jnp.arange(len(a))
        both = [optax.softmax_cross_entropy_with_integer_labels(s, right) for s in (logits, logits.T)]
        return jnp.mean(jnp.stack(both))

    data = (x, x + 0.3 * generator.standard_normal(x.shape))
    return Problem(weights(w1=(8, 12), w2=(12, 6)), loss, data)


@entry
def triplet(generator):
    """The triplet loss: anchor nearer to the positive than to the negative, by a margin, in plain distances."""
    x, labels = classes(generator, 60, 6, 3)
    anchor = np.arange(40)
    alike = (labels[:, None] == labels) & ~np.eye(60, dtype=bool)
    positive = np.array([generator.choice(np.flatnonzero(alike[i])) for i in anchor])
    negative = np.array([generator.choice(np.flatnonzero(labels != labels[i])) for i in anchor])

    def loss(w, data):
        a, p, n = (jnp.tanh(x @ w) for x in data)
        near, far = jnp.linalg.norm(a - p, axis=1), jnp.linalg.norm(a - n, axis=1)
        return jnp.mean(jax.nn.relu(near - far + 0.5))

    init = lambda key: weights(w=(6, 5))(key)["w"]  # noqa: E731
    return Problem(init, loss, (x[anchor], x[positive], x[negative]), examples=40)


@entry
def cosine_similarity(generator):
    """One minus the mean cosine between predicted and given vectors, by optax."""
    x = generator.standard_normal((30, 6))

    def loss(w, data):
        x, y = data
        return 1 - jnp.mean(optax.cosine_similarity(x @ w, y, epsilon=1e-8))

    init = lambda key: weights(w=(6, 7))(key)["w"]  # noqa: E731
    return Problem(init, loss, (x, x @ generator.standard_normal((6, 7))), examples=30)


@entry
def focal(generator):
    """The focal loss of a rare class, gamma = 2, alpha = 0.25."""
    x, labels = classes(generator, 80, 7, 2)

    def loss(params, data):
        x, y = data
        logits = x @ params["w"] + params["b"]
        p = jax.nn.sigmoid(logits)
        right = jnp.where(y == 1, p, 1 - p)
        alpha = jnp.where(y == 1, 0.25, 0.75)
        return jnp.mean(-alpha * (1 - right) ** 2 * jnp.log(jnp.clip(right, 1e-7, 1.0)))

    init = lambda key: {"w": vector(7, 0.3)(key), "b": jnp.float32(-1.0)}  # noqa: E731
    return Problem(init, loss, (x, labels * (generator.random(80) < 0.3)), examples=80)


@entry
def label_smoothing(generator):
    """Cross-entropy against labels smoothed by 0.1, and a distillation from fixed teacher logits."""
    x, labels = classes(generator, 60, 8, 4)

    def loss(params, data):
        x, labels, teacher = data
        logits = jax.nn.gelu(x @ params["w1"]) @ params["w2"]
        smooth = jax.nn.one_hot(labels, 4, dtype=x.dtype) * 0.9 + 0.1 / 4
        hard = -jnp.mean(jnp.sum(smooth * jax.nn.log_softmax(logits), axis=1))
        soft = jnp.mean(jnp.sum(jax.nn.softmax(teacher / 4) * jax.nn.log_softmax(logits / 4), axis=1))
        return 0.5 * hard - 0.5 * 16 * soft

    data = (x, labels, 3 * generator.standard_normal((60, 4)))
    return Problem(weights(w1=(8, 12), w2=(12, 4)), loss, data, examples=60)


@entry
def connectionist_temporal(generator):
    """Connectionist temporal classification of short labels, by optax.ctc_loss."""
    x = generator.standard_normal((6, 10, 5))
    labels = generator.integers(1, 5, (6, 3))

    def loss(params, data):
        x, labels = data
        logits = jnp.tanh(x @ params["w"]) @ params["out"]
        none = jnp.zeros(logits.shape[:2], logits.dtype)
        return jnp.mean(optax.ctc_loss(logits, none, labels, jnp.zeros(labels.shape, logits.dtype)))

    return Problem(weights(w=(5, 10), out=(10, 5)), loss, (x, labels), examples=6)


@entry
def soft_time_warping(generator):
    """Soft dynamic time warping of a learned curve to three others: two scans, a soft minimum of three."""
    curves = np.sin(np.linspace(0, 6, 12) + generator.uniform(0, 1, (3, 1)))

    def soft_min(*values):
        return -0.5 * jax.nn.logsumexp(-jnp.stack(values) / 0.5, axis=0)

    def distance(a, b):
        cost = (a[:, None] - b[None, :]) ** 2
        first = jnp.concatenate([jnp.zeros(1, a.dtype), jnp.full(len(b), 1e4, a.dtype)])

        def row(above, costs):
            def cell(left, inputs):
                now, corner, up = inputs
                best = now + soft_min(left, corner, up)
                return best, best

            _, rest = lax.scan(cell, jnp.asarray(1e4, a.dtype), (costs, above[:-1], above[1:]))
            return jnp.concatenate([jnp.full(1, 1e4, a.dtype), rest]), None

        return lax.scan(row, first, cost)[0][-1]

    def loss(curve, curves):
        return jnp.mean(jax.vmap(distance, in_axes=(None, 0))(curve, curves))

    return Problem(vector(12, 0.5), loss, curves, examples=3)
