"""benchopt with its own runner against `gradbench run`: whole processes, start and compilation included.

The same problem, optimizers, learning rates and steps; benchopt runs one worker per core, without cache and plots.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from gradbench.machine.devices import cores
from gradbench.record.store import load_run

from .cases import OPTIMIZERS, PROBLEMS, Case
from .rounding import tolerances

FOLDER = Path(__file__).parent / "benchopt"
SOLVERS = ("numpy-loop", "jax-loop")
LONG = 50
Losses = dict[str, np.ndarray]  # by optimizer, in the order of the learning rates


class Sweep(NamedTuple):
    problem: str
    steps: int
    highest: float  # learning rate, stable for the three optimizers; the lowest is a hundredth of it

    def rates(self, count: int) -> np.ndarray:
        """Numbers that float32 holds."""
        return np.geomspace(self.highest / 100, self.highest, count).astype(np.float32).astype(float)


SWEEPS = [
    Sweep(name, PROBLEMS[name].steps, min(PROBLEMS[name].highest)) for name in ("quadratic_bowl", "logistic_regression")
]
# So many steps that start and compilation no longer decide, at learning rates as many times smaller.
SWEEPS.append(Sweep(SWEEPS[0].problem, LONG * SWEEPS[0].steps, SWEEPS[0].highest / LONG))


def _timed(command: list[str]) -> float:
    root = str(Path(__file__).parents[3])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    spent = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]}: {done.stderr[-2000:]}{done.stdout[-2000:]}")
    return spent


def gradbench(sweep: Sweep, rates: np.ndarray) -> tuple[float, Losses]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gradbench", "run", sweep.problem, "--lr", ",".join(map(repr, rates.tolist()))]
        command += [part for name in OPTIMIZERS for part in ("-o", name)]
        command += ["--seeds", "1", "--steps", str(sweep.steps), "--no-retire", "--quiet", "--out", folder]
        spent = _timed(command)
        trials = load_run(next(Path(folder).iterdir())).trials.to_pandas()
    by_rate = trials.sort_values("learning_rate").groupby("optimizer")["final_loss"]
    return spent, {name: losses.to_numpy() for name, losses in by_rate}


def benchopt(solver: str, sweep: Sweep, rates: np.ndarray) -> tuple[float, Losses]:
    listed = ",".join(map(repr, rates.tolist()))
    settings = f"optimizer=[{','.join(OPTIMIZERS)}],steps={sweep.steps},learning_rate=[{listed}]"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.parquet"
        command = [sys.executable, "-m", "benchopt", "run", str(FOLDER), "-s", f"{solver}[{settings}]"]
        command += ["-d", f"data[kind={sweep.problem}]", "-n", "1", "-j", str(cores()), "--timeout", "600"]
        spent = _timed([*command, "--no-cache", "--no-plot", "--output", str(output)])
        rows = pq.read_table(output).to_pandas()
    by_rate = rows.sort_values("p_solver_learning_rate").groupby("p_solver_optimizer")["objective_value"]
    return spent, {name: losses.to_numpy() for name, losses in by_rate}


def measure(sweep: Sweep, count: int, rounds: int) -> list[dict]:
    """One row per side, with every round's seconds."""
    rates = sweep.rates(count)
    sides = {"engine": lambda: gradbench(sweep, rates)}
    sides |= {f"benchopt {s}": lambda s=s: benchopt(s, sweep, rates) for s in SOLVERS}
    spent: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, Losses] = {}
    for _ in range(rounds):
        for name, run in sides.items():
            seconds, losses[name] = run()
            spent[name].append(seconds)
    rows = []
    for name in sides:
        share = 0.0
        for optimizer in OPTIMIZERS:
            # a step more: the loss after the last update, not before it
            case = Case(sweep.problem, optimizer, rates.astype(np.float32), sweep.steps + 1)
            off = np.abs(losses[name][optimizer] - losses["engine"][optimizer])[case.judged]
            share = max(share, float(np.max(off / tolerances(case))))
        rows.append({"side": name, "end_to_end_samples": spent[name], "loss_share": share, "trials": 3 * count})
    return rows
