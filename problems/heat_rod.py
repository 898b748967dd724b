"""Heat rod: find a rod's conductivity and heat source from noisy temperatures, a physicist's inverse problem.

u_t = conductivity u_xx + source sin(pi x) for 0 < x, t < 1, cooled to 0 at both ends, from sin(pi x) + sin(3 pi x)/2,
by explicit finite differences (Crank, The Mathematics of Diffusion, 1975, chapter 8): 16 cells, 160 steps. The loss is
half the mean squared error of the readings, in units of their noise. Parameters are the logarithms of both, from 0.05
and 0.5; above a conductivity of 0.31 the scheme is unstable. The readings are synthetic, of the exact solution for
conductivity 0.1 and source 1, every 8th step at 4 sensors, with noise of that standard deviation; 3 other sensors are
held out. Solved is the loss of the exact solution: half the mean square of the noise drawn, in its units.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gradbench import Problem, datasets

GROUP = "science"
CELLS, STEPS, EVERY = 16, 160, 8


def problem(noise: float = 0.02) -> Problem:
    if not 0 < noise < float("inf"):
        raise ValueError(f"noise={noise}: need a number above 0")
    x, times = np.linspace(0, 1, CELLS + 1), np.arange(EVERY, STEPS + 1, EVERY) / STEPS
    drawn = np.random.default_rng(0).standard_normal((CELLS + 1, len(times)))
    readings = datasets.heat_rod(x, times, conductivity=0.1, source=1.0).T + noise * drawn
    sensors, others = np.arange(2, CELLS, 4), np.arange(4, CELLS, 4)
    rod = {"start": np.sin(np.pi * x) + 0.5 * np.sin(3 * np.pi * x), "heated": np.sin(np.pi * x[1:-1])}

    def loss(logs, data):
        conductivity, source = jnp.exp(logs)

        def step(u, _):
            bend = (u[2:] - 2 * u[1:-1] + u[:-2]) * CELLS**2
            u = u.at[1:-1].add((conductivity * bend + source * data["heated"]) / STEPS)
            return u, u[data["place"]]

        temperatures = jax.lax.scan(step, data["start"], length=STEPS)[1][EVERY - 1 :: EVERY]
        return 0.5 * jnp.mean(((temperatures.T - data["reading"]) / noise) ** 2)

    return Problem(
        init=lambda key: jnp.log(jnp.array([0.05, 0.5])),
        loss=loss,
        data=rod | {"place": sensors, "reading": readings[sensors]},
        target=0.5 * float(np.mean(drawn[sensors] ** 2)),
        holdout=rod | {"place": others, "reading": readings[others]},
        metrics={"conductivity": lambda logs, data: jnp.exp(logs[0]), "source": lambda logs, data: jnp.exp(logs[1])},
    )
