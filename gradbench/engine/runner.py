"""The main job: run a plan's pairs one after another and leave a record."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import pyarrow as pa

from gradbench.analysis.summary import representative_rates, summarise_tables
from gradbench.analysis.verdicts import Reference, common, judged, reference
from gradbench.engine.compiling import EVALUATIONS, TIMED, CompiledPair, Compiler, Timings
from gradbench.engine.pair import PairSweep, Progress, curve_points
from gradbench.engine.processes import Following, Rendezvous, Shared
from gradbench.engine.roofline import measure_limits
from gradbench.errors import GradbenchWarning, PlanError, RecordError, RunError, one_line
from gradbench.inputs.optimizer import Optimizer, load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem, check_batch, load_problem, shapes, warn_of_idle_leaves
from gradbench.inputs.sources import difference, given_as_object, sources
from gradbench.machine.devices import find_devices, memory
from gradbench.machine.environment import environment
from gradbench.program.block import choose_block
from gradbench.program.program import Block, Trial, numerics
from gradbench.program.xla.switch import enabled
from gradbench.record.schema import SCHEMAS
from gradbench.record.store import Run, RunWriter, find_run, load_run

TRIAL_BYTES = 600  # of the host's memory for each trial of a run: 1.78 GB for 3 million, measured


@dataclasses.dataclass(frozen=True)
class PairTables:
    """A finished pair's rows, and run.json's facts about the problems."""

    plan: SweepPlan
    trials: pa.Table
    timings: pa.Table
    facts: dict[str, Any]


class Watcher:
    """What a caller may do while a plan runs; this one does nothing. The command line draws a progress bar."""

    def started(self, path: Path) -> None: ...

    def pair_started(self, number: int, problem: str, optimizer: str) -> None: ...

    def chunk(self, progress: Progress) -> None: ...

    def pair_swept(self, number: int, problem: str, optimizer: str, tables: PairTables) -> None:
        """The pair's answer is known; what it costs may not be timed yet: `tables.timings` is empty then."""

    def pair_done(self, number: int, problem: str, optimizer: str, tables: PairTables) -> None: ...

    def should_stop(self) -> bool:
        return False


def run_plan(
    plan: SweepPlan,
    *,
    out: str | Path = "results",
    watcher: Watcher | None = None,
    objects: Mapping[str, Problem] | None = None,
    functions: Mapping[str, Optimizer] | None = None,
) -> Run:
    """Run a plan and return its record. By the plan's names: `objects` are problems given as objects, `functions`
    optimizers given as functions (own_optimizer)."""
    objects, functions = objects or {}, functions or {}
    with Rendezvous() as rendezvous:
        trials, devices = _prepare(plan, objects, functions)
        problems = {trial.problem.name: trial.problem for trial in trials}
        found = sources(plan, problems, objects, functions)
        if not rendezvous.leads:
            return _join(rendezvous.join(), trials, devices, found, watcher or Watcher())
        with RunWriter.create(out, plan, environment(devices, plan.precision)) as writer:
            writer.info["curve_points"] = curve_points(plan)
            writer.info["problems"] = {name: _facts(problem) for name, problem in problems.items()}
            writer.info["sources"], writer.info["rewriting"] = found, enabled()
            writer.save_info()
            return _lead(rendezvous, writer, trials, devices, watcher or Watcher())


def resume(name: str | Path, *, results: str | Path = "results", watcher: Watcher | None = None) -> Run:
    """Go on with an interrupted or killed run; a complete one is returned as it is.

    Finished pairs are not rerun and the result is the uninterrupted run's, bit for bit. Raises RecordError where
    that cannot be: other versions, devices, problems, data or optimizers than the run began with, or a problem that was
    given as an object, which no other process has.
    """
    with Rendezvous() as rendezvous:
        path = find_run(name, results) if rendezvous.leads else rendezvous.join()
        run = load_run(path)
        if run.info["state"] == "complete":
            rendezvous.announce(path)
            return run
        if lost := given_as_object(run.info):
            raise RecordError(
                f"{path}: {lost[0]} was given as an object, which only its own process had, so it cannot go on; "
                "a problem and an optimizer in a file can: gradbench run ./mine.py -o ./mine.py:make"
            )
        trials, devices = _prepare(run.plan, {}, {})
        found = sources(run.plan, {trial.problem.name: trial.problem for trial in trials}, {})
        if not rendezvous.leads:
            return _join(path, trials, devices, found, watcher or Watcher())
        with RunWriter.resume(path) as writer:
            _check_same(path, writer.info, environment(devices, run.plan.precision), found)
            writer.info["state"] = "running"
            writer.save_info()
            return _lead(rendezvous, writer, trials, devices, watcher or Watcher())


