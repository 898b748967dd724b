"""The Hessian's extreme eigenvalues, stated by a problem or measured by Lanczos."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from gradbench.inputs.problem import Problem, cast, load_problem
from gradbench.program.program import numerics
from gradbench.theory.replay import compile_for, flat_loss, start

MAX_PRODUCTS = 300  # Hessian-vector products of one Lanczos run
BASIS_BYTES = 2**30  # of the Lanczos basis: fewer products where the parameters are many


class Curvature(NamedTuple):
    """The Hessian's extreme eigenvalues, mu and largest (L), and where they are from: "stated" by the problem (bounds
    over all params) or "lanczos" (at one point). `error` bounds how far each is from a true eigenvalue."""

    mu: float
    largest: float
    source: str
    error: float = 0.0


def curvature(problem: Problem | str, params: Any = None, dtype: str = "float64") -> Curvature:
    """(mu, L) as the problem states them, else measured by Lanczos at `params` (the start of seed 0 if None).

    At one point of a loss that is not convex mu may be negative, and L is of that point only.
    """
    problem = load_problem(problem)
    if problem.curvature is not None and params is None:
        return Curvature(*problem.curvature, "stated")
    return measured_curvature(problem, params, dtype)


def measured_curvature(
    problem: Problem, params: Any = None, dtype: str = "float64", products: int = MAX_PRODUCTS, tolerance: float = 1e-6
) -> Curvature:
    """The Hessian's extreme eigenvalues at `params` (a flat vector (P,) or a pytree; the start of seed 0 if None)."""
    at_start = start(problem, 0, dtype) if params is None else None  # outside `numerics`: by the program of a replay
    with numerics(dtype, "highest"):
        flat = np.asarray(ravel_pytree(params)[0], dtype) if at_start is None else at_start
        data = cast(problem.plain.data, dtype)
        product = compile_for(hessian_products(problem, dtype).trace(flat, np.zeros(flat.size), data), products)
        return extremes(product, flat, data, products, tolerance)


def extremes(product: Callable[..., jax.Array], flat: np.ndarray, data: Any, most: int, tolerance: float) -> Curvature:
    point = jnp.asarray(flat)
    low, high, error = lanczos(lambda vector: product(point, vector, data), flat.size, most, tolerance)
    return Curvature(low, high, "lanczos", error)


def hessian_products(problem: Problem, dtype: str) -> jax.stages.Wrapped:
    """(params, vector, data) -> Hessian × vector, all flat (P,): forward mode over the gradient (Pearlmutter 1994)."""
    gradient = jax.grad(flat_loss(problem, dtype))

    @jax.jit
    def product(point: jax.Array, vector: Any, data: Any) -> jax.Array:
        return jax.jvp(partial(gradient, data=data), (point,), (jnp.asarray(vector, point.dtype),))[1]

    return product


def lanczos(
    product: Callable[[np.ndarray], Any],
    size: int,
    products: int = MAX_PRODUCTS,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(smallest eigenvalue, largest, error bound) of a symmetric `size` × `size` matrix from its products.

    Lanczos from a random vector with full reorthogonalisation (Parlett, The Symmetric Eigenvalue Problem, 1998,
    chapter 13). It stops when both residuals, which bound the distance to an eigenvalue, are under `tolerance` times
    the larger magnitude, or after `products` products.
    """
    import scipy.linalg  # an eighth of a second, and most runs need none of it

    vector = np.random.default_rng(seed).standard_normal(size)
    vector /= np.linalg.norm(vector)
    most = max(2, min(products, size, BASIS_BYTES // (8 * size)))
    basis, diagonal, beside = np.empty((most, size)), [], []
    low = high = error = np.nan
    for k in range(most):
        basis[k] = vector
        after = np.asarray(product(vector), np.float64)
        diagonal.append(float(vector @ after))
        for _ in range(2):  # twice is enough (Parlett): once leaves the rounding of the first
            after = after - basis[: k + 1].T @ (basis[: k + 1] @ after)
        norm = float(np.linalg.norm(after))
        if k % 5 == 4 or k == most - 1 or norm == 0 or k < 5:
            values, vectors = scipy.linalg.eigh_tridiagonal(diagonal, beside)
            low, high = float(values[0]), float(values[-1])
            error = norm * float(max(abs(vectors[-1, 0]), abs(vectors[-1, -1])))
            scale = max(abs(low), abs(high))
            if not np.isfinite(scale) or (error <= tolerance * scale and k > 0) or norm <= 1e-14 * scale:
                break
        beside.append(norm)
        vector = after / norm
    return low, high, error
