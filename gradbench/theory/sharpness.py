"""The Hessian's top eigenvalue along a trial's path, beside the edge of stability: Cohen, Kaur, Li, Kolter and
Talwalkar, Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability (ICLR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbench.inputs.optimizer import Optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem, cast, load_problem
from gradbench.program.program import numerics
from gradbench.theory.curvature import extremes, hessian_products
from gradbench.theory.quadratic import stable_limit
from gradbench.theory.replay import replay


def sharpness_along(
    problem: Problem | str,
    optimizer: str | Optimizer,
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

    Returns one row per point: problem, optimizer, learning_rate, seed, step, loss, sharpness, error (a bound, as in
    Curvature) and edge, the sharpness at which this learning rate stops being stable: 2/learning_rate for gradient
    descent, 2(1 + beta)/learning_rate for the heavy ball, None where there is no such theory. A diverged trial's rows
    end before its params stop being finite.
    """
    problem = load_problem(problem)
    spec = optimizer if isinstance(optimizer, str) else optimizer.spec
    plan = plan or SweepPlan(problems=(problem.name,), optimizers=(spec,))
    rates = [learning_rates] if isinstance(learning_rates, int | float) else list(learning_rates)
    steps = np.unique(np.linspace(0, plan.steps, points).round().astype(int))
    path = replay(problem, optimizer, plan, [(rate, seed) for rate in rates], steps.tolist())
    edge = stable_limit(spec, 1.0)
    dtype = "float64" if plan.dtype == "float64" else "float32"
    rows = []
    with numerics(dtype, plan.precision):
        product, data = hessian_products(problem, dtype), cast(problem.plain.data, dtype)
        for rate, positions, losses in zip(rates, path.params.astype(dtype), path.losses, strict=True):
            for step, params, loss in zip(path.steps, positions, losses, strict=True):
                if not (np.isfinite(params).all() and np.isfinite(loss)):
                    break
                at = extremes(product, params, data, products, 1e-3)
                row = {"problem": problem.name, "optimizer": spec, "learning_rate": rate, "seed": seed}
                row |= {"step": int(step), "loss": float(loss), "sharpness": at.largest, "error": at.error}
                rows.append(row | {"edge": None if edge is None else edge / rate})
    return rows