def _lead(
    rendezvous: Rendezvous, writer: RunWriter, trials: list[Trial], devices: list[jax.Device], watcher: Watcher
) -> Run:
    """Run a plan, alone or as the process that keeps the record."""
    if not rendezvous.others:
        return _run(writer, trials, devices, watcher)
    for trial in trials:
        _block(writer, trial, devices)  # all now: nobody else writes run.json
    with Shared(writer.path, writer) as shared:
        shared.prepare(len(trials))
        rendezvous.announce(writer.path)
        return _run(shared, trials, devices, watcher)


def _join(path: Path, trials: list[Trial], devices: list[jax.Device], found: dict, watcher: Watcher) -> Run:
    """Take part in the run that process 0 leads; `found` are this process's sources."""
    with Shared(path, None) as shared:
        _check_same(path, shared.info, environment(devices, trials[0].plan.precision), found)
        return _run(shared, trials, devices, Following(watcher, shared))


def _check_same(path: Path, info: dict[str, Any], now: dict[str, Any], found: dict[str, Any]) -> None:
    """RecordError unless this process, its environment `now` and sources `found`, is as the run began."""
    began, packages = info["environment"], ["gradbench", "jax", "jaxlib", "optax"]
    for key in ("platform", "device_kind", "device_count", "precision", "flags"):
        if began.get(key) != now[key]:
            raise RecordError(f"{path}: began with {key} {began.get(key)}, here it is {now[key]}; it cannot go on here")
    if "sources" in info:  # older runs are held to what they were held to
        packages.append("numpy")  # of the other packages come data alone, which have a digest
        if began.get("git_commit") != now["git_commit"]:
            before, here = began.get("git_commit"), now["git_commit"]
            raise RecordError(f"{path}: began with gradbench's commit {before}, here it is {here}; go back to it")
    for package in packages:
        before = began.get("versions", {}).get(package)
        if before != now["versions"][package]:
            raise RecordError(f"{path}: began with {package} {before}, here it is {now['versions'][package]}")
    if what := difference(info["sources"], found) if "sources" in info else None:
        raise RecordError(f"{path}: {what} this run began; undo that, or begin a new run")


def _prepare(
    plan: SweepPlan, objects: Mapping[str, Problem], functions: Mapping[str, Optimizer]
) -> tuple[list[Trial], list[jax.Device]]:
    """Everything the plan names, loaded and checked before anything is written."""
    devices = find_devices(plan.device)
    need, have = plan.trials * TRIAL_BYTES / 2**30, memory() / 2**30
    if need > have:
        raise PlanError(f"the plan has {plan.trials:,} trials, which need about {need:.0f} GiB; here are {have:.0f}")
    optimizers = {name: functions.get(name) or load_optimizer(name) for name in plan.optimizers}
    trials = []
    for name in plan.problems:
        problem = planned_problem(plan, name, objects.get(name, name))
        with numerics(plan.dtype, plan.precision):
            trials += [Trial.of(problem, optimizer, plan) for optimizer in optimizers.values()]
    return trials, devices


def planned_problem(plan: SweepPlan, name: str, given: str | Problem) -> Problem:
    """The problem that a plan calls `name`, loaded from its spec or given, with the plan's target."""
    problem = load_problem(given)
    stated = problem.target if plan.target_loss is None else plan.target_loss
    problem = dataclasses.replace(problem, name=name, target=stated)
    warn_of_idle_leaves(problem)
    if plan.batch_size is not None:
        if problem.examples is None:
            raise PlanError(f"batch_size: {name} states no examples=, so its data cannot be cut into minibatches")
        if plan.batch_size > problem.examples:
            raise PlanError(f"batch_size: {plan.batch_size} is more than the {problem.examples} examples of {name}")
        check_batch(problem, plan.batch_size)
    return problem


