"""Gaussian process: the negative log marginal likelihood per observation, over the logarithms of its hyperparameters.

y ~ N(0, C), C = signal exp(-|x - x'|^2 / (2 length^2)) + noise I; the loss is (y'C^-1 y + log det C + n log 2 pi) / 2n,
by a Cholesky factor. Not convex; starts at length sqrt(features), signal and noise 1. Source: Rasmussen and Williams,
Gaussian Processes for Machine Learning (2006), section 5.4.1; the metric is the error of leave-one-out predictions,
equation 5.12. Data: diabetes (Efron et al. 2004), as bundled with scikit-learn, standardised: `examples` patients, and
as many held out. Solved is what scikit-learn's GaussianProcessRegressor finds from there, 1.1321, and a thousandth.
"""

import jax
import jax.numpy as jnp

from gradbench import Problem, datasets

GROUP = "science"


def problem(examples: int = 100) -> Problem:
    if not 2 <= examples <= 221:
        raise ValueError(f"examples={examples}: need 2 to 221")
    features, target = datasets.bundled("diabetes")
    halves = datasets.split({"X": datasets.standardise(features), "y": datasets.standardise(target)}, share=0.5)
    train, holdout = ({name: array[:examples] for name, array in half.items()} for half in halves)

    def factor(params, data):
        """The Cholesky factor of C; JAX has none in half precision."""
        x = data["X"] / jnp.exp(params["log_length"])
        squares = jnp.sum(x * x, axis=1)
        distances = squares[:, None] + squares[None, :] - 2 * x @ x.T
        c = jnp.exp(params["log_signal"] - 0.5 * distances) + jnp.exp(params["log_noise"]) * jnp.eye(
            len(x), dtype=x.dtype
        )
        return jnp.linalg.cholesky(c.astype(jnp.promote_types(c.dtype, jnp.float32)))

    def loss(params, data):
        lower = factor(params, data)
        whitened = jax.scipy.linalg.solve_triangular(lower, data["y"].astype(lower.dtype), lower=True)
        return 0.5 * jnp.mean(whitened**2) + jnp.mean(jnp.log(jnp.diag(lower))) + 0.5 * jnp.log(2 * jnp.pi)

    def leave_one_out(params, data):
        lower = factor(params, data)
        root = jax.scipy.linalg.solve_triangular(lower, jnp.eye(len(lower), dtype=lower.dtype), lower=True)
        return jnp.sqrt(jnp.mean((root.T @ (root @ data["y"]) / jnp.sum(root * root, axis=0)) ** 2))

    def init(key):
        return {"log_length": jnp.log(features.shape[1]) / 2, "log_signal": jnp.zeros(()), "log_noise": jnp.zeros(())}

    return Problem(
        init,
        loss,
        train,
        target=1.1331 if examples == 100 else None,
        holdout=holdout,
        metrics={"leave_one_out_rmse": leave_one_out},
    )
