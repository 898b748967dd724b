"""What to choose on this device, measured: run by `make gpu`, and the same at a small size on a CPU.

    python tests/benchmarks/gpu.py [--out results] [--small] [--rounds 5] [--budget 480]

scale: seconds per trial-step of a sweep of 1 to 65,536 trials, on the device and on the host's CPU in turn: where does
the device overtake it? Then A/Bs, each as a ratio to its first variant, the variants in turn in each round, medians:
loops (CUDA graphs around the steps), unroll (of the scan), tiny dots (batched or broadcast, multiplied and summed),
network (as it is written, as products of matrices, one trial after another), block (trials that go side by side),
kernel (one launch for many steps, kernel.py, with its results compared).

A variant that fails or does not apply is a row that says why. Saved after each case in
OUT/gpu-<device>/ as measurements.parquet and measurements.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import kernel
import numpy as np
import pyarrow as pa

from gradbench.errors import one_line
from gradbench.files import write_json, write_table
from gradbench.inputs.optimizer import load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem, load_problem
from gradbench.machine.devices import describe, find_devices
from gradbench.machine.environment import environment
from gradbench.program.block import choose_block
from gradbench.program.program import Block, Program, State, Trial, numerics
from gradbench.program.xla.layout import materialize_tree
from gradbench.program.xla.products import as_products
from gradbench.tables import Column, render

SCHEMA = pa.schema(
    [
        *[("case", pa.string()), ("variant", pa.string()), ("problem", pa.string()), ("platform", pa.string())],
        *[("trials", pa.int64()), ("trials_run", pa.int64()), ("steps", pa.int64())],
        *[("trial_step_s", pa.float64()), ("trial_step_s_samples", pa.list_(pa.float64()))],
        # the median of each round's ratio to the case's first variant; and why there is no number
        *[("ratio", pa.float64()), ("reason", pa.string())],
    ]
)
GRAPHS = "--xla_gpu_enable_command_buffer=+WHILE"
SLOW_SECONDS = 2.0  # a call that takes longer ends its series


@dataclass(frozen=True)
class Size:
    """How much is measured: a GPU's worth, or as much as a test on a CPU can wait for."""

    scale: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
    lanes: tuple[int, ...] = (64, 256, 1024, 4096, 16384, 65536)
    lanes_of: tuple[str, ...] = ("quadratic_bowl", "mlp")
    trials: int = 1024
    steps: int = 200
    networks: tuple[str, ...] = ("cnn", "transformer", "lstm", "autoencoder")
    network_trials: tuple[int, ...] = (8, 64)
    kernel_dim: int = 100
    kernel_trials: tuple[int, ...] = (128, 1024, 16384, 65536)
    kernel_rows: int = kernel.MAX_ROWS


SMALL = Size((1, 8), (2, 8), ("quadratic_bowl",), 8, 5, ("cnn[channels=2]",), (2,), 3, (128,), 4)


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
) -> tuple:
    """A bare scan over the engine's step on one device; without `batched` one trial after another."""
    trial = trial_of(problem, trials, steps)
    program = Program(trial, Block(1, trials, steps, 1), [device])
    rates = program.settings({"learning_rate": rates_of(trials)})

    def advance(state: State, rates: jax.Array, data: Any) -> Any:
        def step(state: State, _: None) -> Any:
            if batched:
                return jax.vmap(trial.step, in_axes=(0, 0, None))(state, rates, data)
            return jax.lax.map(lambda each: trial.step(*each, data), (state, rates))

        return jax.lax.scan(step, state, length=steps, unroll=unroll)

    def start() -> State:
        return program.start(np.zeros(trials, np.uint32), rates)

    arguments = (rates, materialize_tree(program.data))
    with numerics("float32", "highest"):
        compiled = jax.jit(advance, donate_argnums=0).lower(start(), *arguments).compile(compiler_options=options)
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
    """A comparison a number of trials: the CPU's cores first, so that the ratio is device / host."""
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


