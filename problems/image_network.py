"""Coordinate network: mean squared error of a picture's grey values, 0..1, computed from the places of its pixels.

A place in the unit square becomes sines and cosines of 32 random frequencies, normal with standard deviation
`frequency`, and passes through 64-`width`-`width`-1 with relu; from the place alone a network learns the coarse only.
Weights start normal with variance 2/fan_in (He et al. 2015), biases at 0. Source: Tancik et al., Fourier Features Let
Networks Learn High Frequency Functions in Low Dimensional Domains (2020). Data: flower.pgm, 48 x 48, means of 8 x 8
pixels of the middle of scikit-learn's flower.jpg (flickr.com/photos/vultilion, CC BY 2.0); a fifth is held out. Solved
is a training error of 0.001, 30 dB.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gradbench import Problem, datasets

GROUP = "networks"


def problem(width: int = 64, frequency: float = 4.0) -> Problem:
    if width < 1 or not 0 < frequency < float("inf"):
        raise ValueError(f"width={width}, frequency={frequency}: need a width of at least 1 and a frequency above 0")
    pixels = np.frombuffer((Path(__file__).parent / "flower.pgm").read_bytes()[-48 * 48 :], np.uint8) / 255
    place = (np.stack(np.divmod(np.arange(48 * 48), 48), axis=1) + 0.5) / 48
    frequencies = {"frequency": np.random.default_rng(0).normal(0, 2 * np.pi * frequency, (2, 32))}
    train, holdout = datasets.split({"place": place, "value": pixels})
    sizes = [(64, width), (width, width), (width, 1)]

    def init(key):
        keys = jax.random.split(key, len(sizes))
        return [{"w": jax.random.normal(k, s) * (2 / s[0]) ** 0.5, "b": jnp.zeros(s[1])} for k, s in zip(keys, sizes)]

    def loss(params, data):
        angles = data["place"] @ data["frequency"]
        x = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        values = x @ params[-1]["w"] + params[-1]["b"]
        return jnp.mean((values[:, 0] - data["value"]) ** 2)

    return Problem(
        init,
        loss,
        train | frequencies,
        examples=len(train["value"]),
        target=0.001,
        holdout=holdout | frequencies,
        metrics={"psnr": lambda params, data: -10 * jnp.log10(loss(params, data))},
        maximise=("psnr",),
    )
