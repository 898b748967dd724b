"""What theory says before anything is run: curvature, the stable limit, the best fixed step, the rate.

On a quadratic with Hessian eigenvalues in [mu, L], each eigenvector's coordinate is a linear recurrence of its own; a
learning rate is stable where every recurrence contracts. Sources: Polyak, Some methods of speeding up the convergence
of iteration methods (1964), for the heavy ball; Nesterov, Introductory Lectures on Convex Optimization (2004), section
2.1, for gradient descent; Cohen, Kaur, Li, Kolter and Talwalkar, Gradient Descent on Neural Networks Typically Occurs
at the Edge of Stability (ICLR 2021), for the sharpness along a path.
"""

from __future__ import annotations

import cmath
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import scipy.linalg
from jax.flatten_util import ravel_pytree

from gradbench.analysis import stable_limit, summarise_tables, telling_rates
from gradbench.errors import OptimizerError
from gradbench.optimizer import ALIASES
from gradbench.plan import SweepPlan
from gradbench.problem import Problem, cast, load_problem
from gradbench.program import numerics
from gradbench.record import TIMINGS
from gradbench.replay import flat_loss, replay, start
from gradbench.spec import parse_spec

MOST_PRODUCTS = 300  # Hessian-vector products of one Lanczos run
BASIS_BYTES = 2**30  # of the Lanczos basis: fewer products where the parameters are many


class Curvature(NamedTuple):
    """The Hessian's extreme eigenvalues, mu and largest (L), and where they are from: "stated" by the problem (bounds
    over all params) or "lanczos" (at one point). `error` bounds how far each is from a true eigenvalue."""

    mu: float
    largest: float
    source: str
    error: float = 0.0


@dataclasses.dataclass(frozen=True)
class Momentum:
    """Gradient descent with momentum beta (0 for none), as optax.sgd: m = beta m + g, x = x - learning_rate m, or with
    Nesterov's form x = x - learning_rate (g + beta m)."""

    beta: float = 0.0
    nesterov: bool = False


def momentum_of(optimizer: str) -> Momentum | None:
    """The momentum of a spec of optax.sgd at a constant learning rate; None for every other optimizer."""
    spec = parse_spec(optimizer, OptimizerError)
    settings = dict(spec.settings)
    if spec.target in ("momentum", "nesterov"):
        settings = {**ALIASES[spec.target].keywords, **settings}  # ty: ignore[missing-attribute]
    elif spec.target != "sgd":
        return None
    if settings.keys() - {"momentum", "nesterov"}:
        return None
    return Momentum(settings.get("momentum") or 0.0, settings.get("nesterov", False))


def best_fixed_step(mu: float, largest: float) -> float:
    """The learning rate at which gradient descent contracts fastest on every quadratic in [mu, L]: 2/(L + mu)."""
    return 2 / (largest + mu)


def predicted_rate(optimizer: str, learning_rate: float, mu: float, largest: float) -> float | None:
    """The factor by which one step multiplies the distance to the minimum in the end, on a quadratic in [mu, L].

    The larger spectral radius at the two ends: it is the largest of the interval, as |1 - learning_rate λ| is convex
    in λ and the momentum recurrences' radius is quasiconvex. The loss gap contracts by its square. Over 1 diverges;
    None where the optimizer has no such theory.
    """
    momentum = momentum_of(optimizer)
    if momentum is None:
        return None
    return max(_radius(momentum, learning_rate * mu), _radius(momentum, learning_rate * largest))


def _radius(momentum: Momentum, x: float) -> float:
    """The spectral radius of one coordinate's recurrence, x = learning_rate × curvature: the larger root of
    z² - (1 + beta - x) z + beta for the heavy ball, of z² - (1 + beta)(1 - x) z + beta (1 - x) for Nesterov's form."""
    beta = momentum.beta
    trace, product = ((1 + beta) * (1 - x), beta * (1 - x)) if momentum.nesterov else (1 + beta - x, beta)
    root = cmath.sqrt(trace * trace / 4 - product)
    return max(abs(trace / 2 + root), abs(trace / 2 - root))


def curvature(problem: Problem | str, params: Any = None, dtype: str = "float64") -> Curvature:
    """(mu, L) as the problem states them, else measured by Lanczos at `params` (the start of seed 0 if None).

    At one point of a loss that is not convex mu may be negative, and L is of that point only.
    """
    problem = load_problem(problem)
    if problem.curvature is not None and params is None:
        return Curvature(*problem.curvature, "stated")
    return measured_curvature(problem, params, dtype)


