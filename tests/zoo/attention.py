"""Attention and its surroundings: heads, masks, rotary positions, normalisation, tied embeddings, experts."""

import jax
import jax.numpy as jnp
import numpy as np

from gradbench import Problem
from zoo.entries import entry, weights


def tokens(generator, count, length, words):
    """Whole numbers (count, length): sequences in which every next word is mostly the last plus one."""
    steps = np.where(generator.random((count, length)) < 0.8, 1, generator.integers(words, size=(count, length)))
    return np.cumsum(steps, axis=1) % words


def next_word(logits, text):
    log_p = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.mean(jnp.take_along_axis(log_p, text[:, 1:, None], axis=-1))


def layer_norm(x, scale):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * scale


@entry
def attention_single_head(generator):
    """One head over sets of vectors, softmax(q k' / sqrt(d)) v, regressing the mean of the largest."""
    x = generator.standard_normal((12, 9, 5))

    def loss(params, data):
        x, y = data
        q, k, v = (x @ params[name] for name in "qkv")
        share = jax.nn.softmax(q @ k.swapaxes(-1, -2) / jnp.sqrt(q.shape[-1]).astype(q.dtype), axis=-1)
        return jnp.mean(((share @ v).mean(axis=1) @ params["out"] - y) ** 2)

    shapes = {"q": (5, 8), "k": (5, 8), "v": (5, 8), "out": (8,)}
    return Problem(weights(**shapes), loss, (x, np.sort(x[:, :, 0])[:, -3:].mean(1)), examples=12)


@entry
def attention_causal(generator):
    """Four heads by einsum, scores above the diagonal at minus infinity, next-word cross-entropy."""
    text = tokens(generator, 6, 10, 11)

    def loss(params, text):
        x = params["embedding"][text] + params["position"]
        q, k, v = jnp.einsum("btd,cdhe->cbthe", x, params["qkv"])
        scores = jnp.einsum("bqhe,bkhe->bhqk", q, k) / 2.0
        mask = jnp.tril(jnp.ones((text.shape[1], text.shape[1]), bool))
        share = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
        x = x + jnp.einsum("bhqk,bkhe,hed->bqd", share, v, params["back"])
        return next_word(x @ params["out"], text)

    shapes = {"embedding": (11, 16), "position": (10, 16), "qkv": (3, 16, 4, 4), "back": (4, 4, 16), "out": (16, 11)}
    return Problem(weights(**shapes), loss, text, examples=6)


@entry
def attention_rotary(generator):
    """Two heads with rotary positions and a large negative number as the mask."""
    text = tokens(generator, 6, 8, 9)
    angles = np.arange(8)[:, None] * 10.0 ** (-np.arange(4))[None, :]

    def rotate(x, cos, sin):
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def loss(params, data):
        text, cos, sin = data
        x = params["embedding"][text]
        q, k, v = (jnp.einsum("btd,dhe->bhte", x, params[name]) for name in "qkv")
        scores = rotate(q, cos, sin) @ rotate(k, cos, sin).swapaxes(-1, -2) * 8**-0.5
        scores = scores - 1e9 * jnp.triu(jnp.ones(scores.shape[-2:], scores.dtype), 1)
        mixed = (jax.nn.softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)
        return next_word(mixed @ params["out"], text)

    shapes = {"embedding": (9, 12), "q": (12, 2, 8), "k": (12, 2, 8), "v": (12, 2, 8), "out": (16, 9)}
    return Problem(weights(**shapes), loss, (text, np.cos(angles), np.sin(angles)))


