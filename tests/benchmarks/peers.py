"""The engine beside a plain PyTorch loop, a jitted JAX step in a Python loop, and vmapped PyTorch, in one run.

    python tests/benchmarks/peers.py [--rates 64] [--rounds 5]

The same losses, data, float32, full batch and learning rates; the four default problems with linear regression on
synthetic 1000 x 50 data. Each round times every side once, in turn; medians of the rounds are compared. A side whose
final losses differ from the engine's by more than rounding is void. Needs the extra `peers`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import torch

from gradbench.cost import choose_block
from gradbench.devices import find_devices
from gradbench.environment import environment
from gradbench.optimizer import load_optimizer
from gradbench.plan import SweepPlan
from gradbench.problem import cast, load_problem
from gradbench.program import Program, Trial, numerics
from gradbench.tables import Column, render

PROBLEMS = {
    "quadratic_bowl": (2000, 0.5),
    "linear_regression[examples=1000,features=50]": (500, 0.5),
    "logistic_regression": (500, 0.5),
    "mlp": (50, 0.1),
}


def torch_loss(name: str, data) -> Callable:
    """The same loss in PyTorch: a function of a dict of parameters."""
    values = {k: torch.tensor(np.asarray(v)) for k, v in (data if isinstance(data, dict) else {"a": data}).items()}
    if name.startswith("quadratic_bowl"):
        return lambda p: (values["a"] * p["x"] * p["x"]).sum()
    if name.startswith("linear_regression"):
        return lambda p: 0.5 * ((values["X"] @ p["x"] - values["y"]) ** 2).mean()
    if name.startswith("logistic_regression"):
        softplus = torch.nn.functional.softplus
        return lambda p: softplus(-values["y"] * (values["X"] @ p["x"])).mean() + 0.5e-3 * (p["x"] * p["x"]).sum()
    labels = values["y"].long()

    def mlp(p):
        hidden = torch.tanh(values["x"] @ p["w0"] + p["b0"])
        return torch.nn.functional.cross_entropy(hidden @ p["w1"] + p["b1"], labels)

    return mlp


def torch_params(name: str, params) -> dict[str, torch.Tensor]:
    if name.startswith("mlp"):
        named = {f"{k}{i}": layer[k] for i, layer in enumerate(params) for k in ("w", "b")}
    else:
        named = {"x": params}
    return {k: torch.tensor(np.asarray(v)) for k, v in named.items()}


class Sides:
    """One problem with sgd on every side. Each method runs all trials (or a stated few) and returns seconds for a
    trial-step and the final losses of the trials it ran."""

    def __init__(self, name: str, rates: np.ndarray, steps: int):
        self.name, self.rates, self.steps = name, rates, steps
        self.problem = load_problem(name)
        plan = SweepPlan((name,), ("sgd",), [float(r) for r in rates], seeds=1, steps=steps)
        with numerics("float32", "highest"):
            trial = Trial.of(self.problem, load_optimizer("sgd"), plan)
        devices = find_devices(None)
        self.program = Program(trial, choose_block(trial, devices, len(rates)), devices)
        self.params = cast(self.problem.init(jax.random.key(0)), "float32")
        self.data = cast(self.problem.data, "float32")
        self.loss = torch_loss(name, self.data)
        self.jitted = jax.jit(self._jax_step)
        self.engine()
        self.jax_loop()

    def engine(self) -> tuple[float, np.ndarray]:
        program, block = self.program, self.program.block
        losses, spent = [], 0.0
        for start in range(0, len(self.rates), block.slots):
            chosen = np.resize(self.rates[start : start + block.slots], block.slots)
            rates, seeds = program.rates(chosen), np.zeros(block.slots, np.uint32)
            with numerics("float32", "highest"):
                state = jax.block_until_ready(program.start(seeds, rates))
                first, placed = program.place(np.zeros(block.slots, np.int32)), program.place(seeds)
                began, kept = time.perf_counter(), []
                for _ in range(-(-self.steps // block.rows)):
                    state, rows = program.advance(state, rates, placed, first, program.data)
                    kept.append(rows.loss)
                jax.block_until_ready((state, kept))
                spent += time.perf_counter() - began
            losses.append(np.concatenate(kept)[self.steps - 1])
        steps = -(-self.steps // block.rows) * block.rows
        padded = -(-len(self.rates) // block.slots) * block.slots
        return spent / (padded * steps), np.concatenate(losses)[: len(self.rates)]

    def _jax_step(self, params, rate):
        loss, grads = jax.value_and_grad(self.problem.loss)(params, self.data)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), loss

    def jax_loop(self) -> tuple[float, np.ndarray]:
        params, rate, loss = self.params, jax.numpy.float32(self.rates[0]), None
        began = time.perf_counter()
        for _ in range(self.steps):
            params, loss = self.jitted(params, rate)
        jax.block_until_ready((params, loss))
        return (time.perf_counter() - began) / self.steps, np.array([loss])

    def torch_loop(self) -> tuple[float, np.ndarray]:
        params = {k: v.clone().requires_grad_() for k, v in torch_params(self.name, self.params).items()}
        optimizer = torch.optim.SGD(params.values(), lr=float(self.rates[0]))
        began = time.perf_counter()
        for _ in range(self.steps):
            optimizer.zero_grad()
            loss = self.loss(params)
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - began) / self.steps, np.array([loss.detach()])

    def torch_vmap(self) -> tuple[float, np.ndarray]:
        count = len(self.rates)
        step = torch.func.vmap(torch.func.grad_and_value(self.loss))
        params = {k: v.expand(count, *v.shape).clone() for k, v in torch_params(self.name, self.params).items()}
        rates = torch.tensor(self.rates, dtype=torch.float32)
        began = time.perf_counter()
        for _ in range(self.steps):
            grads, losses = step(params)
            params = {k: p - rates.reshape(-1, *(1,) * (p.ndim - 1)) * grads[k] for k, p in params.items()}
        return (time.perf_counter() - began) / (self.steps * count), losses.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rates", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="also write the rows here")
    options = parser.parse_args()
    devices = find_devices(None)
    jax.config.update("jax_default_matmul_precision", "highest")
    rows = []
    for name, (steps, highest) in PROBLEMS.items():
        sides = Sides(name, np.geomspace(highest / 100, highest, options.rates), steps)
        methods = ("engine", "torch_loop", "torch_vmap", "jax_loop")
        seconds: dict[str, list[float]] = {method: [] for method in methods}
        losses = {}
        for _ in range(options.rounds):
            for method in methods:
                spent, losses[method] = getattr(sides, method)()
                seconds[method].append(spent)
        medians = {method: statistics.median(values) for method, values in seconds.items()}
        row = {"problem": name, "engine_us": medians["engine"] * 1e6}
        for method in methods[1:]:
            count = len(losses[method])
            # float32 rounding over the steps, in another order of adding, on a contracting path
            agree = np.allclose(losses[method], losses["engine"][:count], rtol=1e-3)
            row[method] = medians[method] / medians["engine"] if agree else None
        rows.append(row)
    columns = [
        Column("problem", "problem", str),
        Column("engine_us", "engine, µs a trial-step"),
        Column("torch_loop", "PyTorch loop, ×"),
        Column("torch_vmap", "torch.func vmap, ×"),
        Column("jax_loop", "jitted step loop, ×"),
    ]
    title = f"{options.rates} learning rates, sgd, float32, full batch, medians of {options.rounds} rounds"
    print(render(rows, columns, "markdown", title))
    if options.json:
        versions = {"torch": torch.__version__}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"rows": rows, "environment": environment(devices, "highest"), **versions}, file, indent=2)


if __name__ == "__main__":
    main()
