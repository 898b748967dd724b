"""Linear regression: loss(w) = |Xw - y|^2 / (2n), half the mean squared error, from w = 0.

Columns of X are standardised, with an intercept; y is standardised. Default data: the diabetes set of Efron, Hastie,
Johnstone and Tibshirani, Least Angle Regression (2004), as bundled with scikit-learn: 442 patients, 10 features.
"""

import jax.numpy as jnp
import numpy as np

from gradbench import Problem, datasets

GROUP = "convex"


def problem(
    data: str | None = None, examples: int | None = None, features: int | None = None, label: str | int | None = None
) -> Problem:
    table = datasets.table(data, examples, features, label)
    if table is None:
        table = datasets.bundled("diabetes")
    design, target = datasets.design_matrix(table[0]), datasets.standardise(table[1])
    residual = design @ np.linalg.lstsq(design, target, rcond=None)[0] - target

    def loss(w, data):
        return 0.5 * jnp.mean((data["X"] @ w - data["y"]) ** 2)

    return Problem(
        init=lambda key: jnp.zeros(design.shape[1]),
        loss=loss,
        data={"X": design, "y": target},
        examples=len(design),
        minimum=0.5 * float(np.mean(residual**2)),
        curvature=datasets.curvature(design),
        gradient=lambda w, data: data["X"].T @ (data["X"] @ w - data["y"]) / len(data["y"]),
    )
