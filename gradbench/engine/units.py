"""A sweep as units of work, each a range of a pair's trials, and how any process runs one.

`run_unit(job, unit)` depends on its arguments alone: the block is part of the job, and XLA's arithmetic depends on its
lanes, not on a trial's neighbours. So a unit may be lost and run again elsewhere, and the rows of several workers are
those of one process, bit for bit, on one kind and number of devices; see docs/engine.md, The same bits, for slots.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import hashlib
import math
import os
import pickle
import secrets
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import pyarrow as pa

from gradbench.engine.compiling import CompiledPair, Compiler, Timings
from gradbench.engine.pair import PairSweep
from gradbench.engine.roofline import Limits, measure_limits
from gradbench.errors import GradbenchError, PlanError, RunError, error_text, one_line
from gradbench.inputs.optimizer import Optimizer, load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem, check_batch, load_problem, shapes, warn_of_idle_leaves
from gradbench.inputs.specs.searches import OPTUNA
from gradbench.inputs.transfer.parcel import Kept, Parcel
from gradbench.inputs.transfer.sources import data_digests
from gradbench.machine.devices import find_devices
from gradbench.machine.workers import misfit, name_of_worker
from gradbench.program.block import choose_block, unit_trials
from gradbench.program.program import Block, Trial, numerics
from gradbench.record.parts import UnitRows
from gradbench.record.schema import SCHEMAS
from gradbench.search.ask_tell import samplers

PAIRS_KEPT = 4  # pairs whose programs stay compiled in a worker
_PROCESS = secrets.token_hex(8)  # a forked process has it too, but another pid


class Paths(NamedTuple):
    """Learning rates of a pair, at these values of its axes."""

    rates: tuple[float, ...]
    axes: tuple[tuple[str, float], ...] = ()

    @property
    def settings(self) -> dict[str, float]:
        return dict(self.axes)


@dataclass(frozen=True)
class Unit:
    """A part of a pair's work, by `kind`: "trials", those from `first` to before `last`, the range number `part` of the
    pair; "timings" in these `modes`; or "sharpness" along `paths`."""

    pair: int
    part: int = 0
    first: int = 0
    last: int = 0
    modes: tuple[str, ...] = ()
    paths: Paths | None = None
    kind: str = "trials"


@dataclass(frozen=True)
class Job:
    """What the units of a run share. `blocks` and `began`, the environment and the digests of the data that the run
    began with, are fixed before anything runs. A unit that takes longer than `timeout` seconds ends its process, unless
    that process made the job."""

    plan: SweepPlan
    parcel: Parcel | Kept
    blocks: tuple[Block, ...]  # by pair
    began: Mapping[str, Any]
    data: Mapping[str, str]
    timeout: float | None = None
    maker: tuple[str, int] = dataclasses.field(default_factory=lambda: (_PROCESS, os.getpid()))
    key: str = dataclasses.field(init=False)  # a worker keeps what it has loaded and compiled under this

    def __post_init__(self) -> None:
        content = pickle.dumps((self.plan, self.parcel, self.blocks, self.began, self.data))
        object.__setattr__(self, "key", hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Result:
    """What a unit leaves: rows, by table; whether its pair's programs were `compiled` for it; and what it cost."""

    tables: dict[str, pa.Table]
    worker: str
    seconds: float
    trial_steps: int = 0
    sweep_seconds: float = 0.0  # those of `seconds` after everything was compiled
    compiled: bool = False
    limits: Limits | None = None


class NoMemory(RunError):
    """The device has no memory for all trials of a block at once."""


def pair_name(trial: Trial) -> str:
    """A pair's name in run.json."""
    return f"{trial.problem.name} × {trial.optimizer.spec}"


def load_of_plan(plan: SweepPlan, name: str, objects: Mapping[str, Problem]) -> Problem:
    """The plan's problem of this name, checked, with the target that the plan states."""
    return load_problem(objects.get(name, name)).named(name, plan.solved(name))


def check_batches(plan: SweepPlan, problem: Problem) -> None:
    """PlanError where the problem's data cannot be cut into the plan's minibatches."""
    if plan.batch_size is None:
        return
    if problem.examples is None:
        raise PlanError(
            f"batch_size: {problem.name} states no Problem(examples=N), so its data cannot be cut into minibatches"
        )
    if plan.batch_size > problem.examples:
        raise PlanError(f"batch_size: {plan.batch_size} is more than the {problem.examples} examples of {problem.name}")
    check_batch(problem, plan.batch_size)


