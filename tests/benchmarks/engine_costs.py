"""What the engine's own machinery costs and saves, in one run.

    python tests/benchmarks/engine_costs.py [--rounds 5] [--out results/reference/engine-cpu-2-cores]

harness: a whole sweep (queue, events, curves, progress) over its compiled program called bare as often, 64 learning
rates of sgd, long trials. retirement: a sweep of five decades of learning rates, three of which diverge, with
--no-retire over without. layout: a network written with examples as rows, over the mlp file's, which has them as
columns. rewritings: a program without one, over with it: of an LSTM, whose loop then keeps all that its derivative
needs, and of a matrix factorisation, whose rows are then kept (program/xla/loops.py, rewrite.py). scale: the sweep's
seconds per trial-step, from 64 trials to a million, over those of 64.
Medians of interleaved rounds; ratios of one run.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradbench.engine.pair import PairSweep
from gradbench.inputs.optimizer import load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import load_problem
from gradbench.machine.devices import find_devices
from gradbench.machine.environment import environment
from gradbench.program.block import choose_block
from gradbench.program.program import Program, Trial, numerics
from gradbench.program.xla import products, rewrite
from gradbench.record.parts import PairStore
from gradbench.record.store import write_json
from gradbench.tables import FORMATS, Column, render

# Steps of a trial, and the learning rates: stable ones, so that a bare call and a sweep do the same steps.
HARNESS = {
    "quadratic_bowl": (1000000, "1e-8:1e-6:64"),
    "linear_regression[examples=1000,features=50]": (20000, "1e-3:1e-1:64"),
    "logistic_regression": (20000, "1e-3:1e-1:64"),
    "mlp": (200, "1e-3:1e-1:64"),
}
FACTORISATION = "matrix_factorisation[users=5000,items=3000,rank=32,ratings=200000]"
# Steps and learning rates of sweeps whose trials are many, or long.
RETIREMENT = [
    ("quadratic_bowl", 1000, "1e-2:1e3:16384"),
    ("quadratic_bowl", 10000, "1e-2:1e3:2048"),
    ("linear_regression", 1000, "1e-2:1e3:2048"),
]
# What is compared, the problem, learning rates, and the condition of the rewriting that is left out.
REWRITINGS = [
    ("all kept for a loop's derivative over what is dear", "lstm", "1e-3:1e-1:8", products, "has_cheap_values"),
    ("rows kept over looked up again", FACTORISATION, "50:5000:8", rewrite, "_looked_up_again"),
]
SCALE = (64, 1024, 16384, 131072, 1000000)


class Pair:
    """One compiled pair, swept into a folder that is thrown away."""

    def __init__(
        self, problem: str, rates: str, steps: int, seeds: int = 1, retire: bool = True, loss: Callable | None = None
    ):
        self.plan = SweepPlan((problem,), ("sgd",), rates, seeds=seeds, steps=steps, retire=retire)
        with numerics("float32", "highest"):
            loaded = load_problem(problem)
            loaded = dataclasses.replace(loaded, loss=loss) if loss else loaded
            trial = Trial.of(loaded, load_optimizer("sgd"), self.plan)
        devices = find_devices(None)
        self.program = Program(trial, choose_block(trial, devices, trial.trials), devices)
        self.chunks = 0
        self.sweep()  # compiles

    def advance(self, *arguments: Any) -> Any:
        self.chunks += 1
        return self.program.advance(*arguments)

    def sweep(self) -> float:
        """Seconds of the whole sweep."""
        self.chunks = 0
        with tempfile.TemporaryDirectory() as folder:
            pair = PairSweep(self.program, self.advance, self.plan, 0, PairStore(Path(folder)))
            began = time.perf_counter()
            pair.run()
            return time.perf_counter() - began

    def bare(self) -> float:
        """Seconds of as many calls of the program, each waited for."""
        program, block = self.program, self.program.block
        rates = program.settings({"learning_rate": np.resize(np.repeat(self.plan.rates, self.plan.seeds), block.slots)})
        seeds, first = (program.place(np.zeros(block.slots, kind)) for kind in (np.uint32, np.int32))
        watch = program.watch()
        with numerics("float32", "highest"):
            state = jax.block_until_ready(program.start(np.zeros(block.slots, np.uint32), rates))
            began = time.perf_counter()
            for _ in range(self.chunks):
                state, _ = jax.block_until_ready(program.advance(state, rates, seeds, first, program.data, *watch))
            return time.perf_counter() - began


def by_rows(params: Any, data: Any) -> jax.Array:
    """The mlp file's loss with examples as rows, as most networks are written."""
    hidden = jnp.tanh(data["x"] @ params[0]["w"] + params[0]["b"])
    logits = hidden @ params[1]["w"] + params[1]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, data["y"]).mean()


def ratio(rounds: int, above: Callable[[], float], below: Callable[[], float]) -> dict[str, Any]:
    pairs = [(above(), below()) for _ in range(rounds)]
    return {
        "ratio": statistics.median(a / b for a, b in pairs),
        "seconds": statistics.median(a for a, _ in pairs),
        "of": statistics.median(b for _, b in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=SCALE[-1], help="trials of the scale series at the most")
    parser.add_argument("--out", type=Path, help="a folder for engine.json")
    parser.add_argument("--format", choices=FORMATS, default="table")
    options = parser.parse_args()
    rows = []
    for name, (steps, rates) in HARNESS.items():
        pair = Pair(name, rates, steps)
        rows.append({"what": "harness over bare", "case": name} | ratio(options.rounds, pair.sweep, pair.bare))
    for name, steps, rates in RETIREMENT:
        kept, retired = (Pair(name, rates, steps, retire=retire) for retire in (False, True))
        case = f"{name}, {steps} steps"
        rows.append(
            {"what": "no retirement over retirement", "case": case} | ratio(options.rounds, kept.sweep, retired.sweep)
        )
    steps, rates = HARNESS["mlp"]
    in_rows, in_columns = (Pair("mlp", rates, steps, loss=loss) for loss in (by_rows, None))
    row = ratio(options.rounds, in_rows.sweep, in_columns.sweep)
    rows.append({"what": "examples as rows over as columns", "case": "mlp"} | row)
    for what, case, rates, module, condition in REWRITINGS:
        with mock.patch.object(module, condition, return_value=False):
            without = Pair(case, rates, 40)
        row = ratio(options.rounds, without.bare, Pair(case, rates, 40).bare)
        rows.append({"what": what, "case": case} | row)
    base = Pair("quadratic_bowl", f"1e-4:1e-3:{SCALE[0]}", 100)
    for count in [count for count in SCALE if count <= options.most]:
        pair = Pair("quadratic_bowl", f"1e-4:1e-3:{count}", 100)
        share = count / SCALE[0]  # a trial-step of the large sweep over one of the small
        row = ratio(options.rounds, lambda pair=pair, share=share: pair.sweep() / share, base.sweep)
        rows.append({"what": "trial-step over that of 64 trials", "case": f"{count} trials"} | row)
    columns = [Column("what", "what", str), Column("case", "case", str), Column("ratio", "ratio")]
    print(render(rows, [*columns, Column("seconds", "seconds"), Column("of", "over")], options.format))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        found = environment(find_devices(None), "highest")
        write_json({"rounds": options.rounds, "environment": found, "rows": rows}, options.out / "engine.json")


if __name__ == "__main__":
    main()
