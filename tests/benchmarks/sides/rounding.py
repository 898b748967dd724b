"""How far rounding may take a final loss: the whole training run, interpreted in float64 with the check's noise model.

Each primitive of the trial's steps gets the noise of its float32 rounding (gradbench.gradients.rounding), over many
steps, for SAMPLES seeds; sigma is the deviation of the last step's loss. Two right programs then differ by sqrt(2)
sigma t, with t of Student's law with SAMPLES degrees of freedom; the tolerance is its two-sided quantile at FALSE_ALARM
shared among all COMPARISONS of a full measurement. 10 to 60 s for a network's few steps, on 2 cores.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.gradients.rounding.interpreter import Interpreter
from gradbench.gradients.rounding.numbers.formats import flushes_subnormals
from gradbench.gradients.rounding.pairs import Pair, is_float, wide
from gradbench.program.program import numerics

from .cases import JUDGED, OPTIMIZERS, PROBLEMS, Case

SAMPLES = 8
FALSE_ALARM = 1e-3
SIDES = 7
COMPARISONS = len(PROBLEMS) * len(OPTIMIZERS) * SIDES * JUDGED


def tolerances(case: Case) -> np.ndarray:
    """Of the judged trials' final losses, absolute."""
    from scipy.special import stdtrit

    device = jax.local_devices()[0]
    flushes = functools.partial(flushes_subnormals, device=device)
    flushes("float32")

    def last_loss(params, rate, data):
        state = case.trial.start(params, {"learning_rate": rate})
        _, rows = jax.lax.scan(lambda s, _: case.trial.step(s, {"learning_rate": rate}, data), state, length=case.steps)
        return rows.loss[-1]

    with numerics("float32", "highest"):
        arguments = (case.params, jnp.float32(case.rates[0]), case.data)
        closed = jax.make_jaxpr(last_loss)(*arguments)
    leaves = [np.asarray(x) for x in jax.tree.leaves((case.params, case.data))]
    count = len(jax.tree.leaves(case.params))
    consts = [np.asarray(c) for c in closed.consts]
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        values = [jnp.asarray(x.astype(wide(x.dtype)) if is_float(x) else x) for x in leaves]

        def deviation(seed, rate, values):  # arguments: XLA would fold what depends on constants only, for minutes
            given = [*values[:count], rate, *values[count:]]
            (out,), _ = Interpreter(seed, device, flushes).run(closed.jaxpr, consts, [Pair(x, x) for x in given])
            return out.noisy - out.exact

        over_seeds = jax.vmap(deviation, in_axes=(0, None, None))
        found = jax.jit(lambda seeds, rates, values: jax.lax.map(lambda r: over_seeds(seeds, r, values), rates))(
            jnp.arange(1, SAMPLES + 1, dtype=jnp.uint32), jnp.asarray(case.rates[case.judged], jnp.float64), values
        )
        sigma = np.sqrt(np.mean(np.square(np.asarray(found)), axis=1))
    return -stdtrit(SAMPLES, FALSE_ALARM / (2 * COMPARISONS)) * np.sqrt(2) * sigma
