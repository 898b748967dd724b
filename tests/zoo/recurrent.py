"""Recurrent losses: cells by hand and by jax.nn, in scan, vmap, fori_loop and plain loops; differential equations."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradbench import Problem
from zoo.entries import entry, weights


def sequences(generator, count, length, features):
    """Noisy waves (count, length, features) and a target (count,): whether the first frequency is high."""
    frequency = generator.uniform(0.2, 1.2, (count, 1, features))
    phase = generator.uniform(0, 6, (count, 1, features))
    waves = np.sin(frequency * np.arange(length)[None, :, None] + phase)
    return waves + 0.1 * generator.standard_normal(waves.shape), (frequency[:, 0, 0] > 0.7).astype(float)


@entry
def rnn_time_first(generator):
    """A tanh network over (time, batch, features), predicting the next input at every step."""
    x, _ = sequences(generator, 12, 16, 4)

    def loss(params, x):
        def step(h, now):
            h = jnp.tanh(now @ params["w"] + h @ params["u"] + params["b"])
            return h, h @ params["out"]

        h = jnp.zeros((x.shape[1], 20), x.dtype)
        _, predicted = lax.scan(step, h, x[:-1])
        return jnp.mean((predicted - x[1:]) ** 2)

    return Problem(weights(w=(4, 20), u=(20, 20), b=(20,), out=(20, 4)), loss, x.swapaxes(0, 1))


@entry
def rnn_batch_first(generator):
    """A tanh network over (batch, time, features), one matrix for input and state, classified by its last state."""
    x, y = sequences(generator, 16, 12, 3)

    def loss(params, data):
        x, y = data

        def step(h, now):
            return jnp.tanh(jnp.concatenate([now, h], axis=-1) @ params["w"]), None

        h, _ = lax.scan(step, jnp.zeros((x.shape[0], 16), x.dtype), jnp.swapaxes(x, 0, 1))
        logits = h @ params["out"]
        return jnp.mean(jax.nn.softplus(logits) - y * logits)

    return Problem(weights(w=(19, 16), out=(16,)), loss, (x, y), examples=16)


@entry
def rnn_unrolled(generator):
    """A relu network unrolled by a Python loop, with a learned first state."""
    x, y = sequences(generator, 10, 6, 3)

    def loss(params, data):
        x, y = data
        h = jnp.broadcast_to(params["h"], (x.shape[0], 14))
        for t in range(x.shape[1]):
            h = jax.nn.relu(x[:, t] @ params["w"] + h @ params["u"])
        return jnp.mean((h @ params["out"] - y) ** 2)

    return Problem(weights(h=(14,), w=(3, 14), u=(14, 14), out=(14,)), loss, (x, y), examples=10)


@entry
def gru_vmapped(generator):
    """A gated recurrent unit written for one sequence and vmapped over sequences."""
    x, y = sequences(generator, 14, 12, 3)

    def gru(params, h, x):
        z = jax.nn.sigmoid(x @ params["wz"] + h @ params["uz"])
        r = jax.nn.sigmoid(x @ params["wr"] + h @ params["ur"])
        return (1 - z) * h + z * jnp.tanh(x @ params["wh"] + (r * h) @ params["uh"])

    def predict(params, sequence):
        h, _ = lax.scan(lambda h, x: (gru(params, h, x), None), jnp.zeros(12, sequence.dtype), sequence)
        return h @ params["out"]

    def loss(params, data):
        x, y = data
        return jnp.mean((jax.vmap(predict, in_axes=(None, 0))(params, x) - y) ** 2)

    gates = {f"{kind}{gate}": (size, 12) for kind, size in (("w", 3), ("u", 12)) for gate in "zrh"}
    return Problem(weights(**gates, out=(12,)), loss, (x, y), examples=14)


@entry
def gru_by_hand(generator):
    """A gated recurrent unit over (time, batch, features), sigmoids by 1 / (1 + exp(-x)), both directions."""
    x, y = sequences(generator, 10, 10, 3)

    def sigmoid(x):
        return 1 / (1 + jnp.exp(-x))

    def run(w, u, x, reverse):
        def step(h, now):
            wz, wr, wh = jnp.split(now @ w, 3, axis=-1)
            uz, ur, uh = jnp.split(h @ u, 3, axis=-1)
            z, r = sigmoid(wz + uz), sigmoid(wr + ur)
            return z * h + (1 - z) * jnp.tanh(wh + r * uh), None

        return lax.scan(step, jnp.zeros((x.shape[1], 10), x.dtype), x, reverse=reverse)[0]

    def loss(params, data):
        x, y = data
        states = [run(params["w"][i], params["u"][i], x, reverse=bool(i)) for i in range(2)]
        logits = jnp.concatenate(states, axis=-1) @ params["out"]
        return jnp.mean(jnp.logaddexp(0.0, logits) - y * logits)

    return Problem(weights(w=(2, 3, 30), u=(2, 10, 30), out=(20,)), loss, (x.swapaxes(0, 1), y))


def lstm_cell(w, u, b, state, x):
    """One step of an LSTM, its four gates in one product."""
    h, c = state
    i, f, g, o = jnp.split(x @ w + h @ u + b, 4, axis=-1)
    c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


@entry
def lstm_time_first(generator):
    """An LSTM over (time, batch, features), the loss at every step."""
    x, _ = sequences(generator, 12, 12, 4)

    def loss(params, x):
        def step(state, now):
            state = lstm_cell(params["w"], params["u"], params["b"], state, now)
            return state, state[0]

        zero = jnp.zeros((x.shape[1], 14), x.dtype)
        _, h = lax.scan(step, (zero, zero), x[:-1])
        return jnp.mean((h @ params["out"] - x[1:]) ** 2)

    return Problem(weights(w=(4, 56), u=(14, 56), b=(56,), out=(14, 4)), loss, x.swapaxes(0, 1))


@entry
def lstm_batch_first(generator):
    """An LSTM over (batch, time, features) swapped inside the loss, classified by its last state."""
    x, y = sequences(generator, 16, 12, 4)

    def loss(params, data):
        x, y = data
        zero = jnp.zeros((x.shape[0], 16), x.dtype)

        def step(state, now):
            return lstm_cell(params["w"], params["u"], params["b"], state, now), None

        (h, _), _ = lax.scan(step, (zero, zero), x.transpose(1, 0, 2))
        logits = h @ params["out"]
        return jnp.mean(jax.nn.softplus(logits) - y * logits)

    return Problem(weights(w=(4, 64), u=(16, 64), b=(64,), out=(16,)), loss, (x, y), examples=16)


@entry
def lstm_vmapped(generator):
    """An LSTM written for one sequence and vmapped, two layers."""
    x, y = sequences(generator, 10, 10, 3)

    def layer(w, u, b, sequence):
        def step(state, now):
            state = lstm_cell(w, u, b, state, now)
            return state, state[0]

        zero = jnp.zeros(10, sequence.dtype)
        return lax.scan(step, (zero, zero), sequence)[1]

    def loss(params, data):
        def one(x):
            h = layer(params["w1"], params["u1"], params["b1"], x)
            return layer(params["w2"], params["u2"], params["b2"], h)[-1] @ params["out"]

        x, y = data
        return jnp.mean((jax.vmap(one)(x) - y) ** 2)

    shapes = {f"{kind}{i}": shape for i in (1, 2) for kind, shape in (("u", (10, 40)), ("b", (40,)))}
    return Problem(weights(w1=(3, 40), w2=(10, 40), **shapes, out=(10,)), loss, (x, y), examples=10)


@entry
def lstm_with_lengths(generator):
    """An LSTM of separate matrices by einsum over padded sequences; a where keeps the state after each one's end."""
    x, y = sequences(generator, 12, 10, 3)
    lengths = generator.integers(3, 11, 12)

    def loss(params, data):
        x, y, lengths = data

        def step(state, inputs):
            h, c = state
            now, t = inputs
            gates = jnp.einsum("bf,gfh->gbh", now, params["w"]) + jnp.einsum("bk,gkh->gbh", h, params["u"])
            i, f, o = jax.nn.sigmoid(gates[:3])
            new_c = f * c + i * jnp.tanh(gates[3])
            new_h = o * jnp.tanh(new_c)
            alive = (t < lengths)[:, None]
            return (jnp.where(alive, new_h, h), jnp.where(alive, new_c, c)), None

        zero = jnp.zeros((x.shape[0], 12), x.dtype)
        times = jnp.arange(x.shape[1])
        (h, _), _ = lax.scan(step, (zero, zero), (jnp.moveaxis(x, 1, 0), times))
        return jnp.mean((h @ params["out"] - y) ** 2)

    return Problem(weights(w=(4, 3, 12), u=(4, 12, 12), out=(12,)), loss, (x, y, lengths), examples=12)


