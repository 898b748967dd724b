"""Runs the trials of one pair through its program: fills slots, runs chunks, retires finished trials, keeps their rows.

Trials wait in a queue. A finished trial's slot is given to the next one at the end of a chunk, in the same fixed-shape
program, so a sweep of any length has the memory of one block.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from gradbench.analysis.verdicts import floats, stated_reference, verdicts
from gradbench.engine import events as ev
from gradbench.engine.slots.branches import Ready, branches_of
from gradbench.engine.slots.packing import joined, packed, unpack
from gradbench.engine.slots.points import curve_points, metric_points, rows_of_chunk, wanted_rows
from gradbench.engine.slots.progress import Progress
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem
from gradbench.machine.internals import quick_compile
from gradbench.program.program import Observation, Program, State, numerics
from gradbench.record.parts import PairStore, UnitRows
from gradbench.record.schema import EVENT_COLUMNS, SCHEMAS, SWEPT, TARGET_COLUMNS
from gradbench.search.asked import SCORED, scores
from gradbench.search.halving import Rungs
from gradbench.search.queue import Queue, Spending

CHECKPOINT_SECONDS = 5.0
FEW_ROWS = 10**7  # of a pair's trials: with fewer, compiling faster code takes longer than it saves


def solved_loss(plan: SweepPlan, problem: Problem) -> float:
    """The loss that the plan, or a problem of unknown minimum, states as solved; NaN where neither does."""
    stated = plan.solved(problem.name)
    if stated is None and problem.minimum is None:
        stated = problem.target
    return math.nan if stated is None else stated


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
    """ev.observe; `quickly`: compiled in a quarter of the time, to code that takes 20 ns longer per trial's row."""
    options = quick_compile("cpu", xla_backend_optimization_level=0) if quickly else {}
    return jax.jit(inspect.unwrap(ev.observe), donate_argnums=0, compiler_options=options)


def observe_of(program: Program) -> jax.stages.Wrapped:
    """The `observe` of a program: by its plan and platform alone, so that a resume has the same."""
    plan = program.trial.plan
    few = program.trial.trials * plan.steps / program.block.stride < FEW_ROWS
    return _observe(few and program.devices[0].platform == "cpu")


def prepare_slots(program: Program) -> None:
    """Compile how trials start and, where there are more trials than slots, how they take free ones."""
    program.prepare(admits=program.trial.trials > program.block.slots)


def prepare_observing(program: Program) -> None:
    """Compile the program's `observe` from shapes: no array is made."""
    plan, block, dtype = program.trial.plan, program.block, np.dtype(program.rate_dtype)

    def shapes(sharding: Any, arrays: Any) -> Any:
        return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), arrays)

    with numerics(plan.dtype, plan.precision):
        row = jax.ShapeDtypeStruct((block.rows, block.slots), dtype)
        rows = Observation(*shapes(program.rows_sharded, (row, row, row.update(dtype=jnp.float32))))
        slots = ev.blank(block.slots, dtype), np.zeros(block.slots, np.int32)
        events, first = shapes(program.sharded, slots)
        config, wanted = shapes(
            program.replicated,
            (observation_config(program).arrays(dtype), wanted_rows(plan, block, curve_points(plan))[0]),
        )
        observe_of(program).lower(events, rows, first, config._replace(ends=first), wanted).compile()


