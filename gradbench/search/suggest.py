"""A learning rate in seconds: a range test, and then successive halving of a few rates below where it blows up.

The range test raises the rate at every step of one run until the loss blows up (Smith, Cyclical Learning Rates for
Training Neural Networks, WACV 2017). Eight rates between a thousandth of that and a little more are then run for half
of the steps; the four best go on to the end, and around the best of them four more are run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.errors import PlanError
from gradbench.inputs.optimizer import load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem, cast, load_problem
from gradbench.program.minibatch import batch_rows, take_rows
from gradbench.program.program import Trial, numerics
from gradbench.program.spread import initialise, over_trials
from gradbench.tables import Column, number, seconds
from gradbench.theory.quadratic import stable_limit
from gradbench.theory.rising import edge_of_rise, risen_rates

RATES = 8
LOWEST, HIGHEST = 1e-7, 1e3  # of the range test
BELOW, ABOVE = 1e-3, 2.0  # of that rate, where the rates that are run lie
FINER = 1.6  # between the rates around the best
TAIL = 0.2  # of the steps, whose mean loss ranks a rate


COLUMNS = (
    Column("problem", "problem", str),
    Column("optimizer", "optimizer", str),
    Column("learning_rate", "learning rate"),
    Column("range", "a sweep around it", str, 1, "as --lr takes it"),
    Column("edge", "leaves at", priority=2, about="where a rate that rises at every step blows up"),
    Column("stable_limit", "stable limit", priority=3, about="2/L, from theory"),
    Column("seconds", "in", seconds, 4),
)


@dataclass(frozen=True)
class Suggestion:
    """learning_rate: with the lowest loss after `steps` steps. edge: the rate at which the range test blew up, or None.
    stable_limit: theory's, where the problem states its curvature. losses: rate -> mean loss at the end of its run, of
    those that ran to the end."""

    problem: str
    optimizer: str
    learning_rate: float
    edge: float | None
    stable_limit: float | None
    losses: dict[float, float]
    steps: int
    seconds: float

    def row(self) -> dict[str, Any]:
        """As a table has it, with the learning rates of a sweep around it."""
        return {
            "problem": self.problem,
            "optimizer": self.optimizer,
            "learning_rate": self.learning_rate,
            "range": f"{self.learning_rate / 30:.2g}:{self.learning_rate * 30:.2g}:13",
            "edge": self.edge,
            "stable_limit": self.stable_limit,
            "steps": self.steps,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        edge = f"; a range test blows up at {number(self.edge)}" if self.edge else ""
        limit = f"; stable below {number(self.stable_limit)}" if self.stable_limit else ""
        found = f"{self.problem} × {self.optimizer}: learning rate {number(self.learning_rate)}"
        return f"{found}, the lowest loss after {self.steps} steps{edge}{limit} ({seconds(self.seconds)})"


def suggest(
    problem: str | Problem, optimizer: str = "adam", *, steps: int = 100, batch_size: int | None = None, seed: int = 0
) -> Suggestion:
    """A learning rate for an optimizer on a problem, from 24 × `steps` trial-steps, of minibatches of `batch_size`.

    Raises PlanError where every rate diverges, and as a sweep does for a bad problem or optimizer.
    """
    began = time.perf_counter()
    loaded = load_problem(problem)
    plan = SweepPlan((loaded.name,), (optimizer,), steps=max(steps, 10), batch_size=batch_size)
    if plan.axis_names:
        raise PlanError(f"suggest: {optimizer!r} has axes; give one value each")
    runs = _Runs(loaded, plan, seed)
    edge = edge_of_rise(*runs.rising())
    top = edge or HIGHEST
    first = np.geomspace(top * BELOW, top * ABOVE, RATES)
    early, states = runs.half(first)
    if not np.isfinite(early).any():
        tried = f"from {first[0]:.2g} to {first[-1]:.2g}"
        raise PlanError(f"{loaded.name} × {optimizer}: every learning rate {tried} diverges")
    late, _ = runs.half(first, states)
    kept = np.argsort(early)[: RATES // 2]
    found = {float(first[i]): float(late[i]) for i in kept}
    best = min(found, key=found.__getitem__)
    around = best * FINER ** np.array([-2, -1, -0.5, 0.5, 1, 2, 3, -3.0])
    _, states = runs.half(around)
    late, _ = runs.half(around, states)
    found |= {float(rate): float(loss) for rate, loss in zip(around, late)}
    finite = {rate: loss for rate, loss in found.items() if np.isfinite(loss)}
    if not finite:
        raise PlanError(f"{loaded.name} × {optimizer}: every learning rate diverges before {plan.steps} steps")
    limit = stable_limit(optimizer, loaded.curvature[1]) if loaded.curvature else None
    rate = float(f"{min(finite, key=finite.__getitem__):.2g}")
    return Suggestion(
        loaded.name, optimizer, rate, edge, limit, dict(sorted(finite.items())), plan.steps, time.perf_counter() - began
    )


class _Runs:
    """RATES runs side by side, half of the plan's steps at a time, by one compiled program."""

    def __init__(self, problem: Problem, plan: SweepPlan, seed: int):
        self.problem, self.plan, self.length = problem, plan, plan.steps // 2
        self.seeds = np.full(RATES, seed, np.uint32)
        with numerics(plan.dtype, plan.precision):
            self.trial = Trial.of(problem, load_optimizer(plan.optimizers[0]), plan)
            self.data = cast(problem.data, plan.dtype)
            self._half = jax.jit(partial(self._steps, self.trial.compiled_for(jax.default_backend())))

    def rising(self) -> tuple[np.ndarray, np.ndarray]:
        """The rates of the range test, (T,), and the losses of runs from RATES starts at them, (RATES, T)."""
        rates = risen_rates(HIGHEST, LOWEST / HIGHEST, 2 * self.length)
        seeds = self.seeds + np.arange(RATES, dtype=np.uint32)
        losses, states = [], None
        for part in np.split(rates, 2):
            found, states = self._run(np.tile(part, (RATES, 1)), states, seeds)
            losses.append(found)
        return rates, np.concatenate(losses, axis=1)

    def half(self, rates: np.ndarray, states: Any = None) -> tuple[np.ndarray, Any]:
        """The mean loss at the end of half of the steps at each rate, infinite where it diverges, and the states."""
        losses, states = self._run(np.tile(rates[:, None], self.length), states, self.seeds)
        tail = losses[:, -max(1, int(TAIL * self.length)) :].mean(axis=1)
        return np.where(np.isfinite(tail) & (tail < self.first), tail, np.inf), states

    def _run(self, rates: np.ndarray, states: Any, seeds: np.ndarray) -> tuple[np.ndarray, Any]:
        plan = self.plan
        with numerics(plan.dtype, plan.precision):
            if states is None:
                with jax.enable_x64(False):
                    drawn = initialise(self.problem, jax.devices()[:1])(jnp.asarray(seeds))
                one = {"learning_rate": jnp.zeros(RATES, self._kind)}
                states = jax.jit(jax.vmap(self.trial.start))(drawn, one), jnp.zeros((), jnp.int32)
            state, first = states
            after, losses = self._half(state, jnp.asarray(rates.T, self._kind), jnp.asarray(seeds), first, self.data)
            found = np.asarray(losses, float).T
            if int(first) == 0 and seeds is self.seeds:
                self.first = found[:, 0].max()
            return found, (after, first + self.length)

    @property
    def _kind(self) -> Any:
        return jnp.promote_types(jnp.float32, self.plan.dtype)

    def _steps(self, trial: Trial, state: Any, rates: jax.Array, seeds: jax.Array, first: jax.Array, data: Any) -> Any:
        """(T, RATES) rates -> the states after T steps, and the losses before each, (T, RATES)."""
        keys, size, examples = jax.vmap(trial.keys)(seeds), self.plan.batch_size, self.problem.examples

        def one(state: Any, rate: jax.Array, keys: Any, at: jax.Array, data: Any) -> Any:
            if size is not None and examples is not None:
                data = take_rows(data, batch_rows(at, examples, size, keys.order), examples)
            state, row = trial.step(state, {"learning_rate": rate}, data, trial.noise(keys, at))
            return state, row.loss

        step = over_trials(one, (0, 0, 0, None, None), jax.default_backend())

        def scanned(state: Any, now: tuple[jax.Array, jax.Array]) -> Any:
            rate, at = now
            return step(state, rate, keys, at, data)

        return jax.lax.scan(scanned, state, (rates, first + jnp.arange(self.length, dtype=jnp.int32)))
