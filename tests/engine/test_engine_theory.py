"""The engine against the closed form: on the bowl every trial's loss is known at every step."""

from __future__ import annotations

import numpy as np
import pytest
from sampling import in_each_dtype, sample

import gradbench

STEPS, RATES = 100, "1e-3:2.0:25"
LAMBDAS = np.geomspace(1 / 100, 1.0, 100)
MOMENTUM = {"sgd": 0.0, "momentum": 0.9}


def closed_form(rates: np.ndarray, beta: float, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Exact losses, and a bound of the rounding error of a computed one: (STEPS + 1, rates) each.

    z = (x, m) of one eigendirection follows z' = M z with m' = 2 lambda x + beta m and x' = x - rate m', so
    z_n = M^n z_0. A computed step adds at most u (2 |2 lambda x| + 2 |beta m| + |m'|) to m' (two roundings of the
    gradient, one of the product, one of the sum) and u (|rate m'| + |x'|) to x', and its own error of m' through
    the rate; step k's error reaches step n as |M^(n-k-1)| times it. The bound doubles their sum for second-order
    terms. The sum over d terms adds (d + 2) u of the loss, a factor that holds for any order of adding.
    """
    unit = np.finfo(dtype).eps / 2
    lambdas = LAMBDAS.astype(dtype).astype(np.longdouble)
    rate = rates.astype(dtype).astype(np.longdouble)[:, None]
    step = np.empty((len(rates), len(lambdas), 2, 2), np.longdouble)
    step[..., 1, 0], step[..., 1, 1] = 2 * lambdas, beta if beta == 0 else np.longdouble(dtype(beta))
    step[..., 0, 0], step[..., 0, 1] = 1 - rate * step[..., 1, 0], -rate * step[..., 1, 1]

    power = np.broadcast_to(np.eye(2, dtype=np.longdouble), step.shape)
    powers = [power] + [power := step @ power for _ in range(STEPS)]
    path = np.stack([p[..., 0] for p in powers])  # (n, rates, d, 2), from z_0 = (1, 0)
    x, m, after = path[:-1, ..., 0], path[:-1, ..., 1], path[1:]
    m_error = 2 * np.abs(2 * lambdas * x) + 2 * np.abs(step[..., 1, 1] * m) + np.abs(after[..., 1])
    x_error = np.abs(rate * after[..., 1]) + np.abs(after[..., 0]) + rate * m_error
    local = unit * np.stack([x_error, m_error], axis=-1)
    reach = np.abs(np.stack(powers))[..., 0, :]  # how far an error of either part moves x later
    error = np.zeros_like(path[..., 0])
    for n in range(1, STEPS + 1):
        error[n] = 2 * np.einsum("nrde,nrde->rd", reach[:n][::-1], local[:n])
    loss = (lambdas * path[..., 0] ** 2).sum(-1)
    tiny = np.finfo(dtype).tiny * len(lambdas)  # results below it are flushed to 0
    bound = (lambdas * (2 * np.abs(path[..., 0]) * error + error**2)).sum(-1) + (len(lambdas) + 2) * unit * loss + tiny
    return loss, bound


@pytest.mark.parametrize(("optimizer", "dtype"), sample(in_each_dtype([("momentum",), ("sgd",)], second="float64"), 2))
def test_every_recorded_loss_is_the_closed_form(sweep, optimizer, dtype):
    run = sweep("quadratic_bowl", [optimizer], RATES, seeds=1, steps=STEPS, dtype=dtype, record_points=STEPS + 1)
    loss, bound = closed_form(np.array(run.plan.rates), MOMENTUM[optimizer], np.dtype(dtype).type)
    curves = run.curves.to_pydict()
    trial, step, got = (np.array(curves[name]) for name in ("trial", "step", "loss"))
    exact = loss[step, trial]
    assert len(got) > 15 * STEPS
    assert np.all(np.abs(got - exact) <= bound[step, trial])
    if dtype == "float64":
        assert np.all(np.abs(got - exact) <= 1e-12 * np.maximum(exact, 1e-12 * loss[0, 0]))


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize(
    ("optimizer", "limit"), sample([("sgd", 1.0), ("nesterov", 2 * 1.9 / 2.8 / 2), ("momentum", 1.9)], 2)
)
def test_divergence_begins_within_a_grid_step_of_the_stable_limit(sweep, optimizer, limit):
    run = sweep("quadratic_bowl", [optimizer], gradbench.log_range(limit / 4, limit * 4, 41), seeds=1, steps=800)
    diverged = np.array(run.trials["verdict"]) == "diverged"
    edge = int(np.argmax(diverged))
    rates = np.array(run.plan.rates)
    assert diverged[edge:].all()
    assert rates[edge - 1] <= limit * 1.0001
    assert rates[edge] <= limit * (rates[1] / rates[0])


@pytest.mark.usefixtures("compiled_quickly")
def test_verdicts_of_gradient_descent_follow_theory(sweep):
    # One direction, L = 2: 0.5 solves it in a step, above 1 it diverges, just under 1 it jumps from side to side,
    # and tiny rates are still on their way when the steps run out.
    rates = [1e-5, 1e-2, 0.5, 0.9999, 1.01, 3.0]
    run = sweep("quadratic_bowl[dim=1]", ["sgd"], rates, seeds=1, steps=500)
    words = ["slow", "converged", "converged", "overshoots", "diverged", "diverged"]
    assert run.trials["verdict"].to_pylist() == words
    assert run.trials["steps_to_target"].to_pylist()[2] == 1


@pytest.mark.usefixtures("compiled_quickly")
def test_targets_are_found_at_every_step_not_from_the_thinned_curve(sweep):
    run = sweep("quadratic_bowl", ["sgd"], "0.05:0.9:9", seeds=1, steps=STEPS, record_points=5)
    loss, _ = closed_form(np.array(run.plan.rates), 0.0, np.float32)
    for k in range(1, 7):
        reached = loss <= 10.0**-k * loss[0]
        expected = [int(np.argmax(column)) if column.any() else None for column in reached.T]
        assert run.trials[f"steps_to_1e-{k}"].to_pylist() == expected
    assert run.curves.num_rows == 9 * 5
