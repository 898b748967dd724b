"""NumPy: all trials stacked on a leading axis, gradients written by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .cases import SMALL, Case, Side
from .updates import start, update


def stacked_gradient(name: str, data: dict[str, np.ndarray]) -> Callable[[dict[str, Any]], tuple[Any, dict[str, Any]]]:
    """params with a leading trial axis -> losses (G,), grads."""
    if name.startswith("quadratic_bowl"):
        lambdas = data["x"]

        def bowl(p):
            scaled = lambdas * p["x"]
            return (scaled * p["x"]).sum(1), {"x": 2 * scaled}

        return bowl
    if name == "mlp":
        return stacked_mlp(data["x"], data["y"])
    design, target = data["X"], data["y"]
    n = len(target)
    if name.startswith("linear"):

        def linear(p):
            residual = p["x"] @ design.T - target
            return 0.5 * (residual * residual).mean(1), {"x": residual @ design / n}

        return linear

    def logistic(p):
        w = p["x"]
        z = -target * (w @ design.T)
        small = np.exp(-np.abs(z))
        loss = (np.maximum(z, 0) + np.log1p(small)).mean(1) + 0.5e-3 * (w * w).sum(1)
        weights = -target * np.where(z >= 0, 1, small) / (1 + small)
        return loss, {"x": weights @ design / n + 1e-3 * w}

    return logistic


def stacked_mlp(x, labels):
    rows = np.arange(len(labels))

    def gradient(p):
        hidden = np.tanh(x @ p["0.w"] + p["0.b"][:, None])
        logits = hidden @ p["1.w"] + p["1.b"][:, None]
        logits -= logits.max(2, keepdims=True)
        powers = np.exp(logits)
        total = powers.sum(2, keepdims=True)
        loss = (np.log(total[..., 0]) - logits[:, rows, labels]).mean(1)
        out = powers / total
        out[:, rows, labels] -= 1
        out /= len(labels)
        back = (out @ p["1.w"].transpose(0, 2, 1)) * (1 - hidden * hidden)
        grads = {"0.w": x.T @ back, "0.b": back.sum(1), "1.w": hidden.transpose(0, 2, 1) @ out, "1.b": out.sum(1)}
        return loss, grads

    return gradient


class NumpyStacked(Side):
    name = "NumPy stacked"

    @classmethod
    def takes(cls, case: Case) -> bool:
        return case.problem_name in SMALL

    def __init__(self, case: Case):
        super().__init__(case)
        self.gradient = stacked_gradient(case.problem_name, case.named_data)
        count = len(case.rates)
        self.params = {k: np.repeat(v[None], count, 0) for k, v in case.named_params.items()}
        self.rates = {k: case.rates.reshape(-1, *(1,) * (p.ndim - 1)) for k, p in self.params.items()}

    def run(self) -> tuple[float, np.ndarray]:
        optimizer, params = self.case.optimizer_name, self.params
        state = start(optimizer, params)
        began = time.perf_counter()
        for step in range(1, self.case.steps + 1):
            losses, grads = self.gradient(params)
            params, state = update(optimizer, params, grads, state, self.rates, step)
        return time.perf_counter() - began, losses
