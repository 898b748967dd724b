"""Races and sweeps whose truth is known, drawn at random: what the statistics are held to."""

import math

import numpy as np

from gradbench.analysis.races.outcomes import Outcomes

RATES = np.geomspace(1e-3, 1, 7)
BUDGET = 300


def outcome(rng, problem, optimizer, seeds, speed=1.0, spread=0.3, shared=None, curvature=0.3, level=4.0, whole=False):
    """An optimizer that takes exp(level + noise) / speed steps at its best learning rate, the fifth of seven, and more
    by a parabola beside it; the last diverges. Seeds have skewed noise of their own and share `shared` (S,); runs of
    over BUDGET steps do not reach the target. `whole` rounds steps up, as in a record."""
    distance = np.arange(len(RATES))[:, None] - 4
    noise = spread * (rng.gamma(4, 0.5, (len(RATES), seeds)) - 2)  # mean 0, standard deviation `spread`, skewed
    log_steps = level + curvature * distance**2 + noise - math.log(speed)
    log_steps += 0 if shared is None else shared
    steps = np.ceil(np.exp(log_steps)) if whole else np.exp(log_steps)
    steps = np.where((steps > BUDGET) | (distance == 2), np.inf, steps)
    gaps = np.where(distance == 2, np.inf, np.exp(-BUDGET * np.exp(-log_steps)))
    logs = np.log(np.clip(steps, 1, BUDGET)), np.log(np.clip(gaps, 1e-7, 1))
    return Outcomes(problem, optimizer, RATES, True, np.arange(seeds), steps, gaps, *logs)


def race(rng, seeds, problems, speeds, spread=0.3, **settings):
    """Optimizers a, b, ... of these speeds on some problems of differing difficulty: name -> problem -> Outcomes.
    `spread` is of all problems, or one for each."""
    spreads = np.broadcast_to(spread, problems)
    names = [chr(ord("a") + k) for k in range(len(speeds))]
    found = {name: {} for name in names}
    for number in range(problems):
        shared = 0.3 * rng.standard_normal(seeds)
        level = 3 + 2 * number / max(problems - 1, 1)
        for name, speed in zip(names, speeds):
            made = outcome(rng, f"p{number}", name, seeds, speed, spreads[number], shared, level=level, **settings)
            found[name][f"p{number}"] = made
    return found
