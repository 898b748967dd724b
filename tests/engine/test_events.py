"""What is found of a trial on the device is what a plain loop over its losses finds."""

import math

import jax
import numpy as np
import pytest
from sampling import sample

from gradbench.engine import events as ev
from gradbench.engine import pair
from gradbench.program.program import Observation
from gradbench.record.schema import TARGETS

STRIDE, ROWS, CHUNKS = 3, 7, 4
STEPS = STRIDE * ROWS * CHUNKS - 5  # the last row is less than a stride after the one before
SLOTS = 64


def losses(generator: np.random.Generator, dtype: str) -> np.ndarray:
    """(rows, slots): walks down from 100, flat ones, some that rise; with NaN, infinities and equal numbers in them."""
    falling = 100 * np.exp(np.cumsum(generator.normal(-0.4, 1.0, (ROWS * CHUNKS, SLOTS)), axis=0))
    falling[:, ::7] = 5.0
    falling[:, 1::5] *= np.geomspace(1, 1e7, ROWS * CHUNKS)[:, None]
    for value in (math.nan, math.inf, -math.inf):
        hit = generator.random(falling.shape) < 0.01
        falling[hit] = value
    falling[0] = 100.0
    return falling.astype(dtype)


def plain(loss: np.ndarray, norm: np.ndarray, overshot: np.ndarray, config: ev.ObservationConfig) -> dict:
    """One trial, row by row."""
    found = dict.fromkeys(("best_step", "steps_run", "diverged_at"), -1)
    found |= {
        "initial_loss": loss[0],
        "best_loss": math.inf,
        "tail_start": math.inf,
        "tail_rows": 0,
        "tail_overshot": 0.0,
    }
    hits, one = [-1] * (len(TARGETS) + 1), loss.dtype.type
    known = not math.isnan(config.minimum)
    minimum = one(config.minimum)
    levels = [minimum + one(t) * (loss[0] - minimum) if known else math.nan for t in (*TARGETS, config.target)]
    levels[-1] = levels[-1] if math.isnan(config.solved) else one(config.solved)
    gap = abs(loss[0] - minimum) if known else max(abs(loss[0]), loss[0] - one(config.solved))
    gap = math.inf if math.isnan(minimum) and math.isnan(config.solved) else gap
    for row, value in enumerate(loss):
        step = min(row * config.stride, config.steps)
        if row and (row - 1) * config.stride >= config.steps:
            break
        found |= {"steps_run": step, "final_loss": value, "final_grad_norm": np.sqrt(norm[row])}
        if row * config.stride > math.floor(ev.TAIL * config.steps):
            found["tail_rows"] += 1
            found["tail_overshot"] += overshot[row]
        elif math.isfinite(value):
            found["tail_start"] = min(found["tail_start"], value)
        if math.isfinite(value) and value < found["best_loss"]:
            found |= {"best_loss": value, "best_step": step}
        for k, level in enumerate(levels):
            if hits[k] < 0 and value <= level:
                hits[k] = step
        if not math.isfinite(value) or value > loss[0] + one(ev.DIVERGENCE) * gap:
            found["diverged_at"] = step
            break
        if config.stop_at_target and hits[-1] >= 0:
            break
    return found | {"hits": hits}


COMPILED = [("float32", False), ("float64", False), ("float32", True)]
ENDS = [
    (0.0, math.nan, False),
    (0.0, math.nan, True),
    (math.nan, 1.0, True),
    (-3.0, 1.0, False),
    (math.nan, math.nan, False),
]
BOTH = [(*COMPILED[(n + k) % 3], *end) for k in range(3) for n, end in enumerate(ENDS)]


@pytest.mark.parametrize(("dtype", "quickly", "minimum", "solved", "stop"), sample(BOTH, 3))
def test_events_are_those_of_a_plain_loop(dtype, quickly, minimum, solved, stop):
    config = ev.ObservationConfig(STEPS, STRIDE, minimum, solved, 1e-3, stop, True)
    generator = np.random.default_rng(17)
    loss = losses(generator, dtype)
    norm, overshot = generator.random(loss.shape).astype(dtype), (generator.random(loss.shape) < 0.5).astype("float32")
    observe = pair._observe(quickly)
    with jax.enable_x64(dtype == "float64"):
        events = jax.device_put(ev.blank(SLOTS, np.dtype(dtype)))
        first, wanted = np.zeros(SLOTS, np.int32), np.zeros((CHUNKS, 1), np.int32)
        for chunk in range(CHUNKS):
            part = slice(chunk * ROWS, (chunk + 1) * ROWS)
            rows = Observation(*(x[part] for x in (loss, norm, overshot)))
            events, first, _ = observe(events, rows, first, config.arrays(np.dtype(dtype)), wanted)
        events = ev.Events(*map(np.asarray, events))
    for slot in range(SLOTS):
        for name, value in plain(loss[:, slot], norm[:, slot], overshot[:, slot], config).items():
            np.testing.assert_array_equal(getattr(events, name)[slot], value, err_msg=f"{name} of slot {slot}")
