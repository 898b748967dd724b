"""What happened to each trial, found on the device: targets, best, divergence, the last quarter, the curve's points.

One small program over a chunk's rows, compiled once per block shape and shared by every pair of that shape. Shapes: R
rows of a chunk, S slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.program.program import Observation
from gradbench.record.schema import TARGETS

DIVERGENCE = 1e4  # a loss this many times _scale above the initial one is diverged
TAIL = 0.75  # the last quarter of a trial's steps decides whether it is still improving
HALF = 0.5  # a line through noisy losses is fitted over the last half
FEWEST_ROWS = 5  # of the last half: with fewer, no line and spread are fitted


class ObservationConfig(NamedTuple):
    """What observe() needs to know of the plan and problem, as arguments, so that pairs share one program."""

    steps: int
    stride: int
    minimum: float  # NaN where unknown
    solved: float  # the loss that counts as solved; NaN where `target` decides
    target: float  # the plan's, a gap relative to the initial one
    stop_at_target: bool
    noisy: bool  # minibatches: a line is fitted to the losses of the last half
    ends: Any = None  # the steps after which each slot's trial is over, (S,); `steps` for all if None

    def arrays(self, dtype: np.dtype) -> Any:
        """The same as numpy arrays, the floats of `dtype`."""
        types = {int: np.int32, bool: np.bool_}
        return jax.tree.map(lambda value: np.asarray(value, types.get(type(value), dtype)), self)


_HITS = np.full(len(TARGETS) + 1, -1, np.int32)
_HALF_SUMS = np.zeros(5, np.float32)


class Events(NamedTuple):
    """Per slot, arrays (S,): of jax on the devices, of numpy on the host. Steps are int32, -1 for never; losses are
    float32, or float64 in a float64 run. The defaults are the values before the first row."""

    initial_loss: Any = math.inf
    final_loss: Any = math.inf
    final_grad_norm: Any = math.inf
    best_loss: Any = math.inf
    best_step: Any = -1
    steps_run: Any = -1
    diverged_at: Any = -1
    hits: Any = _HITS  # (S, 7): the six targets, then the plan's
    tail_start: Any = math.inf  # the best loss when the last quarter began
    tail_rows: Any = np.float32(0)  # rows in the last quarter
    tail_overshot: Any = np.float32(0)  # how many of them had gone past the lowest point of their step's line
    half_start: Any = math.inf  # the loss of the last half's first row; d is a row's loss less this
    half_sums: Any = _HALF_SUMS  # (S, 5), if noisy: count of rows k; sums of d, k d, d²; of d in the last quarter
    finished: Any = False  # later rows of this trial are ignored


def blank(slots: int, dtype: np.dtype) -> Events:
    """Events before the first row, on the host; losses of `dtype`."""
    types = {float: dtype, int: np.int32, bool: np.bool_}
    values = (np.asarray(value, types.get(type(value))) for value in Events())
    return Events(*(np.tile(value, (slots, *(1,) * value.ndim)) for value in values))


class Tiles:
    """A chunk's rows (R, S) in tiles of a few rows: the tiles' minima and maxima tell which tile has an event, and only
    that tile is searched."""

    def __init__(self, count: int):
        self.count, self.size = count, max(1, math.isqrt(count) // 4)  # gathering an entry costs like streaming 16
        self.tiles = -(-count // self.size)

    def reduce(self, function: Callable[..., jax.Array], values: jax.Array) -> jax.Array:
        """(R, S) -> (tiles, S)."""
        whole = self.count // self.size * self.size
        parts = [function(values[:whole].reshape(-1, self.size, values.shape[1]), axis=1)]
        if whole < self.count:
            parts.append(function(values[whole:], axis=0)[None])
        return jnp.concatenate(parts)

    def rows(self, tile: jax.Array) -> jax.Array:
        """The rows of one tile per slot, (..., S) -> (..., size, S)."""
        rows = self.size * tile[..., None, :] + jnp.arange(self.size, dtype=jnp.int32)[:, None]
        return jnp.clip(rows, 0, self.count - 1)

    def first(self, values: jax.Array, maybe: jax.Array, condition: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """The first row (..., S) of `values` (R, S) that meets `condition`, `count` if none does. The first tile in
        `maybe` (..., tiles, S) must be the one that holds it, or none counts; with tiles of one row any may be."""
        index = jnp.arange(self.tiles, dtype=jnp.int32)[:, None]
        if self.size == 1:
            return jnp.min(jnp.where(maybe & condition(values), index, self.count), axis=-2)
        rows = self.rows(jnp.min(jnp.where(maybe, index, self.tiles), axis=-2))
        return jnp.min(jnp.where(condition(take(values, rows)), rows, self.count), axis=-2)

    def lowest(self, values: jax.Array, lows: jax.Array, count: jax.Array) -> jax.Array:
        """The lowest finite value of the first `count` (S,) rows, all finite but perhaps the last; infinite if none.
        `lows` are the tiles' minima."""
        if self.size == 1:
            index = jnp.arange(self.count, dtype=jnp.int32)[:, None]
            return jnp.min(jnp.where((index < count) & jnp.isfinite(values), values, jnp.inf), axis=0)
        tile = (count - 1) // self.size  # that of the last row: taken row by row
        before = jnp.arange(self.tiles, dtype=jnp.int32)[:, None] < tile
        rows = self.rows(tile)
        rest = take(values, rows)
        rest = jnp.where((rows < count) & jnp.isfinite(rest), rest, jnp.inf)
        return jnp.minimum(jnp.min(jnp.where(before, lows, jnp.inf), axis=0), jnp.min(rest, axis=0))


