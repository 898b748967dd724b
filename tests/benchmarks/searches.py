"""What each search finds against the full grid, and for how many trial-steps: `python tests/benchmarks/searches.py`.

A row per pair and search: the best it found over the grid's best (steps to the target where both reach it, else the
final gap at the best point, medians over the seeds), and its share of the grid's trial-steps.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import gradbench
from gradbench.analysis.summary import PairSummary, summarise_all
from gradbench.tables import Column, percent, render

PROBLEMS = ("quadratic_bowl", "linear_regression", "logistic_regression", "softmax_regression", "mlp", "rosenbrock")
OPTIMIZERS = ("sgd", "adamw[weight_decay=1e-4:1e-1:4]")
SEARCHES = {
    "refine": {"search": "refine"},
    "halving": {"search": "halving"},
    "optuna": {"search": "optuna", "budget": "60trials"},
    "random": {"design": "random:20"},
}
COLUMNS = (
    Column("problem", "problem", str),
    Column("optimizer", "optimizer", str),
    Column("search", "search", str),
    Column("of_best", "of the grid's best", about="its best's steps to the target, or gap, over the grid's"),
    Column("measure", "in", str),
    Column("of_steps", "of its trial-steps", percent),
)


def rows_of(problem: str, optimizer: str, settings: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    runs = {"grid": gradbench.sweep(problem, optimizer, out=out, **settings)}
    runs |= {name: gradbench.sweep(problem, optimizer, out=out, **settings | of) for name, of in SEARCHES.items()}
    pairs = dict(zip(runs, (pair for [pair] in summarise_all(list(runs.values())))))
    steps = {name: int(np.sum(run.trials["steps_run"])) for name, run in runs.items()}
    rows = []
    for name in SEARCHES:
        measure, ratio = compared(pairs[name], pairs["grid"])
        row = {"problem": problem, "optimizer": optimizer, "search": name, "of_best": ratio, "measure": measure}
        rows.append(row | {"of_steps": steps[name] / steps["grid"]})
    return rows


def compared(found: PairSummary, grid: PairSummary) -> tuple[str, float | None]:
    """What is compared, and the found best's over the grid's."""
    if found.best is None or grid.best is None:
        return "–", None
    if found.best.steps_to_target is not None and grid.best.steps_to_target is not None:
        return "steps", found.best.steps_to_target / max(grid.best.steps_to_target, 1)
    floor = max(grid.floor, 1e-12)
    return "gap", max(found.best.gap_median, floor) / max(grid.best.gap_median, floor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="*", default=PROBLEMS)
    parser.add_argument("--optimizers", nargs="*", default=OPTIMIZERS)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--format", default="markdown")
    parser.add_argument("--out", type=Path, help="a folder for searches.parquet")
    options = parser.parse_args()
    settings = {"learning_rates": "1e-4:10:25", "seeds": 3, "steps": options.steps, "timing": "none"}
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for problem in options.problems:
            for optimizer in options.optimizers:
                rows += rows_of(problem, optimizer, settings, Path(folder))
    print(render(rows, [column for column in COLUMNS if column.key in rows[0]], options.format))
    for name in SEARCHES:
        mine = [row for row in rows if row["search"] == name]
        near = [row for row in mine if row["of_best"] is not None and row["of_best"] <= 1.05]
        cheap = [row for row in near if row["of_steps"] <= 1 / 3]
        share = math.exp(np.mean([math.log(row["of_steps"]) for row in mine]))
        print(
            f"{name}: within 5 % on {len(near)} of {len(mine)}, {len(cheap)} of them for a third; {share:.0%} of steps"
        )
    print(f"{time.perf_counter() - began:.0f} s")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), options.out / "searches.parquet")


if __name__ == "__main__":
    main()
