"""Softmax regression: loss(W) = mean cross-entropy of softmax(xW) + l2/2 |W|^2, on handwritten digits, from W = 0.

Convex; the minimum is from Newton's method in float64. The Hessian lies between l2 and lambda_max(X'X)/2n + l2
(Böhning, Multinomial logistic regression algorithm, 1992). Data: Optical Recognition of Handwritten Digits (Alpaydin
and Kaynak 1998), as bundled with scikit-learn, pixels scaled to 0..1, with an intercept; a fifth is held out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradbench import Problem, datasets

GROUP = "convex"


def problem(l2: float = 1e-3) -> Problem:
    if not 0 < l2 < float("inf"):
        raise ValueError(f"l2={l2}: need a number above 0")
    images, labels = datasets.bundled("digits")
    design = np.column_stack([images / 16.0, np.ones(len(labels))])
    train, holdout = datasets.split({"X": design, "y": labels})

    def loss(w, data):
        errors = optax.softmax_cross_entropy_with_integer_labels(data["X"] @ w, data["y"])
        return errors.mean() + 0.5 * l2 * jnp.sum(w * w)

    def gradient(w, data):
        excess = jax.nn.softmax(data["X"] @ w) - jax.nn.one_hot(data["y"], 10)
        return data["X"].T @ excess / len(data["y"]) + l2 * w

    return Problem(
        init=lambda key: jnp.zeros((65, 10)),
        loss=loss,
        data=train,
        examples=len(train["y"]),
        minimum=datasets.softmax_minimum(train["X"], train["y"], 10, l2),
        curvature=(l2, datasets.curvature(train["X"])[1] / 2 + l2),
        gradient=gradient,
        holdout=holdout,
        metrics={"accuracy": lambda w, data: jnp.mean(jnp.argmax(data["X"] @ w, axis=1) == data["y"])},
        maximise=("accuracy",),
    )
