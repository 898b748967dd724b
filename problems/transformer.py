"""Transformer: mean cross-entropy, nats, of the next token, by a causal decoder with a tied embedding.

Source: Radford et al., Language Models are Unsupervised Multitask Learners (2019), without biases and scales of norms;
weights start normal with standard deviation 0.02. The default language is synthetic, `examples` sentences and as many
held out: a token is the fixed successor of the one two before it, or any of the 16 with probability 0.1. No model beats
its entropy on held-out text; solved is a training loss of 1.05 times that. data=PATH: your text, a tenth held out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradbench import Problem, datasets

GROUP = "networks"
TOKENS, NOISE = 16, 0.1
BLOCK = {"query": (1, 1), "key": (1, 1), "value": (1, 1), "mix": (1, 1), "up": (1, 4), "down": (4, 1)}  # in widths


def sentences(count: int, length: int) -> tuple[np.ndarray, float]:
    """Tokens (count, length + 1), and the entropy per token of all but the first, of which one is uniform."""
    draw, p = np.random.default_rng(0), (1 - NOISE) * np.eye(TOKENS)[0] + NOISE / TOKENS
    successor, tokens = draw.permutation(TOKENS), draw.integers(TOKENS, size=(count, length + 1))
    for t in range(2, length + 1):
        tokens[:, t] = np.where(draw.random(count) < NOISE, tokens[:, t], successor[tokens[:, t - 2]])
    return tokens, float(np.log(TOKENS) - (length - 1) * p @ np.log(p)) / length


def problem(
    layers: int = 2, width: int = 64, heads: int = 4, length: int = 32, examples: int = 64, data: str | None = None
) -> Problem:
    if min(layers, width, heads, length, examples) < 1 or width % heads:
        raise ValueError("need layers, width, heads, length and examples of at least 1, and a width that heads divides")
    tokens, entropy = sentences(2 * examples, length)
    if data:
        tokens = datasets.load_text(data, length + 1)
    train, holdout = datasets.split({"tokens": tokens}, share=0.1 if data else 0.5)
    blocks = [{name: (m * width, n * width) for name, (m, n) in BLOCK.items()} for _ in range(layers)]
    shapes = {"embedding": (int(tokens.max()) + 1, width), "places": (length, width), "blocks": blocks}

    def init(key):
        leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda shape: isinstance(shape, tuple))
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(tree, [0.02 * jax.random.normal(k, shape) for k, shape in zip(keys, leaves)])

    def loss(params, data):
        x = params["embedding"][data["tokens"][:, :-1]] + params["places"]
        for block in params["blocks"]:
            y = jax.nn.standardize(x)
            q, k, v = ((y @ block[name]).reshape(*y.shape[:2], heads, -1) for name in ("query", "key", "value"))
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width / heads) ** 0.5
            scores = jax.nn.softmax(jnp.where(jnp.tri(length, dtype=bool), scores, -jnp.inf))
            x = x + jnp.einsum("bhqk,bkhd->bqhd", scores, v).reshape(x.shape) @ block["mix"]
            x = x + jax.nn.gelu(jax.nn.standardize(x) @ block["up"]) @ block["down"]
        logits = jax.nn.standardize(x) @ params["embedding"].T
        return optax.softmax_cross_entropy_with_integer_labels(logits, data["tokens"][:, 1:]).mean()

    target, metrics = None if data else 1.05 * entropy, {"perplexity": lambda p, data: jnp.exp(loss(p, data))}
    return Problem(init, loss, train, len(train["tokens"]), target=target, holdout=holdout, metrics=metrics)
