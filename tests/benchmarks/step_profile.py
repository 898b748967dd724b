"""Where the time of a network's step goes on a CPU: the table of docs/engine.md.

    python tests/benchmarks/step_profile.py [cnn transformer lstm autoencoder matrix_factorisation] [--top 10]

The sweep's compiled program of eight learning rates of sgd, float32, full batch, with the lanes that the engine chooses
for all cores, on one device, a few chunks under jax.profiler. Of an operation it takes the median of its calls, in ms
of a device per trial-step. A fusion counts as the first of these that it has: a product, a scatter, a lookup, exp or
the like, a sum.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import statistics
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from sides.cases import NETWORKS, Case, short

from gradbench.engine.timing import compile_program
from gradbench.machine.devices import find_devices
from gradbench.program.block import choose_block
from gradbench.program.program import Program, numerics

CHUNKS = 6
KINDS = {
    "products": {"dot", "convolution"},
    "scatters": {"scatter"},
    "lookups": {"gather"},
    "exp, tanh": {"exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "tanh", "power", "erf"}
    | {"rsqrt", "sqrt", "sine", "cosine"},
    "sums": {"reduce", "reduce-window"},
}
MOVES = {"copy", "transpose", "concatenate", "pad", "slice", "broadcast", "bitcast", "reshape", "parameter", "constant"}
MOVES |= {"dynamic-slice", "dynamic-update-slice", "iota"}
CONTAINERS = {"while", "call", "conditional"}


class Operation(NamedTuple):
    name: str
    kind: str
    milliseconds: float  # per trial-step
    calls: float  # per trial-step


def opcode(text: str) -> str:
    """Of an HLO instruction's text after the equals sign: a type, perhaps a tuple, then the opcode."""
    found = re.search(r"(?:^|[\s)])([a-z][\w-]*)\(", re.sub(r"/\*.*?\*/|\{[^}]*\}", "", text))
    return found.group(1) if found else ""


def kinds(hlo: str) -> dict[str, str]:
    """What each instruction of a compiled program does, by its name; those that hold others are left out."""
    computations: dict[str, dict[str, str]] = defaultdict(dict)
    inside = ""
    for line in hlo.splitlines():
        if begins := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            inside = begins.group(1)
        elif instruction := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)", line):
            computations[inside][instruction.group(1)] = instruction.group(2)
    found = {}
    for name, text in (item for of in computations.values() for item in of.items()):
        fused = re.search(r"calls=%?([\w.-]+)", text)
        codes = {*map(opcode, computations[fused.group(1)].values())} if fused else {opcode(text)}
        if not codes & CONTAINERS:
            moves = "moves" if codes <= MOVES else "entry by entry"
            found[name] = next((kind for kind, members in KINDS.items() if members & codes), moves)
    return found


def durations(folder: str) -> dict[str, list[float]]:
    """The nanoseconds of every call of the instructions in a trace of the profiler."""
    [file] = Path(folder).rglob("*.xplane.pb")
    found: dict[str, list[float]] = defaultdict(list)
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for event in (event for line in plane.lines for event in line.events):
            if any(name == "hlo_op" for name, _ in event.stats):
                found[event.name].append(event.duration_ns)
    return found


def profile(problem: str) -> list[Operation]:
    """The operations of a problem's step, the longest first."""
    case, devices = Case.of(problem, "sgd", None), find_devices("cpu")
    block = dataclasses.replace(choose_block(case.trial, devices, len(case.rates)), devices=1)
    program = Program(case.trial, block, devices[:1])
    compiled = compile_program(program).call
    rates = program.settings({"learning_rate": np.resize(case.rates, block.slots)})
    seeds = np.zeros(block.slots, np.uint32)
    placed, first = program.place(seeds), program.place(np.zeros(block.slots, np.int32))

    def chunks(state: Any) -> None:
        with numerics("float32", "highest"):
            for _ in range(CHUNKS):
                state, _ = compiled(state, rates, placed, first, program.data, *program.watch())
            jax.block_until_ready(state)

    chunks(program.start(seeds, rates))
    state = jax.block_until_ready(program.start(seeds, rates))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            chunks(state)
        seen = durations(folder)
    known, steps = kinds(compiled.as_text()), block.slots * block.rows * CHUNKS
    made = [
        Operation(name, known[name], statistics.median(of) * len(of) / steps / 1e6, len(of) / steps)
        for name, of in seen.items()
        if name in known
    ]
    return sorted(made, key=lambda operation: -operation.milliseconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [short(name) for name in NETWORKS]
    parser.add_argument("problems", nargs="*", default=names, help=f"of {', '.join(names)}")
    parser.add_argument("--top", type=int, default=0, help="also list this many of the longest operations")
    options = parser.parse_args()
    for problem in (name for name in NETWORKS if short(name) in options.problems):
        operations = profile(problem)
        by_kind: Counter[str] = Counter()
        for operation in operations:
            by_kind[operation.kind] += operation.milliseconds
        total = sum(by_kind.values())
        print(f"{problem}: {total:.3f} ms, {sum(operation.calls for operation in operations):.0f} operations")
        print("  " + ", ".join(f"{kind} {of / total:.0%}" for kind, of in by_kind.most_common()))
        for operation in operations[: options.top]:
            print(f"  {operation.milliseconds:8.4f} ms  {operation.kind:14}  {operation.name}", flush=True)


if __name__ == "__main__":
    main()
