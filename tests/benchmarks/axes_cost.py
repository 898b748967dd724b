"""What axes cost: a grid of 9 learning rates × 5 weight decays × 3 betas beside 135 learning rates, a program each, and
beside 15 runs of 9 learning rates: `python tests/benchmarks/axes_cost.py`. Ratios in one run, medians of rounds."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import gradbench
from gradbench.engine.pair import PairSweep
from gradbench.inputs.optimizer import load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import load_problem
from gradbench.machine.devices import find_devices
from gradbench.program.block import choose_block
from gradbench.program.program import Program, Trial, numerics
from gradbench.record.parts import PairStore

GRID = "adamw[weight_decay=1e-5:1e-1:5,b1=0.8|0.9|0.95]"


class Sweep:
    """One pair's sweep, again and again."""

    def __init__(self, problem: str, optimizer: str, rates: str, steps: int):
        self.plan = SweepPlan((problem,), (optimizer,), rates, seeds=1, steps=steps, retire=False)
        with numerics("float32", "highest"):
            trial = Trial.of(load_problem(problem), load_optimizer(optimizer), self.plan)
        devices = find_devices(None)
        self.program = Program(trial, choose_block(trial, devices, trial.trials), devices)
        self.seconds()  # compiles

    def seconds(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            pair = PairSweep(
                self.program, self.program.advance, self.plan, 0, PairStore(Path(folder), self.plan.axis_names)
            )
            began = time.perf_counter()
            pair.run()
            return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="*", default=["quadratic_bowl", "logistic_regression", "mlp"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print("problem, axes / 135 rates per trial-step, seconds of 15 runs / of one with axes (compiling included)")
    for problem in options.problems:
        grid = Sweep(problem, GRID, "1e-4:1:9", options.steps)
        rates = Sweep(problem, "adamw", "1e-4:1:135", options.steps)
        ratio = median(grid.seconds() / rates.seconds() for _ in range(options.rounds))
        with tempfile.TemporaryDirectory() as out:
            settings = {"seeds": 1, "steps": options.steps, "timing": "none", "out": out}
            began = time.perf_counter()
            gradbench.sweep(problem, GRID, "1e-4:1:9", **settings)
            once = time.perf_counter() - began
            began = time.perf_counter()
            for decay in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
                for b1 in (0.8, 0.9, 0.95):
                    gradbench.sweep(problem, f"adamw[weight_decay={decay},b1={b1}]", "1e-4:1:9", **settings)
            apart = time.perf_counter() - began
        print(f"{problem}, {ratio:.3f}, {apart / once:.1f} ({apart:.1f} s / {once:.1f} s)")


if __name__ == "__main__":
    main()
