"""Multilayer perceptron: mean softmax cross-entropy of a fully connected network on handwritten digits.

Default: 64-32-10 with tanh; hidden=(512,256) for more layers. Weights start normal with variance 1/fan_in (LeCun et
al., Efficient BackProp, 1998), biases at 0. Data: Optical Recognition of Handwritten Digits (Alpaydin and Kaynak
1998), as bundled with scikit-learn: 1797 images of 8 x 8, pixels scaled to 0..1. Solved is a training loss of 0.1.
"""

import jax
import jax.numpy as jnp
import optax

from gradbench import Problem, datasets

GROUP = "networks"


def problem(hidden: int | tuple[int, ...] = 32, activation: str = "tanh") -> Problem:
    images, labels = datasets.bundled("digits")
    widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    if not all(isinstance(width, int) and width > 0 for width in widths):
        raise ValueError(f"hidden={hidden}: need a width, or a tuple of widths, above 0")
    functions = {name: getattr(jax.nn, name) for name in ("tanh", "relu", "sigmoid", "gelu", "silu", "elu")}
    if activation not in functions:
        raise ValueError(f"activation={activation}: need one of {', '.join(functions)}")
    sizes = list(zip((64, *widths), (*widths, 10), strict=True))

    def init(key):
        weights = [jax.random.normal(k, s) / s[0] ** 0.5 for k, s in zip(jax.random.split(key, len(sizes)), sizes)]
        return [{"w": weight, "b": jnp.zeros(weight.shape[1])} for weight in weights]

    def loss(params, data):
        x = data["x"].T  # units x examples: the softmax then runs along whole rows of examples, not down columns of 10
        for layer in params[:-1]:
            x = functions[activation](layer["w"].T @ x + layer["b"][:, None])
        logits = params[-1]["w"].T @ x + params[-1]["b"][:, None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, data["y"], axis=0).mean()

    return Problem(init, loss, {"x": images / 16.0, "y": labels}, examples=len(labels), target=0.1)
