"""Hands the units of a run to workers, stores in its record what they return, and hands out again what was lost."""

from __future__ import annotations

import dataclasses
import queue
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gradbench.analysis.summary import representative_rates, summarise_tables
from gradbench.engine.compiling import EVALUATIONS, TIMED
from gradbench.engine.pair import Progress
from gradbench.engine.roofline import stored_limits
from gradbench.engine.units import Job, NoMemory, Paths, Result, Unit, run_unit
from gradbench.errors import GradbenchWarning, RunError, one_line
from gradbench.inputs.plan import SweepPlan
from gradbench.machine.workers import Workers
from gradbench.program.program import Block
from gradbench.record.schema import SCHEMAS
from gradbench.record.store import RunWriter, load_run
from gradbench.search.rounds import Rounds

ATTEMPTS = 3  # a unit that has failed this often is given up
POLL_SECONDS = 0.2  # between two calls of should_stop


@dataclass(frozen=True)
class PairTables:
    """A finished pair's rows, and run.json's facts about the problems."""

    plan: SweepPlan
    trials: pa.Table
    timings: pa.Table
    facts: dict[str, Any]


@dataclass(frozen=True)
class UnitProgress:
    """Where a run by units stands: units done, of how many known so far, given to workers, and given up; trial-steps
    per second of each worker that has answered; seconds so far, and left at this pace (None before the first)."""

    done: int
    units: int
    running: int
    failed: int
    rates: dict[str, float]
    seconds: float
    seconds_left: float | None


class Watcher:
    """Callbacks while a plan runs; these do nothing. The command line draws a progress bar."""

    def started(self, path: Path) -> None: ...

    def pair_started(self, number: int, problem: str, optimizer: str) -> None:
        """Not called in a run by units, where several pairs may run at once: see `units`."""

    def chunk(self, progress: Progress) -> None: ...

    def units(self, progress: UnitProgress) -> None: ...

    def looked(self, words: str) -> None:
        """A race goes on; `words` say after how many seeds."""

    def pair_swept(self, number: int, problem: str, optimizer: str, tables: PairTables) -> None:
        """The pair's answer is known. Where nothing of it is timed yet, `tables.timings` is empty."""

    def pair_done(self, number: int, problem: str, optimizer: str, tables: PairTables) -> None: ...

    def should_stop(self) -> bool:
        return False


def modes_of_pair(plan: SweepPlan, number: int) -> tuple[str, ...]:
    """The modes in which a pair is timed; a problem's loss and gradient once, with the last optimizer."""
    last = plan.pairs[number][1] == plan.optimizers[-1]
    return tuple(mode for mode in TIMED[plan.timing] if last or mode not in EVALUATIONS)


def sharpness_paths(plan: SweepPlan, problem: str, target: float | None, trials: pa.Table) -> Paths:
    """The representative learning rates of a pair, whose rows are `trials`."""
    [pair] = summarise_tables(plan, trials, SCHEMAS["timings"].empty_table(), {problem: {"target": target}})
    return Paths(tuple(representative_rates(pair)), tuple(pair.settings.items()))


def halved(name: str, block: Block) -> Block:
    """A block of half the trials at a time, for a device without memory for all; with a GradbenchWarning."""
    lanes = block.lanes // 2
    text = f"{name}: no memory for {block.lanes} trials at a time on a device; going on with {lanes}"
    warnings.warn(text, GradbenchWarning, stacklevel=3)
    return dataclasses.replace(block, lanes=lanes, relayout=block.relayout and lanes > 1)


