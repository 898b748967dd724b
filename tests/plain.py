"""What the engine is held against: an ordinary Optax loop over one jitted step."""

from __future__ import annotations

import functools

import jax
import numpy as np
import optax
from quick import jit_quickly

from gradbench.inputs.problem import cast
from gradbench.program.minibatch import batch_rows
from gradbench.program.trial import order_key


@functools.cache
def plain_step(loss, make, examples, batch_size):
    """One step of an ordinary Optax loop, compiled once for all rates and starts: the loss before it and what comes
    after."""

    def step(params, opt_state, data, n, key, rate):
        rows = slice(None) if batch_size is None else batch_rows(n, examples, batch_size, key)
        grads = jax.grad(loss)(params, jax.tree.map(lambda leaf: leaf[rows], data))
        updates, opt_state = make(rate).update(grads, opt_state, params)
        return loss(params, data), optax.apply_updates(params, updates), opt_state

    return jit_quickly(step)


def plain_loop(problem, make, rate, steps, seed, batch_size=None, start=None):
    """The losses of an ordinary Optax loop in float64, one jitted step at a time; from `start` if it is given."""
    with jax.enable_x64(True):
        step = plain_step(problem.loss, make, problem.examples, batch_size)
        start = problem.init(jax.random.key(seed)) if start is None else start
        params, data = cast(start, "float64"), cast(problem.data, "float64")
        opt_state, key, losses = make(rate).init(params), order_key(seed), []
        for n in range(steps + 1):
            loss, params, opt_state = step(params, opt_state, data, np.int32(n), key, np.float64(rate))
            losses.append(float(loss))
    return np.array(losses)