class PairSweep:
    """The sweep of one (problem, optimizer) pair, or of only its `trials`, by their numbers in the pair. `run()` goes
    on from a checkpoint if the store has one."""

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
        """`recorded`: the pair's trials in a record, whose settings are run instead of the plan's."""
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
        self._know_lengths()
        whole = recorded is None and plan.budget is None
        self.branches = branches_of(self.queue, self.falls if whole else 0 * self.falls, block.steps, self.before)
        self._know_lengths()
        self.config, self.observe = observation_config(program), observe_of(program)
        self.reference = stated_reference(program.trial.problem.minimum, self.config.solved)
        self.wanted, self.kept_steps = wanted_rows(plan, block, curve_points(plan))
        self.recorded = program.trial.objective.recorded
        self.watched, _ = wanted_rows(plan, block, metric_points(plan, len(self.recorded)))

        slots = block.slots
        self.slot_trial = np.full(slots, -1, np.int64)
        self.first = np.zeros(slots, np.int32)
        self.slot_ends = np.full(slots, plan.steps)
        self.next_trial = 0  # a place in the queue
        self.trial_steps = 0
        self.state: State | None = None
        dtype = np.dtype(program.rate_dtype)
        with self._numerics():
            self.events = jax.tree.map(program.place, ev.blank(slots, dtype))
            # Placed on the devices once: sent from the host they would cost 0.5 ms per chunk.
            self.known = jax.device_put((self.config.arrays(dtype), self.wanted), program.replicated)
        self.new: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in SWEPT}

    def _numerics(self):
        return numerics(self.plan.dtype, self.plan.precision)

    def _know_lengths(self) -> None:
        """Sets `falls` and `ends`, Trial.fall of every trial known so far, int64 (N,), and `costs`, the trial-steps of
        the queue's first n trials, (N + 1,). In an older record trials ran on at rate 0."""
        trial, queue = self.program.trial, self.queue
        shapes = trial.settings_shape()
        with self._numerics():
            found = trial.fall({name: np.asarray(of, shapes[name].dtype) for name, of in queue.settings.items()})
        self.falls, self.ends = (np.broadcast_to(np.asarray(of, np.int64), len(queue.seeds)) for of in found)
        if queue.ran is not None and (queue.ran > self.ends).any():
            self.falls, self.ends = 0 * self.falls, np.full_like(self.ends, self.plan.steps)
        self.costs = np.append(0, np.cumsum(self.ends[queue.order]))

    def run(
        self, on_chunk: Callable[[Progress], None] = lambda _: None, should_stop: Callable[[], bool] = lambda: False
    ) -> bool:
        """Run until every trial is finished (True), or until `should_stop()` and a checkpoint is kept (False)."""
        self._restore()
        started = saved = time.perf_counter()
        while self._fill():
            if should_stop():
                self._checkpoint()
                return False
            if self.spending.over(time.perf_counter() - started):
                break  # trials still running are dropped
            self._chunk()
            now = time.perf_counter()
            if self.store.keeps_checkpoints and now - saved > CHECKPOINT_SECONDS:
                self._checkpoint()
                saved = time.perf_counter()
            on_chunk(self._progress(now - started))
        self._flush()
        return True

    def _progress(self, seconds: float) -> Progress:
        running, branches = int((self.slot_trial >= 0).sum()), self.branches
        trials = len(self.queue) + int(np.count_nonzero(branches.begin))
        done = trials - running - (len(self.queue) - self.next_trial) - int(np.count_nonzero(branches.waits))
        later, total = self.costs[-1] - self.costs[self.next_trial], self.costs[-1]
        if branches.begin.any():
            steps = self.ends - branches.begin
            later, total = later + steps[branches.waits].sum(), total + steps[branches.begin > 0].sum()
        left = self._steps_left() + int(later)
        return Progress(done, running, trials, self.trial_steps, left, int(total), seconds)

    def _steps_left(self) -> int:
        """Trial-steps that the trials in slots have to make, at the most."""
        return int((self.slot_ends - self.first)[self.slot_trial >= 0].clip(0).sum())

    def _fill(self) -> bool:
        """Give free slots to waiting trials; returns whether any trial runs."""
        if self.next_trial == len(self.queue) and not (self.slot_trial >= 0).any() and self.queue.ask(self.scores):
            self._know_lengths()
        self.branches.leave(
            self.slot_trial, self.first, lambda slots: self.program.copies(slots, (self.state, self.events))
        )
        free = np.flatnonzero(self.slot_trial < 0)
        branching, free = free[: len(self.branches.ready)], free[len(self.branches.ready) :]
        room = self.spending.room(self.next_trial, self.trial_steps, self._steps_left())
        free = free[: min(len(self.queue) - self.next_trial, room)]
        if len(free) + len(branching):
            self.slot_trial[free] = self.queue.order[self.next_trial : self.next_trial + len(free)]
            self.first[free] = 0
            self.next_trial += len(free)
            entering = self.branches.enter(len(branching))
            self.slot_trial[branching] = [of.trial for of in entering]
            self.first[branching] = self.branches.begin[self.slot_trial[branching]]
            self._place_slots()
            if self.state is None:
                self.state = self.program.start(self.slot_seeds, self.settings)
            elif len(free):
                fresh = np.isin(np.arange(len(self.slot_trial)), free)
                self.state = self.program.admit(fresh, self.state, self.slot_seeds, self.settings)
            self._branch_off(branching, entering)
        return bool((self.slot_trial >= 0).any())

    def _branch_off(self, slots: np.ndarray, entering: Sequence[Ready]) -> None:
        """Give these slots' branches their trunks' states and the rows made so far."""
        for number in {of.copy for of in entering}:
            place = np.full(len(self.slot_trial), -1, np.int32)
            for slot, of in zip(slots, entering):
                place[slot] = of.place if of.copy == number else -1
            copies = self.branches.copies[number]
            self.state, self.events = self.program.graft((self.state, self.events), copies, place)
        self._add_copies([of.trial for of in entering])
        if entering:
            self.branches.forget(self.slot_trial)

    def _add_copies(self, branches: Sequence[int], whole: bool = False) -> None:
        for table, rows in self.branches.rows_of(branches, whole):
            self.new[table].append(rows)

    def _place_slots(self) -> None:
        """Place the slots' settings and seeds on the devices; an empty slot repeats a trial at rate 0."""
        trial = np.maximum(self.slot_trial, 0)
        self.slot_seeds = self.queue.seeds[trial].astype(np.uint32)
        values = {name: of[trial] for name, of in self.queue.settings.items()}
        values["learning_rate"] = np.where(self.slot_trial < 0, 0.0, values["learning_rate"])
        self.settings = self.program.settings(values)
        self.seeds = self.program.place(self.slot_seeds)
        self.slot_ends = np.where(self.slot_trial < 0, self.plan.steps, self.ends[trial])
        config, wanted = self.known
        self.known = config._replace(ends=self.program.place(self.slot_ends.astype(np.int32))), wanted
        self.placed_first = self.program.place(self.first.copy())  # a device may share the host's memory

    def _chunk(self) -> None:
        program, block = self.program, self.program.block
        with self._numerics():
            first = self.placed_first
            watch = program.watch(self._rows_watched() if self.recorded else None)
            self.state, rows = self.advance(self.state, self.settings, self.seeds, first, program.data, *watch)
            metrics, rows = rows.metrics, rows._replace(metrics=())
            self.events, self.placed_first, seen = self.observe(self.events, rows, first, *self.known)
            # The other events are fetched when a trial ends.
            (finished, steps_run), (losses, norms) = jax.device_get(seen)
        running = self.slot_trial >= 0
        self.trial_steps += int(np.minimum(self.slot_ends - self.first, block.steps)[running].clip(0).sum())
        trial, step, place, _, slot = self._kept(self.wanted, running, steps_run)
        self._add_points(trial, step, losses[place, slot], norms[place, slot])
        if self.recorded:
            trial, step, _, row, slot = self._kept(self.watched, running, steps_run, last_too=True)
            self._add_metrics(trial, step, np.asarray(metrics)[row, slot])
        before, self.first = self.first, self.first + np.int32(block.steps)
        complete = self.first - block.stride >= self.slot_ends
        done = running & (complete | (finished > 0 if self.plan.retire else False))
        done |= self._left_at_rung(before, running & ~done)
        if done.any():
            self._finish(done, jax.device_get(self.events))

    def _rows_watched(self) -> np.ndarray:
        """Which rows of this chunk have metrics that a trial keeps, bool (R,)."""
        rows = rows_of_chunk(self.watched, self.first, self.slot_ends, self.program.block, self.plan.steps, True)
        return np.isin(np.arange(self.program.block.rows), rows[:, self.slot_trial >= 0])

    def _kept(
        self, wanted: np.ndarray, running: np.ndarray, steps_run: np.ndarray, last_too: bool = False
    ) -> tuple[np.ndarray, ...]:
        """The points kept of this chunk: trials, steps, places among a slot's `wanted` rows, rows and slots, each
        (N,)."""
        row = rows_of_chunk(wanted, self.first, self.slot_ends, self.program.block, self.plan.steps, last_too)
        step = np.minimum(self.first + row * np.int64(self.program.block.stride), self.slot_ends)
        place, slot = np.nonzero(running & (row >= 0) & (step <= steps_run))
        return self.slot_trial[slot], step[place, slot], place, row[place, slot], slot

    def _finish(self, done: np.ndarray, host: ev.Events) -> None:
        """Add the rows of the trials in the slots where `done`, bool (S,), and free those slots."""
        trial = self.slot_trial[done]
        places, branches = self.branches.ended(trial)
        self._add_copies(branches.tolist(), whole=True)
        places, trial = np.append(np.arange(len(trial)), places), np.append(trial, branches)
        events = ev.Events(*(field[done][places] for field in host))
        # A trial that stopped early ends its curve where it stopped.
        stride = self.program.block.stride
        early = ~np.isin(np.minimum(-(-events.steps_run // stride) * stride, self.plan.steps), self.kept_steps)
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
        if self.config.noisy:  # where the rate has fallen, the last loss counts, not a mean during the fall
            columns["smoothed_loss"] = np.where(self.falls[trial] > 0, events.final_loss, columns["smoothed_loss"])
        if self.queue.why is not None:
            columns["tried"] = np.array(self.queue.why, object)[trial]
            self.scores |= zip(trial.tolist(), self._scores(columns))
        self.new["trials"].append(columns | {"verdict": self._verdicts(columns)})
        self.slot_trial[done] = -1

    def _scores(self, columns: Mapping[str, Any]) -> list[float]:
        low = self.config.solved if np.isnan(self.config.minimum) else self.config.minimum
        return scores(columns, low, self.plan.steps).tolist()

    def _left_at_rung(self, before: np.ndarray, running: np.ndarray) -> np.ndarray:
        """Whether each slot's trial is stopped at a rung (of successive halving) that this chunk crossed."""
        if self.queue.ran is not None and self.plan.rungs:
            return running & (self.first - self.program.block.stride >= self.queue.ran[np.maximum(self.slot_trial, 0)])
        if self.rungs is None:
            return np.zeros(len(running), bool)
        rung = np.where(running, self.rungs.crossed(before, self.first), -1)
        if (rung < 0).all():
            return np.zeros(len(running), bool)
        return self.rungs.stopped(rung, np.asarray(jax.device_get(self.events.final_loss)))

    def _verdicts(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """One verdict per trial, by what is known before the other pairs are done."""
        never = {
            name: np.where(columns[name] < 0, np.nan, columns[name]) for name in ("steps_to_target", "diverged_at")
        }
        return verdicts(columns | never, self.reference, self.plan.dtype)

    def _add_points(self, trial: np.ndarray, step: np.ndarray, loss: np.ndarray, norm: np.ndarray) -> None:
        columns = (trial + self.before, step, loss, norm)
        self._add_rows("curves", dict(zip(SCHEMAS["curves"].names, columns, strict=True)))

    def _add_metrics(self, trial: np.ndarray, step: np.ndarray, values: np.ndarray) -> None:
        """`values` (N, V) of N points, one row per number."""
        split, name = (np.tile(np.array(of, object), len(trial)) for of in zip(*self.recorded))
        trial, step = (np.repeat(each, len(self.recorded)) for each in (trial + self.before, step))
        self._add_rows("metrics", dict(zip(SCHEMAS["metrics"].names, (trial, step, split, name, values.ravel()))))

    def _add_rows(self, table: str, rows: dict[str, np.ndarray]) -> None:
        self.new[table].append(rows)
        self.branches.note(table, rows)

    def _flush(self) -> None:
        self.store.append({name: joined(pieces) for name, pieces in self.new.items()}, *self.plan.pairs[self.pair])
        self.new = {name: [] for name in SWEPT}

    def _checkpoint(self) -> None:
        """Everything needed to go on, bit for bit: the rows so far, then the slots' state."""
        self._flush()
        arrays = {f"leaf{i}": leaf for i, leaf in enumerate(packed((self.state, self.events)))}
        arrays |= self.branches.arrays(packed)
        arrays |= {"slot_trial": self.slot_trial, "first": self.first} | (self.rungs.arrays() if self.rungs else {})
        arrays["counters"] = np.array([self.next_trial, self.trial_steps], np.int64)
        self.store.checkpoint(arrays)

    def _restore(self) -> None:
        if (kept := self.store.restore()) is None:
            return
        arrays = kept
        self.slot_trial, self.first = arrays["slot_trial"], arrays["first"]
        self.next_trial, self.trial_steps = (int(n) for n in arrays["counters"])
        if self.rungs:
            self.rungs.restore(arrays)
        assert isinstance(self.store, PairStore)
        if self.queue.why is not None and (rows := self.store.read("trials")).num_rows:
            columns = {name: floats(rows, name) for name in SCORED}
            self.scores = dict(zip((rows["trial"].to_numpy() - self.before).tolist(), self._scores(columns)))
        self.queue.replay(self.scores)
        self._know_lengths()
        self._place_slots()
        state = self.program.start(self.slot_seeds, self.settings)
        likes, tree = jax.tree.flatten((state, self.events))

        def unpacked(prefix: str, sharding: Any) -> Any:
            leaves = (unpack(arrays[f"{prefix}{i}"], like) for i, like in enumerate(likes))
            return jax.tree.unflatten(tree, [jax.device_put(leaf, sharding) for leaf in leaves])

        with self._numerics():
            self.state, self.events = unpacked("leaf", self.program.sharded)
            if self.branches.pending:
                tables = {name: self.store.read(name) for name in SWEPT}
                copies = partial(unpacked, sharding=self.program.replicated)
                self.branches.restore(arrays, self.slot_trial, tables, copies)
