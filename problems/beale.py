"""Beale's function: (1.5 - x + xy)^2 + (2.25 - x + xy^2)^2 + (2.625 - x + xy^3)^2, lowest (0) at (3, 0.5).

Flat valleys and steep corners; starts at (1, 1). Source: Moré, Garbow and Hillstrom, ACM TOMS 7 (1981), problem 5.
"""

import jax.numpy as jnp

from gradbench import Problem

GROUP = "landscapes"


def residuals(p):
    return jnp.stack([c - p[0] * (1 - p[1] ** k) for k, c in ((1, 1.5), (2, 2.25), (3, 2.625))])


def problem() -> Problem:
    def gradient(p, data):
        r = residuals(p)
        along_x = jnp.stack([p[1] ** k - 1 for k in (1, 2, 3)])
        along_y = jnp.stack([k * p[0] * p[1] ** (k - 1) for k in (1, 2, 3)])
        return 2 * jnp.stack([r @ along_x, r @ along_y])

    return Problem(
        init=lambda key: jnp.ones(2),
        loss=lambda p, data: jnp.sum(residuals(p) ** 2),
        minimum=0.0,
        gradient=gradient,
    )
