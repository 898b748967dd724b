"""A jitted Optax step in a Python loop, one trial per run. `run_once`: no curve, benchopt's cheapest way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchopt import BaseSolver

from gradbench.inputs.problem import load_problem


@functools.cache
def loss(kind):
    return load_problem(kind).loss


class Solver(BaseSolver):
    name = "jax-loop"
    sampling_strategy = "run_once"
    parameters = {"optimizer": ["sgd"], "steps": [100], "learning_rate": [0.1]}  # noqa: RUF012

    def set_objective(self, kind, arrays):
        self.kind, arrays = kind, [jnp.asarray(a) for a in arrays]
        self.data = arrays[0] if kind == "quadratic_bowl" else dict(zip("Xy", arrays, strict=True))

    def run(self, _):
        makers = {"sgd": optax.sgd, "momentum": lambda rate: optax.sgd(rate, momentum=0.9), "adam": optax.adam}
        optimizer = makers[self.optimizer](self.learning_rate)

        @jax.jit
        def step(w, state):
            updates, state = optimizer.update(jax.grad(loss(self.kind))(w, self.data), state, w)
            return optax.apply_updates(w, updates), state

        w = jnp.full(jax.tree.leaves(self.data)[0].shape[-1], self.kind == "quadratic_bowl", jnp.float32)
        state = optimizer.init(w)
        for _ in range(self.steps):
            w, state = step(w, state)
        self.w = np.asarray(w)

    def get_result(self):
        return {"params": self.w}
