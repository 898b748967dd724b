"""Timing: trace, lower, compile, first run and steady steps, each apart; every measurement blocks on its result."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from gradbench.inputs.problem import Data, Params, cast, shapes
from gradbench.machine.internals import kernels_per_row
from gradbench.program.block import work
from gradbench.program.program import Program, State, loop_options, numerics
from gradbench.program.trial import inner, traced
from gradbench.program.xla.jaxprs import uncounted_flops
from gradbench.program.xla.layout import materialize_tree
from gradbench.program.xla.rewrite import rewritten

LOG = logging.getLogger(__name__)
SAMPLES = 9
SAMPLE_SECONDS = 0.005  # of one sample at least: the clock and a thread's wake-up cost microseconds
BUDGET_SECONDS = 20.0  # of one measurement; slow steps get fewer samples, whose count is recorded


class _CacheHitCounter(threading.local):
    """How often this thread loaded a program from JAX's compilation cache."""

    count = 0


_cache_hits = _CacheHitCounter()


def _listen(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _cache_hits.count += 1


jax.monitoring.register_event_listener(_listen)


@dataclass(frozen=True)
class Compiled:
    """A compiled function and the seconds each stage took; `cached` if it was loaded from the compilation cache,
    `ahead` if a sweep or another compilation used the cores meanwhile."""

    call: Any  # jax.stages.Compiled
    trace_s: float
    lower_s: float
    compile_s: float
    cached: bool
    flops: float | None
    bytes: float | None
    ahead: bool = False


def compile_stages(function: Any, *arguments: Any) -> Compiled:
    """Trace, lower and compile a jitted function, each timed. FLOP and bytes count a loop's body once."""
    clock = time.perf_counter
    _cache_hits.count = 0
    start = clock()
    traced = function.trace(*arguments)
    traced_at = clock()
    lowered = traced.lower()
    lowered_at = clock()
    compiled = lowered.compile()
    done = clock()
    analysis = compiled.cost_analysis() or {}
    stages = (traced_at - start, lowered_at - traced_at, done - lowered_at)
    return Compiled(compiled, *stages, _cache_hits.count > 0, analysis.get("flops"), analysis.get("bytes accessed"))


def measure(once: Callable[[int], float], steps: int) -> dict[str, Any]:
    """Steady seconds per step: the columns of timings.parquet from step_s_median to step_s_samples. `once(n)` does the
    work, of `steps` steps, n times in a row, waits for it, and returns its seconds.

    Every third sample is of 2n; T(2n)/T(n), the ratio of the medians, says whether the clock can be trusted.
    """
    seconds = once(1)  # warm
    repeats = max(1, int(np.ceil(SAMPLE_SECONDS / max(seconds, 1e-7))))
    count = int(max(2, min(SAMPLES, max(3, BUDGET_SECONDS / (max(seconds, 1e-7) * repeats * 3)))))
    samples: list[tuple[int, float]] = []
    ratio = 0.0
    for _ in range(2):  # a second round if something disturbed the first
        for sample in range(count):
            times = 2 * repeats if sample % 3 == 1 else repeats
            samples.append((times, once(times)))
        single, double = ([s for times, s in samples if times == n * repeats] for n in (1, 2))
        ratio = statistics.median(double) / statistics.median(single)
        if 1.9 <= ratio <= 2.1 or sum(single) + sum(double) > BUDGET_SECONDS / 2:
            break
    per_step = np.array([s / (times * steps) for times, s in samples])
    low, middle, high = np.percentile(per_step, [25, 50, 75])
    return {
        "step_s_median": float(middle),
        "step_s_p25": float(low),
        "step_s_p75": float(high),
        "step_s_min": float(per_step.min()),
        "samples": len(samples),
        "doubling": ratio,
        "trusted": bool(1.9 <= ratio <= 2.1),
        "step_s_samples": per_step.tolist(),
    }


def compile_program(program: Program) -> Compiled:
    """A program's `advance`, compiled for its devices."""
    with numerics(program.trial.plan.dtype, program.trial.plan.precision):
        return compile_stages(program.advance, *program.arguments())


def prepare_start(program: Program) -> None:
    """Compile what time_program calls to start trials whose starting points are placed from the host."""
    params, _ = shapes(program.trial.problem, "float32")
    slots = program.block.slots
    program.prepare_begin(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((slots, *leaf.shape), leaf.dtype), params))


def time_program(
    program: Program, compiled: Compiled, mode: str, settings: Mapping[str, np.ndarray], params: Params
) -> dict[str, Any]:
    """Time a program on trials at their start: a row of timings.parquet.

    `settings` holds the learning rates and values of axes of the first trials, `params` their starting points, one per
    slot. Every sample starts the trials anew, untimed, so that none has diverged or converged.
    """
    LOG.info("timing one trial" if mode == "solo" else "timing the batch")
    trial, block = program.trial, program.block
    placed, placed_seeds = program.settings(settings), program.place(np.zeros(block.slots, np.uint32))

    def start() -> State:
        return jax.block_until_ready(program.begin(params, placed))

    with numerics(trial.plan.dtype, trial.plan.precision):
        first = program.place(np.zeros(block.slots, np.int32))
        arguments = (placed, placed_seeds, first, program.data, *program.watch())

        def once(repeats: int) -> float:
            state, rows = start(), None
            began = time.perf_counter()
            for _ in range(repeats):
                state, rows = compiled.call(state, *arguments)
            jax.block_until_ready((state, rows))
            return time.perf_counter() - began

        first_run_s = once(1)
        steady = measure(once, block.steps)
        moved, uncounted = 2 * _bytes(start()) + _data_read(program), _uncounted(program)
        share = block.devices * _share_of_row(program, compiled.flops)
    return {
        "problem": trial.problem.name,
        "optimizer": trial.optimizer.spec,
        "mode": mode,
        "trials": block.slots,
        "devices": block.devices,
        **_costs(compiled, first_run_s, steady, share, uncounted, moved),
    }


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _data_read(program: Program) -> float:
    """The least bytes of data that one step of a block reads: all of it, once per device; with minibatches each trial's
    batch, and a step's share of the observation's reading of all data."""
    plan, problem, block, whole = (
        program.trial.plan,
        program.trial.problem,
        program.block,
        _bytes(materialize_tree(program.data)),
    )
    if plan.batch_size is None or not problem.examples:
        return whole * block.devices
    return whole * (block.slots * plan.batch_size / problem.examples + block.devices / block.stride)


