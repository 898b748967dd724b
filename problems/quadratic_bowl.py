"""Quadratic bowl: loss(x) = sum_i lambda_i x_i^2, with lambda log-spaced from 1/condition to 1, from x = (1, ..., 1).

The Hessian is diag(2 lambda), so mu = 2/condition and L = 2. dim=1 is x^2 with gradient 2x; dim=2, condition=1 is
x^2 + y^2 with gradient (2x, 2y). Source: Boyd and Vandenberghe, Convex Optimization, section 9.3.2.
"""

import jax.numpy as jnp
import numpy as np

from gradbench import Problem

GROUP = "convex"


def problem(dim: int = 100, condition: float = 100.0) -> Problem:
    if dim < 1 or not 1 <= condition < np.inf:
        raise ValueError(f"dim={dim}, condition={condition}: need dim >= 1 and condition >= 1")
    lambdas = np.geomspace(1 / condition, 1.0, dim) if dim > 1 else np.ones(1)
    return Problem(
        init=lambda key: jnp.ones(dim),
        loss=lambda x, lambdas: jnp.sum(lambdas * x * x),
        data=lambdas,
        minimum=0.0,
        curvature=(2 * float(lambdas[0]), 2.0),
        gradient=lambda x, lambdas: 2 * lambdas * x,
    )
