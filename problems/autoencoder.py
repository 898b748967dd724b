"""Autoencoder: mean squared error per pixel of digits that pass through a code of 16 numbers, 64-32-16-32-64.

Hidden layers are tanh, the code and the output linear. Weights start normal with variance 1/fan_in (LeCun et al.,
Efficient BackProp, 1998), biases at 0. Source: Hinton and Salakhutdinov, Reducing the Dimensionality of Data with
Neural Networks (2006). Data: Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998), as bundled with
scikit-learn, pixels scaled to 0..1; a fifth is held out. Solved is the error of the best linear autoencoder, principal
components of the training images (Baldi and Hornik 1989), with as long a code.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gradbench import Problem, datasets

GROUP = "networks"


def linear_error(images: np.ndarray, code: int) -> float:
    """The mean squared error per pixel of the first `code` principal components."""
    left_out = np.linalg.svd(images - images.mean(axis=0), compute_uv=False)[code:]
    return float(np.sum(left_out**2) / images.size)


def problem(hidden: int = 32, code: int = 16) -> Problem:
    if hidden < 1 or not 1 <= code < 64:
        raise ValueError(f"hidden={hidden}, code={code}: need hidden of at least 1 and a code of 1 to 63")
    train, holdout = datasets.split({"x": datasets.bundled("digits")[0] / 16.0})
    sizes = [(64, hidden), (hidden, code), (code, hidden), (hidden, 64)]

    def init(key):
        keys = jax.random.split(key, len(sizes))
        return [{"w": jax.random.normal(k, s) / s[0] ** 0.5, "b": jnp.zeros(s[1])} for k, s in zip(keys, sizes)]

    def loss(params, data):
        x = data["x"]
        for layer, activation in zip(params, (jnp.tanh, None, jnp.tanh, None)):
            x = x @ layer["w"] + layer["b"]
            x = x if activation is None else activation(x)
        return jnp.mean((x - data["x"]) ** 2)

    return Problem(
        init,
        loss,
        train,
        examples=len(train["x"]),
        target=linear_error(train["x"], code),
        holdout=holdout,
        metrics={"rmse": lambda params, data: jnp.sqrt(loss(params, data))},
    )
