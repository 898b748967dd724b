"""Rastrigin's function: sum_i x_i^2 - A cos(2 pi x_i) + A, a bowl full of valleys; lowest (0) at the origin.

Each seed starts at its own point of [-5.12, 5.12]^dim; gradient descent ends in the valley it starts in. Source:
Rastrigin, Systems of Extremal Control (1974); Mühlenbein, Schomisch and Born, Parallel Computing 17 (1991).
"""

import jax
import jax.numpy as jnp

from gradbench import Problem

GROUP = "landscapes"


def problem(dim: int = 2, amplitude: float = 10.0) -> Problem:
    if dim < 1 or not 0 <= amplitude < float("inf"):
        raise ValueError(f"dim={dim}, amplitude={amplitude}: need dim >= 1 and amplitude >= 0")
    turn = 2 * jnp.pi
    return Problem(
        init=lambda key: jax.random.uniform(key, (dim,), minval=-5.12, maxval=5.12),
        loss=lambda x, data: jnp.sum(x**2 + amplitude * (1 - jnp.cos(turn * x))),
        minimum=0.0,
        gradient=lambda x, data: 2 * x + amplitude * turn * jnp.sin(turn * x),
    )
