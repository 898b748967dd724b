"""A NumPy loop, one trial per run, as benchopt's solvers are written. `run_once`: no curve, benchopt's cheapest way."""

import numpy as np
from benchopt import BaseSolver


class Solver(BaseSolver):
    name = "numpy-loop"
    sampling_strategy = "run_once"
    parameters = {"optimizer": ["sgd"], "steps": [100], "learning_rate": [0.1]}  # noqa: RUF012

    def set_objective(self, kind, arrays):
        self.kind, self.arrays = kind, arrays

    def gradient(self, w):
        if self.kind == "quadratic_bowl":
            return 2 * self.arrays[0] * w
        design, labels = self.arrays
        weights = labels / (1 + np.exp(labels * (design @ w)))
        return 1e-3 * w - weights @ design / len(labels)

    def run(self, _):
        w = np.full(self.arrays[0].shape[-1], self.kind == "quadratic_bowl", np.float32)
        rate = np.float32(self.learning_rate)
        first, second = 0 * w, 0 * w
        for count in range(1, self.steps + 1):
            grads = self.gradient(w)
            if self.optimizer == "sgd":
                w = w - rate * grads
            elif self.optimizer == "momentum":
                first = 0.9 * first + grads
                w = w - rate * first
            else:
                first = 0.9 * first + 0.1 * grads
                second = 0.999 * second + 0.001 * grads * grads
                w = w - rate * (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
        self.w = w

    def get_result(self):
        return {"params": self.w}