def take(values: jax.Array, rows: jax.Array) -> jax.Array:
    """Of `values` (R, S) the rows (..., K, S), a row number for each slot."""
    slots = values.shape[1]
    return jnp.take_along_axis(values, rows.reshape(-1, slots), axis=0, mode="clip").reshape(rows.shape)


def _scale(initial: jax.Array, minimum: jax.Array, solved: jax.Array) -> jax.Array:
    """The unit in which a rise of a loss is measured, (S,): its initial gap to the minimum; else to the solved loss, or
    the initial loss's magnitude if that is more. Infinite where neither is known, since a loss alone has no scale (a
    constant can be added to it), or where the gap is rounding: only a loss that is not finite stops a trial then."""
    known = ~jnp.isnan(minimum)
    gap = jnp.where(known, jnp.abs(initial - minimum), jnp.maximum(jnp.abs(initial), initial - solved))
    rounding = jnp.finfo(initial.dtype).eps * jnp.where(known, jnp.abs(minimum), 1)
    return jnp.where(gap > rounding, gap, jnp.inf)  # inf for a NaN too


def _cleared(events: Events, fresh: jax.Array) -> Events:
    """`events` with the slots where `fresh` (S,) as before the first row."""
    unseen = blank(1, events.initial_loss.dtype)
    pairs = zip(unseen, events, strict=True)
    return Events(*(jnp.where(fresh.reshape(-1, *(1,) * (old.ndim - 1)), new, old) for new, old in pairs))


def _levels(initial: jax.Array, config: ObservationConfig) -> tuple[jax.Array, jax.Array]:
    """The losses that reach each target, (7, 1, S), NaN where none can; and the loss above which a trial has diverged,
    (S,)."""
    minimum, solved = (jnp.asarray(value, initial.dtype) for value in (config.minimum, config.solved))
    targets = jnp.asarray((*TARGETS, config.target), initial.dtype)[:, None]
    levels = minimum + targets * (initial - minimum)  # NaN where the minimum is unknown: never reached
    levels = levels.at[-1].set(jnp.where(jnp.isnan(solved), levels[-1], solved))
    return levels[:, None], initial + DIVERGENCE * _scale(initial, minimum, solved)


