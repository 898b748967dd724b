"""What happened to each trial, found on the device at every row: targets, best, divergence, and the thinned curve.

One small program over a chunk's rows, compiled once a block shape and shared by every pair of that shape.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.program import Row

TARGETS = tuple(10.0**-k for k in range(1, 7))  # the gaps of the columns steps_to_1e-1 ... steps_to_1e-6
TARGET_COLUMNS = tuple(f"steps_to_1e-{k}" for k in range(1, 7))
DIVERGENCE = 1e4  # a loss this many initial gaps above where it began is diverged
TAIL = 0.75  # the last quarter of a trial's steps decides whether it is still moving or jumping about


class Facts(NamedTuple):
    """What observe() needs to know of the plan and problem, as numbers, so that pairs share its compile."""

    steps: int
    stride: int
    minimum: float  # NaN where unknown
    solved: float  # the loss that counts as solved where the minimum is unknown, else NaN
    target: float  # the plan's relative gap
    stop_at_target: bool


class Events(NamedTuple):
    """Per slot, arrays (S,), of jax on the devices and of numpy on the host. Steps are int32, -1 for never; losses are
    float32, or float64 in a float64 run."""

    initial_loss: Any
    final_loss: Any
    final_grad_norm: Any
    best_loss: Any
    best_step: Any
    steps_run: Any
    diverged_at: Any
    hits: Any  # (S, 7): the six targets, then the plan's
    tail_start: Any  # the best loss when the last quarter began
    tail_rows: Any  # rows in the last quarter
    tail_turned: Any  # how many of them had gone past the lowest point of their step's line
    finished: Any  # nothing more is to be seen of this trial


def blank(slots: int, dtype: np.dtype) -> Events:
    """Events before the first row, on the host."""
    nothing, never = np.full(slots, np.inf, dtype), np.full(slots, -1, np.int32)
    hits, zero = np.full((slots, len(TARGETS) + 1), -1, np.int32), np.zeros(slots, np.float32)
    return Events(
        nothing, nothing, nothing, nothing, never, never, never, hits, nothing, zero, zero, np.zeros(slots, bool)
    )


@partial(jax.jit, donate_argnums=0)
def observe(
    events: Events, rows: Row, first: jax.Array, facts: Facts, wanted: jax.Array
) -> tuple[Events, jax.Array, jax.Array]:
    """Take a chunk's rows (R, S), whose first is at step `first` (S,), into `events`.

    `wanted` (C, K) holds, for every chunk of a trial, the rows its curve keeps (any number where fewer). Returns the
    events and the kept losses and gradient norms, (K, S) each.
    """
    count = rows.loss.shape[0]
    index = jnp.arange(count, dtype=jnp.int32)[:, None]
    reached = first + facts.stride * (index - 1)  # updates made by the row before
    step = jnp.minimum(first + facts.stride * index, facts.steps)
    exists = (step == 0) | (reached < facts.steps)
    fresh = first == 0
    unseen = blank(1, events.initial_loss.dtype)
    events = Events(
        *(jnp.where(fresh.reshape(-1, *(1,) * (e.ndim - 1)), new, e) for new, e in zip(unseen, events, strict=True))
    )

    loss, minimum = rows.loss, jnp.asarray(facts.minimum, rows.loss.dtype)
    initial = jnp.where(fresh, loss[0], events.initial_loss)
    gap = jnp.where(jnp.isnan(minimum), jnp.abs(initial), initial - minimum)
    diverged = exists & (~jnp.isfinite(loss) | (loss > initial + DIVERGENCE * jnp.abs(gap)))
    levels = jnp.asarray((*TARGETS, facts.target), loss.dtype)[:, None]
    levels = jnp.where(jnp.isnan(minimum), jnp.nan, minimum + levels * gap)  # NaN is never reached
    levels = levels.at[-1].set(jnp.where(jnp.isnan(minimum), jnp.asarray(facts.solved, loss.dtype), levels[-1]))
    under = exists & (loss <= levels[:, None, :])  # (7, R, S)

    def first_row(condition: jax.Array) -> jax.Array:
        """The first row under a condition (R, S), `count` if none: a minimum vectorises as argmax does not."""
        return jnp.min(jnp.where(condition, index, count), axis=0)

    stop = diverged | (under[-1] & facts.stop_at_target)
    seen = exists & (index <= first_row(stop)) & ~events.finished
    rows_seen = jnp.sum(seen, axis=0)
    last = jnp.maximum(rows_seen - 1, 0)

    def at_last(values: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(rows_seen > 0, jnp.take_along_axis(values, last[None], axis=0)[0], old)

    def first_step(condition: jax.Array, old: jax.Array) -> jax.Array:
        """The step of the first seen row under a condition (R, S), unless there was one before."""
        row = first_row(condition & seen)
        return jnp.where((old < 0) & (row < count), jnp.minimum(first + facts.stride * row, facts.steps), old)

    valid = jnp.where(seen & jnp.isfinite(loss), loss, jnp.inf)
    low = jnp.min(valid, axis=0)
    best_step = jnp.minimum(first + facts.stride * first_row(valid == low), facts.steps)
    tail = seen & (step > TAIL * facts.steps)
    grad_norm = jnp.sqrt(rows.grad_norm_squared).astype(loss.dtype)
    diverged_at = first_step(diverged, events.diverged_at)
    hits = jnp.stack([first_step(u, events.hits[:, k]) for k, u in enumerate(under)], axis=1)
    stopped = (diverged_at >= 0) | (facts.stop_at_target & (hits[:, -1] >= 0))
    after = Events(
        initial_loss=initial,
        final_loss=at_last(loss, events.final_loss),
        final_grad_norm=at_last(grad_norm, events.final_grad_norm),
        best_loss=jnp.minimum(low, events.best_loss),
        best_step=jnp.where(low < events.best_loss, best_step, events.best_step),
        steps_run=at_last(step, events.steps_run),
        diverged_at=diverged_at,
        hits=hits,
        tail_start=jnp.minimum(jnp.min(jnp.where(tail, jnp.inf, valid), axis=0), events.tail_start),
        tail_rows=events.tail_rows + jnp.sum(tail, axis=0, dtype=jnp.float32),
        tail_turned=events.tail_turned + jnp.sum(jnp.where(tail, rows.turned, 0), axis=0),
        finished=stopped | (step[-1] >= facts.steps),
    )
    chunk = first // (facts.stride * count)
    kept = jnp.clip(wanted[chunk].T, 0, count - 1)  # (K, S)
    return after, jnp.take_along_axis(loss, kept, axis=0), jnp.take_along_axis(grad_norm, kept, axis=0)


def verdict(events: Events, facts: Facts) -> np.ndarray:
    """One word a trial, from host arrays. The first that holds:

    diverged: the loss became non-finite, or rose over 10,000 initial gaps above where it began;
    converged: it reached the target;
    overshoots: in the last quarter, at least 40 % of the updates went past the lowest point of their own line;
    slow: the last quarter lowered the best loss by over 1 % of the gap that was left (to the minimum, or to the
        solved loss), or by over 1 % of all that had been gained: still going down when the steps ran out;
    stalled: it did not.
    """
    goal = facts.minimum if not np.isnan(facts.minimum) else facts.solved
    goal = -np.inf if np.isnan(goal) else goal
    with np.errstate(invalid="ignore", over="ignore"):
        gained = np.maximum(events.tail_start - events.best_loss, 0)
        left = np.where(np.isfinite(goal), np.maximum(events.tail_start - goal, 0), np.inf)
        slow = (gained > 0.01 * left) | (gained > 0.01 * (events.initial_loss - events.best_loss))
        slow &= gained > 0
    overshoots = events.tail_turned >= 0.4 * np.maximum(events.tail_rows, 1)
    return np.select(
        [events.diverged_at >= 0, events.hits[:, -1] >= 0, overshoots, slow],
        ["diverged", "converged", "overshoots", "slow"],
        "stalled",
    )