def loops(size: Size, device: Any, rounds: int) -> list[Variant]:
    no_gpu = None if device.platform == "gpu" else "CUDA graphs need a GPU"
    problem, trials = "quadratic_bowl", size.trials

    def graphs() -> tuple:
        try:
            options = {"xla_gpu_enable_command_buffer": "+WHILE"}
            return loop(problem, trials, size.steps, device, options=options)
        except Exception as error:  # this XLA takes the flag from the environment only
            print(f"compiler option refused ({one_line(error)}); in a process of its own", file=sys.stderr)
            samples = iter(_child(size, rounds))
            return lambda: next(samples), trials, size.steps

    return [
        Variant("as it is", problem, trials, lambda: loop(problem, trials, size.steps, device)),
        Variant("CUDA graph", problem, trials, graphs, no_gpu),
    ]


def _child(size: Size, rounds: int) -> list[float]:
    """Seconds of rounds + 1 calls of the loop in a process that has the flag."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {GRAPHS}".strip()
    command = [sys.executable, __file__, "--child", json.dumps([size.trials, size.steps, rounds + 1])]
    environment = os.environ | {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{GRAPHS}: {(done.stderr.strip() or 'no word').splitlines()[-1]}")
    return json.loads(done.stdout)


def unrolls(size: Size, device: Any) -> list[Variant]:
    problem, trials = "quadratic_bowl", size.trials
    return [
        Variant(f"unroll {n}", problem, trials, lambda n=n: loop(problem, trials, size.steps, device, unroll=n))
        for n in (1, 2, 4, 8)
    ]


def tiny_dots(size: Size, device: Any) -> list[Variant]:
    """One small layer, 16 to 8, of 64 rows, for every trial."""
    rows = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)

    def layer(product: Callable[..., jax.Array]) -> Problem:
        def loss(weights: jax.Array, data: jax.Array) -> jax.Array:
            return jnp.mean(jnp.tanh(product(data, weights)) ** 2)

        return Problem(lambda key: jax.random.normal(key, (16, 8)), loss, rows, name="layer")

    def broadcast(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a[:, :, None] * b[None], axis=1)

    return [
        Variant(name, "layer", size.trials, lambda p=product: loop(layer(p), size.trials, size.steps, device))
        for name, product in (("batched dot", jnp.matmul), ("multiply and sum", broadcast))
    ]


def networks(name: str, size: Size, device: Any, trials: int) -> list[Variant]:
    """A network's step: its convolutions become grouped ones when trials are batched, and as products do not."""
    written = load_problem(name)
    as_matrices = dataclasses.replace(written, loss=as_products(written.loss, "cpu"))  # which a CPU is given
    steps = max(2, size.steps // 10)
    sides = {
        "as written": lambda: loop(written, trials, steps, device),
        "as products": lambda: loop(as_matrices, trials, steps, device),
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


def compare(case: str, variants: list[Variant], rounds: int, platform: str) -> list[dict[str, Any]]:
    """A row a variant: the variants in turn in each round."""
    slow = False
    for variant in variants:
        if variant.reason is None and slow:
            variant.reason = f"a call of the size before took over {SLOW_SECONDS:g} s"
        if variant.reason is not None:
            continue
        try:
            once, *size = variant.build()
            once()  # compiles, warms
            slow = once() > SLOW_SECONDS
            variant.once, variant.size = once, (size[0], size[1])
        except Exception as error:  # a variant that cannot is a row that says why
            variant.reason = f"{type(error).__name__}: {one_line(error)[:300]}"
    for _ in range(rounds):
        for variant in [variant for variant in variants if variant.once is not None]:
            try:
                variant.samples.append(variant.once() / (variant.size[0] * variant.size[1]))
            except Exception as error:
                variant.once, variant.reason = None, f"{type(error).__name__}: {one_line(error)[:300]}"
    base = variants[0].samples
    rows = []
    for variant in variants:
        median = statistics.median(variant.samples) if variant.samples and not variant.reason else None
        ratios = [mine / its for mine, its in zip(variant.samples, base)]
        row = {"case": case, "variant": variant.name, "problem": variant.problem, "trials": variant.trials}
        row |= {"platform": variant.platform or platform, "trials_run": variant.size[0], "steps": variant.size[1]}
        row |= {"trial_step_s": median, "trial_step_s_samples": variant.samples, "reason": variant.reason}
        rows.append(row | {"ratio": statistics.median(ratios) if median is not None and ratios else None})
    return rows


def overtaking(rows: list[dict[str, Any]]) -> dict[str, int | None]:
    """A problem's least trials from which on, through the rest of the series, the device is faster than the host."""
    found: dict[str, int | None] = {}
    for row in sorted(
        (row for row in rows if row["case"] == "scale" and row["platform"] != "cpu"), key=itemgetter("trials")
    ):
        faster = row["ratio"] is not None and row["ratio"] < 1
        found[row["problem"]] = (found.get(row["problem"]) or row["trials"]) if faster else None
    return found


def measure(size: Size, device: Any, rounds: int, budget: float, save: Callable[[list], None]) -> list[dict[str, Any]]:
    began, rows = time.monotonic(), []
    cases = [
        ("loops", lambda: loops(size, device, rounds)),
        ("unroll", lambda: unrolls(size, device)),
        ("tiny dots", lambda: tiny_dots(size, device)),
        *[
            ("network", lambda n=n, t=t: networks(n, size, device, t))
            for n in size.networks
            for t in size.network_trials
        ],
        *[("kernel", lambda t=trials: kernels(size, device, t)) for trials in size.kernel_trials],
        *[("block", lambda p=name: blocks(p, size, device)) for name in size.lanes_of],
    ]
    for name in ("quadratic_bowl", "logistic_regression"):
        cases += [("scale", lambda v=variants: v) for variants in scale(name, size, device)]
    for case, variants in cases:
        spent, sides = time.monotonic() - began, variants()
        print(f"{spent:5.0f} s  {case}: {sides[0].problem}, {sides[0].trials} trials", file=sys.stderr, flush=True)
        if spent > budget:
            for side in sides:
                side.reason = side.reason or f"the budget of {budget:g} s was spent"
        rows += compare(case, sides, rounds, device.platform)
        save(rows)
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    columns = [Column("case", "case", str), Column("problem", "problem", str), Column("variant", "variant", str)]
    columns += [Column("trials", "trials"), Column("ns", "ns per trial-step"), Column("ratio", "ratio")]
    columns.append(Column("reason", "why not", lambda reason: reason or ""))

    def number(value: float | None, scale: float = 1.0) -> str | None:
        return None if value is None else f"{value * scale:.3g}"

    lines = [row | {"ns": number(row["trial_step_s"], 1e9), "ratio": number(row["ratio"])} for row in rows]
    return render(lines, columns, "table")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--small", action="store_true", help="a size for a CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=480.0, help="seconds after which no case begins")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = find_devices(None)[0]
    if options.child:
        trials, steps, count = json.loads(options.child)
        once, *_ = loop("quadratic_bowl", trials, steps, device)
        print(json.dumps([once() for _ in range(count + 1)][1:]))
        return
    kind = re.sub(r"[^a-z0-9]+", "-", describe(device).lower()).strip("-")
    folder = options.out / f"gpu-{kind}"
    folder.mkdir(parents=True, exist_ok=True)

    def save(rows: list[dict[str, Any]]) -> None:
        write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "measurements.parquet")
        about = {"rounds": options.rounds, "small": options.small, "overtakes_cpu_from_trials": overtaking(rows)}
        write_json(about | {"environment": environment([device], "highest")}, folder / "measurements.json")

    rows = measure(SMALL if options.small else Size(), device, options.rounds, options.budget, save)
    print(show(rows))
    print(f"record: {folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