@entry
def character_model(generator):
    """A recurrent language model: embedding by gather, cross-entropy summed in the carry."""
    text = generator.integers(0, 12, (8, 15))

    def loss(params, text):
        def step(carry, tokens):
            h, total = carry
            now, following = tokens
            h = jnp.tanh(params["embedding"][now] + h @ params["u"])
            log_p = jax.nn.log_softmax(h @ params["out"])
            return (h, total - jnp.take_along_axis(log_p, following[:, None], 1).mean()), None

        h = jnp.zeros((text.shape[0], 16), params["u"].dtype)
        pairs = (text[:, :-1].T, text[:, 1:].T)
        (_, total), _ = lax.scan(step, (h, jnp.zeros((), h.dtype)), pairs)
        return total / (text.shape[1] - 1)

    return Problem(weights(embedding=(12, 16), u=(16, 16), out=(16, 12)), loss, text, examples=8)


@entry
def neural_ode_scan(generator):
    """A neural ordinary differential equation by Runge-Kutta steps in a scan, fitted to a spiral."""
    time = np.linspace(0, 3, 16)
    spiral = np.exp(-0.2 * time)[:, None] * np.stack([np.cos(2 * time), np.sin(2 * time)], -1)

    def loss(params, data):
        def field(y):
            return jnp.tanh(y @ params["w1"] + params["b1"]) @ params["w2"]

        def step(y, _):
            h = 0.2
            k1 = field(y)
            k2 = field(y + 0.5 * h * k1)
            k3 = field(y + 0.5 * h * k2)
            k4 = field(y + h * k3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            return y, y

        _, path = lax.scan(step, data[0], length=data.shape[0] - 1)
        return jnp.mean((path - data[1:]) ** 2)

    data = spiral + 0.01 * generator.standard_normal(spiral.shape)
    return Problem(weights(w1=(2, 16), b1=(16,), w2=(16, 2)), loss, data)


@entry
def neural_ode_fori(generator):
    """A continuous classifier: Euler steps in fori_loop between two linear maps."""
    x, y = sequences(generator, 20, 1, 5)

    def loss(params, data):
        x, y = data

        def step(i, h):
            return h + 0.125 * jnp.tanh(h @ params["w"] + params["b"])

        h = lax.fori_loop(0, 8, step, x @ params["into"])
        return jnp.mean((h @ params["out"] - y) ** 2)

    return Problem(weights(into=(5, 10), w=(10, 10), b=(10,), out=(10,)), loss, (x[:, 0], y), examples=20)


@entry
def state_space(generator):
    """A diagonal linear state-space layer by associative_scan, decays by sigmoid."""
    x, _ = sequences(generator, 8, 16, 4)

    def loss(params, x):
        decay = jax.nn.sigmoid(params["decay"])
        inputs = x @ params["b"]

        def join(left, right):
            return left[0] * right[0], left[1] * right[0] + right[1]

        _, h = lax.associative_scan(join, (jnp.broadcast_to(decay, inputs.shape), inputs), axis=1)
        return jnp.mean((h[:, :-1] @ params["c"] - x[:, 1:]) ** 2)

    return Problem(weights(decay=(12,), b=(4, 12), c=(12, 4)), loss, x, examples=8)
