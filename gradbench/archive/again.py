"""Chosen trials of a record run again by the engine, through the recorded program shape: the same bits in the same
place; and with rounding made larger, which tells how far another place's rounding may take them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow as pa

from gradbench.analysis.summary import trials_of
from gradbench.analysis.verdicts import EPSILON
from gradbench.engine.pair import PairSweep
from gradbench.engine.timing import compile_program
from gradbench.engine.units import check_batches, load_of_plan
from gradbench.errors import DamagedError, RunError, one_line
from gradbench.inputs.optimizer import Optimizer, Settings, load_optimizer
from gradbench.inputs.problem import Problem
from gradbench.program.program import Block, Program, State
from gradbench.program.trial import Trial, numerics, traced
from gradbench.program.xla.jaxprs import equations
from gradbench.record.parts import PairStore
from gradbench.record.schema import SWEPT
from gradbench.record.store import Run

SHAKEN = 8  # twins of each trial
TF32 = 2.0**-10  # the spacing of a product's factors where a device takes float32's for speed

Tables = dict[str, pa.Table]  # trials, curves, metrics, as a record has them


def recorded_block(run: Run, problem: str, optimizer: str) -> Block:
    """The shape of the program that a pair of a record was swept by. Raises DamagedError where run.json has none."""
    name = f"{problem} × {optimizer}"
    try:
        return Block(**run.info["blocks"][name])
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{run.path / 'run.json'}: damaged: no block of {name}") from error


@dataclasses.dataclass(frozen=True)
class Pair:
    """A pair of a record, loaded to run again on `devices`; `number` is its place in the plan."""

    run: Run
    number: int
    trial: Trial
    devices: list[jax.Device]

    @classmethod
    def of(cls, run: Run, number: int, devices: list[jax.Device], problem: Problem | None = None) -> Pair:
        """Raises a GradbenchError where its problem or optimizer cannot be loaded. `problem` is the one to take where
        it was given as an object."""
        name, optimizer = run.plan.pairs[number]
        loaded, own = load_of_plan(run.plan, name, {name: problem} if problem else {}), run.plan.of(optimizer)
        check_batches(own, loaded)
        with numerics(own.dtype, own.precision):
            return cls(run, number, Trial.of(loaded, load_optimizer(optimizer), own), devices)

    def replay(self, trials: Sequence[int] | np.ndarray) -> Tables:
        """These trials, by their numbers in the pair, by the sweep's program, if not in the slots that they had."""
        return self._sweep(Program, self.trial, trials)

    def in_every_slot(self, trials: Sequence[int] | np.ndarray) -> Iterator[Tables]:
        """Each of these trials in each slot of the sweep's program, under its one number; then so of a program for one
        device, as a worker may have had. Both may change last bits (docs/engine.md, The same bits)."""
        for devices in sorted({self.block.devices, 1}, reverse=True):
            block = dataclasses.replace(self.block, devices=devices)
            yield self._sweep(Program, self.trial, np.repeat(np.asarray(trials), block.slots), block)

    @property
    def block(self) -> Block:
        """The shape of the program that the pair was swept by, on no more devices than there are here."""
        block = recorded_block(self.run, *self.run.plan.pairs[self.number])
        return dataclasses.replace(block, devices=min(block.devices, len(self.devices)))

    def shaken(self, trials: Sequence[int] | np.ndarray) -> Tables:
        """SHAKEN twins of each of these trials, under its number, each with noise of its own as `shaking` adds it."""
        trial = dataclasses.replace(self.trial, optimizer=shaking(self.trial.optimizer, self.noise))
        return self._sweep(_Shaken, trial, np.repeat(np.asarray(trials), SHAKEN))

    @property
    def noise(self) -> float:
        """The relative rounding of what a step computes: the spacing of the dtype times the square root of the longest
        sum in the gradient, by which rounding errors that are independent grow."""
        plan, plain = self.trial.plan, self.trial.problem.plain
        coarse = plan.dtype == "float32" and plan.precision != "highest"
        terms = longest_sum(traced(plain, plan, jax.value_and_grad(plain.loss), batch=False).jaxpr)
        return math.sqrt(terms) * (TF32 if coarse else EPSILON[plan.dtype])

    def _sweep(
        self, kind: type[Program], trial: Trial, queue: Sequence[int] | np.ndarray, block: Block | None = None
    ) -> Tables:
        program = kind(trial, block or self.block, self.devices)
        rows = trials_of(self.run.trials, *self.run.plan.pairs[self.number])
        with _kept(self.run.plan.axis_names) as store:
            try:
                advance = compile_program(program).call
                PairSweep(program, advance, trial.plan, self.number, store, queue, rows).run()
            except jax.errors.JaxRuntimeError as error:
                name = " × ".join(self.run.plan.pairs[self.number])
                raise RunError(f"{name}: cannot be run again here: {one_line(error)}") from error
            return {name: store.read(name) for name in SWEPT}