@entry
def transformer(generator):
    """Two pre-normalised blocks with gelu, embedding and output tied, padding left out of the mean."""
    text = tokens(generator, 6, 8, 10)
    lengths = generator.integers(4, 9, 6)

    def block(p, x):
        h = layer_norm(x, p["scale1"])
        q, k, v = jnp.split((h @ p["qkv"]).reshape(*x.shape[:2], 2, 18), 3, axis=-1)
        scores = jnp.einsum("bqhe,bkhe->bhqk", q, k) / np.sqrt(6)
        mask = jnp.arange(x.shape[1])[:, None] >= jnp.arange(x.shape[1])
        share = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
        x = x + jnp.einsum("bhqk,bkhe->bqhe", share, v).reshape(x.shape) @ p["back"]
        return x + jax.nn.gelu(layer_norm(x, p["scale2"]) @ p["up"]) @ p["down"]

    def loss(params, data):
        text, lengths = data
        x = params["embedding"][text] * np.sqrt(12) + params["position"]
        for p in params["blocks"]:
            x = block(p, x)
        log_p = jax.nn.log_softmax(layer_norm(x, params["scale"]) @ params["embedding"].T)
        losses = -jnp.take_along_axis(log_p[:, :-1], text[:, 1:, None], axis=-1)[..., 0]
        real = jnp.arange(1, text.shape[1]) < lengths[:, None]
        return jnp.sum(jnp.where(real, losses, 0)) / jnp.sum(real)

    def init(key):
        keys = jax.random.split(key, 3)
        scales = {"scale1": jnp.ones(12), "scale2": jnp.ones(12)}
        draw = weights(qkv=(12, 36), back=(12, 12), up=(12, 24), down=(24, 12))
        outer = weights(embedding=(10, 12), position=(8, 12))(keys[0])
        return {**outer, "scale": jnp.ones(12), "blocks": [{**draw(k), **scales} for k in keys[1:]]}

    return Problem(init, loss, (text, lengths))


@entry
def attention_library(generator):
    """jax.nn.dot_product_attention, causal, on sequences of vectors."""
    x = generator.standard_normal((6, 8, 6))

    def loss(params, x):
        q, k, v = jnp.einsum("btd,cdhe->cbthe", x, params["qkv"])
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        predicted = jnp.einsum("bthe,hed->btd", mixed, params["out"])
        return jnp.mean((predicted[:, :-1] - x[:, 1:]) ** 2)

    return Problem(weights(qkv=(3, 6, 2, 8), out=(2, 8, 6)), loss, x, examples=6)


@entry
def attention_linear(generator):
    """Linear attention: features elu + 1, sums of products by cumsum over time, divided by their weights."""
    x = generator.standard_normal((6, 10, 5))

    def loss(params, x):
        q, k = (jax.nn.elu(x @ params[name]) + 1 for name in "qk")
        v = x @ params["v"]
        sums = jnp.cumsum(jnp.einsum("bte,btd->bted", k, v), axis=1)
        weight = jnp.einsum("bte,bte->bt", q, jnp.cumsum(k, axis=1))
        predicted = jnp.einsum("bte,bted->btd", q, sums) / weight[..., None]
        return jnp.mean((predicted[:, :-1] - x[:, 1:]) ** 2)

    return Problem(weights(q=(5, 6), k=(5, 6), v=(5, 5)), loss, x, examples=6)


@entry
def mixture_of_experts(generator):
    """A layer of four experts; each example goes to the two that its gate likes best (top_k)."""
    x = generator.standard_normal((24, 6))

    def loss(params, data):
        x, y = data
        scores, picked = jax.lax.top_k(x @ params["gate"], 2)
        share = jax.nn.softmax(scores, axis=-1)
        hidden = jnp.tanh(jnp.einsum("ni,eih->neh", x, params["w"]))
        answers = jnp.einsum("neh,eh->ne", hidden, params["v"])
        return jnp.mean((jnp.sum(share * jnp.take_along_axis(answers, picked, axis=1), axis=1) - y) ** 2)

    shapes = {"gate": (6, 4), "w": (4, 6, 8), "v": (4, 8)}
    return Problem(weights(**shapes), loss, (x, np.sin(x.sum(1))), examples=24)


@entry
def patch_transformer(generator):
    """A vision transformer of one block with a class token, rms normalisation and a gated layer."""
    x = generator.standard_normal((8, 8, 8))
    labels = (x[:, :4].mean((1, 2)) > 0).astype(int)

    def rms(x):
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)

    def loss(params, data):
        x, labels = data
        patches = x.reshape(-1, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 16) @ params["patch"]
        first = jnp.broadcast_to(params["token"], (patches.shape[0], 1, 10))
        h = jnp.concatenate([first, patches], axis=1)
        q, k, v = jnp.split(rms(h) @ params["qkv"], 3, axis=-1)
        h = h + jax.nn.softmax(jnp.einsum("bqe,bke->bqk", q, k) / 10**0.5) @ v
        h = h + (jax.nn.silu(rms(h) @ params["gate"]) * (rms(h) @ params["up"])) @ params["down"]
        log_p = jax.nn.log_softmax(h[:, 0] @ params["out"])
        return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], 1))

    shapes = {"patch": (16, 10), "token": (10,), "qkv": (10, 30), "out": (10, 2)}
    shapes |= {"gate": (10, 16), "up": (10, 16), "down": (16, 10)}
    return Problem(weights(**shapes), loss, (x, labels), examples=8)
