"""Convolutional losses: 1-D and 2-D, strided, dilated, depthwise, grouped, transposed, pooled, normalised."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradbench import Problem
from zoo.entries import entry, weights


def images(generator, count, size, channels=1):
    """Blurred crosses and boxes (count, size, size, channels) with noise, and their labels, 0 or 1."""
    labels = generator.integers(2, size=count)
    x = 0.3 * generator.standard_normal((count, size, size, channels))
    middle = size // 2
    x[labels == 0, middle, :] += 1
    x[labels == 0, :, middle] += 1
    x[labels == 1, 1:-1, 1] += 1
    x[labels == 1, 1:-1, -2] += 1
    return x, labels


def conv(x, kernel, stride=1, padding="SAME", **options):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def cross_entropy(logits, labels):
    log_p = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=-1))


@entry
def fir_filter(generator):
    """A filter of 17 taps identified from input and output by jnp.convolve."""
    x = generator.standard_normal(80)
    taps = generator.standard_normal(17) * np.exp(-np.arange(17) / 4)

    def loss(w, data):
        x, y = data
        return jnp.mean((jnp.convolve(x, w, mode="same") - y) ** 2)

    y = np.convolve(x, taps, mode="same") + 0.05 * generator.standard_normal(80)
    return Problem(lambda key: weights(w=(17,))(key)["w"], loss, (x, y))


@entry
def conv_1d(generator):
    """Two 1-D convolutions and a mean over time, classifying sequences."""
    x = generator.standard_normal((16, 20, 3))
    labels = (x[:, :10, 0].mean(1) > 0).astype(int)

    def loss(params, data):
        x, labels = data
        shape = ("NWC", "WIO", "NWC")
        h = lax.conv_general_dilated(x, params["k1"], (1,), "VALID", dimension_numbers=shape)
        h = lax.conv_general_dilated(jax.nn.gelu(h), params["k2"], (2,), "SAME", dimension_numbers=shape)
        return cross_entropy(jnp.mean(jnp.tanh(h), axis=1) @ params["out"], labels)

    return Problem(weights(k1=(5, 3, 8), k2=(3, 8, 8), out=(8, 2)), loss, (x, labels), examples=16)


@entry
def cnn_with_average_pooling(generator):
    """A 3 x 3 convolution, a relu, average pooling by reduce_window, and a dense layer."""

    def loss(params, data):
        x, labels = data
        h = jax.nn.relu(conv(x, params["k"]) + params["b"])
        h = lax.reduce_window(h, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
        return cross_entropy(h.reshape(h.shape[0], -1) @ params["out"], labels)

    return Problem(weights(k=(3, 3, 1, 6), b=(6,), out=(96, 2)), loss, images(generator, 16, 8), examples=16)


@entry
def cnn_with_max_pooling(generator):
    """Two convolutions with max pooling by reduce_window after each."""

    def pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    def loss(params, data):
        x, labels = data
        h = pool(jax.nn.relu(conv(x, params["k1"])))
        h = pool(jax.nn.relu(conv(h, params["k2"])))
        return cross_entropy(jnp.einsum("nhwc,hwco->no", h, params["out"]), labels)

    shapes = {"k1": (3, 3, 1, 6), "k2": (3, 3, 6, 8), "out": (2, 2, 8, 2)}
    return Problem(weights(**shapes), loss, images(generator, 12, 8), examples=12)


@entry
def cnn_strided(generator):
    """Two strided convolutions, channels first, and a mean over what is left."""
    x, labels = images(generator, 14, 9, 2)

    def loss(params, data):
        x, labels = data
        shape = ("NCHW", "OIHW", "NCHW")
        h = lax.conv_general_dilated(x, params["k1"], (2, 2), "SAME", dimension_numbers=shape)
        h = lax.conv_general_dilated(jax.nn.silu(h), params["k2"], (2, 2), "VALID", dimension_numbers=shape)
        return cross_entropy(h.mean(axis=(2, 3)) @ params["out"], labels)

    data = (x.transpose(0, 3, 1, 2), labels)
    return Problem(weights(k1=(6, 2, 3, 3), k2=(8, 6, 3, 3), out=(8, 2)), loss, data, examples=14)


@entry
def causal_dilated(generator):
    """A stack of causal convolutions with dilations 1, 2 and 4 and gates, predicting the next sample."""
    wave = np.sin(0.3 * np.arange(26)[None, :] + generator.uniform(0, 6, (8, 1)))
    wave = (wave + 0.1 * generator.standard_normal(wave.shape))[..., None]

    def causal(x, kernel, dilation):
        padding = [((kernel.shape[0] - 1) * dilation, 0)]
        shape = ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(x, kernel, (1,), padding, rhs_dilation=(dilation,), dimension_numbers=shape)

    def loss(params, x):
        h = x[:, :-1] @ params["into"]
        for i, dilation in enumerate((1, 2, 4)):
            gate = jax.nn.sigmoid(causal(h, params["gate"][i], dilation))
            h = h + gate * jnp.tanh(causal(h, params["filter"][i], dilation))
        return jnp.mean((h @ params["out"] - x[:, 1:]) ** 2)

    shapes = {"into": (1, 6), "gate": (3, 2, 6, 6), "filter": (3, 2, 6, 6), "out": (6, 1)}
    return Problem(weights(**shapes), loss, wave, examples=8)


@entry
def depthwise_separable(generator):
    """A depthwise 3 x 3 convolution (feature_group_count) and a 1 x 1 convolution, as MobileNet has them."""

    def loss(params, data):
        x, labels = data
        h = conv(x, params["depthwise"], feature_group_count=4)
        h = jnp.clip(conv(h, params["pointwise"]), 0, 6)
        return cross_entropy(h.mean(axis=(1, 2)) @ params["out"], labels)

    shapes = {"depthwise": (3, 3, 1, 4), "pointwise": (1, 1, 4, 10), "out": (10, 2)}
    return Problem(weights(**shapes), loss, images(generator, 12, 7, 4), examples=12)


@entry
def grouped_1d(generator):
    """A 1-D convolution in two groups over electrode signals, a square and a logarithm: band power."""
    x = generator.standard_normal((12, 24, 4))
    labels = generator.integers(2, size=12)

    def loss(params, data):
        x, labels = data
        shape = ("NWC", "WIO", "NWC")
        h = lax.conv_general_dilated(x, params["k"], (1,), "SAME", dimension_numbers=shape, feature_group_count=2)
        power = jnp.log(jnp.mean(h**2, axis=1) + 1e-3)
        return cross_entropy(power @ params["out"], labels)

    return Problem(weights(k=(7, 2, 6), out=(6, 2)), loss, (x, labels), examples=12)


@entry
def transposed_autoencoder(generator):
    """A strided convolution and a transposed one: an autoencoder of images."""
    x, _ = images(generator, 12, 8)

    def loss(params, x):
        code = jnp.tanh(conv(x, params["into"], stride=2))
        back = lax.conv_transpose(code, params["out"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.mean((back - x) ** 2)

    return Problem(weights(into=(3, 3, 1, 5), out=(3, 3, 5, 1)), loss, x, examples=12)


@entry
def batch_norm(generator):
    """Convolution and batch normalisation by the batch's own statistics, relu, and a dense layer."""
    x, labels = images(generator, 16, 6)

    def loss(params, data):
        x, labels = data
        h = conv(x, params["k"])
        mean, variance = h.mean(axis=(0, 1, 2)), h.var(axis=(0, 1, 2))
        h = (h - mean) / jnp.sqrt(variance + 1e-5) * params["scale"] + params["shift"]
        return cross_entropy(jax.nn.relu(h).mean(axis=(1, 2)) @ params["out"], labels)

    def init(key):
        return {**weights(k=(3, 3, 1, 8), out=(8, 2))(key), "scale": jnp.ones(8), "shift": jnp.zeros(8)}

    return Problem(init, loss, (x, labels))