@contextlib.contextmanager
def _kept(axes: Sequence[str]) -> Generator[PairStore]:
    """Where a sweep leaves what the caller reads at once."""
    with tempfile.TemporaryDirectory(prefix="gradbench-verify-") as folder:
        yield PairStore(Path(folder), axes)


def longest_sum(trace: Any) -> int:
    """The most terms that one entry of a traced function's values is the sum of."""
    return max((math.ceil(terms) for terms in _sums(trace)), default=1)


def _sums(trace: Any) -> Iterator[float]:
    for equation in equations(trace):
        name, operands = equation.primitive.name, [v.aval for v in equation.invars]
        if name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            yield math.prod(operands[0].shape[axis] for axis in summed)
        elif name == "conv_general_dilated":
            yield operands[1].size / operands[1].shape[equation.params["dimension_numbers"].rhs_spec[0]]
        elif name.startswith(("reduce_sum", "cumsum", "scatter-add", "reduce_window_sum")):
            yield max(1.0, operands[0].size / max(1, min(equation.outvars[0].aval.size, operands[0].size)))


class _ShakenState(NamedTuple):
    inner: Any
    salt: jax.Array  # uint32, each slot's own
    count: jax.Array


def shaking(optimizer: Optimizer, noise: float) -> Optimizer:
    """`optimizer` whose every step moves each entry of the params by up to `noise` times the size of the entry and of
    its update, at random.

    The gradient that a program computes is the exact one at params and data that differ by rounding (backward
    stability; Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 1.5), and the update is rounded: so
    two programs for one step differ as two such twins do.
    """

    def build(*arguments: Any, **settings: Any) -> optax.GradientTransformationExtraArgs:
        inner = optimizer.build(*arguments, **settings)

        def init(params: Any) -> _ShakenState:
            return _ShakenState(inner.init(params), jnp.uint32(0), jnp.int32(0))

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, _ShakenState]:
            updates, after = inner.update(updates, state.inner, params, **extra)
            key = jax.random.fold_in(jax.random.key(state.salt), state.count)

            def shake(number: int, update: jax.Array, leaf: jax.Array) -> jax.Array:
                wide = jnp.promote_types(jnp.float32, leaf.dtype)
                drawn = jax.random.uniform(jax.random.fold_in(key, number), leaf.shape, wide, -1, 1)
                moved = update + noise * drawn * (jnp.abs(leaf) + jnp.abs(update)).astype(wide)
                return moved.astype(update.dtype)

            leaves, tree = jax.tree.flatten(updates)
            moved = [shake(i, *of) for i, of in enumerate(zip(leaves, jax.tree.leaves(params), strict=True))]
            return jax.tree.unflatten(tree, moved), _ShakenState(after, state.salt, state.count + 1)

        return optax.GradientTransformationExtraArgs(init, update)

    return dataclasses.replace(optimizer, build=build)


class _Shaken(Program):
    """The program of shaken trials: each has noise of its own, also those that take a slot one after another."""

    begun = 0

    def begin(self, params: Any, settings: Settings) -> State:
        state = super().begin(params, settings)
        salt = self.place(self.begun + np.arange(self.block.slots, dtype=np.uint32))
        self.begun += self.block.slots
        return state._replace(opt_state=state.opt_state._replace(salt=salt))
