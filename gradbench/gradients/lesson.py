"""What a gradient is, shown on the problem itself: its values, its direction, its length."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from gradbench.gradients.formula import oracle
from gradbench.inputs.problem import Problem

_DIRECTIONS = 64
_FEW = 4  # for more than _LARGE parameters: a random direction's slope is then near 0 anyway
_LARGE = 10**6


def lesson(problem: Problem, point: oracle.Point, gradient: list[np.ndarray]) -> list[str]:
    """Lines of text. `gradient` is the float64 gradient at `point`, flat leaves."""
    lines = _small(problem, point) if sum(g.size for g in gradient) <= 2 else []
    return [*lines, _steepest(gradient)] if all(np.isfinite(g).all() for g in gradient) else []


def _steepest(gradient: list[np.ndarray]) -> str:
    flat = np.concatenate([g.ravel() for g in gradient])
    norm = float(np.linalg.norm(flat))
    if norm == 0:
        return "the gradient is 0 here: no direction leads down"
    generator = np.random.default_rng(0)
    slopes, count = [], _DIRECTIONS if flat.size <= _LARGE else _FEW
    for _ in range(count):
        direction = generator.standard_normal(flat.shape)
        # Not BLAS's products, whose second thread would wait for a core.
        slopes.append(float(np.sum(flat * direction) / np.sqrt(np.sum(direction * direction))))
    along = float(flat @ (flat / norm))
    return (
        f"slope along the gradient {along:.6g} = its norm {norm:.6g}; the steepest of {count} random "
        f"directions: {max(slopes):.6g}. Steepest descent steps against it."
    )


def _small(problem: Problem, point: oracle.Point) -> list[str]:
    """For one or two parameters: the gradient at a few points beside its secant, and the rule if it is linear."""
    tree = jax.tree.structure(point.params)
    shapes = [np.shape(x) for x in jax.tree.leaves(point.params)]
    size = sum(int(np.prod(s)) for s in shapes)
    places = np.array([[1.0, 1.0], [2.0, 1.0], [-1.0, 3.0], [0.5, -2.0]])[:, :size]

    def unflatten(flat: np.ndarray) -> Any:
        cuts = np.cumsum([int(np.prod(s)) for s in shapes])[:-1]
        return tree.unflatten([part.reshape(s) for part, s in zip(np.split(flat, cuts), shapes)])

    def value(flat: np.ndarray) -> float:
        return float(oracle.evaluate(problem.loss, unflatten(flat), point.data)[0])

    rows, gradients = [], []
    for place in places:
        leaves = oracle.evaluate(jax.grad(problem.loss), unflatten(place), point.data)
        gradients.append(np.concatenate([x.ravel() for x in leaves]))
        step = 2.0**-17  # cbrt of 2^-52: where the errors of a central difference balance
        unit = np.eye(size) * step
        secant = [(value(place + e) - value(place - e)) / (2 * step) for e in unit]
        rows.append((place, value(place), gradients[-1], secant))
    names = "x" if size == 1 else "(x, y)"
    lines = []
    ratio = np.array(gradients) / places
    if np.allclose(ratio, ratio[0], rtol=1e-12, atol=0):
        terms = [f"{c:.6g}{n}" for c, n in zip(ratio[0], "xy")]
        lines.append(f"f'(x) = {terms[0]}" if size == 1 else f"the gradient is ({', '.join(terms)})")
    lines.append(f"{names:>14}  {'f':>10}  {'gradient':>20}  secant")
    for place, height, gradient, secant in rows:
        lines.append(f"{_tuple(place):>14}  {height:10.6g}  {_tuple(gradient):>20}  {_tuple(np.array(secant))}")
    return lines


def _tuple(numbers: np.ndarray) -> str:
    texts = [f"{x:.6g}" for x in numbers]
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"