def prepare(
    plan: SweepPlan, objects: Mapping[str, Problem], functions: Mapping[str, Optimizer]
) -> tuple[list[Trial], list[jax.Device]]:
    """Load and check everything that the plan names, before anything is written: one trial of each pair, and the
    devices. Raises a GradbenchError that says which part of the plan does not hold."""
    if plan.searching is not None and plan.searching.kind == OPTUNA:
        samplers(plan.searching.argument)  # raises where they are not installed
    if taken := [name for name in plan.axis_names if name in SCHEMAS["trials"].names]:
        raise PlanError(f"axes: {taken[0]} is a column of every record's trials; give the setting another name")
    devices = find_devices(plan.device)
    optimizers = [(functions.get(name) or load_optimizer(name), plan.of(name)) for name in plan.optimizers]
    trials = []
    for name in plan.problems:
        problem = load_of_plan(plan, name, objects)
        warn_of_idle_leaves(problem)
        for own in {of.batch_size: of for _, of in optimizers}.values():
            check_batches(own, problem)
        for optimizer, own in optimizers:
            with numerics(own.dtype, own.precision):
                trials.append(Trial.of(problem, optimizer, own))
                if name == plan.problems[0]:
                    trials[-1].warn_of_idle_rate()
    return trials, devices


def facts(problem: Problem) -> dict[str, Any]:
    """What run.json keeps of a problem, so that its record can be read without its file."""
    params, _ = shapes(problem.plain, "float32")
    recorded = [f"{split}.{name}" for split, name in problem.objective.recorded]
    return {
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        **{name: getattr(problem, name) for name in ("examples", "minimum", "target", "curvature")},
        # What metrics.parquet has of the problem, and which metrics are better when larger; absent where it has none.
        **({"recorded": recorded, "maximise": list(problem.maximise)} if recorded else {}),
    }


@dataclass(frozen=True)
class Survey:
    """What run.json has of a plan before it runs: facts and digests by problem, blocks and trials per unit by pair."""

    facts: dict[str, Any]
    data: dict[str, str]
    blocks: dict[str, dict[str, Any]]
    units: dict[str, int]


def survey(plan: SweepPlan, parcel: Parcel | Kept, blocks: Mapping[str, dict[str, Any]]) -> Survey:
    """Load and check everything, in a process that has the devices; `blocks` are those already chosen."""
    trials, devices = prepare(plan, *parcel.open())
    problems = {trial.problem.name: trial.problem for trial in trials}
    chosen, units = {}, {}
    for trial in trials:
        name = pair_name(trial)
        block = Block(**blocks[name]) if name in blocks else choose_block(trial, devices, trial.side_by_side)
        chosen[name] = dataclasses.asdict(block)
        # A search or a budget needs the whole pair in one unit; a race is cut into rounds.
        whole = plan.search is not None or (plan.budget is not None and plan.until is None)
        units[name] = trial.trials if whole else unit_trials(trial, block, devices[0].platform)
    described = {name: facts(problem) for name, problem in problems.items()}
    return Survey(described, data_digests(plan, problems), chosen, units)


def sharpness_rows(trial: Trial, paths: Paths) -> list[dict[str, Any]]:
    """Rows of sharpness.parquet along these paths."""
    from gradbench.theory.sharpness import sharpness_along  # only a plan that asks for it waits for SciPy

    rows = sharpness_along(trial.problem, trial.optimizer.at(paths.settings), list(paths.rates), plan=trial.plan)
    return [row | {"optimizer": trial.optimizer.spec} for row in rows]