def _facts(problem: Problem) -> dict[str, Any]:
    """What run.json keeps of a problem, so that its record can be read without its file."""
    params, _ = shapes(problem.plain, "float32")
    return {
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        **{name: getattr(problem, name) for name in ("examples", "minimum", "target", "curvature")},
        **_recorded(problem),
    }


def _recorded(problem: Problem) -> dict[str, Any]:
    """What metrics.parquet has of a problem, and of which metrics more is better; nothing of one that has none."""
    recorded = [f"{split}.{name}" for split, name in problem.objective.recorded]
    return {"recorded": recorded, "maximise": list(problem.maximise)} if recorded else {}


def _run(writer: RunWriter | Shared, trials: list[Trial], devices: list[jax.Device], watcher: Any) -> Run:
    with Compiler() as compiler:
        pairs = _Pairs(writer, trials, devices, watcher, compiler)
        watcher.started(writer.path)
        for number in writer.waiting(len(trials), watcher.should_stop):
            problem, optimizer = pairs.plan.pairs[number]
            try:
                finished = pairs.run(number)
            except jax.errors.JaxRuntimeError as error:
                raise RunError(f"{problem} × {optimizer}: {one_line(error)}") from error
            if not finished:
                writer.interrupt()
                return load_run(writer.path)
    if not writer.complete(len(trials)):
        writer.interrupt()
    elif isinstance(writer, Shared) and not writer.writer:
        writer.wait()
    elif TIMED[pairs.plan.timing]:
        limits = measure_limits(tuple(devices), pairs.plan.dtype, pairs.plan.precision)
        writer.info["limits"] = dataclasses.asdict(limits)
        writer.finish(limits.add_roofline, _judge(writer, pairs.plan))
    else:
        writer.finish(list, _judge(writer, pairs.plan))
    return load_run(writer.path)


def _judge(writer: RunWriter | Shared, plan: SweepPlan) -> Callable[[int, pa.Table], pa.Table]:
    """What gives the trials of a pair their verdicts, against what all pairs have found; the references go into
    run.json."""
    to = _references(writer, plan)
    writer.info["references"] = {name: of.to_dict() for name, of in to.items()}

    def judge(number: int, trials: pa.Table) -> pa.Table:
        of = to[plan.pairs[number][0]]
        if of.kind != "best found":  # known from the start: the sweep's own words stand
            return trials
        return judged(trials, writer.pair(number).read("curves"), of, plan.target, plan.dtype)

    return judge


def _references(writer: RunWriter | Shared, plan: SweepPlan) -> dict[str, Reference]:
    """What each problem's gaps are taken against, by name, from what all of its pairs have found."""
    facts: dict[str, Any] = writer.info["problems"]
    found: dict[str, Reference] = {}
    for number, (problem, _) in enumerate(plan.pairs):
        of_pair = reference(writer.pair(number).read("trials"), facts.get(problem), plan.dtype)
        found[problem] = common([found[problem], of_pair]) if problem in found else of_pair
    return found