@entry
def residual_block(generator):
    """A residual block of two convolutions with group normalisation and lax.rsqrt."""
    x, labels = images(generator, 10, 6)

    def norm(h):
        grouped = h.reshape(*h.shape[:3], 2, -1)
        centred = grouped - grouped.mean(axis=(1, 2, 4), keepdims=True)
        return (centred * lax.rsqrt((centred**2).mean(axis=(1, 2, 4), keepdims=True) + 1e-6)).reshape(h.shape)

    def loss(params, data):
        x, labels = data
        h = conv(x, params["stem"])
        h = h + conv(jax.nn.relu(norm(conv(jax.nn.relu(norm(h)), params["k1"]))), params["k2"])
        return cross_entropy(h.mean(axis=(1, 2)) @ params["out"], labels)

    shapes = {"stem": (3, 3, 1, 6), "k1": (3, 3, 6, 6), "k2": (3, 3, 6, 6), "out": (6, 2)}
    return Problem(weights(**shapes), loss, (x, labels), examples=10)


@entry
def patches_as_products(generator):
    """A convolution as patches times a matrix, by conv_general_dilated_patches."""
    x, labels = images(generator, 12, 8)

    def loss(params, data):
        x, labels = data
        shape = ("NHWC", "HWIO", "NHWC")
        patches = lax.conv_general_dilated_patches(x, (4, 4), (2, 2), "VALID", dimension_numbers=shape)
        h = jax.nn.elu(patches @ params["w"])
        return cross_entropy(h.mean(axis=(1, 2)) @ params["out"], labels)

    return Problem(weights(w=(16, 10), out=(10, 2)), loss, (x, labels), examples=12)
