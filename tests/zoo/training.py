"""The engine's training runs and a plain Optax loop's, against float64, in units of what rounding allows.

The bound is the check's own: the whole run of one trial, losses at steps 0 to STEPS as a function of the start, the
data and the learning rate, is traced in the dtype and sampled by `Band`; a loss may be off by the quantile times its
deviation, and by the dtype's underflow. Where that is half of the loss itself or more, nothing is known: such points
are beyond the horizon, and are counted.
"""

from __future__ import annotations

import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradbench
from gradbench.gradients.execution.expectation import compare_centre
from gradbench.gradients.execution.judge import COARSEST
from gradbench.gradients.formula.oracle import float64, primitives, rounded, trace
from gradbench.gradients.rounding.band import Band, Spread, quantile
from gradbench.gradients.rounding.numbers.formats import flushes_subnormals, format_of, precision_context, x64_context
from gradbench.program.spread import initialise

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}
STEPS = 8
SEEDS = 2
FIRST_STEPS = np.geomspace(1e-4, 1e-2, 5)  # the first update, as a share of the parameters


def size(tree: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in jax.tree.leaves(tree))))


def whole_run(problem: gradbench.Problem) -> Any:
    """run(params, (data, rate, number)) -> the losses at steps 0 to STEPS by the optimizer of that number, as one
    function that can be traced. All optimizers are in it, so that the sampler is compiled once."""

    def run(params: Any, inputs: Any) -> jax.Array:
        data, rate, number = inputs
        transformations = [make(rate) for make in OPTIMIZERS.values()]

        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            params, states = carry
            value, grads = jax.value_and_grad(problem.loss)(params, data)
            pairs = [t.update(grads, state, params) for t, state in zip(transformations, states)]
            updates, states = zip(*pairs)
            params = optax.apply_updates(params, jax.tree.map(lambda *u: jax.lax.select_n(number, *u), *updates))
            return jax.tree.map(lambda new, old: new.astype(old.dtype), (params, states), carry), value

        carry = jax.tree.map(jnp.asarray, (params, tuple(t.init(params) for t in transformations)))
        return jax.lax.scan(step, carry, length=STEPS + 1)[1]

    return run


