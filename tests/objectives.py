"""Small networks whose losses take keys, have state, and are judged by metrics on held-out data. A problem file too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradbench

EXAMPLES, CLASSES = 24, 3


def arrays(rows, seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 4))
    return {"x": x, "y": np.argmax(x[:, :CLASSES] + generator.normal(size=(rows, CLASSES)), axis=1)}


def logits(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def accuracy(params, *state_and_data):
    *state, data = state_and_data
    x = (data["x"] - state[0]["mean"]) if state else data["x"]
    return jnp.mean(jnp.argmax(logits(params, x), axis=1) == data["y"])


def cross_entropy(scores, data):
    return optax.softmax_cross_entropy_with_integer_labels(scores, data["y"]).mean()


def network(key):
    first, second = jax.random.split(key)
    return {"w": jax.random.normal(first, (4, 5)) / 2, "v": jax.random.normal(second, (5, CLASSES)) / 2}


def with_dropout(params, data, key):
    """Dropout of the inputs; none without a key."""
    keep = 1.0 if key is None else jax.random.bernoulli(key, 0.8, data["x"].shape) / 0.8
    return cross_entropy(logits(params, data["x"] * keep), data)


def with_state(params, state, data):
    """A running mean of the inputs, as of BatchNorm, and the weights' average, as of an EMA; and a count."""
    mean = 0.9 * state["mean"] + 0.1 * jnp.mean(data["x"], axis=0)
    after = {
        "mean": jax.lax.stop_gradient(mean),
        "ema": 0.9 * state["ema"] + 0.1 * jax.lax.stop_gradient(params["v"]),
        "count": state["count"] + 1,
    }
    pull = jnp.sum((params["v"] - state["ema"]) ** 2)  # depends on the state it was given
    return cross_entropy(logits(params, data["x"] - mean), data) + 0.1 * pull, after


def with_all(params, state, data, key):
    noise = 0.0 if key is None else 0.1 * jax.random.normal(key, data["x"].shape, data["x"].dtype)
    loss, after = with_state(params, state, data | {"x": data["x"] + noise})
    return loss, after, {"norm": jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)))}


def start_with_state(key):
    params = network(key)
    return params, {"mean": jnp.zeros(4), "ema": params["v"], "count": 0}


PROBLEMS = {
    "dropout": gradbench.Problem(network, with_dropout, arrays(EXAMPLES, 0), examples=EXAMPLES),
    "state": gradbench.Problem(start_with_state, with_state, arrays(EXAMPLES, 0), examples=EXAMPLES, stateful=True),
    "all": gradbench.Problem(
        start_with_state,
        with_all,
        arrays(EXAMPLES, 0),
        examples=EXAMPLES,
        stateful=True,
        holdout=arrays(10, 1),
        metrics={"accuracy": accuracy},
        maximise=("accuracy",),
    ),
    "judged": gradbench.Problem(
        network,
        lambda params, data: cross_entropy(logits(params, data["x"]), data),
        arrays(EXAMPLES, 0),
        examples=EXAMPLES,
        holdout=arrays(10, 1),
        metrics={"accuracy": accuracy},
        maximise=("accuracy",),
    ),
}


def problem(kind: str = "all"):
    return PROBLEMS[kind]
