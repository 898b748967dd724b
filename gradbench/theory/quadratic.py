"""What theory says of gradient descent with momentum on a quadratic: the stable limit, the best fixed step, the rate.

On a quadratic with Hessian eigenvalues in [mu, L], each eigenvector's coordinate is a linear recurrence of its own; a
learning rate is stable where every recurrence contracts. Sources: Polyak, Some methods of speeding up the convergence
of iteration methods (1964), for the heavy ball; Nesterov, Introductory Lectures on Convex Optimization (2004), section
2.1, for gradient descent.
"""

from __future__ import annotations

import cmath
import dataclasses

from gradbench.errors import OptimizerError
from gradbench.inputs.specs.spec import SGD, parse_spec


@dataclasses.dataclass(frozen=True)
class Momentum:
    """Gradient descent with momentum beta (0 for none), as optax.sgd: m = beta m + g, x = x - learning_rate m, or with
    Nesterov's form x = x - learning_rate (g + beta m)."""

    beta: float = 0.0
    nesterov: bool = False


def momentum_of(optimizer: str) -> Momentum | None:
    """The momentum of a spec of optax.sgd at a constant learning rate; None for every other optimizer."""
    try:
        spec = parse_spec(optimizer, OptimizerError)
    except OptimizerError:
        return None
    if spec.target not in SGD:
        return None
    settings = SGD[spec.target] | dict(spec.settings)
    if settings.keys() - {"momentum", "nesterov", "steps"} or isinstance(
        settings.get("momentum"), str
    ):  # text: an axis
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


def stable_limit(optimizer: str, largest_curvature: float) -> float | None:
    """The learning rate above which an optimizer diverges on a quadratic whose largest curvature is L.

    Gradient descent: 2/L. Heavy ball: 2(1 + beta)/L. Nesterov: 2(1 + beta)/((1 + 2 beta) L). All from the roots of
    the recurrence of one eigendirection (Polyak, Introduction to Optimization, 1987, 3.2.1; Lessard, Recht and
    Packard, SIAM J. Optim. 26, 2016). None for other optimizers, and where another setting, such as a schedule,
    changes the step.
    """
    momentum = momentum_of(optimizer)
    if momentum is None:
        return None
    limit = 2 * (1 + momentum.beta) / largest_curvature
    return limit / (1 + 2 * momentum.beta) if momentum.nesterov else limit
