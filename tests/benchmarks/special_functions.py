"""The largest error of special functions in float32, in units of the laws of gradients/rounding/special.py, over points
that no test has: `python tests/benchmarks/special_functions.py`. The margins there are above these."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "gradients"))
import test_check_special as cases

from gradbench.gradients.rounding import special
from gradbench.gradients.rounding.numbers.formats import format_of
from gradbench.gradients.rounding.primitives import ELEMENTARY_UNITS

SEEDS, MANY = 30, 20_000


def main() -> None:
    form, worst = format_of(np.float32), {}
    for seed in range(1, SEEDS + 1):
        for name, (function, known, arguments) in cases.functions(np.random.default_rng([seed]), MANY).items():
            narrow = [np.asarray(x, np.float32) for x in arguments]
            wide = [x.astype(np.float64) for x in narrow]
            got = np.asarray(jax.jit(function)(*narrow)).astype(np.float64)
            with jax.enable_x64(True), np.errstate(invalid="ignore"):
                exact = known(*wide)
                size = special.law(name, lambda given, f=function: f(*given), [jnp.asarray(x) for x in wide], exact)
                allowed = form.unit * np.abs(exact) + form.tiny + ELEMENTARY_UNITS * form.unit * np.asarray(size)
                ratio = np.where(np.isfinite(exact) & (np.abs(exact) < form.largest), np.abs(got - exact) / allowed, 0)
            at = int(np.nanargmax(ratio))
            worst[name] = max(worst.get(name, (0.0, ())), (float(ratio[at]), tuple(float(x[at]) for x in wide)))
    for name, (ratio, where) in worst.items():
        print(f"{name}: {ratio:.3g} at {', '.join(f'{x:.6g}' for x in where)}")


if __name__ == "__main__":
    main()
