"""What every loss of the zoo is registered by, and the starts and data that many of them share."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench import Problem

ALL = ("float64", "float32", "bfloat16")
WIDE = ("float64", "float32")  # JAX has no factorisation, Fourier transform, interp or log_ndtr in bfloat16


@dataclasses.dataclass(frozen=True)
class Entry:
    """A loss: `build(generator)` gives the Problem from a seeded numpy Generator; `group` is the file it is in."""

    name: str
    group: str
    description: str
    dtypes: tuple[str, ...]
    build: Callable[[np.random.Generator], Problem]

    def problem(self) -> Problem:
        """The same problem at every call and on every machine: the seed is made of the name."""
        generator = np.random.default_rng(zlib.crc32(self.name.encode()))
        return dataclasses.replace(self.build(generator), name=self.name)


ZOO: dict[str, Entry] = {}


def entry(build: Any = None, *, dtypes: tuple[str, ...] = ALL) -> Any:
    """Register a function of a generator under its own name; the first line of its docstring describes the loss."""
    if build is None:
        return lambda function: entry(function, dtypes=dtypes)
    name, description = build.__name__, build.__doc__.splitlines()[0]
    assert name not in ZOO, name
    ZOO[name] = Entry(name, build.__module__.rpartition(".")[2], description, dtypes, build)
    return build


def weights(scale: float = 1.0, **shapes: tuple[int, ...]) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """init(key) -> {name: normal numbers over the square root of the fan-in, times `scale`}, cut from one draw."""
    sizes = [math.prod(shape) for shape in shapes.values()]

    def init(key: jax.Array) -> dict[str, jax.Array]:
        parts = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
        return {
            name: scale * part.reshape(shape) / math.sqrt(math.prod(shape[:-1] or shape))
            for (name, shape), part in zip(shapes.items(), parts)
        }

    return init


def vector(size: int, scale: float = 1.0, mean: float = 0.0) -> Callable[[jax.Array], jax.Array]:
    """init(key) -> `size` normal numbers."""
    return lambda key: mean + scale * jax.random.normal(key, (size,))


def zeros(*shape: int) -> Callable[[jax.Array], jax.Array]:
    """init(key) -> zeros, whatever the key."""
    return lambda key: jnp.zeros(shape)


def regression(generator: np.random.Generator, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (rows, columns) and targets (rows,) of a noisy linear model whose last weights are 0."""
    x = generator.standard_normal((rows, columns))
    truth = generator.standard_normal(columns) * (np.arange(columns) < (columns + 1) // 2)
    return x, x @ truth + 0.3 * generator.standard_normal(rows)


def classes(generator: np.random.Generator, rows: int, columns: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (rows, columns) around `count` centres, and whole-number labels (rows,)."""
    labels = generator.integers(count, size=rows)
    centres = generator.standard_normal((count, columns))
    return centres[labels] + 0.7 * generator.standard_normal((rows, columns)), labels
