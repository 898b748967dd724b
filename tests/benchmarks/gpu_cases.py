"""What `gpu.py` compares: each case's variants, and how one is built and timed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import kernel
import numpy as np

from gradbench.inputs.optimizer import load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem, load_problem
from gradbench.machine.devices import find_devices
from gradbench.program.block import choose_block
from gradbench.program.program import Block, Program, State, Trial, loop_options, numerics
from gradbench.program.xla.layout import materialize_tree
from gradbench.program.xla.products import as_products
from gradbench.program.xla.rewrite import rewritten

GRAPHS = "--xla_gpu_enable_command_buffer=+WHILE"


@dataclass(frozen=True)
class Size:
    """How much is measured: a GPU's worth, or as much as a test on a CPU can wait for."""

    scale: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
    lanes: tuple[int, ...] = (64, 256, 1024, 4096, 16384, 65536)
    lanes_of: tuple[str, ...] = ("quadratic_bowl", "mlp")
    trials: int = 1024
    steps: int = 200
    loops_of: tuple[str, ...] = (
        "quadratic_bowl",
        "mlp",
        "cnn",
        "transformer",
        "lstm",
        "autoencoder",
        "matrix_factorisation",
    )
    unrolls_of: tuple[str, ...] = ("quadratic_bowl", "logistic_regression", "mlp")
    networks: tuple[str, ...] = ("cnn", "transformer", "lstm", "autoencoder")
    network_trials: tuple[int, ...] = (8, 64)
    kernel_dim: int = 100
    kernel_trials: tuple[int, ...] = (128, 1024, 16384, 65536)
    kernel_rows: int = kernel.MAX_ROWS


SMALL = Size(
    scale=(1, 8),
    lanes=(2, 8),
    lanes_of=("quadratic_bowl",),
    trials=8,
    steps=5,
    loops_of=("quadratic_bowl",),
    unrolls_of=("quadratic_bowl",),
    networks=("cnn[channels=2]",),
    network_trials=(2,),
    kernel_dim=3,
    kernel_trials=(128,),
    kernel_rows=4,
)


@dataclass
class Variant:
    """One side of a comparison. `build()` gives a function that does `trials` x `steps` and returns its seconds;
    `reason` says why it is not even tried."""

    name: str
    problem: str
    trials: int
    build: Callable[[], tuple[Callable[[], float], int, int]]
    reason: str | None = None
    platform: str = ""
    samples: list[float] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    once: Callable[[], float] | None = None


def trial_of(problem: str | Problem, trials: int, steps: int) -> Trial:
    problem = load_problem(problem)
    plan = SweepPlan((problem.name,), ("sgd",), f"1e-4:0.1:{max(trials, 2)}", seeds=1, steps=steps)
    with numerics("float32", "highest"):
        return Trial.of(problem, load_optimizer("sgd"), plan)


def rates_of(trials: int) -> np.ndarray:
    return np.geomspace(1e-4, 0.1, trials).astype(np.float32)


def engine(problem: str | Problem, trials: int, steps: int, devices: list, block: Block | None = None) -> tuple:
    """The engine's own program for a sweep of `trials`, as a Variant's build() returns it."""
    trial = trial_of(problem, trials, steps)
    chosen = block or choose_block(trial, devices, trials)
    program = Program(trial, chosen, devices)
    seeds, rates = np.zeros(chosen.slots, np.uint32), program.settings({"learning_rate": rates_of(chosen.slots)})
    arguments = (rates, program.place(seeds), program.place(np.zeros(chosen.slots, np.int32)), program.data)
    return _timed(lambda: program.start(seeds, rates), program.advance, arguments), chosen.slots, chosen.steps