def _share_of_row(program: Program, counted: float | None) -> float:
    """The factor from what XLA's cost analysis counts to one step. It counts a loop's body once: without minibatches a
    step; with them one observation of all the data and one update, while a row has one observation and `stride`
    updates."""
    stride = program.block.stride
    if program.trial.plan.batch_size is None or not counted:
        return 1.0
    whole = work(program.trial.problem, program.trial.plan, batch=False)
    observation = program.block.lanes * (whole.flops - whole.uncounted)
    return 1 - min(observation / counted, 1.0) * (1 - 1 / stride)


def _uncounted(program: Program) -> float:
    """FLOP of a step of the block that the cost analysis leaves out."""
    (update, observation), block = program.trial.uncounted, program.block
    return block.slots * (update + (0.0 if program.trial.plan.batch_size is None else observation / block.stride))


def _costs(
    compiled: Compiled, first_run_s: float, steady: dict[str, Any], scale: float, uncounted: float, moved: float
) -> dict[str, Any]:
    flops = None if compiled.flops is None else compiled.flops * scale + uncounted
    return {
        "trace_s": compiled.trace_s,
        "lower_s": compiled.lower_s,
        "compile_s": compiled.compile_s,
        "compile_cached": compiled.cached,
        "compile_ahead": compiled.ahead,
        "first_run_s": first_run_s,
        "flops_per_step": flops,
        "bytes_per_step": None if compiled.bytes is None else compiled.bytes * scale,
        "flops_per_s": None if flops is None else flops / steady["step_s_median"],
        "kernels_per_step": kernels_per_row(compiled.call.as_text()),
        "moved_bytes": moved,
        **steady,
    }


def compile_evaluation(program: Program, mode: str) -> Compiled:
    """The problem's loss alone (mode value) or with its gradient (value_and_grad), in a loop, for one trial."""
    plan, platform = program.trial.plan, program.platform
    problem = program.trial.compiled_for(platform).problem.plain

    # Each evaluation's result goes into the next one's params, times `nothing`, which the compiler cannot know to be 0.
    def value(params: Params, nothing: jax.Array, data: Data) -> Params:
        loss = problem.loss(params, data)
        return jax.tree.map(lambda p: p + (nothing * loss).astype(p.dtype), params)

    def value_and_grad(params: Params, nothing: jax.Array, data: Data) -> Params:
        loss, grads = jax.value_and_grad(problem.loss)(params, data)
        return jax.tree.map(lambda p, g: p + (nothing * g + nothing * loss).astype(p.dtype), params, grads)

    def chain(params: Params, nothing: jax.Array, data: Data) -> jax.Array:
        relayout = program.trial.kind.relayout(1, platform)
        step = rewritten(value if mode == "value" else value_and_grad, platform, relayout)
        after, _ = jax.lax.scan(lambda p, _: (step(p, nothing, data), None), params, length=program.block.rows)
        return inner(after, after)

    options = loop_options(platform, program.trial.kind.products)
    with numerics(plan.dtype, plan.precision):
        arguments = shapes(problem, plan.dtype)
        params, data = jax.tree.map(partial(_on, SingleDeviceSharding(program.devices[0])), arguments)
        nothing = jax.ShapeDtypeStruct((), plan.dtype)
        return compile_stages(jax.jit(chain, compiler_options=options), params, nothing, data)


def _on(sharding: SingleDeviceSharding, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def time_evaluation(program: Program, compiled: Compiled, mode: str, drawn: Any) -> dict[str, Any]:
    """The row of timings.parquet of what compile_evaluation compiled; `drawn`: one trial's starting point."""
    LOG.info("timing loss and gradient")
    plan, objective, plain = program.trial.plan, program.trial.objective, program.trial.problem.plain
    uncounted = program.trial.uncounted[1]
    if mode == "value":
        uncounted = uncounted_flops(traced(plain, plan, plain.loss, batch=False).jaxpr)
    with numerics(plan.dtype, plan.precision):
        data = objective.fixed_data(materialize_tree(program.data))
        placed = jax.device_put(cast((objective.parts(drawn)[0], data), plan.dtype), program.devices[0])
        params, data = placed
        once = partial(_call_often, compiled.call, params, np.zeros((), plan.dtype), data)
        first_run_s = once(1)
        steady = measure(once, program.block.rows)
    names = {"problem": program.trial.problem.name, "optimizer": None, "mode": mode, "trials": 1, "devices": 1}
    return names | _costs(compiled, first_run_s, steady, 1.0, uncounted, 2 * _bytes(params) + _bytes(data))


def _call_often(call: Callable[..., Any], params: Params, nothing: np.ndarray, data: Data, repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        result = call(params, nothing, data)
    jax.block_until_ready(result)
    return time.perf_counter() - began