class Driver:
    """Runs the units of a job that are missing in the record. `sizes`: trials per unit, by pair."""

    def __init__(
        self,
        writer: RunWriter,
        job: Job,
        sizes: list[int],
        workers: Workers,
        watcher: Watcher,
        run: Callable[[Job, Unit], Result] = run_unit,
    ):
        self.writer, self.job, self.plan, self.sizes, self.run_one = writer, job, job.plan, sizes, run
        self.workers, self.watcher, self.shared = workers, watcher, workers.share(job)
        self.waiting: deque[Unit] = deque()
        self.rounds = Rounds(self.plan, sizes) if self.plan.until else None
        self.missing: list[set[Unit]] = [set() for _ in self.plan.pairs]  # by pair, of its present stage
        self.under_way: dict[Future[Result], tuple[Unit, Block]] = {}
        self.answered: queue.SimpleQueue[Future[Result]] = queue.SimpleQueue()
        self.failures: Counter[Unit] = Counter()
        self.given_up: dict[Unit, str] = {}
        self.told: set[int] = set()  # pairs that the watcher was told of
        self.broken: BaseException | None = None  # why no worker is left
        self.untimed = False  # whether the user was told so
        self.done, self.began = 0, time.monotonic()
        self.costs: dict[str, tuple[int, float]] = {}  # trial-steps and seconds of each worker

    def run(self) -> bool:
        """Run until every pair is complete (True), or until the watcher stops it (False).

        Raises RunError where no worker is left and, when all else is done, for units that failed ATTEMPTS times.
        """
        for number in range(len(self.plan.pairs)):
            if not self.missing[number]:  # the first pair of a race begins them all
                self._go_on(number)
        try:
            while (self.waiting or self.under_way) and self.broken is None:
                if self.watcher.should_stop():
                    return False
                self._hand_out()
                answers = [(future, *self.under_way.pop(future)) for future in self._answers()]
                if not self.workers.blocking:
                    self._hand_out()  # before the answers are stored: no worker waits for the disk
                for answer in answers:
                    self._take(*answer)
                self.watcher.units(self._progress())
        finally:
            self._leave()
        if self.broken is not None:
            raise RunError(f"the workers are gone: {one_line(self.broken)}") from self.broken
        if self.given_up:
            unit = min(self.given_up, key=lambda unit: (unit.pair, unit.part))
            more = f", and {len(self.given_up) - 1} more units" if len(self.given_up) > 1 else ""
            raise RunError(
                f"{self._words(unit)} failed {ATTEMPTS} times{more}; all else is recorded: {self.given_up[unit]}"
            )
        return True

    def _leave(self) -> None:
        """Cancel the units under way; keep the answers that have come."""
        for future in list(self.under_way):
            if not future.cancel() and future.done() and future.exception() is None:
                self._take(future, *self.under_way.pop(future))

    def _hand_out(self) -> None:
        """Submit waiting units, up to one per worker."""
        try:
            # count() raises where the workers are gone: asked even where nothing waits, as no answer may ever come.
            while len(self.under_way) < self.workers.count() and self.waiting:
                unit = self.waiting[0]
                future = self.workers.submit(self.run_one, self.shared, unit)
                self.waiting.popleft()
                self.under_way[future] = unit, self.job.blocks[unit.pair]
                future.add_done_callback(self.answered.put)
        except BrokenExecutor as error:
            self.broken = error

    def _answers(self) -> list[Future[Result]]:
        """All that have come; where none has, waits up to POLL_SECONDS for one."""
        answers: list[Future[Result]] = []
        try:
            answers.append(self.answered.get(timeout=POLL_SECONDS))
            while True:
                answers.append(self.answered.get_nowait())
        except queue.Empty:
            return answers

    def _take(self, future: Future[Result], unit: Unit, block: Block) -> None:
        if block != self.job.blocks[unit.pair] or unit not in self.missing[unit.pair]:
            return  # of a block that was halved since, or a second answer
        if future.cancelled():  # not by us: the workers lost it
            self.waiting.appendleft(unit)
            return
        error = future.exception()
        if error is None:
            self._store(unit, future.result())
        elif isinstance(error, BrokenExecutor):
            self.broken = error
        elif isinstance(error, NoMemory) and block.lanes > 1 and unit.kind == "trials":
            self._halve(unit.pair)
        else:
            self.failures[unit] += 1
            if self.failures[unit] < ATTEMPTS:
                self.waiting.append(unit)
            else:
                self.given_up[unit] = one_line(error)

    def _store(self, unit: Unit, result: Result) -> None:
        store = self.writer.pair(unit.pair)
        if result.limits is not None:
            dtype = self.plan.of(self.plan.pairs[unit.pair][1]).dtype
            limits = stored_limits(self.writer.info, self.plan.dtypes)
            if dtype not in limits:
                self.writer.info["limits"] = limits | {dtype: dataclasses.asdict(result.limits)}
                self.writer.save_info()
        if unit.kind == "trials":
            store.add_unit(unit.part, result.tables)
        else:
            store.save(unit.kind, result.tables[unit.kind].to_pylist())
        steps, seconds = self.costs.get(result.worker, (0, 0.0))
        self.costs[result.worker] = steps + result.trial_steps, seconds + result.seconds
        self.done += 1
        self.missing[unit.pair].discard(unit)
        if self.rounds and unit.kind == "trials":
            self.rounds.seconds[unit.pair] += result.sweep_seconds
            if self.rounds.spent(unit.pair):
                self._drop(unit.pair)
        if not self.missing[unit.pair]:
            self._go_on(unit.pair)

    def _go_on(self, number: int) -> None:
        """Begin a pair's next stage; the next round of a race only when all pairs have ended this one."""
        if self.rounds is None or self.writer.pair(number).swept:
            self._begin(number)
            return
        pairs = range(len(self.missing))
        stores = [self.writer.pair(pair) for pair in pairs]
        swept = [store.swept for store in stores]
        if any(self.missing[pair] for pair in pairs if not swept[pair]):
            return
        done = [store.units_done() for store in stores]
        if any(swept) or not self.rounds.go_on(done, lambda: load_run(self.writer.path)):
            for store in stores:
                store.end_sweep()
        elif seeds := self.rounds.seeds:
            self.watcher.looked(f"{self.plan.until} not decided after {seeds} seeds")
        for pair in pairs:
            if not swept[pair]:
                self._begin(pair)

    def _begin(self, number: int) -> None:
        units = list(self._needed(number))
        self.missing[number] = set(units)
        self.waiting.extend(units)

    def _needed(self, number: int) -> Iterator[Unit]:
        """The missing units of a pair's next stage: its sweep, then timings and sharpness. Where none is missing, the
        pair is marked complete."""
        store, (problem, optimizer) = self.writer.pair(number), self.plan.pairs[number]
        if store.complete:
            return
        if not store.swept:
            missing = self._trials(number, store.units_done())
            if missing or self.rounds:  # a race ends for all pairs at once
                yield from missing
                return
            store.end_sweep()
        facts = self.writer.info["problems"]
        tables = PairTables(self.plan, store.read("trials"), store.read("timings"), facts)
        if number not in self.told:
            self.told.add(number)
            self.watcher.pair_swept(number, problem, optimizer, tables)
        modes = self._modes(number)
        after = []
        if self.plan.sharpness and not store.has("sharpness"):
            paths = sharpness_paths(self.plan, problem, facts[problem]["target"], tables.trials)
            after.append(Unit(number, paths=paths, kind="sharpness"))
        if modes and not store.has("timings"):
            after.append(Unit(number, modes=modes, kind="timings"))
        if not after:
            store.finish()
            self.watcher.pair_done(number, problem, optimizer, tables)
        yield from after

    def _trials(self, number: int, done: set[int]) -> list[Unit]:
        """The units of a pair's sweep, or of a race's rounds so far, that are missing."""
        if self.rounds:
            return [Unit(number, part, first, last) for part, _, first, last in self.rounds.needed(number, done)]
        size, trials = self.sizes[number], self.plan.trials_of(self.plan.pairs[number][1])
        units = [Unit(number, part, at, min(at + size, trials)) for part, at in enumerate(range(0, trials, size))]
        return [unit for unit in units if unit.part not in done]

    def _modes(self, number: int) -> tuple[str, ...]:
        """The modes in which a pair is timed; none, with one warning, where workers may share a device."""
        modes = modes_of_pair(self.plan, number)
        if not modes or self.workers.alone():
            return modes
        if not self.untimed:
            text = (
                "nothing is timed: workers may share the cores of a machine; "
                "use local:1, or one worker per machine or GPU"
            )
            warnings.warn(text, GradbenchWarning, stacklevel=2)
        self.untimed = True
        return ()

    def _halve(self, number: int) -> None:
        """Begin a pair anew with half as many trials at a time: its rows may then differ in the last bit."""
        name = " × ".join(self.plan.pairs[number])
        blocks = list(self.job.blocks)
        blocks[number] = halved(name, blocks[number])
        self.writer.pair(number).clear()
        self.writer.info["blocks"][name] = dataclasses.asdict(blocks[number])
        self.writer.save_info()
        self.job = dataclasses.replace(self.job, blocks=tuple(blocks))
        self.shared = self.workers.share(self.job)
        self._drop(number)
        self._begin(number)

    def _drop(self, number: int) -> None:
        """Forget a pair's units that wait or are under way."""
        self.waiting = deque(unit for unit in self.waiting if unit.pair != number)
        self.missing[number].clear()

    def _progress(self) -> UnitProgress:
        left, seconds = len(self.waiting) + len(self.under_way), time.monotonic() - self.began
        rates = {worker: steps / max(spent, 1e-9) for worker, (steps, spent) in self.costs.items()}
        units, failed = self.done + left + len(self.given_up), len(self.given_up)
        pace = seconds / self.done * left if self.done else None
        return UnitProgress(self.done, units, len(self.under_way), failed, rates, seconds, pace)

    def _words(self, unit: Unit) -> str:
        what = f"trials {unit.first} to {unit.last - 1}" if unit.kind == "trials" else unit.kind
        return f"{' × '.join(self.plan.pairs[unit.pair])}, {what},"