def _between(values: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """The sum of `values` (R, S) over each slot's rows from `start` to before `end`, (S,)."""

    def added() -> jax.Array:
        index = jnp.arange(len(values), dtype=jnp.int32)[:, None]
        return jnp.sum(jnp.where((start <= index) & (index < end), values, 0), axis=0)

    return jax.lax.cond(jnp.any(start < end), added, lambda: jnp.zeros(values.shape[1], values.dtype))


class Chunk(NamedTuple):
    """The steps of a chunk's `count` rows: in each slot the first row is at step `first`, (S,)."""

    first: jax.Array
    count: int
    config: ObservationConfig

    @property
    def ends(self) -> Any:
        """The trials' last steps."""
        return self.config.steps if self.config.ends is None else self.config.ends

    def step(self, row: Any) -> jax.Array:
        """The step of a row."""
        return jnp.minimum(self.first + self.config.stride * row, self.ends)

    def rows_until(self, step: Any) -> jax.Array:
        """How many of the rows are at or before `step`."""
        return jnp.clip((step - self.first) // self.config.stride + 1, 0, self.count)

    def rows_until_part(self, part: float) -> jax.Array:
        """How many of the rows are in the first `part` of the trial's steps."""
        return self.rows_until(jnp.asarray(part * self.config.steps, jnp.int32))

    def sums_of_half(self, loss: jax.Array, half_start: jax.Array, seen: jax.Array, tail: jax.Array) -> jax.Array:
        """What the rows (R, S) of `loss` before `seen` add to Events.half_sums; the last quarter begins at `tail`."""
        start, index = self.rows_until_part(HALF), jnp.arange(self.count, dtype=jnp.int32)[:, None]
        half = jnp.asarray(HALF * self.config.steps, jnp.int32) // self.config.stride
        order = self.first // self.config.stride + index - half - 1
        rise = jnp.where((start <= index) & (index < seen), loss - half_start, 0)
        summed = (rise, rise * order, rise**2, jnp.where(index >= tail, rise, 0))
        return jnp.stack([seen - jnp.minimum(start, seen), *(jnp.sum(each, axis=0) for each in summed)], axis=1)


def _first_rows(
    tiles: Tiles, loss: jax.Array, levels: jax.Array, ceiling: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The tiles' lowest losses, NaN where a tile has one; and the first row of each slot that has diverged, (S,), and
    that reaches each target, (7, S); the number of rows where none does."""
    lows, highs = tiles.reduce(jnp.min, loss), tiles.reduce(jnp.max, loss)
    sound = (highs <= ceiling) & (highs < jnp.inf) & (lows > -jnp.inf)
    failed = tiles.first(loss, ~sound, lambda x: ~jnp.isfinite(x) | (x > ceiling))
    # A tile with a NaN may hold a hit before the NaN; later hits do not count.
    return lows, failed, tiles.first(loss, ~(lows > levels), lambda x: x <= levels)


def _half(
    loss: jax.Array, events: Events, chunk: Chunk, seen: jax.Array, tail: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Events.half_start after the rows before `seen`, and what they add to half_sums; the last quarter begins at row
    `tail`."""
    start = chunk.rows_until_part(HALF)
    begins = (start < seen) & jnp.isinf(events.half_start)
    half_start = jnp.where(begins, take(loss, jnp.minimum(start, chunk.count - 1)[None])[0], events.half_start)

    def sums() -> jax.Array:
        return chunk.sums_of_half(loss, half_start, seen, tail).astype(events.half_sums.dtype)

    return half_start, jax.lax.cond(chunk.config.noisy, sums, lambda: jnp.zeros_like(events.half_sums))


@partial(jax.jit, donate_argnums=0)
def observe(
    events: Events, rows: Observation, first: jax.Array, config: ObservationConfig, wanted: jax.Array
) -> tuple[Events, jax.Array, tuple[jax.Array, jax.Array]]:
    """Take a chunk's rows (R, S), whose first is at step `first` (S,), into `events`.

    `wanted` (C, K) holds, for every chunk of a trial, the rows its curve keeps (any number where fewer). Returns the
    events, the next chunk's `first`, and for the host, in as few arrays as can be since each costs it a wait: whether
    each slot's trial is finished and its steps so far, int32 (2, S); the kept losses and gradient norms, (2, K, S).
    """
    loss, count = rows.loss, rows.loss.shape[0]
    tiles, chunk = Tiles(count), Chunk(first, count, config)
    fresh = first == 0
    events = _cleared(events, fresh)
    initial = jnp.where(fresh, loss[0], events.initial_loss)
    lows, failed, reached = _first_rows(tiles, loss, *_levels(initial, config))
    stop = jnp.minimum(failed, jnp.where(config.stop_at_target, reached[-1], count))

    exist = chunk.rows_until(chunk.ends + config.stride - 1)  # the last row may be less than a stride on
    seen = jnp.where(events.finished, 0, jnp.minimum(exist, stop + 1))
    rows_before_tail = jnp.minimum(seen, chunk.rows_until_part(TAIL))

    def first_step(row: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where((old < 0) & (row < seen), chunk.step(row), old)

    def at_last(values: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(seen > 0, values, old)

    last = jnp.maximum(seen - 1, 0)
    low = tiles.lowest(loss, lows, seen)
    lowest = tiles.first(loss, ~(lows > low), lambda x: x == low)

    def norms(rows_of: jax.Array) -> jax.Array:
        return jnp.sqrt(take(rows.grad_norm_squared, rows_of)).astype(loss.dtype)

    half_start, half = _half(loss, events, chunk, seen, rows_before_tail)
    diverged_at = first_step(failed, events.diverged_at)
    hits = jnp.stack([first_step(row, events.hits[:, k]) for k, row in enumerate(reached)], axis=1)
    stopped = (diverged_at >= 0) | (config.stop_at_target & (hits[:, -1] >= 0))
    after = Events(
        initial_loss=initial,
        final_loss=at_last(take(loss, last[None])[0], events.final_loss),
        final_grad_norm=at_last(norms(last[None])[0], events.final_grad_norm),
        best_loss=jnp.minimum(low, events.best_loss),
        best_step=jnp.where(low < events.best_loss, chunk.step(lowest), events.best_step),
        steps_run=at_last(chunk.step(last), events.steps_run),
        diverged_at=diverged_at,
        hits=hits,
        tail_start=jnp.minimum(tiles.lowest(loss, lows, rows_before_tail), events.tail_start),
        tail_rows=events.tail_rows + (seen - rows_before_tail),
        tail_overshot=events.tail_overshot + _between(rows.overshot, rows_before_tail, seen),
        half_start=half_start,
        half_sums=events.half_sums + half,
        finished=stopped | (chunk.step(count - 1) >= chunk.ends),
    )
    kept = jnp.clip(wanted[first // (config.stride * count)].T, 0, count - 1)  # (K, S)
    status = jnp.stack([after.finished.astype(jnp.int32), after.steps_run])
    return after, first + config.stride * count, (status, jnp.stack([take(loss, kept), norms(kept)]))


def last_part(events: Events, config: ObservationConfig) -> dict[str, np.ndarray]:
    """The columns of trials.parquet about the last quarter of the steps, float64 (S,), from host arrays.

    tail_drop: by how much it lowered the best loss; with minibatches, by how much the least-squares line through the
        losses of the last half falls over it, and tail_drop_error is the drop that noise alone passes in 1 of 100
        cases: Student's t of the slope, its quantile by Abramowitz and Stegun 26.7.5.
    """
    rows = np.maximum(events.tail_rows, 1)
    with np.errstate(invalid="ignore", over="ignore"):
        drop = np.maximum(events.tail_start - events.best_loss.astype(float), 0)
    found = {"tail_drop": drop, "tail_overshot": events.tail_overshot / rows}
    unknown = np.full(len(drop), np.nan)
    if not config.noisy:
        return found | {"smoothed_loss": unknown, "tail_drop_error": unknown}
    count, d, kd, dd, tail = events.half_sums.astype(float).T
    enough = count >= FEWEST_ROWS
    n = np.where(enough, count, FEWEST_ROWS)
    spread = n * (n**2 - 1) / 12  # sum of (k - mean)²
    with np.errstate(invalid="ignore", over="ignore"):
        slope = (kd - d * (n - 1) / 2) / spread
        residual = np.maximum(dd - d**2 / n - slope**2 * spread, 0)
        smoothed = np.where(events.tail_rows > 0, events.half_start + tail / rows, events.final_loss)
        free, z = n - 2, NormalDist().inv_cdf(0.99)
        quantile = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
        quarter = (1 - TAIL) * config.steps / config.stride
        error = quantile * quarter * np.sqrt(residual / free / spread)
    found |= {"tail_drop": np.where(enough, -slope * quarter, drop)}
    return found | {"smoothed_loss": smoothed, "tail_drop_error": np.where(enough, error, np.nan)}