class _Pairs:
    """Sweeps pairs and then times them, one after another; compiles the next one's program meanwhile."""

    def __init__(
        self,
        writer: RunWriter | Shared,
        trials: list[Trial],
        devices: list[jax.Device],
        watcher: Any,
        compiler: Compiler,
    ):
        self.writer, self.trials, self.devices = writer, trials, devices
        self.watcher, self.compiler, self.plan = watcher, compiler, trials[0].plan
        self.ahead: dict[int, CompiledPair] = {}

    def run(self, number: int) -> bool:
        """Sweep a pair, say so, and time it: whether it was finished, or a stop came first."""
        names, store = self.plan.pairs[number], self.writer.pair(number)
        self.watcher.pair_started(number, *names)
        pair = self.ahead.pop(number, None) or self._compile(number)
        pair.ready()
        modes = () if store.has("timings") else self._modes(number)
        timings = Timings(pair, modes) if modes else None
        follower = _following(self.writer, number, len(self.trials))
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
            with self.compiler.working():
                store.save("sharpness", _sharpness_rows(pair.program.trial, self.plan, tables.trials))
        if timings:
            if self.watcher.should_stop():
                return False
            store.save("timings", timings.rows())
        store.finish()
        self.watcher.pair_done(number, *names, dataclasses.replace(tables, timings=store.read("timings")))
        return True

    def _sweep(self, number: int, pair: CompiledPair) -> bool:
        store = self.writer.pair(number)
        sweep = PairSweep(pair.program, pair.ready(), self.plan, number, store)
        with self.compiler.working():
            finished = sweep.run(self.watcher.chunk, self.watcher.should_stop)
        if finished:
            store.end_sweep()
        return finished

    def _can_shrink(self, number: int, block: Block, error: Exception) -> bool:
        """Whether a sweep failed for want of memory and may begin anew with fewer trials at a time: not from a
        checkpoint, which holds as many as there were, nor where other processes count on the block."""
        bound = isinstance(self.writer, Shared) or self.writer.pair(number).has_checkpoint
        return not bound and "RESOURCE_EXHAUSTED" in str(error) and block.lanes > 1

    def _halved(self, number: int, block: Block) -> CompiledPair:
        """The pair's programs for half as many trials at a time, which run.json keeps."""
        name, lanes = _name(self.trials[number]), block.lanes // 2
        warnings.warn(
            f"{name}: no memory for {block.lanes} trials at a time on a device; going on with {lanes}",
            GradbenchWarning,
            stacklevel=2,
        )
        smaller = dataclasses.replace(block, lanes=lanes, relayout=block.relayout and lanes > 1)
        self.writer.info["blocks"][name] = dataclasses.asdict(smaller)
        self.writer.save_info()
        return self._compile(number)

    def _compile(self, number: int) -> CompiledPair:
        trial, swept = self.trials[number], self.writer.pair(number).swept
        return CompiledPair(self.compiler, trial, _block(self.writer, trial, self.devices), self.devices, not swept)

    def _modes(self, number: int) -> Sequence[str]:
        """What is timed of a pair; a problem's loss and gradient once, with its last optimizer."""
        last = self.plan.pairs[number][1] == self.plan.optimizers[-1]
        return [mode for mode in TIMED[self.plan.timing] if last or mode not in EVALUATIONS]


def _following(writer: RunWriter | Shared, number: int, pairs: int) -> int | None:
    """The pair that runs after this one; None where nobody knows, since several processes take them."""
    if isinstance(writer, Shared):
        return None
    return next((n for n in range(number + 1, pairs) if not writer.pair(n).complete), None)


def _name(trial: Trial) -> str:
    """A pair's, in run.json."""
    return f"{trial.problem.name} × {trial.optimizer.spec}"


def _block(writer: RunWriter | Shared, trial: Trial, devices: list[jax.Device]) -> Block:
    """The pair's block: the one in run.json if the run began with it, else chosen now and stored."""
    name, blocks = _name(trial), writer.info["blocks"]
    if name not in blocks:
        blocks[name] = dataclasses.asdict(choose_block(trial, devices, trial.plan.trials_per_pair))
        writer.save_info()
    return Block(**blocks[name])


def _sharpness_rows(trial: Trial, plan: SweepPlan, trials: pa.Table) -> list[dict[str, Any]]:
    """Along the paths of the pair's representative learning rates; `trials` are its rows."""
    from gradbench.theory.sharpness import sharpness_along  # only a plan that asks for it waits for SciPy

    problem, optimizer = trial.problem, trial.optimizer
    facts = {problem.name: {"target": problem.target}}
    [pair] = summarise_tables(plan, trials, SCHEMAS["timings"].empty_table(), facts)
    return sharpness_along(problem, optimizer, list(representative_rates(pair)), plan=plan)