def loop(
    problem: str | Problem,
    trials: int,
    steps: int,
    device: Any,
    unroll: int = 1,
    options: Any = None,
    batched: bool = True,
    rewrite: bool = True,
) -> tuple:
    """A bare scan over the engine's step on one device, compiled with the engine's options or others. Without `batched`
    one trial after another; without `rewrite` the step as it is written."""
    platform = device.platform
    trial = trial_of(problem, trials, steps)
    program = Program(trial, Block(1, trials, steps, 1), [device])
    rates = program.settings({"learning_rate": rates_of(trials)})
    chosen = loop_options(platform, trial.kind.products, trials) if options is None else options
    one = trial.compiled_for(platform).step if rewrite else trial.step

    def side_by_side(state: State, rates: Any, data: Any) -> Any:
        if batched:
            return jax.vmap(one, in_axes=(0, 0, None))(state, rates, data)
        return jax.lax.map(lambda each: one(*each, data), (state, rates))

    step = rewritten(side_by_side, platform) if rewrite else side_by_side

    def advance(state: State, rates: Any, data: Any) -> Any:
        return jax.lax.scan(lambda s, _: step(s, rates, data), state, length=steps, unroll=unroll)

    def start() -> State:
        return program.start(np.zeros(trials, np.uint32), rates)

    arguments = (rates, materialize_tree(program.data))
    with numerics("float32", "highest"):
        compiled = jax.jit(advance, donate_argnums=0).lower(start(), *arguments).compile(compiler_options=chosen)
    return _timed(start, compiled, arguments), trials, steps


def _timed(start: Callable[[], Any], call: Callable[..., Any], arguments: tuple) -> Callable[[], float]:
    def once() -> float:
        with numerics("float32", "highest"):
            state = jax.block_until_ready(start())
            began = time.perf_counter()
            jax.block_until_ready(call(state, *arguments))
            return time.perf_counter() - began

    return once


def scale(problem: str, size: Size, device: Any) -> list[list[Variant]]:
    """One comparison per number of trials: the CPU's cores first, so that the ratio is device / host."""
    sides = [("cpu", find_devices("cpu"))]
    if device.platform != "cpu":
        sides.append((device.platform, [device]))
    return [
        [
            Variant(name, problem, trials, lambda t=trials, d=devices: engine(problem, t, 300, d), platform=name)
            for name, devices in sides
        ]
        for trials in size.scale
    ]


def loops(problem: str, size: Size, device: Any, rounds: int) -> list[Variant]:
    """The loop with deterministic kernels, with any that XLA picks, and as one CUDA graph."""
    no_gpu = None if device.platform == "gpu" else "an option of XLA's for GPUs"
    trials = size.trials if problem == "quadratic_bowl" else size.network_trials[0]

    def graphs() -> tuple:  # XLA takes the flag from the environment only
        samples = iter(_child(problem, trials, size.steps, rounds + 2))
        return lambda: next(samples), trials, size.steps

    def side(**chosen: Any) -> Callable[[], tuple]:
        return lambda: loop(problem, trials, size.steps, device, **chosen)

    return [
        Variant("as it is", problem, trials, side()),
        Variant("not tried out", problem, trials, side(options={"xla_gpu_autotune_level": 0}), no_gpu),
        Variant("any kernels", problem, trials, side(options={}), no_gpu),
        Variant("any kernels, as written", problem, trials, side(options={}, rewrite=False), no_gpu),
        Variant("CUDA graph", problem, trials, graphs, no_gpu),
    ]


