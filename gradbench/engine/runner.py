"""The main job: run a plan's pairs, in this process or as units by others, and leave a record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import jax
import pyarrow as pa

from gradbench.analysis.verdicts import Reference, common, judged, reference
from gradbench.engine.compiling import TIMED, CompiledPair, Compiler, Timings
from gradbench.engine.driver import Driver, PairTables, Watcher, halved, modes_of_pair, sharpness_paths
from gradbench.engine.pair import PairSweep
from gradbench.engine.roofline import Limits, measure_limits, stored_limits
from gradbench.engine.slots.points import curve_points
from gradbench.engine.units import Job, facts, pair_name, prepare, sharpness_rows, survey
from gradbench.errors import PlanError, RecordError, RunError, one_line
from gradbench.inputs.optimizer import Optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem
from gradbench.inputs.transfer.parcel import Kept, Parcel
from gradbench.inputs.transfer.sources import difference as changed
from gradbench.inputs.transfer.sources import file_sources, given_as_object, sources, with_data
from gradbench.machine.devices import memory
from gradbench.machine.environment import difference, environment
from gradbench.machine.workers import Alone, Workers, describe, of_one_device
from gradbench.program.axes import separated
from gradbench.program.block import choose_block
from gradbench.program.program import Block, Trial
from gradbench.program.xla.switch import enabled
from gradbench.record.store import Run, RunWriter, find_run, load_run

TRIAL_BYTES = 600  # of host memory per trial of a run: 1.78 GB for 3 million, measured


def run_plan(
    plan: SweepPlan,
    *,
    out: str | Path = "results",
    watcher: Watcher | None = None,
    objects: Mapping[str, Problem] | None = None,
    functions: Mapping[str, Optimizer] | None = None,
    executor: Executor | Workers | None = None,
    unit_timeout: float | None = None,
    suite: Mapping[str, str] | None = None,
) -> Run:
    """Run a plan and return its record. `objects` (problems) and `functions` (optimizers, by own_optimizer) are what
    the plan names but no file holds. With an `executor` its workers run the units, and a worker that takes longer than
    `unit_timeout` seconds for one ends itself; without, this process runs the plan. `suite` is what run.json says of
    the plan's suite.

    Raises GradbenchError before anything is written where the plan does not hold here (PlanError: a problem, an
    optimizer, a device or memory); RecordError where `out` cannot be written; RunError where the device or the workers
    fail.
    """
    objects = objects or {}
    plan, functions = separated(plan, objects, functions or {})
    _check_memory(plan)
    if executor is None and plan.until:  # whose rounds are units
        executor = Alone()
    if executor is None:
        by: _Here | _Others = _Here(plan, objects, functions)
    else:
        by = _Others(executor, plan, objects, functions, unit_timeout)
    with RunWriter.create(out, plan, by.environment) as writer:
        writer.info["curve_points"], writer.info["problems"] = curve_points(plan), by.facts
        writer.info["sources"], writer.info["rewriting"] = by.sources, enabled()
        writer.info |= {"suite": dict(suite)} if suite else {}
        writer.save_info()
        return _run(writer, by, watcher or Watcher())


def resume(
    name: str | Path,
    *,
    results: str | Path = "results",
    watcher: Watcher | None = None,
    executor: Executor | Workers | None = None,
    unit_timeout: float | None = None,
) -> Run:
    """Go on with an interrupted or killed run; a complete one is returned as it is.

    Finished pairs and units are not rerun and the result is the uninterrupted run's, bit for bit. Raises RecordError
    where that cannot be: other versions, devices, problems, data or optimizers than the run began with, or a problem
    that was given as an object, which no other process has. An `executor` may go on with what this process began, and
    the reverse; a pair that this process had under way then begins anew.
    """
    path = find_run(name, results)
    run = load_run(path)
    if run.info["state"] == "complete":
        return run
    if lost := given_as_object(run.info):
        raise RecordError(
            f"{path}: {lost[0]} was given as an object, which only its own process had, so it cannot go on; "
            "a problem and an optimizer in a file can: gradbench run ./mine.py -o ./mine.py:make"
        )
    if executor is None and ("units" in run.info or run.plan.until):
        executor = Alone()
    if executor is None:
        by: _Here | _Others = _Here(run.plan, {}, {})
    else:
        by = _Others(executor, run.plan, {}, {}, unit_timeout, run.info)
    with RunWriter.resume(path) as writer:
        _check_same(path, writer.info, by.environment, by.sources)
        writer.info["state"] = "running"
        writer.save_info()
        return _run(writer, by, watcher or Watcher())


def _check_same(path: Path, info: dict[str, Any], now: dict[str, Any], found: dict[str, Any]) -> None:
    """RecordError unless the environment `now` and the sources `found` are those that the run began with."""
    if what := difference(info["environment"], now, strictly="sources" in info):
        raise RecordError(f"{path}: {what}; go on where it is the same, or begin a new run")
    if what := changed(info["sources"], found) if "sources" in info else None:
        raise RecordError(f"{path}: {what} this run began; undo that, or begin a new run")


def _check_memory(plan: SweepPlan) -> None:
    need, have = plan.trials * TRIAL_BYTES / 2**30, memory() / 2**30
    if need > have:
        raise PlanError(
            f"the plan has {plan.trials:,} trials, which need about {need:.0f} GiB; this machine has {have:.0f}"
        )


def _run(writer: RunWriter, by: _Here | _Others, watcher: Watcher) -> Run:
    watcher.started(writer.path)
    if by.run(writer, watcher):
        limits = by.limits(writer)
        if limits:
            found = {dtype: dataclasses.asdict(of) for dtype, of in limits.items()}
            writer.info["limits"] = found if len(found) > 1 else next(iter(found.values()))
        writer.finish(_roofline(limits, by.plan), _judge(writer, by.plan))
    else:
        writer.interrupt()
    return load_run(writer.path)


def _roofline(limits: Mapping[str, Limits], plan: SweepPlan) -> Callable[[list[dict]], list[dict]]:
    """A function that adds the roofline columns to rows of timings.parquet, by the limits of each dtype. A row without
    an optimizer (a problem's loss) has the dtype of the last one."""

    def add(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [limits[plan.of(row["optimizer"] or plan.optimizers[-1]).dtype].add_roofline(row) for row in rows]

    return add if limits else list


def _judge(writer: RunWriter, plan: SweepPlan) -> Callable[[int, pa.Table], pa.Table]:
    """A function (pair number, its trials) -> its trials with verdicts against the best that all pairs found. Puts the
    references into run.json."""
    to = _references(writer, plan)
    writer.info["references"] = {name: of.to_dict() for name, of in to.items()}

    def judge(number: int, trials: pa.Table) -> pa.Table:
        problem, optimizer = plan.pairs[number]
        of = to[problem]
        if of.kind != "best found":  # known from the start: the sweep's verdicts stay
            return trials
        return judged(trials, writer.pair(number).read("curves"), of, plan.target, plan.of(optimizer).dtype)

    return judge


def _references(writer: RunWriter, plan: SweepPlan) -> dict[str, Reference]:
    """The reference loss of each problem, by name, from the trials of all its pairs."""
    facts: dict[str, Any] = writer.info["problems"]
    found: dict[str, Reference] = {}
    for number, (problem, optimizer) in enumerate(plan.pairs):
        of_pair = reference(writer.pair(number).read("trials"), facts.get(problem), plan.of(optimizer).dtype)
        found[problem] = common([found[problem], of_pair]) if problem in found else of_pair
    return found


class _Others:
    """A plan that an executor's workers run, and what is known of it before it runs. `info` is run.json of a resumed
    run."""

    def __init__(
        self,
        executor: Executor | Workers,
        plan: SweepPlan,
        objects: Mapping[str, Problem],
        functions: Mapping[str, Optimizer],
        timeout: float | None,
        info: Mapping[str, Any] | None = None,
    ):
        self.plan, self.timeout = plan, timeout
        self.workers = executor if isinstance(executor, Workers) else Workers(executor)
        alone = isinstance(self.workers, Alone)
        self.parcel = Kept(objects, functions) if alone else Parcel.of(plan, objects, functions)
        there = info["environment"] if info else self.workers.describe(plan.device, plan.precision)
        here = describe("cpu", plan.precision) if there["platform"] == "cpu" else None
        # On the same kind of CPU this process's cores decide the width of a block, as without workers.
        alike = here is not None and difference(there, of_one_device(here)) is None
        self.environment = here if here and alike and not info else there
        self.workers.admit(self.environment, plan.device, plan.precision)
        arguments = plan, self.parcel, info["blocks"] if info else {}
        self.known = survey(*arguments) if alike else self.workers.submit(survey, *arguments).result()
        self.facts = self.known.facts
        self.sources = with_data(file_sources(plan, objects, functions), self.known.data)

    def run(self, writer: RunWriter, watcher: Watcher) -> bool:
        """Whether every pair was finished; see Driver.run."""
        if "units" not in writer.info:  # the run began without workers: a pair under way begins anew
            for number in range(len(self.plan.pairs)):
                if not writer.pair(number).swept:
                    writer.pair(number).clear()
            writer.info["blocks"], writer.info["units"] = self.known.blocks, self.known.units
            writer.save_info()
        blocks = tuple(Block(**block) for block in writer.info["blocks"].values())
        job = Job(self.plan, self.parcel, blocks, self.environment, self.known.data, self.timeout)
        return Driver(writer, job, list(writer.info["units"].values()), self.workers, watcher).run()

    def limits(self, writer: RunWriter) -> dict[str, Limits]:
        """What the workers that timed something have measured, by dtype."""
        return {dtype: Limits(**of) for dtype, of in stored_limits(writer.info, self.plan.dtypes).items()}


class _Here:
    """A plan that this process runs, loaded and checked."""

    def __init__(self, plan: SweepPlan, objects: Mapping[str, Problem], functions: Mapping[str, Optimizer]):
        self.plan, (self.trials, self.devices) = plan, prepare(plan, objects, functions)
        problems = {trial.problem.name: trial.problem for trial in self.trials}
        self.environment = environment(self.devices, plan.precision)
        self.facts = {name: facts(problem) for name, problem in problems.items()}
        self.sources = sources(plan, problems, objects, functions)

    def run(self, writer: RunWriter, watcher: Watcher) -> bool:
        """Run every pair; False if the watcher stopped it first."""
        with Compiler() as compiler:
            pairs = _Pairs(writer, self.trials, self.devices, watcher, compiler)
            for number, (problem, optimizer) in enumerate(self.plan.pairs):
                if writer.pair(number).complete:
                    continue
                try:
                    if watcher.should_stop() or not pairs.run(number):
                        return False
                except jax.errors.JaxRuntimeError as error:
                    raise RunError(f"{problem} × {optimizer}: {one_line(error)}") from error
        return True

    def limits(self, writer: RunWriter) -> dict[str, Limits]:
        """The devices' limits by dtype, measured now; empty where nothing is timed."""
        dtypes = self.plan.dtypes if TIMED[self.plan.timing] else ()
        return {dtype: measure_limits(tuple(self.devices), dtype, self.plan.precision) for dtype in dtypes}


class _Pairs:
    """Sweeps pairs and then times them, one after another; compiles the next one's program meanwhile."""

    def __init__(
        self,
        writer: RunWriter,
        trials: list[Trial],
        devices: list[jax.Device],
        watcher: Watcher,
        compiler: Compiler,
    ):
        self.writer, self.trials, self.devices = writer, trials, devices
        self.watcher, self.compiler, self.plan = watcher, compiler, trials[0].plan
        self.ahead: dict[int, CompiledPair] = {}

    def run(self, number: int) -> bool:
        """Sweep a pair, tell the watcher, and time it; False if the watcher stopped it first."""
        names, store = self.plan.pairs[number], self.writer.pair(number)
        self.watcher.pair_started(number, *names)
        pair = self.ahead.pop(number, None) or self._compile(number)
        pa.array([])  # the first call imports pandas where it is installed: here, while XLA compiles
        pair.ready()
        modes = () if store.has("timings") else modes_of_pair(self.plan, number)
        timings = Timings(pair, modes) if modes else None
        follower = next((n for n in range(number + 1, len(self.trials)) if not self.writer.pair(n).complete), None)
        if follower is not None:
            self.ahead[follower] = self._compile(follower)
        while not store.swept:
            try:
                if not self._sweep(number, pair):
                    return False
            except jax.errors.JaxRuntimeError as error:
                if not self._can_shrink(number, pair.program.block, error):
                    raise
            if not store.swept:  # what ran out of memory is free again here
                pair = self._halved(number, pair.program.block)
                timings = Timings(pair, modes) if modes else None
        tables = PairTables(self.plan, store.read("trials"), store.read("timings"), self.writer.info["problems"])
        self.watcher.pair_swept(number, *names, tables)
        if self.plan.sharpness and not store.has("sharpness"):
            trial = pair.program.trial
            paths = sharpness_paths(self.plan, trial.problem.name, trial.problem.target, tables.trials)
            with self.compiler.working():
                store.save("sharpness", sharpness_rows(trial, paths))
        if timings:
            if self.watcher.should_stop():
                return False
            store.save("timings", timings.rows())
        store.finish()
        self.watcher.pair_done(number, *names, dataclasses.replace(tables, timings=store.read("timings")))
        return True

    def _sweep(self, number: int, pair: CompiledPair) -> bool:
        store = self.writer.pair(number)
        sweep = PairSweep(pair.program, pair.ready(), pair.program.trial.plan, number, store)
        with self.compiler.working():
            finished = sweep.run(self.watcher.chunk, self.watcher.should_stop)
        if finished:
            store.end_sweep()
        return finished

    def _can_shrink(self, number: int, block: Block, error: Exception) -> bool:
        """Whether a sweep failed for want of memory and may begin anew with fewer trials at a time: not where it has a
        checkpoint, which holds the state of all its slots."""
        bound = self.writer.pair(number).has_checkpoint
        return not bound and "RESOURCE_EXHAUSTED" in str(error) and block.lanes > 1

    def _halved(self, number: int, block: Block) -> CompiledPair:
        """The pair's programs for half as many trials at a time; run.json gets the new block."""
        name = pair_name(self.trials[number])
        self.writer.info["blocks"][name] = dataclasses.asdict(halved(name, block))
        self.writer.save_info()
        return self._compile(number)

    def _compile(self, number: int) -> CompiledPair:
        trial, swept = self.trials[number], self.writer.pair(number).swept
        return CompiledPair(self.compiler, trial, _block(self.writer, trial, self.devices), self.devices, not swept)


def _block(writer: RunWriter, trial: Trial, devices: list[jax.Device]) -> Block:
    """The pair's block: the one in run.json if the run began with it, else chosen now and stored."""
    name, blocks = pair_name(trial), writer.info["blocks"]
    if name not in blocks:
        blocks[name] = dataclasses.asdict(choose_block(trial, devices, trial.side_by_side))
        writer.save_info()
    return Block(**blocks[name])
