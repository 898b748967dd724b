"""Losses whose interest is how they are programmed: custom rules, implicit layers, branches, precisions, FFTs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradbench import Problem
from zoo.entries import WIDE, classes, entry, regression, vector, weights


@jax.custom_vjp
def softplus(x):
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


softplus.defvjp(lambda x: (softplus(x), x), lambda x, g: (g * jax.nn.sigmoid(x),))


@jax.custom_jvp
def log_cosh(x):
    return jnp.abs(x) + jnp.log1p(jnp.exp(-2 * jnp.abs(x))) - jnp.log(2.0).astype(x.dtype)


log_cosh.defjvp(lambda primals, tangents: (log_cosh(*primals), jnp.tanh(primals[0]) * tangents[0]))


@entry
def custom_reverse_rule(generator):
    """Logistic regression by a softplus with its own custom_vjp."""
    x, labels = classes(generator, 70, 9, 2)

    def loss(w, data):
        x, y = data
        return jnp.mean(softplus(-y * (x @ w)))

    return Problem(vector(9, 0.5), loss, (x, 2.0 * labels - 1), examples=70)


@entry
def custom_forward_rule(generator):
    """Regression by a log cosh with its own custom_jvp."""

    def loss(params, data):
        x, y = data
        return jnp.mean(log_cosh(jnp.tanh(x @ params["w"]) @ params["v"] - y))

    return Problem(weights(w=(8, 10), v=(10,)), loss, regression(generator, 60, 8), examples=60)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def fixed_point(function, params, start):
    return lax.fori_loop(0, 60, lambda _, z: function(params, z), start)


def _fixed_forward(function, params, start):
    z = fixed_point(function, params, start)
    return z, (params, z)


def _fixed_backward(function, saved, g):
    params, z = saved
    _, back_z = jax.vjp(lambda z: function(params, z), z)
    _, back_params = jax.vjp(lambda p: function(p, z), params)
    adjoint = lax.fori_loop(0, 60, lambda _, u: g + back_z(u)[0], g)
    return back_params(adjoint)[0], jnp.zeros_like(z)


fixed_point.defvjp(_fixed_forward, _fixed_backward)


@entry
def deep_equilibrium(generator):
    """A layer that is the fixed point of z = tanh(W z + U x), differentiated implicitly by a custom_vjp."""

    def cell(weights_and_inputs, z):
        w, inputs = weights_and_inputs
        return jnp.tanh(0.3 * z @ w + inputs)

    def loss(params, data):
        x, y = data
        inputs = x @ params["u"]
        z = fixed_point(cell, (params["w"], inputs), jnp.zeros_like(inputs))
        return jnp.mean((z @ params["out"] - y) ** 2)

    return Problem(weights(w=(8, 8), u=(6, 8), out=(8,)), loss, regression(generator, 24, 6), examples=24)


@entry(dtypes=WIDE)
def conjugate_gradients(generator):
    """A diffusion problem solved by jax.scipy.sparse.linalg.cg inside the loss (custom_linear_solve)."""
    wanted = np.sin(np.linspace(0, np.pi, 16))

    def loss(log_k, data):
        source, wanted = data
        k = jnp.exp(log_k)

        def apply(u):
            flux = k * jnp.diff(jnp.pad(u, 1))
            return u - jnp.diff(flux)

        u, _ = jax.scipy.sparse.linalg.cg(apply, source, tol=0.0, atol=0.0, maxiter=24)
        return jnp.mean((u - wanted) ** 2)

    return Problem(vector(17, 0.3), loss, (np.ones(16), wanted))


@entry
def checkpointed_layers(generator):
    """A deep tanh network whose layers are rematerialised by jax.checkpoint inside a scan."""

    def loss(params, data):
        x, y = data
        layer = jax.checkpoint(lambda h, w: (h + jnp.tanh(h @ w), None))
        h, _ = lax.scan(layer, x, params["layers"])
        return jnp.mean((h @ params["out"] - y) ** 2)

    return Problem(weights(0.5, layers=(6, 10, 10), out=(10,)), loss, regression(generator, 30, 10), examples=30)


@entry
def branches(generator):
    """A cond on the data inside vmap, and a switch between three activations by whole numbers."""
    x, y = regression(generator, 40, 6)

    def loss(params, data):
        def one(x, y, kind):
            z = lax.cond(x[0] > 0, lambda x: x @ params["w"], lambda x: x @ params["v"], x)
            h = lax.switch(kind, [jnp.tanh, jax.nn.softplus, lambda z: z**2], z)
            return (h @ params["out"] - y) ** 2

        return jnp.mean(jax.vmap(one)(*data))

    data = (x, y, generator.integers(3, size=40))
    return Problem(weights(w=(6, 8), v=(6, 8), out=(8,)), loss, data, examples=40)


@entry
def mixed_precision(generator):
    """A network whose products are taken in bfloat16 and whose loss is accumulated in the parameters' type."""
    x, labels = classes(generator, 48, 10, 3)

    def loss(params, data):
        x, labels = data
        half = lambda a: a.astype(jnp.bfloat16)  # noqa: E731
        h = jax.nn.relu(half(x) @ half(params["w1"]))
        logits = (h @ half(params["w2"])).astype(x.dtype)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])

    return Problem(weights(w1=(10, 16), w2=(16, 3)), loss, (x, labels), examples=48)


