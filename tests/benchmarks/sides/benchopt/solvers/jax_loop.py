"""A jitted Optax step in a Python loop, one trial a run. `run_once`: no curve, benchopt's cheapest way."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchopt import BaseSolver


class Solver(BaseSolver):
    name = "jax-loop"
    sampling_strategy = "run_once"
    parameters = {"optimizer": ["sgd"], "steps": [100], "learning_rate": [0.1]}  # noqa: RUF012

    def set_objective(self, kind, arrays):
        self.kind, self.arrays = kind, [jnp.asarray(a) for a in arrays]

    def loss(self, w):
        if self.kind == "quadratic_bowl":
            return jnp.sum(self.arrays[0] * w * w)
        design, labels = self.arrays
        return jnp.mean(jax.nn.softplus(-labels * (design @ w))) + 0.5e-3 * jnp.sum(w * w)

    def run(self, _):
        makers = {"sgd": optax.sgd, "momentum": lambda rate: optax.sgd(rate, momentum=0.9), "adam": optax.adam}
        optimizer = makers[self.optimizer](self.learning_rate)

        @jax.jit
        def step(w, state):
            updates, state = optimizer.update(jax.grad(self.loss)(w), state, w)
            return optax.apply_updates(w, updates), state

        w = jnp.full(self.arrays[0].shape[-1], self.kind == "quadratic_bowl", jnp.float32)
        state = optimizer.init(w)
        for _ in range(self.steps):
            w, state = step(w, state)
        self.w = np.asarray(w)

    def get_result(self):
        return {"params": self.w}
