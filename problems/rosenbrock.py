"""Rosenbrock's valley: sum_i 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2, lowest (0) at (1, ..., 1); curved and narrow.

Starts at (-1.2, 1, -1.2, 1, ...). Source: Rosenbrock, The Computer Journal 3 (1960); Moré, Garbow and Hillstrom,
ACM TOMS 7 (1981), problem 1.
"""

import jax.numpy as jnp
import numpy as np

from gradbench import Problem

GROUP = "landscapes"


def problem(dim: int = 2) -> Problem:
    if dim < 2:
        raise ValueError(f"dim={dim}: need at least 2")
    start = np.where(np.arange(dim) % 2 == 0, -1.2, 1.0)

    def gradient(x, data):
        ahead, back = x[1:] - x[:-1] ** 2, jnp.zeros(1, x.dtype)
        return jnp.concatenate([-400 * x[:-1] * ahead - 2 * (1 - x[:-1]), back]) + jnp.concatenate([back, 200 * ahead])

    return Problem(
        init=lambda key: jnp.asarray(start),
        loss=lambda x, data: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2),
        minimum=0.0,
        gradient=gradient,
    )
