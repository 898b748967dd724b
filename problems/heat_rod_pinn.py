"""Heat rod, by a physics-informed network: it learns a rod's noisy temperatures and its heat equation at once.

The network u(x, t), 2-`width`-`width`-1 with tanh, has derivatives, so the residual of the equation, r = u_t -
conductivity u_xx - source sin(pi x), is part of the loss: mean r^2 at 256 random points + 100 mean (u - value)^2 where
the temperature is known (weights of this size: Wang, Teng and Perdikaris 2021). Conductivity and source are found with
it, as logarithms, from 0.05 and 0.5. The rod is heat_rod's: known at the start, at both ends, and from 4 sensors with
noise of standard deviation 0.02; 3 other sensors are held out. Source: Raissi, Perdikaris and Karniadakis,
Physics-informed neural networks (2019), with Glorot's start. Solved is 0.03; the noise alone makes 0.023.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gradbench import Problem, datasets

GROUP = "science"


def known(draw: np.random.Generator, sensors: np.ndarray, edges: bool) -> dict[str, np.ndarray]:
    """Points (x, t) of known temperature, those of the start and the ends if `edges`, and points for the equation."""
    x, t = np.linspace(0, 1, 17), np.linspace(0, 1, 21)
    value, seen = datasets.heat_rod(x, t, conductivity=0.1, source=1.0), np.zeros((21, 17), bool)
    seen[1:, sensors] = True
    value[seen] += draw.normal(0, 0.02, seen.sum())
    seen[0], seen[:, [0, -1]] = seen[0] | edges, seen[:, [0, -1]] | edges
    rows, columns = np.nonzero(seen)
    return {"point": np.stack([x[columns], t[rows]], axis=1), "value": value[seen], "inside": draw.random((256, 2))}


def problem(width: int = 16) -> Problem:
    if width < 1:
        raise ValueError(f"width={width}: need at least 1")
    draw, sizes = np.random.default_rng(0), [(2, width), (width, width), (width, 1)]

    def init(key):
        weights = [jax.random.normal(k, s) * (2 / sum(s)) ** 0.5 for k, s in zip(jax.random.split(key, 3), sizes)]
        layers = [{"w": w, "b": jnp.zeros(w.shape[1])} for w in weights]
        return {"layers": layers, "logs": jnp.log(jnp.array([0.05, 0.5]))}

    def u(layers, x, t):
        h = jnp.stack([x, t])
        for layer in layers[:-1]:
            h = jnp.tanh(h @ layer["w"] + layer["b"])
        return (h @ layers[-1]["w"] + layers[-1]["b"])[0]

    def residual(params, x, t):
        conductivity, source = jnp.exp(params["logs"])
        u_t, u_xx = jax.grad(u, 2)(params["layers"], x, t), jax.grad(jax.grad(u, 1), 1)(params["layers"], x, t)
        return u_t - conductivity * u_xx - source * jnp.sin(jnp.pi * x)

    def misfit(params, data):
        return jnp.mean((jax.vmap(u, (None, 0, 0))(params["layers"], *data["point"].T) - data["value"]) ** 2)

    def loss(params, data):
        return jnp.mean(jax.vmap(residual, (None, 0, 0))(params, *data["inside"].T) ** 2) + 100 * misfit(params, data)

    train, holdout = known(draw, np.arange(2, 16, 4), edges=True), known(draw, np.arange(4, 16, 4), edges=False)
    metrics = {"rmse": lambda p, d: jnp.sqrt(misfit(p, d)), "conductivity": lambda p, d: jnp.exp(p["logs"][0])}
    return Problem(init, loss, train, target=0.03, holdout=holdout, metrics=metrics)
