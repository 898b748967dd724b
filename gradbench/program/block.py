"""Chooses a program's block shape, from counted work and never from a clock: the shape decides the arithmetic, so two
runs of one plan on one device must choose the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.inputs.losses.objective import Objective
from gradbench.inputs.plan import SweepPlan, steps_per_epoch
from gradbench.inputs.problem import Problem
from gradbench.machine.devices import cores, memory
from gradbench.program.program import Block, Trial
from gradbench.program.trial import traced
from gradbench.program.xla.jaxprs import equations, nested, uncounted_flops
from gradbench.program.xla.switch import enabled

# Of one chunk: long compared with the host's work between two (about 1 ms) and with that of the operating system, which
# allocates a large program's memory at every call (a third of a transformer's step); one update of a progress bar.
CHUNK_SECONDS = 0.25
UNIT_SECONDS = 120.0  # of a unit of work for a worker, as estimated before it runs
RETIRE_SECONDS = 0.025  # of a chunk where trials wait: a finished one should leave its slot soon


@dataclass(frozen=True)
class Machine:
    """Orders of magnitude of one kind of device, for choosing shapes; measured rates are in timings.parquet."""

    flops: float  # per second, one device
    bytes: float  # per second, one device
    step_s: float  # of an empty step: loop, launches
    cache_bytes: float  # a block's intermediate values should fit in it, if each is read once
    product_bytes: float  # the same for values of matrix products, which are read more than once
    shared_bytes: float  # of the cache that a CPU's cores share: a chunk's observations stay in it until processed


CPU = Machine(flops=5e10, bytes=5e10, step_s=1e-6, cache_bytes=2**18, product_bytes=3 * 2**20, shared_bytes=2**24)
ACCELERATOR = Machine(1e13, 1e12, step_s=5e-5, cache_bytes=math.inf, product_bytes=math.inf, shared_bytes=2**26)


@dataclass(frozen=True)
class Work:
    """The work of one value and gradient of one trial: FLOP, how many of them XLA's cost analysis omits, and bytes of
    the intermediate values."""

    flops: float
    uncounted: float
    bytes: float


def _seconds(counted: Work, machine: Machine) -> float:
    """The seconds that a machine of this kind needs for the work."""
    return max(counted.flops / machine.flops, counted.bytes / machine.bytes)


def work(problem: Problem, plan: SweepPlan, batch: bool) -> Work:
    """The work of a gradient, counted on the traced program; `batch`: of one minibatch instead of all the data."""
    problem = problem.plain
    gradient = traced(problem, plan, jax.value_and_grad(problem.loss), batch)
    with jax.enable_x64(plan.dtype == "float64"):
        analysis = gradient.lower().cost_analysis() or {}
    # A loop holds its body's values once, and those that it stacks (as for the derivative) for every iteration.
    computing = (e for e in equations(gradient.jaxpr) if e.primitive.name == "scan" or not nested(e))
    results = (v.aval for equation in computing for v in equation.outvars)
    made = sum(aval.size * aval.dtype.itemsize for aval in results if hasattr(aval, "size"))
    uncounted = uncounted_flops(gradient.jaxpr)
    return Work(float(analysis.get("flops", 0.0)) + uncounted, uncounted, float(made))


_COUNTED: WeakKeyDictionary[Objective, dict[tuple[Any, ...], Work]] = WeakKeyDictionary()


def work_on(trial: Trial, platform: str, batch: bool) -> Work:
    """`work` of the trial's gradient as a platform's compiler is given it, counted once per problem."""
    problem, plan = trial.problem, trial.plan
    known = _COUNTED.setdefault(problem.objective, {})
    key = platform, enabled(), trial.kind.images, plan.dtype, plan.batch_size if batch else None
    if key not in known:
        known[key] = work(trial.compiled_for(platform).problem, plan, batch)
    return known[key]


def device_memory(device: jax.Device) -> float:
    """Bytes one device may fill."""
    if device.platform == "cpu":
        return memory() / cores()
    return (device.memory_stats() or {}).get("bytes_limit", 2**33)


def trial_bytes(trial: Trial, whole: Work) -> float:
    """The most memory that a trial takes, in bytes: its state, twice where it is replaced, and all intermediate values
    of a step on all the data, none freed early. XLA takes a tenth to four fifths of it."""
    leaves = jax.tree.leaves(trial.state_shape())
    return 2 * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) + whole.bytes


def choose_block(trial: Trial, devices: Sequence[jax.Device], trials: int) -> Block:
    """The block for a sweep of `trials` trials of one pair: lanes that fill a core's cache (or the accelerator) and
    rows for a chunk of about CHUNK_SECONDS."""
    plan, problem, platform = trial.plan, trial.problem, devices[0].platform
    machine = CPU if platform == "cpu" else ACCELERATOR
    step, whole = (work_on(trial, platform, batch) for batch in (True, False))
    seconds = _seconds(step, machine)  # of one trial's step
    # XLA's arithmetic depends on the lanes, not on a trial's neighbours, and hardly on its slot (docs/engine.md, The
    # same bits). So on a CPU the lanes are chosen by its cores, whatever the number of JAX devices.
    spread = min(len(devices) if machine is ACCELERATOR else cores(), trials)
    needed = math.ceil(trials / spread)

    fits = device_memory(devices[0]) / 4 / trial_bytes(trial, whole)
    # Data larger than the cache is read from memory at every step: more lanes share that reading.
    data_bytes = jnp.dtype(plan.dtype).itemsize * sum(np.size(leaf) for leaf in jax.tree.leaves(problem.data))
    shared = data_bytes if plan.batch_size is None else 0
    cache = machine.product_bytes if trial.kind.products else machine.cache_bytes
    near = max(cache, shared) / max(step.bytes, 1)
    # Where a whole trial is very short, more lanes hide the host's work between blocks.
    near = max(near, min(RETIRE_SECONDS / (plan.steps * seconds), 16 * near)) if seconds else near
    kind, on_cpu = trial.kind, machine is CPU
    # Two trials side by side make products of matrices a quarter faster, four a little more while the cache holds them.
    company = kind.products and kind.matrices and on_cpu
    least = max(2.0, min(4.0, machine.shared_bytes / max(step.bytes, 1))) if company else 1
    most = 1 if kind.alone and on_cpu else 65536
    lanes = int(max(1, min(needed, max(near, least), fits, most)))
    lanes = math.ceil(needed / math.ceil(needed / lanes))  # blocks of equal size: the last one is not half empty
    count = min(len(devices), math.ceil(trials / lanes))

    stride = observation_stride(problem, plan)
    total_rows = math.ceil(plan.steps / stride) + 1
    row_s = stride * (machine.step_s + lanes * seconds)
    rows = CHUNK_SECONDS / row_s
    if needed > lanes and plan.retire:
        rows = min(rows, max(RETIRE_SECONDS / row_s, total_rows / 8))
    if plan.rungs:  # trials are compared at the end of a chunk
        return Block(count, lanes, max(1, plan.rungs[0] // stride), stride, kind.relayout(lanes, platform))
    rows = max(1.0, min(rows, total_rows, machine.shared_bytes / (16 * lanes * spread)))
    chunks = math.ceil(total_rows / rows)
    rows = _up_to_forks(math.ceil(total_rows / chunks), [fork // stride for fork in trial.forks])
    return Block(count, lanes, rows, stride, kind.relayout(lanes, platform))


def _up_to_forks(rows: int, forks: list[int]) -> int:
    """The rows of a chunk, at most `rows`, such that chunks begin at these rows, or a little before: trials branch off
    at the end of a chunk."""
    if not forks:
        return rows
    apart, few = math.gcd(*forks), max(1, forks[0] // 8)
    return max((size for size in range(1, rows + 1) if apart % size == 0 and size >= few), default=min(rows, few))


def unit_trials(trial: Trial, block: Block, platform: str) -> int:
    """How many of a pair's trials make a unit of work: whole blocks, at least one, that take about UNIT_SECONDS by the
    counted work. Like the block, it is the same wherever it is computed, on one kind of device."""
    plan, machine = trial.plan, CPU if platform == "cpu" else ACCELERATOR
    seconds = _seconds(work_on(trial, platform, batch=True), machine)
    if plan.batch_size is not None:  # and the observation of all the data
        seconds += _seconds(work_on(trial, platform, batch=False), machine) / block.stride
    of_block = plan.steps * (machine.step_s + block.lanes * seconds)
    return block.slots * max(1, round(UNIT_SECONDS / of_block))


def observation_stride(problem: Problem, plan: SweepPlan) -> int:
    """Steps between two observations: 1, or with minibatches an epoch, since each observation takes all the data."""
    if plan.batch_size is None or problem.examples is None:
        return 1
    return min(steps_per_epoch(problem.examples, plan.batch_size), plan.steps)


def solo_block(trial: Trial, block: Block, platform: str) -> Block:
    """The block of one trial alone on one device, in chunks of the same number of steps."""
    return Block(1, 1, block.rows, block.stride, trial.kind.relayout(1, platform))
