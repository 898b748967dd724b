"""Himmelblau's function: (x^2 + y - 11)^2 + (x + y^2 - 7)^2, four valleys, each with its lowest point at 0.

Each seed starts at its own point of the square [-5, 5]^2. Source: Himmelblau, Applied Nonlinear Programming (1972).
"""

import jax
import jax.numpy as jnp

from gradbench import Problem

GROUP = "landscapes"


def problem() -> Problem:
    def gradient(p, data):
        first, second = p[0] ** 2 + p[1] - 11, p[0] + p[1] ** 2 - 7
        return jnp.stack([4 * p[0] * first + 2 * second, 2 * first + 4 * p[1] * second])

    return Problem(
        init=lambda key: jax.random.uniform(key, (2,), minval=-5.0, maxval=5.0),
        loss=lambda p, data: (p[0] ** 2 + p[1] - 11) ** 2 + (p[0] + p[1] ** 2 - 7) ** 2,
        minimum=0.0,
        gradient=gradient,
    )
