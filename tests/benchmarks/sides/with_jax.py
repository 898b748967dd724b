"""The engine; a jitted step in a Python loop; one compiled scan, called for each trial."""

from __future__ import annotations

import time

import jax
import numpy as np
import optax

from gradbench.engine.compiling import CompiledPair, Compiler
from gradbench.engine.roofline import measure_limits
from gradbench.engine.timing import time_program
from gradbench.machine.devices import find_devices
from gradbench.program.block import choose_block
from gradbench.program.program import numerics

from .cases import Case, JudgedOnly, Side


class Engine(Side):
    name = "engine"

    def __init__(self, case: Case):
        super().__init__(case)
        devices = find_devices(None)
        block = choose_block(case.sweep, devices, len(case.rates))
        self.params = jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], block.slots, axis=0), case.params)
        with Compiler() as compiler:  # as in a sweep: what begins the trials is compiled beside the loop
            pair = CompiledPair(compiler, case.trial, block, devices, sweeps=False)
            starting = compiler.submit(pair.program.prepare_begin, self.params)
            self.program, self.compiled = pair.program, pair.compiled.result()
            starting.result()

    def run(self) -> tuple[float, np.ndarray]:
        program, block, rates = self.program, self.program.block, self.case.rates
        losses, spent = [], 0.0
        for start in range(0, len(rates), block.slots):
            chosen = program.settings({"learning_rate": np.resize(rates[start : start + block.slots], block.slots)})
            seeds = np.zeros(block.slots, np.uint32)
            begun = program.begin(jax.tree.map(program.place, self.params), chosen)
            state = jax.block_until_ready(begun)
            with numerics("float32", "highest"):
                first, placed = program.place(np.zeros(block.slots, np.int32)), program.place(seeds)
                began, kept = time.perf_counter(), []
                for _ in range(self.chunks):
                    state, rows = self.compiled.call(state, chosen, placed, first, program.data, *program.watch())
                    kept.append(rows.loss)
                jax.block_until_ready((state, kept))
                spent += time.perf_counter() - began
            losses.append(np.concatenate(kept)[self.case.steps - 1])
        return spent, np.concatenate(losses)[: len(rates)]

    def of_limit(self) -> float:
        """A step's share of what the device's matrix products, memory and launches allow."""
        program, slots = self.program, self.program.block.slots
        starts = program.starts(np.zeros(slots, np.uint32))
        row = time_program(
            program, self.compiled, "batched", {"learning_rate": np.resize(self.case.rates, slots)}, starts
        )
        limits = measure_limits(tuple(program.devices), "float32", "highest")
        return limits.add_roofline(row)["of_limit"]

    @property
    def chunks(self) -> int:
        return -(-self.case.steps // self.program.block.rows)

    @property
    def trial_steps(self) -> int:
        block = self.program.block
        return -(-len(self.case.rates) // block.slots) * block.slots * self.chunks * block.rows


def _step(case: Case):
    """A training step as Optax's documentation writes it."""

    def step(params, opt_state, rate, data):
        loss, grads = jax.value_and_grad(case.problem.loss)(params, data)
        updates, opt_state = case.optimizer.build(rate, case.steps).update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return step


class JittedLoop(JudgedOnly):
    name = "jitted step loop"

    def __init__(self, case: Case):
        super().__init__(case)
        self.step, self.data = jax.jit(_step(case)), jax.device_put(case.data)

    def run(self) -> tuple[float, np.ndarray]:
        losses, spent = [], 0.0
        # One by one: to take an array of 64 apart JAX compiles for longer than for the scan.
        for rate in map(jax.numpy.asarray, self.case.rates[self.indices]):
            params = self.case.params
            opt_state = self.case.optimizer.build(rate, self.case.steps).init(params)
            began = time.perf_counter()
            with numerics("float32", "highest"):
                for _ in range(self.case.steps):
                    params, opt_state, loss = self.step(params, opt_state, rate, self.data)
                jax.block_until_ready((params, loss))
            spent += time.perf_counter() - began
            losses.append(loss)
        return spent, np.asarray(losses)


class ScanPerTrial(Side):
    name = "scan per trial"

    def __init__(self, case: Case):
        super().__init__(case)
        step = _step(case)

        @jax.jit
        def train(params, rate, data):
            def body(carry, _):
                params, opt_state, loss = step(*carry, rate, data)
                return (params, opt_state), loss

            state = params, case.optimizer.build(rate, case.steps).init(params)
            state, losses = jax.lax.scan(body, state, length=case.steps)
            return state, losses[-1]

        self.train, self.data = train, jax.device_put(case.data)

    def run(self) -> tuple[float, np.ndarray]:
        rates = [jax.numpy.asarray(rate) for rate in self.case.rates]
        began = time.perf_counter()
        with numerics("float32", "highest"):
            ends = [jax.block_until_ready(self.train(self.case.params, rate, self.data)) for rate in rates]
        return time.perf_counter() - began, np.asarray([loss for _, loss in ends])
