"""sgd, momentum and adam on stacked arrays of NumPy or PyTorch, with Optax's defaults and its place for epsilon."""

from __future__ import annotations

from typing import Any

Arrays = dict[str, Any]


def start(optimizer: str, params: Arrays) -> list[Arrays]:
    return [{k: 0 * p for k, p in params.items()} for _ in range({"sgd": 0, "momentum": 1, "adam": 2}[optimizer])]


def update(optimizer: str, params: Arrays, grads: Arrays, state: list[Arrays], rates: Arrays, count: Any):
    """New params and state after update number `count` = 1, 2, ...; `rates` has a leading trial axis for each leaf."""
    if optimizer == "sgd":
        return {k: p - rates[k] * grads[k] for k, p in params.items()}, []
    if optimizer == "momentum":
        trace = {k: g + 0.9 * state[0][k] for k, g in grads.items()}
        return {k: p - rates[k] * trace[k] for k, p in params.items()}, [trace]
    first = {k: 0.9 * state[0][k] + 0.1 * g for k, g in grads.items()}
    second = {k: 0.999 * state[1][k] + 0.001 * (g * g) for k, g in grads.items()}
    a, b = 1 - 0.9**count, 1 - 0.999**count
    moved = {k: p - rates[k] * (first[k] / a) / ((second[k] / b) ** 0.5 + 1e-8) for k, p in params.items()}
    return moved, [first, second]
