"""Runs the trials of one pair through its program: fills slots, runs chunks, retires the finished, keeps what is seen.

Trials wait in a queue. A finished trial's slot is given to the next one at the end of a chunk, in the same fixed-shape
program, so a sweep of any length has the memory of one block.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from gradbench.analysis.verdicts import floats, stated_reference, verdicts
from gradbench.engine import events as ev
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem
from gradbench.machine.internals import compiler_options
from gradbench.program.program import Block, Observation, Program, State, numerics
from gradbench.record.parts import PairStore, UnitRows
from gradbench.record.schema import EVENT_COLUMNS, SCHEMAS, SWEPT, TARGET_COLUMNS
from gradbench.search.asked import scores
from gradbench.search.halving import Rungs
from gradbench.search.queue import Queue, Spending

CHECKPOINT_SECONDS = 5.0
FEW_ROWS = 10**7  # of a pair's trials: fewer are gone through before code that is faster has paid for its compilation


@dataclass
class Progress:
    """Where a pair's sweep stands: trials done, running in slots, and in all; trial-steps computed, and left to
    compute at most (retired trials leave theirs undone); seconds since this process took it up."""

    done: int
    running: int
    trials: int
    trial_steps: int
    steps_left: int
    total_steps: int
    seconds: float


def recorded_rows(total_rows: int, points: int) -> np.ndarray:
    """The rows of a curve that are kept: all, or both ends and log-spaced between, at most `points`; int64, sorted."""
    if points >= total_rows:
        return np.arange(total_rows)
    last = total_rows - 1
    spaced = np.geomspace(1, max(last, 1), max(points - 1, 1)).round().astype(np.int64)
    return np.unique([0, *np.minimum(spaced, last), last]) if points > 2 else np.unique([0, last])


def curve_points(plan: SweepPlan) -> int:
    """Points a trial's curve keeps at most: --record-points, or fewer so that a run keeps at most 5 million rows."""
    return max(2, min(plan.record_points, 5_000_000 // plan.trials))


def metric_points(plan: SweepPlan, recorded: int) -> int:
    """Points at which a trial's metrics are kept, `recorded` values each: as of its curve, and under the same bound."""
    return max(2, min(curve_points(plan), 5_000_000 // (plan.trials * max(recorded, 1))))


def solved_loss(plan: SweepPlan, problem: Problem) -> float:
    """The loss that the plan, or a problem of unknown minimum, states as solved; NaN where neither does."""
    stated = problem.target if plan.target_loss is None and problem.minimum is None else plan.target_loss
    return math.nan if stated is None else stated


def wanted_rows(plan: SweepPlan, block: Block, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every chunk of a trial the rows that are kept, `points` of a trial at most: int32 (chunks, most rows kept), -1
    where fewer; and the steps of them all."""
    total_rows = -(-plan.steps // block.stride) + 1
    kept = recorded_rows(total_rows, points)
    by_chunk = [kept[kept // block.rows == c] for c in range(-(-total_rows // block.rows))]
    wanted = np.full((len(by_chunk), max(map(len, by_chunk))), -1, np.int32)
    for chunk, rows in enumerate(by_chunk):
        wanted[chunk, : len(rows)] = rows - chunk * block.rows
    return wanted, np.minimum(kept * block.stride, plan.steps)


def observation_config(program: Program) -> ev.ObservationConfig:
    plan, problem = program.trial.plan, program.trial.problem
    return ev.ObservationConfig(
        plan.steps,
        program.block.stride,
        np.nan if problem.minimum is None else problem.minimum,
        solved_loss(plan, problem),
        plan.target,
        plan.stop_at_target,
        program.trial.noisy,
    )


@cache
def _observe(quickly: bool) -> jax.stages.Wrapped:
    """ev.observe; or `quickly` compiled, in half the time, to code that takes 20 ns more for a row of a trial."""
    options = compiler_options("cpu", xla_backend_optimization_level=0) if quickly else {}
    return jax.jit(inspect.unwrap(ev.observe), donate_argnums=0, compiler_options=options)


def observe_of(program: Program) -> jax.stages.Wrapped:
    """What takes a chunk's rows into the events. By the plan alone, so that a resume has the same."""
    plan = program.trial.plan
    few = program.trial.trials * plan.steps / program.block.stride < FEW_ROWS
    return _observe(few and program.devices[0].platform == "cpu")


def prepare_slots(program: Program) -> None:
    """Compile how trials start, and how they take free slots where there are more of them."""
    program.prepare(admits=program.trial.trials > program.block.slots)


def prepare_observing(program: Program) -> None:
    """Compile what takes a chunk's rows into the events, from shapes: no array is made."""
    plan, block, dtype = program.trial.plan, program.block, np.dtype(program.rate_dtype)

    def shapes(sharding: Any, arrays: Any) -> Any:
        return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), arrays)

    with numerics(plan.dtype, plan.precision):
        row = jax.ShapeDtypeStruct((block.rows, block.slots), dtype)
        rows = Observation(*shapes(program.rows_sharded, (row, row, row.update(dtype=jnp.float32))))
        slots = ev.blank(block.slots, dtype), np.zeros(block.slots, np.int32)
        events, first = shapes(program.sharded, slots)
        known = shapes(
            program.replicated,
            (observation_config(program).arrays(dtype), wanted_rows(plan, block, curve_points(plan))[0]),
        )
        observe_of(program).lower(events, rows, first, *known).compile()


class PairSweep:
    """The sweep of one (problem, optimizer) pair, or of those of its `trials`, by their numbers in the pair. `run()`
    goes on from a checkpoint if the store has one."""

    def __init__(
        self,
        program: Program,
        advance: Callable[..., Any],
        plan: SweepPlan,
        pair: int,
        store: PairStore | UnitRows,
        trials: Sequence[int] | np.ndarray | None = None,
        recorded: pa.Table | None = None,
    ):
        """`recorded` are the pair's trials in a record, whose settings are run again instead of the plan's."""
        self.program, self.advance, self.plan, self.store = program, advance, plan, store
        self.pair, self.before, block = pair, plan.first_trials[pair], program.block
        if recorded is None:
            self.queue = Queue(plan, program.trial.optimizer.spec, trials)
        else:
            self.queue = Queue.recorded(plan, program.trial.optimizer.spec, recorded, self.before, trials)
        self.spending = Spending(plan if recorded is None else SweepPlan())
        halves = plan.rungs and recorded is None
        self.rungs = Rungs([at for at in plan.rungs if at >= block.steps], plan.eta) if halves else None
        self.scores: dict[int, float] = {}  # of finished trials, for a search
        self.config, self.observe = observation_config(program), observe_of(program)
        self.reference = stated_reference(program.trial.problem.minimum, self.config.solved)
        self.wanted, self.kept_steps = wanted_rows(plan, block, curve_points(plan))
        self.recorded = program.trial.objective.recorded
        self.watched, _ = wanted_rows(plan, block, metric_points(plan, len(self.recorded)))

        slots = block.slots
        self.slot_trial = np.full(slots, -1, np.int64)
        self.first = np.zeros(slots, np.int32)
        self.next_trial = 0  # its place in the queue
        self.trial_steps = 0
        self.state: State | None = None
        dtype = np.dtype(program.rate_dtype)
        with self._numerics():
            self.events = jax.tree.map(program.place, ev.blank(slots, dtype))
            # On the devices once and for all: as numbers from the host they cost half a millisecond per chunk.
            self.known = jax.device_put((self.config.arrays(dtype), self.wanted), program.replicated)
        self.new: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in SWEPT}

    def _numerics(self):
        return numerics(self.plan.dtype, self.plan.precision)

    def run(
        self, on_chunk: Callable[[Progress], None] = lambda _: None, should_stop: Callable[[], bool] = lambda: False
    ) -> bool:
        """Run until every trial is finished (True), or until `should_stop()` says so and a checkpoint is kept."""
        self._restore()
        started = saved = time.perf_counter()
        while self._fill():
            if should_stop():
                self._checkpoint()
                return False
            if self.spending.over(time.perf_counter() - started):
                break  # what runs is given up
            self._chunk()
            now = time.perf_counter()
            if self.store.keeps_checkpoints and now - saved > CHECKPOINT_SECONDS:
                self._checkpoint()
                saved = time.perf_counter()
            on_chunk(self._progress(now - started))
        self._flush()
        return True

    def _progress(self, seconds: float) -> Progress:
        running = self.slot_trial >= 0
        waiting = len(self.queue) - self.next_trial
        left = int((self.plan.steps - self.first[running]).clip(0).sum()) + waiting * self.plan.steps
        done = self.next_trial - int(running.sum())
        total = len(self.queue) * self.plan.steps
        return Progress(done, int(running.sum()), len(self.queue), self.trial_steps, left, total, seconds)

    def _fill(self) -> bool:
        """Give free slots to waiting trials; whether anything is left to run."""
        if self.next_trial == len(self.queue) and not (self.slot_trial >= 0).any():
            self.queue.ask(self.scores)
        running = self.slot_trial >= 0
        steps_left = int((self.plan.steps - self.first[running]).clip(0).sum())
        room = self.spending.room(self.next_trial, self.trial_steps, steps_left)
        free = np.flatnonzero(~running)[: min(len(self.queue) - self.next_trial, room)]
        if len(free):
            self.slot_trial[free] = self.queue.order[self.next_trial : self.next_trial + len(free)]
            self.first[free] = 0
            self.next_trial += len(free)
            fresh = np.zeros(len(self.slot_trial), bool)
            fresh[free] = True
            self._place_slots()
            if self.state is None:
                self.state = self.program.start(self.slot_seeds, self.settings)
            else:
                self.state = self.program.admit(fresh, self.state, self.slot_seeds, self.settings)
        return bool((self.slot_trial >= 0).any())

    def _place_slots(self) -> None:
        """Settings and seeds of the slots' trials, on the devices; an empty slot repeats a trial at rate 0."""
        trial = np.maximum(self.slot_trial, 0)
        self.slot_seeds = self.queue.seeds[trial].astype(np.uint32)
        values = {name: of[trial] for name, of in self.queue.settings.items()}
        values["learning_rate"] = np.where(self.slot_trial < 0, 0.0, values["learning_rate"])
        self.settings = self.program.settings(values)
        self.seeds = self.program.place(self.slot_seeds)
        self.placed_first = self.program.place(self.first.copy())  # a device may share the host's memory

    def _chunk(self) -> None:
        program, block = self.program, self.program.block
        with self._numerics():
            first = self.placed_first
            watch = program.watch(self._rows_watched() if self.recorded else None)
            self.state, rows = self.advance(self.state, self.settings, self.seeds, first, program.data, *watch)
            metrics, rows = rows.metrics, rows._replace(metrics=())
            self.events, self.placed_first, seen = self.observe(self.events, rows, first, *self.known)
            # The rest of the events wait for a trial's end.
            (finished, steps_run), (losses, norms) = jax.device_get(seen)
        running = self.slot_trial >= 0
        self.trial_steps += int(np.minimum(self.plan.steps - self.first[running], block.steps).clip(0).sum())
        trial, step, place, _, slot = self._kept(self.wanted, running, steps_run)
        self._add_points(trial, step, losses[place, slot], norms[place, slot])
        if self.recorded:
            trial, step, _, row, slot = self._kept(self.watched, running, steps_run)
            self._add_metrics(trial, step, np.asarray(metrics)[row, slot])
        before, self.first = self.first, self.first + np.int32(block.steps)
        complete = self.first - block.stride >= self.plan.steps
        done = running & (complete | (finished > 0 if self.plan.retire else False))
        done |= self._left_at_rung(before, running & ~done)
        if done.any():
            self._finish(done, jax.device_get(self.events))

    def _rows_of(self, wanted: np.ndarray) -> np.ndarray:
        """The rows of this chunk that each slot's trial keeps, (K, S), -1 where none."""
        return wanted[np.minimum(self.first // self.program.block.steps, len(wanted) - 1)].T

    def _rows_watched(self) -> np.ndarray:
        """Whether any trial keeps metrics of a row of this chunk, bool (R,)."""
        rows = self._rows_of(self.watched)[:, self.slot_trial >= 0]
        return np.isin(np.arange(self.program.block.rows), rows)

    def _kept(self, wanted: np.ndarray, running: np.ndarray, steps_run: np.ndarray) -> tuple[np.ndarray, ...]:
        """What is kept of this chunk: trials and steps, and where: the place among a slot's `wanted` rows, the row,
        and the slot, each (N,)."""
        row = self._rows_of(wanted)
        step = np.minimum(self.first + row * np.int64(self.program.block.stride), self.plan.steps)
        place, slot = np.nonzero(running & (row >= 0) & (step <= steps_run))
        return self.slot_trial[slot], step[place, slot], place, row[place, slot], slot

    def _finish(self, done: np.ndarray, host: ev.Events) -> None:
        """Write down the trials in the slots where `done`, and free those slots."""
        events = ev.Events(*(field[done] for field in host))
        trial = self.slot_trial[done]
        # A trial that stopped early ends its curve where it stopped.
        early = ~np.isin(events.steps_run, self.kept_steps)
        self._add_points(trial[early], events.steps_run[early], events.final_loss[early], events.final_grad_norm[early])
        columns = {
            "trial": trial + self.before,
            **{name: values[trial] for name, values in self.queue.settings.items()},
            "seed": self.queue.seeds[trial],
            "dtype": np.full(len(trial), self.plan.dtype, object),
            "minimum": np.full(len(trial), self.config.minimum),
            **{name: getattr(events, name) for name in EVENT_COLUMNS},
            **dict(zip((*TARGET_COLUMNS, "steps_to_target"), events.hits.T, strict=True)),
            **ev.last_part(events, self.config),
        }
        if self.queue.why is not None:
            columns["tried"] = np.array(self.queue.why, object)[trial]
            self.scores |= zip(trial.tolist(), self._scores(columns))
        self.new["trials"].append(columns | {"verdict": self._verdicts(columns)})
        self.slot_trial[done] = -1

    def _scores(self, columns: Mapping[str, Any]) -> list[float]:
        low = self.config.solved if np.isnan(self.config.minimum) else self.config.minimum
        return scores(columns, low, self.plan.steps).tolist()

    def _left_at_rung(self, before: np.ndarray, running: np.ndarray) -> np.ndarray:
        """Whether each slot's trial leaves at a rung that this chunk crossed."""
        if self.queue.ends is not None:
            return running & (self.first > self.queue.ends[np.maximum(self.slot_trial, 0)])
        if self.rungs is None:
            return np.zeros(len(running), bool)
        rung = np.where(running, self.rungs.crossed(before, self.first), -1)
        if (rung < 0).all():
            return np.zeros(len(running), bool)
        return self.rungs.stopped(rung, np.asarray(jax.device_get(self.events.final_loss)))

    def _verdicts(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """One word per trial as far as it can be said before the other pairs are done."""
        steps = {
            name: np.where(columns[name] < 0, np.nan, columns[name]) for name in ("steps_to_target", "diverged_at")
        }
        return verdicts(columns | steps, self.reference, self.plan.dtype)

    def _add_points(self, trial: np.ndarray, step: np.ndarray, loss: np.ndarray, norm: np.ndarray) -> None:
        columns = (trial + self.before, step, loss, norm)
        self.new["curves"].append(dict(zip(SCHEMAS["curves"].names, columns, strict=True)))

    def _add_metrics(self, trial: np.ndarray, step: np.ndarray, values: np.ndarray) -> None:
        """`values` (N, V) of N points, a row for each number."""
        split, name = (np.tile(np.array(of, object), len(trial)) for of in zip(*self.recorded))
        trial, step = (np.repeat(each, len(self.recorded)) for each in (trial + self.before, step))
        self.new["metrics"].append(dict(zip(SCHEMAS["metrics"].names, (trial, step, split, name, values.ravel()))))

    def _flush(self) -> None:
        self.store.append({name: _joined(pieces) for name, pieces in self.new.items()}, *self.plan.pairs[self.pair])
        self.new = {name: [] for name in SWEPT}

    def _checkpoint(self) -> None:
        """Everything needed to go on, bit for bit: the rows so far, then the slots' state."""
        self._flush()
        leaves = [_pack(leaf) for leaf in jax.tree.leaves((self.state, self.events))]
        arrays = {f"leaf{i}": leaf for i, leaf in enumerate(leaves)}
        arrays |= {"slot_trial": self.slot_trial, "first": self.first} | (self.rungs.arrays() if self.rungs else {})
        arrays["counters"] = np.array([self.next_trial, self.trial_steps], np.int64)
        self.store.checkpoint(arrays)

    def _restore(self) -> None:
        arrays = self.store.restore()
        if arrays is None:
            return
        self.slot_trial, self.first = arrays["slot_trial"], arrays["first"]
        self.next_trial, self.trial_steps = (int(n) for n in arrays["counters"])
        if self.rungs:
            self.rungs.restore(arrays)
        assert isinstance(self.store, PairStore)
        if self.queue.why is not None and (rows := self.store.read("trials")).num_rows:
            columns = {name: floats(rows, name) for name in ("initial_loss", "final_loss", "steps_to_target")}
            self.scores = dict(zip((rows["trial"].to_numpy() - self.before).tolist(), self._scores(columns)))
        self.queue.replay(self.scores)
        self._place_slots()
        state = self.program.start(self.slot_seeds, self.settings)
        with self._numerics():
            likes, tree = jax.tree.flatten((state, self.events))
            leaves = [_unpack(arrays[f"leaf{i}"], like) for i, like in enumerate(likes)]
            self.state, self.events = jax.tree.unflatten(tree, [self.program.place(leaf) for leaf in leaves])


def _joined(pieces: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]} if pieces else {}


def _pack(leaf: jax.Array) -> np.ndarray:
    """A device array as plain numbers that .npy can hold: keys as their data, bfloat16 as its bits."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.view(np.uint16) if array.dtype.kind == "V" or array.dtype.name == "bfloat16" else array


def _unpack(array: np.ndarray, like: jax.Array) -> Any:
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    return array.view(like.dtype) if array.dtype != like.dtype else array
