"""Compiles pairs' programs side by side on the cores; times them while nothing else of ours runs."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import numpy as np

from gradbench.engine.pair import prepare_observing, prepare_slots
from gradbench.engine.timing import (
    Compiled,
    compile_evaluation,
    compile_program,
    prepare_start,
    time_evaluation,
    time_program,
)
from gradbench.machine.devices import cores, describe
from gradbench.program.block import solo_block
from gradbench.program.program import Block, Program, Trial

THREADS = 4  # at most: each holds a program's code in memory several times over
EVALUATIONS = ("value", "value_and_grad")  # of a problem, whatever the optimizer
TIMED = {"full": (*EVALUATIONS, "solo", "batched"), "batched": ("batched",), "none": ()}  # modes, by the plan's timing


class Compiler:
    """Compiles in background threads and tracks what of ours runs at once. `quiet()` waits until nothing does."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(min(cores(), THREADS))
        self._jobs: list[Future[Any]] = []
        self._lock, self._running, self._begun = threading.Lock(), 0, 0

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    @contextlib.contextmanager
    def working(self) -> Generator[Callable[[], bool]]:
        """Marks this thread as computing. Yields a function: whether anything else of ours computed meanwhile."""
        with self._lock:
            self._running, self._begun = self._running + 1, self._begun + 1
            others, begun = self._running > 1, self._begun
        try:
            yield lambda: others or self._begun > begun
        finally:
            with self._lock:
                self._running -= 1

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Start `job(*arguments)`. A Compiled that it returns gets `ahead`: whether other work ran beside it."""

        def run() -> Any:
            with self.working() as shared:
                result = job(*arguments)
                return dataclasses.replace(result, ahead=shared()) if isinstance(result, Compiled) else result

        begun = self._threads.submit(run)
        self._jobs = [begun, *(other for other in self._jobs if not other.done())]  # a done job's program may be freed
        return begun

    def quiet(self) -> None:
        """Wait until nothing is being compiled. A failed job raises where its result is asked for."""
        wait(self._jobs)


class CompiledPair:
    """The compiled programs that a pair's sweep needs."""

    def __init__(self, compiler: Compiler, trial: Trial, block: Block, devices: Sequence[jax.Device], sweeps: bool):
        """Begin to compile the pair's program and, where it `sweeps`, what else a sweep calls."""
        self.compiler, self.program = compiler, Program(trial, block, devices)
        self.compiled = compiler.submit(compile_program, self.program)
        beside = (prepare_observing, prepare_slots) if sweeps else ()
        self.beside = [compiler.submit(job, self.program) for job in beside]

    def ready(self) -> Any:
        """The compiled program, after all that the sweep needs is compiled."""
        for job in self.beside:
            job.result()
        return self.compiled.result().call


class Timings:
    """The programs of one trial alone, compiled in the background, and the rows of the pair's timings."""

    def __init__(self, pair: CompiledPair, modes: Sequence[str]):
        self.pair, self.modes, program = pair, modes, pair.program
        alone = solo_block(program.trial, program.block, program.platform)
        self.solo = Program(program.trial, alone, program.devices)
        self.compiled = {mode: self._compile(mode) for mode in modes}

    def _compile(self, mode: str) -> Future[Compiled]:
        if mode == "batched":
            return self.pair.compiled
        if mode == "solo":
            self.pair.compiler.submit(prepare_start, self.solo)
            return self.pair.compiler.submit(compile_program, self.solo)
        return self.pair.compiler.submit(compile_evaluation, self.solo, mode)

    def rows(self) -> list[dict[str, Any]]:
        """Rows of timings.parquet, measured now, while nothing else of ours runs: the problem's loss and gradient, one
        trial alone at the middle learning rate, the first trials together."""
        self.pair.compiler.quiet()
        program, plan = self.pair.program, self.pair.program.trial.plan
        together = program.starts(np.zeros(program.block.slots, np.uint32))
        alone = jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0))[:1], together)
        points = plan.points(program.trial.optimizer.spec)
        first = {name: np.resize(np.repeat(of, plan.seeds), program.block.slots) for name, of in points.items()}
        middle = {name: of[[len(of) // 2]] for name, of in points.items()}
        middle["learning_rate"] = np.exp([np.mean(np.log(points["learning_rate"]))])

        def row(mode: str) -> dict[str, Any]:
            compiled = self.compiled[mode].result()
            if mode in EVALUATIONS:
                return time_evaluation(self.solo, compiled, mode, jax.tree.map(lambda leaf: leaf[0], alone))
            if mode == "solo":
                return time_program(self.solo, compiled, mode, middle, jax.tree.map(self.solo.place, alone))
            return time_program(program, compiled, mode, first, together)

        place = {"host": platform.node(), "device_kind": describe(program.devices[0])}
        return [row(mode) | place for mode in self.modes]