class Comparison:
    """One problem and dtype: `judge(optimizer)` for each of OPTIMIZERS."""

    def __init__(self, problem: gradbench.Problem, dtype: str):
        self.problem, self.dtype, self.device = problem, dtype, jax.devices("cpu")[0]
        # As the engine draws them, several side by side: alone their last bit can be another (jax 0.12).
        with jax.enable_x64(False):
            starts = initialise(problem, [self.device])(jnp.arange(SEEDS, dtype=jnp.uint32))
        self.starts = [
            rounded(jax.tree.map(lambda leaf, seed=seed: leaf[seed], starts), dtype) for seed in range(SEEDS)
        ]
        self.data = rounded(problem.data, dtype)
        self.run = jax.jit(whole_run(problem))
        self.bands: dict[bool, Band] = {}
        self.rate_dtype = np.dtype(np.float64 if dtype == "float64" else np.float32)

    def rates(self, optimizer: str) -> list[float]:
        """Learning rates whose first update is FIRST_STEPS of the parameters (0.1 for zeros): for sgd of all together,
        and its decrease of the loss to first order no larger a share; for adam of the leaf of the smallest entries."""
        start, data = self.starts[0], self.data
        if optimizer == "sgd":
            with jax.enable_x64(True):
                value, grads = jax.jit(jax.value_and_grad(self.problem.loss))(float64(start), float64(data))
            slope = size(grads) or 1.0
            scale = (size(start) or 0.1 * np.sqrt(sum(leaf.size for leaf in jax.tree.leaves(start)))) / slope
            scale = min(scale, abs(float(value)) / slope**2 or scale)
        else:
            scale = min(size(leaf) / np.sqrt(leaf.size) or 0.1 for leaf in jax.tree.leaves(start))
        return [float(self.rate_dtype.type(scale * share)) for share in FIRST_STEPS]

    def trials(self, rates: list[float]) -> list[tuple[float, int]]:
        return [(rate, seed) for rate in rates for seed in range(SEEDS)]

    def engine(self, optimizer: str, rates: list[float]) -> np.ndarray:
        """The losses (trials, STEPS + 1) that `gradbench.sweep` records."""
        with tempfile.TemporaryDirectory() as folder:
            settings = {"seeds": SEEDS, "steps": STEPS, "dtype": self.dtype, "device": "cpu", "retire": False}
            run = gradbench.sweep(self.problem, [optimizer], rates, record_points=STEPS + 1, out=folder, **settings)
            curves, table = run.curves.to_pydict(), run.trials.sort_by("trial")
        recorded = list(zip(table["learning_rate"].to_pylist(), table["seed"].to_pylist()))
        assert recorded == self.trials(rates), recorded
        losses = np.full((len(recorded), STEPS + 1), np.nan)  # the curve of a trial ends where it is not finite
        losses[curves["trial"], curves["step"]] = curves["loss"]
        return losses

    def plain(self, optimizer: str, rates: list[float]) -> np.ndarray:
        """The losses (trials, STEPS + 1) of a Python loop over a jitted update, one trial after another."""

        @jax.jit
        def update(params: Any, state: Any, data: Any, rate: Any) -> tuple[Any, Any, Any]:
            value, grads = jax.value_and_grad(self.problem.loss)(params, data)
            updates, state = OPTIMIZERS[optimizer](rate).update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        losses = []
        with x64_context(self.dtype), precision_context("highest"):
            for rate, seed in self.trials(rates):
                rate = self.rate_dtype.type(rate)
                params, data = jax.tree.map(jnp.asarray, (self.starts[seed], self.data))
                state = OPTIMIZERS[optimizer](rate).init(params)
                for _ in range(STEPS + 1):
                    params, state, value = update(params, state, data, rate)
                    losses.append(float(value))
        return np.reshape(losses, (-1, STEPS + 1))

    def exact(self, optimizer: str, rates: list[float]) -> list[np.ndarray]:
        """The losses of each trial in float64, from the same rounded start, data and rate."""
        number = list(OPTIMIZERS).index(optimizer)
        with jax.enable_x64(True):
            starts, data = float64(self.starts), float64(self.data)
            return [np.asarray(self.run(starts[s], (data, np.float64(r), number))) for r, s in self.trials(rates)]

    def spreads(self, optimizer: str, rates: list[float], worst_case: bool = False) -> list[Spread]:
        """What rounding alone may do to each trial's losses; worst_case: see gradients.interpreter."""

        def arguments(rate: float, seed: int) -> tuple[Any, Any]:
            number = np.int32(list(OPTIMIZERS).index(optimizer))
            return self.starts[seed], (self.data, np.asarray(rate, self.rate_dtype), np.asarray(number))

        trials = self.trials(rates)
        if worst_case not in self.bands:
            run = whole_run(self.problem)
            options: Any = (self.dtype, "highest", self.device)
            band = Band(run, *arguments(*trials[0]), *options, worst_case=worst_case)
            if "conv_general_dilated" in primitives(trace(self.problem.loss, self.starts[0], self.data)):
                band.size = 2**30  # as if large: samples one at a time, since vmap makes slow grouped convolutions
            self.bands[worst_case] = band
        return [self.bands[worst_case].sample(*arguments(*trial)) for trial in trials]

    def judge(self, optimizer: str) -> dict[str, Any]:
        """Largest deviations from float64 in units of the bound, of the engine and of the plain loop, and a verdict.

        FAIL where the engine is off by more than 1; INCONCLUSIVE where the model says of itself that it does not hold,
        or a plain loop shows that it does not (an overflow of adam's squares).
        """
        rates = self.rates(optimizer)
        engine, plain = self.engine(optimizer, rates), self.plain(optimizer, rates)
        spreads = self.spreads(optimizer, rates)
        # Where the loss itself rounds to a narrower format, the function it approximates is the interpretation's.
        exact = [s.exact[0] for s in spreads] if self.bands[False].mixed else self.exact(optimizer, rates)
        doubts = [compare_centre(s, [e], self.dtype) for s, e in zip(spreads, exact)]
        found = self.measure(engine, plain, np.stack(exact), spreads)
        found |= {"verdict": "PASS", "reason": ""}
        if max(found["engine"], found["plain"]) <= 1:
            return found
        found |= {"verdict": "FAIL" if found["engine"] > 1 else "PASS", "reason": found["worst"]}
        reasons = [f"no rounding rule for {name}" for name in spreads[0].unknown]
        reasons += sorted({d for d in doubts if d})
        if any(s.tie for s in spreads):
            reasons.append("rounding can turn a choice (equality, sort, branch)")
        at_worst = self.measure(engine, plain, np.stack(exact), self.spreads(optimizer, rates, worst_case=True))
        found |= {f"{road}_at_worst": at_worst[road] for road in ("engine", "plain")}
        if found["apart"] <= 1:
            reasons.append("the plain loop is as far off")
        if at_worst["engine"] <= 1:
            reasons.append("sums and loops may round the same way at each iteration")
        if reasons and found["verdict"] == "FAIL":
            found |= {"verdict": "INCONCLUSIVE", "reason": "; ".join([*reasons, found["worst"]])}
        return found

    def measure(self, engine: Any, plain: Any, exact: Any, spreads: list[Spread]) -> dict[str, Any]:
        """The largest deviations in units of the bound, of the two roads and between them; how many points there are,
        and how many beyond the horizon."""
        form = format_of(self.dtype)
        grain = form.tiny if flushes_subnormals(self.dtype, self.device) else form.spacing / 2
        with np.errstate(all="ignore"):
            band = quantile(exact.size) * np.stack([s.sigma[0] for s in spreads])
            known = np.isfinite(exact) & (band <= COARSEST * np.maximum(np.abs(exact), np.abs(exact[:, :1])))
            known, allowed = np.logical_and.accumulate(known, axis=1), band + grain  # past a horizon nothing follows

            def off(losses: np.ndarray) -> np.ndarray:
                units = np.where(losses == exact, 0.0, np.abs(losses - exact) / allowed)
                return np.where(known, np.where(np.isfinite(losses), units, np.inf), 0.0)

            apart = {"engine": off(engine), "plain": off(plain)}
            between = np.where(engine == plain, 0.0, np.abs(engine - plain) / allowed)
            between = np.where(np.isnan(engine) & np.isnan(plain), 0.0, between)
        road = max(apart, key=lambda name: apart[name].max())
        trial, step = np.unravel_index(apart[road].argmax(), exact.shape)
        got = (engine if road == "engine" else plain)[trial, step]
        worst = f"{road}: loss {got:.9g} for {exact[trial, step]:.9g} at step {step} of trial {trial}"
        return {
            "engine": float(apart["engine"].max()),
            "plain": float(apart["plain"].max()),
            "apart": float(np.nan_to_num(np.where(known, between, 0.0), nan=np.inf).max()),
            "worst": f"{worst}, {apart[road].max():.3g} times what rounding allows",
            "points": int(exact.size),
            "beyond_horizon": int((~known).sum()),
        }