class _Loaded:
    """A job in this process: its problems and optimizers, and the programs of the pairs it used last."""

    def __init__(self, job: Job):
        self.job, self.devices = job, find_devices(job.plan.device)
        if what := misfit(job.began, job.plan.device, job.plan.precision):
            raise RunError(f"the run {what}; this worker cannot run its units")
        self.problems: dict[str, Problem] = {}
        self.pairs: dict[int, CompiledPair] = {}
        self.compiler, self.lock = Compiler(), threading.Lock()

    def run(self, unit: Unit) -> Result:
        began = time.perf_counter()
        plan, (pair, compiled) = self.job.plan, self._pair(unit.pair)
        swept, steps, sweep_seconds, limits = UnitRows(plan.axis_names), 0, 0.0, None
        tables = swept.tables
        if unit.kind == "timings":
            rows = Timings(pair, unit.modes).rows()
            tables = {"timings": pa.Table.from_pylist(rows, schema=SCHEMAS["timings"])}
            limits = measure_limits(tuple(self.devices), plan.of(plan.pairs[unit.pair][1]).dtype, plan.precision)
        elif unit.kind == "sharpness":
            assert unit.paths is not None
            rows = sharpness_rows(pair.program.trial, unit.paths)
            tables = {"sharpness": pa.Table.from_pylist(rows, schema=SCHEMAS["sharpness"])}
        else:
            own = pair.program.trial.plan
            sweep = PairSweep(pair.program, pair.ready(), own, unit.pair, swept, range(unit.first, unit.last))
            sweeps = time.perf_counter()
            with self.compiler.working():
                sweep.run()
            steps, sweep_seconds = sweep.trial_steps, time.perf_counter() - sweeps
        seconds = time.perf_counter() - began
        return Result(tables, name_of_worker(), seconds, steps, sweep_seconds, compiled, limits)

    def _pair(self, number: int) -> tuple[CompiledPair, bool]:
        """A pair's programs, and whether they had to be compiled."""
        with self.lock:
            if number in self.pairs:
                self.pairs[number] = self.pairs.pop(number)  # now the last to be dropped
                return self.pairs[number], False
            kept = len(self.job.blocks) if self.job.plan.until else PAIRS_KEPT  # a race returns to each pair
            while len(self.pairs) >= kept:
                del self.pairs[next(iter(self.pairs))]
            block = self.job.blocks[number]
            block = dataclasses.replace(block, devices=min(block.devices, len(self.devices)))
            self.pairs[number] = CompiledPair(self.compiler, self._trial(number), block, self.devices, sweeps=True)
            return self.pairs[number], True

    def _trial(self, number: int) -> Trial:
        plan, (problem, optimizer) = self.job.plan, self.job.plan.pairs[number]
        objects, functions = self.job.parcel.open((problem, optimizer))
        if problem not in self.problems:
            loaded = load_of_plan(plan, problem, objects)
            one = dataclasses.replace(plan, problems=(problem,))
            if data_digests(one, {problem: loaded})[problem] != self.job.data[problem]:
                raise RunError(f"the data of {problem} on this worker are not those that the run began with")
            self.problems[problem] = loaded
        made, own = functions.get(optimizer) or load_optimizer(optimizer), plan.of(optimizer)
        with numerics(own.dtype, own.precision):
            return Trial.of(self.problems[problem], made, own)


_loaded: dict[str, _Loaded] = {}  # of the last job only
_lock = threading.Lock()


def run_unit(job: Job, unit: Unit) -> Result:
    """Run a unit in this process: the same rows on every device of one kind. Raises RunError that names the worker
    (NoMemory where its device ran out)."""
    try:
        with _watchdog(job):
            with _lock:
                if job.key not in _loaded:
                    _loaded.clear()
                    _loaded[job.key] = _Loaded(job)
                loaded = _loaded[job.key]
            return loaded.run(unit)
    except Exception as error:
        kind = NoMemory if "RESOURCE_EXHAUSTED" in str(error) else RunError
        text = one_line(error) if isinstance(error, GradbenchError) else error_text(error)
        raise kind(f"on {name_of_worker()}: {text}") from None  # a user's exception may not pickle


@contextlib.contextmanager
def _watchdog(job: Job) -> Generator[None]:
    """Ends this process when the job's timeout is over, with a traceback on stderr: from a C thread, so that it works
    while a call never returns. Does nothing in the process that made the job."""
    ours = job.timeout is not None and job.maker != (_PROCESS, os.getpid())
    if ours and job.timeout is not None:
        faulthandler.dump_traceback_later(job.timeout, exit=True)
    try:
        yield
    finally:
        if ours:
            faulthandler.cancel_dump_traceback_later()