def _child(problem: str, trials: int, steps: int, calls: int) -> list[float]:
    """Seconds of so many calls of the loop in a process that has the flag."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {GRAPHS}".strip()
    command = [sys.executable, __file__, json.dumps([problem, trials, steps, calls])]
    environment = os.environ | {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{GRAPHS}: {(done.stderr.strip() or 'no word').splitlines()[-1]}")
    return json.loads(done.stdout)


def unrolls(problem: str, size: Size, device: Any) -> list[Variant]:
    trials = size.trials if problem == "quadratic_bowl" else size.network_trials[0]
    return [
        Variant(f"unroll {n}", problem, trials, lambda n=n: loop(problem, trials, size.steps, device, unroll=n))
        for n in (1, 2, 4, 8)
    ]


def tiny_dots(size: Size, device: Any) -> list[Variant]:
    """One small layer, 16 to 8, of 64 rows, for every trial."""
    rows = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)

    def broadcast(weights: jax.Array, rows: jax.Array) -> jax.Array:
        return jnp.sum(rows[:, :, None] * weights[None], axis=1)

    def dot(weights: jax.Array, rows: jax.Array) -> jax.Array:
        return rows @ weights

    return _small("layer", (16, 8), rows, {"batched dot": dot, "multiply and sum": broadcast}, size, device)


def lookups(size: Size, device: Any) -> list[Variant]:
    """2,000 rows looked up in a table of 100, for every trial: the derivative adds them up in a fixed order."""
    index = np.random.default_rng(0).integers(0, 100, 2000).astype(np.int32)

    def rows(table: jax.Array, index: jax.Array) -> jax.Array:
        return table[index]

    def products(table: jax.Array, index: jax.Array) -> jax.Array:
        return jax.nn.one_hot(index, len(table), dtype=table.dtype) @ table

    return _small("table", (100, 8), index, {"rows": rows, "one-hot product": products}, size, device)


def _small(
    name: str, shape: tuple[int, ...], data: np.ndarray, sides: dict[str, Callable[..., Any]], size: Size, device: Any
) -> list[Variant]:
    """A loss of one array of parameters, mean(tanh(side(params, data))**2), with each of `sides`."""

    def problem(side: Callable[..., jax.Array]) -> Problem:
        def loss(params: jax.Array, data: jax.Array) -> jax.Array:
            return jnp.mean(jnp.tanh(side(params, data)) ** 2)

        return Problem(lambda key: jax.random.normal(key, shape), loss, data, name=name)

    return [
        Variant(variant, name, size.trials, lambda s=side: loop(problem(s), size.trials, size.steps, device))
        for variant, side in sides.items()
    ]


def networks(name: str, size: Size, device: Any, trials: int) -> list[Variant]:
    """A network's step: its convolutions become grouped ones when trials are batched, and as products do not."""
    written = load_problem(name)
    as_matrices = dataclasses.replace(written, loss=as_products(written.loss, "cpu"))  # products of several axes too
    steps = max(2, size.steps // 10)
    sides = {
        "as it is": lambda: loop(written, trials, steps, device),
        "as written": lambda: loop(written, trials, steps, device, rewrite=False),
        "all as products": lambda: loop(as_matrices, trials, steps, device),
        "one after another": lambda: loop(written, trials, steps, device, batched=False),
    }
    return [Variant(side, name, trials, build) for side, build in sides.items()]


def blocks(problem: str, size: Size, device: Any) -> list[Variant]:
    def build(lanes: int) -> tuple:
        return engine(problem, lanes, size.steps, [device], Block(1, lanes, size.steps, 1))

    return [Variant(f"{n} lanes", problem, n, lambda n=n: build(n)) for n in size.lanes]


def kernels(size: Size, device: Any, trials: int) -> list[Variant]:
    """The XLA loop, with and without unrolling, and the kernel, whose losses have to be the loop's."""
    problem = load_problem(f"quadratic_bowl[dim={size.kernel_dim}]")
    interpret, rows = device.platform == "cpu", size.kernel_rows

    def build() -> tuple:
        lambdas = [float(value) for value in problem.data]
        call = jax.jit(kernel.many_steps(lambdas, rows, trials // kernel.TILE, interpret))
        ones = jax.device_put(np.ones((len(lambdas), trials), np.float32), device)
        arguments = (jnp.zeros_like(ones), jax.device_put(rates_of(trials), device))
        losses = np.asarray(call(ones, *arguments)[0])
        expected = xla_losses(problem, trials, rows, device)
        off = float(np.max(np.abs(losses - expected))) / kernel.loss_tolerance(lambdas, rows)
        if not off <= 1:
            raise ValueError(f"void: losses differ from the engine's by {off:.3g} times what rounding explains")
        return _timed(lambda: ones, call, arguments), trials, rows

    def xla(unroll: int) -> tuple:
        return loop(problem, trials, rows, device, unroll)

    return [
        *(Variant(f"XLA, unroll {n}", problem.name, trials, lambda n=n: xla(n)) for n in (1, 4)),
        Variant("one launch", problem.name, trials, build, kernel.available()),
    ]


def xla_losses(problem: Problem, trials: int, rows: int, device: Any) -> np.ndarray:
    """(rows, trials) losses of the engine's own program."""
    program = Program(trial_of(problem, trials, rows), Block(1, trials, rows, 1), [device])
    seeds, rates = np.zeros(trials, np.uint32), program.settings({"learning_rate": rates_of(trials)})
    with numerics("float32", "highest"):
        first = program.place(np.zeros(trials, np.int32))
        _, seen = program.advance(program.start(seeds, rates), rates, program.place(seeds), first, program.data)
    return np.asarray(seen.loss)


if __name__ == "__main__":  # a child of `loops`
    problem, trials, steps, calls = json.loads(sys.argv[1])
    once, *_ = loop(problem, trials, steps, find_devices(None)[0])
    print(json.dumps([once() for _ in range(calls)]))
