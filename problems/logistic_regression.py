"""Logistic regression: loss(w) = mean log(1 + exp(-y x.w)) + l2/2 |w|^2, y in {-1, +1}, from w = 0.

Columns of X are standardised, with an intercept, which is penalised like the rest. Default data: Breast Cancer
Wisconsin (Street, Wolberg and Mangasarian 1993), as bundled with scikit-learn: 569 cases, 30 features. The Hessian
lies between l2 and lambda_max(X'X)/4n + l2, so 2/L is a safe limit, below the measured one.
"""

import jax
import jax.numpy as jnp

from gradbench import Problem, datasets

GROUP = "convex"


def softplus(x):
    """log(1 + exp(x)). Beside jax.nn.softplus a trial-step costs 0.7 as much: its gradient shares this exp.

    One condition for both terms: at x = 0, where w = 0 starts, max(x, 0) + log1p(exp(-|x|)) has derivative 0, not 1/2.
    """
    positive = x >= 0
    return jnp.where(positive, x, 0) + jnp.log1p(jnp.exp(jnp.where(positive, -x, x)))


def problem(
    data: str | None = None,
    examples: int | None = None,
    features: int | None = None,
    l2: float = 1e-3,
    label: str | int | None = None,
) -> Problem:
    if not 0 <= l2 < float("inf"):
        raise ValueError(f"l2={l2}: need a number of at least 0")
    table = datasets.table(data, examples, features, label, classes=True)
    if table is None:
        table = datasets.bundled("breast_cancer")
    elif examples is not None:
        table = table[0], table[1] > 0
    design, labels = datasets.design_matrix(table[0]), datasets.two_classes(table[1])

    def gradient(w, data):
        weights = data["y"] * jax.nn.sigmoid(-data["y"] * (data["X"] @ w))
        return -data["X"].T @ weights / len(weights) + l2 * w

    return Problem(
        init=lambda key: jnp.zeros(design.shape[1]),
        loss=lambda w, data: jnp.mean(softplus(-data["y"] * (data["X"] @ w))) + 0.5 * l2 * jnp.sum(w * w),
        data={"X": design, "y": labels},
        examples=len(design),
        minimum=datasets.logistic_minimum(design, labels, l2),
        curvature=(l2, datasets.curvature(design)[1] / 4 + l2),
        gradient=gradient,
    )