@entry(dtypes=WIDE)
def spectral_filter(generator):
    """A filter by its frequency response: rfft, a complex product, irfft."""
    x = generator.standard_normal((6, 32))

    def loss(params, data):
        x, y = data
        response = params["real"] + 1j * params["imaginary"]
        filtered = jnp.fft.irfft(jnp.fft.rfft(x) * response, n=x.shape[-1])
        return jnp.mean((filtered - y) ** 2)

    init = weights(4.0, real=(17,), imaginary=(17,))
    return Problem(init, loss, (x, np.roll(x, 2, axis=1)), examples=6)


@entry(dtypes=WIDE)
def phase_retrieval(generator):
    """A signal from the squared moduli of complex measurements."""
    a = generator.standard_normal((48, 12)) + 1j * generator.standard_normal((48, 12))
    truth = generator.standard_normal(12) + 1j * generator.standard_normal(12)

    def loss(params, data):
        real, imaginary, intensity = data
        z = (real + 1j * imaginary) @ (params["x"] + 1j * params["y"])
        return jnp.mean((jnp.abs(z) ** 2 - intensity) ** 2)

    data = (a.real, a.imag, np.abs(a @ truth) ** 2)
    return Problem(weights(3.0, x=(12,), y=(12,)), loss, data, examples=48)


@entry
def variational_autoencoder(generator):
    """A variational autoencoder, its noise given as data: reconstruction and Kullback-Leibler divergence."""
    x = (generator.random((24, 10)) < 0.4).astype(float)

    def loss(params, data):
        x, noise = data
        mean, log_variance = jnp.split(jnp.tanh(x @ params["into"]) @ params["code"], 2, axis=1)
        z = mean + jnp.exp(0.5 * log_variance) * noise
        logits = jnp.tanh(z @ params["out"]) @ params["back"]
        reconstruction = jnp.sum(jnp.logaddexp(0, logits) - x * logits, axis=1)
        divergence = -0.5 * jnp.sum(1 + log_variance - mean**2 - jnp.exp(log_variance), axis=1)
        return jnp.mean(reconstruction + divergence)

    shapes = {"into": (10, 12), "code": (12, 6), "out": (3, 12), "back": (12, 10)}
    return Problem(weights(**shapes), loss, (x, generator.standard_normal((24, 3))), examples=24)


@entry
def normalising_flow(generator):
    """Two affine couplings and a Gaussian: a log-density with log-determinants."""
    x = generator.standard_normal((50, 4)) ** 3

    def loss(params, x):
        log_det = jnp.zeros(x.shape[0], x.dtype)
        for i in range(2):
            a, b = jnp.split(x, 2, axis=1)
            log_scale, shift = jnp.split(jnp.tanh(a @ params["w"][i]) @ params["v"][i], 2, axis=1)
            x = jnp.concatenate([b * jnp.exp(log_scale) + shift, a], axis=1)
            log_det = log_det + log_scale.sum(axis=1)
        return jnp.mean(0.5 * jnp.sum(x**2, axis=1) + 2 * jnp.log(2 * jnp.pi) - log_det)

    return Problem(weights(0.5, w=(2, 2, 10), v=(2, 10, 4)), loss, x, examples=50)


@entry
def meta_learning(generator):
    """The loss after one inner gradient step on each of five tasks: a gradient inside the loss, vmapped."""
    x = generator.uniform(-2, 2, (5, 12, 1))

    def loss(params, data):
        def fit(params, x, y):
            return jnp.mean((jnp.tanh(x @ params["w"] + params["b"]) @ params["v"] - y) ** 2)

        def task(x, y):
            inner = jax.grad(fit)(params, x[:6], y[:6])
            adapted = jax.tree.map(lambda p, g: p - 0.1 * g, params, inner)
            return fit(adapted, x[6:], y[6:])

        return jnp.mean(jax.vmap(task)(*data))

    data = (x, np.sin(x[..., 0] + generator.uniform(0, 3, (5, 1))))
    return Problem(weights(w=(1, 12), b=(12,), v=(12,)), loss, data, examples=5)


@entry
def lipschitz_penalty(generator):
    """A critic with a penalty on the norm of its gradient in x, as in Wasserstein adversarial training."""

    def loss(params, data):
        real, fake = data
        critic = lambda x: jax.nn.softplus(x @ params["w"]) @ params["v"]  # noqa: E731
        slope = jax.vmap(jax.grad(critic))(0.5 * (real + fake))
        penalty = jnp.mean((jnp.linalg.norm(slope, axis=1) - 1) ** 2)
        return jnp.mean(jax.vmap(critic)(fake) - jax.vmap(critic)(real)) + 10 * penalty

    data = (generator.standard_normal((20, 4)), 1 + 2 * generator.standard_normal((20, 4)))
    return Problem(weights(w=(4, 12), v=(12,)), loss, data, examples=20)


@entry
def mapped_kernel_machine(generator):
    """Kernel logistic regression, its rows made one after another by lax.map from whole-number features."""
    x = generator.integers(0, 4, (30, 6))
    y = np.where(x.sum(1) > 9, 1.0, -1.0)

    def loss(alpha, data):
        x, y = data

        def row(one):
            distance = jnp.sum((x - one) ** 2, axis=1)
            return jnp.exp(-distance / 8.0).astype(alpha.dtype) @ alpha

        scores = lax.map(row, x)
        return jnp.mean(jax.nn.softplus(-y * scores)) + 0.01 * jnp.mean(alpha * scores)

    return Problem(vector(30, 0.5), loss, (x, y))