def measured_curvature(
    problem: Problem, params: Any = None, dtype: str = "float64", products: int = MOST_PRODUCTS, tolerance: float = 1e-6
) -> Curvature:
    """The Hessian's extreme eigenvalues at `params` (a flat vector (P,) or a pytree; the start of seed 0 if None)."""
    with numerics(dtype, "highest"):
        flat = start(problem, 0, dtype) if params is None else np.asarray(ravel_pytree(params)[0], dtype)
        return _extremes(_hessian_products(problem, dtype), flat, cast(problem.data, dtype), products, tolerance)


def _extremes(product: Callable[..., jax.Array], flat: np.ndarray, data: Any, most: int, tolerance: float) -> Curvature:
    point = jnp.asarray(flat)
    low, high, error = lanczos(lambda vector: product(point, vector, data), flat.size, most, tolerance)
    return Curvature(low, high, "lanczos", error)


def _hessian_products(problem: Problem, dtype: str) -> Callable[..., jax.Array]:
    """(params, vector, data) -> Hessian × vector, all flat (P,): forward mode over the gradient (Pearlmutter 1994)."""
    gradient = jax.grad(flat_loss(problem, dtype))

    @jax.jit
    def product(point: jax.Array, vector: Any, data: Any) -> jax.Array:
        return jax.jvp(partial(gradient, data=data), (point,), (jnp.asarray(vector, point.dtype),))[1]

    return product


def lanczos(
    product: Callable[[np.ndarray], Any],
    size: int,
    products: int = MOST_PRODUCTS,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(smallest eigenvalue, largest, error bound) of a symmetric `size` × `size` matrix from its products.

    Lanczos from a random vector with full reorthogonalisation (Parlett, The Symmetric Eigenvalue Problem, 1998,
    chapter 13). It stops when both residuals, which bound the distance to an eigenvalue, are under `tolerance` times
    the larger magnitude, or after `products` products.
    """
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


def sharpness_along(
    problem: Problem | str,
    optimizer: str,
    learning_rates: float | Sequence[float],
    *,
    seed: int = 0,
    points: int = 8,
    products: int = 40,
    plan: SweepPlan | None = None,
) -> list[dict[str, Any]]:
    """The Hessian's top eigenvalue at `points` steps along each trial's path, to compare with 2/learning_rate.

    The trials are run again with `plan`'s steps, dtype and minibatches (a default SweepPlan if None); the Hessian is
    that of all the data, in float32 at least. The cost is bounded: one more run of the trials, and for each
    points × products Hessian-vector products, each about two gradients.

    Returns a row a point: problem, optimizer, learning_rate, seed, step, loss, sharpness, error (a bound, as in
    Curvature) and edge, the sharpness at which this learning rate stops being stable: 2/learning_rate for gradient
    descent, 2(1 + beta)/learning_rate for the heavy ball, None where there is no such theory. A diverged trial's rows
    end before its params stop being finite.
    """
    problem = load_problem(problem)
    plan = plan or SweepPlan(problems=(problem.name,), optimizers=(optimizer,))
    rates = [learning_rates] if isinstance(learning_rates, int | float) else list(learning_rates)
    steps = np.unique(np.linspace(0, plan.steps, points).round().astype(int))
    path = replay(problem, optimizer, plan, [(rate, seed) for rate in rates], steps.tolist())
    edge = stable_limit(optimizer, 1.0)
    dtype = "float64" if plan.dtype == "float64" else "float32"
    rows = []
    with numerics(dtype, plan.precision):
        product, data = _hessian_products(problem, dtype), cast(problem.data, dtype)
        for rate, positions, losses in zip(rates, path.params.astype(dtype), path.losses, strict=True):
            for step, params, loss in zip(path.steps, positions, losses, strict=True):
                if not (np.isfinite(params).all() and np.isfinite(loss)):
                    break
                at = _extremes(product, params, data, products, 1e-3)
                row = {"problem": problem.name, "optimizer": optimizer, "learning_rate": rate, "seed": seed}
                row |= {"step": int(step), "loss": float(loss), "sharpness": at.largest, "error": at.error}
                rows.append(row | {"edge": None if edge is None else edge / rate})
    return rows


def sharpness_rows(problem: Problem, optimizer: str, plan: SweepPlan, trials: pa.Table) -> list[dict[str, Any]]:
    """sharpness_along for the learning rates of a finished pair that tell most (analysis.telling_rates: four at most),
    as `gradbench run --sharpness` records it. `trials` are the pair's rows."""
    facts = {problem.name: {"target": problem.target}}
    [pair] = summarise_tables([(problem.name, optimizer)], trials, TIMINGS.empty_table(), facts)
    return sharpness_along(problem, optimizer, list(telling_rates(pair)), plan=plan)
