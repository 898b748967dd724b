"""LSTM on the adding problem: the mean squared error of the sum of two marked numbers in a sequence.

Each step has a number of [0, 1] and a mark, which is 1 at one place of each half. Always answering 1 has an expected
error of 1/6, the variance of such a sum, which a network has to beat. Source: Hochreiter and Schmidhuber, Long
Short-Term Memory (1997), experiment 4; with forget gates (Gers, Schmidhuber and Cummins 2000) whose biases start at 1,
weights normal with variance 1/fan_in. The sequences are drawn with a fixed seed, and as many are held out. Solved is a
training error of 0.01.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gradbench import Problem

GROUP = "networks"


def sequences(draw: np.random.Generator, examples: int, length: int) -> dict[str, np.ndarray]:
    numbers, marks = draw.random((examples, length)), np.zeros((examples, length))
    rows, half = np.arange(examples), length // 2
    marks[rows, draw.integers(half, size=examples)] = 1
    marks[rows, draw.integers(half, length, size=examples)] = 1
    return {"x": np.stack([numbers, marks], axis=2), "y": np.sum(numbers * marks, axis=1)}


def problem(hidden: int = 64, length: int = 32, examples: int = 64) -> Problem:
    if hidden < 1 or length < 2 or examples < 1:
        raise ValueError("need hidden and examples of at least 1 and a length of at least 2")
    draw = np.random.default_rng(0)
    train, holdout = sequences(draw, examples, length), sequences(draw, examples, length)

    def init(key):
        keys = jax.random.split(key, 3)
        return {
            "input": jax.random.normal(keys[0], (2, 4 * hidden)) / 2**0.5,
            "state": jax.random.normal(keys[1], (hidden, 4 * hidden)) / hidden**0.5,
            "bias": jnp.repeat(jnp.array([0.0, 1.0, 0.0, 0.0]), hidden),
            "out": {"w": jax.random.normal(keys[2], (hidden,)) / hidden**0.5, "b": jnp.zeros(())},
        }

    def loss(params, data):
        def step(carry, x):
            h, c = carry
            gates = x @ params["input"] + h @ params["state"] + params["bias"]
            enter, forget, leave, new = jnp.split(gates, 4, axis=1)
            c = jax.nn.sigmoid(forget) * c + jax.nn.sigmoid(enter) * jnp.tanh(new)
            return (jax.nn.sigmoid(leave) * jnp.tanh(c), c), None

        x = data["x"].swapaxes(0, 1)  # time first: scan takes a step at a time
        empty = jnp.zeros((x.shape[1], hidden), x.dtype)
        (h, _), _ = jax.lax.scan(step, (empty, empty), x)
        return jnp.mean((h @ params["out"]["w"] + params["out"]["b"] - data["y"]) ** 2)

    rmse = {"rmse": lambda params, data: jnp.sqrt(loss(params, data))}
    return Problem(init, loss, train, examples=examples, target=0.01, holdout=holdout, metrics=rmse)
