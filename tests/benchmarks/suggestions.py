"""How often a suggested learning rate lies within a factor of 2 of the full grid's best, and in its good range:
`python tests/benchmarks/suggestions.py`. The quick problems come first; `--seconds` ends it with what is done then."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from typing import Any

import gradbench
from gradbench.analysis.summary import summarise
from gradbench.errors import GradbenchError
from gradbench.inputs.built_in import problem_names
from gradbench.search.suggest import suggest
from gradbench.tables import Column, render, seconds

OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "lion", "rmsprop")
SLOW = ("autoencoder", "image_network", "matrix_factorisation", "heat_rod_pinn", "lstm", "cnn", "transformer")
COLUMNS = (
    Column("problem", "problem", str),
    Column("optimizer", "optimizer", str),
    Column("suggested", "suggested"),
    Column("best", "grid's best"),
    Column("factor", "factor"),
    Column("good", "in the good range", str),
    Column("range_test", "a range test's factor"),
    Column("seconds", "in", seconds),
)


def row_of(problem: str, optimizer: str, steps: int, out: str) -> dict[str, Any]:
    row: dict[str, Any] = {"problem": problem, "optimizer": optimizer, "suggested": None, "factor": None, "good": "–"}
    row["range_test"] = None
    try:
        found = suggest(problem, optimizer, steps=steps)
    except GradbenchError as error:
        return row | {"good": str(error)[:60], "best": None, "seconds": None}
    run = gradbench.sweep(problem, optimizer, "1e-4:100:31", seeds=1, steps=steps, timing="none", out=out)
    [pair] = summarise(run)
    row |= {"suggested": found.learning_rate, "seconds": found.seconds, "best": pair.best and pair.best.learning_rate}
    if pair.best is None or pair.good is None:
        return row
    risen = {"search": "range-test", "seeds": 1, "steps": steps, "timing": "none", "out": out}
    [test] = gradbench.sweep(problem, optimizer, "1e-5:100:2", **risen).summary()
    ratios = [rate / pair.best.learning_rate for rate in (found.learning_rate, test["suggested_learning_rate"])]
    low, high = pair.good
    return row | {
        "factor": max(ratios[0], 1 / ratios[0]),
        "range_test": max(ratios[1], 1 / ratios[1]),
        "good": "yes" if low / 1.3 <= found.learning_rate <= high * 1.3 else "no",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    quick = [name for name in problem_names() if name not in SLOW]
    parser.add_argument("--problems", nargs="*", default=[*quick, *SLOW])
    parser.add_argument("--optimizers", nargs="*", default=OPTIMIZERS)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1e9, help="no pair is begun after so long")
    parser.add_argument("--format", default="table")
    options = parser.parse_args()
    pairs = [(problem, optimizer) for problem in options.problems for optimizer in options.optimizers]
    rows, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        for problem, optimizer in pairs:
            if time.monotonic() - began > options.seconds:
                break
            rows.append(row_of(problem, optimizer, options.steps, out))
            print(f"{time.monotonic() - began:.0f} s: {rows[-1]}", file=sys.stderr)
    print(render(rows, COLUMNS, options.format))
    print(f"{len(rows)} of {len(pairs)} pairs")
    known = [row for row in rows if row["factor"] is not None]
    near = sum(row["factor"] <= 2 for row in known)
    good = sum(row["good"] == "yes" for row in known)
    print(f"within a factor of 2 on {near} of {len(known)}, in the good range (or a grid step from it) on {good}")
    print(f"a range test's tenth within a factor of 2 on {sum(row['range_test'] <= 2 for row in known)}")


if __name__ == "__main__":
    main()
