"""The engine beside its peers, in one run: the same losses, data, float32, full batch, steps and learning rates.

    python tests/benchmarks/peers.py [--problems networks] [--rates 64] [--out results/reference/peers-cpu-2-cores]
    python tests/benchmarks/peers.py --show results/reference/peers-cpu-2-cores --optimizers sgd --format markdown

Four small problems with 64 learning rates and five networks with 8, x sgd, momentum, adam. The engine takes a network's
few steps in the chunks of a sweep of 200. Steady: seconds in the loop
over the steps, a trial-step, compiled before, over runs of a quarter of a second at least; every side in turn in each
round, medians. End to end: from the data's and the start's arrays to the last loss of all trials in this process,
building and compiling included (imports not), once per side. A side that would take minutes runs 4 of the trials, and
its end-to-end time is its first run plus the rest at the steady pace; its heading has a star. benchopt is timed as
whole processes against `gradbench run`; the bowl also with 50 times the steps, once. A side whose final losses differ
from the engine's by more than rounding explains (sides/rounding.py) is void, and one whose set-up and first run take
longer than SETUP_SECONDS. Of limit: the engine's share of what the device's matrix products, memory and launches allow,
as `gradbench run` times it.
Needs the extra `peers`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # end to end is cold, on every side

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sides import end_to_end
from sides.cases import NETWORKS, OPTIMIZERS, PROBLEMS, SMALL, Case, Side, short
from sides.rounding import tolerances
from sides.with_jax import Engine, JittedLoop, ScanPerTrial
from sides.with_numpy import NumpyStacked

from gradbench.errors import one_line
from gradbench.files import write_json, write_table
from gradbench.machine.devices import find_devices
from gradbench.machine.environment import environment
from gradbench.tables import FORMATS, Column, percent, render

SIDES: list[type[Side]] = [Engine, JittedLoop, ScanPerTrial, NumpyStacked]
if importlib.util.find_spec("torch"):
    from sides.with_torch import TorchCompile, TorchLoop, TorchVmap

    SIDES += [TorchLoop, TorchVmap, TorchCompile]
STARRED = ("PyTorch loop", "jitted step loop")
ALL = "all three"
GROUPS = {"small": SMALL, "networks": NETWORKS}
SETUP_SECONDS = 120  # a side's set-up and first run at the most
STEADY_SECONDS = 0.25  # of one sample at least: a core that has just waited is slow, and the engine's bowl takes 4 ms
SCHEMA = pa.schema(
    [
        *[("problem", pa.string()), ("optimizer", pa.string()), ("side", pa.string())],
        *[("trials", pa.int64()), ("trials_run", pa.int64()), ("steps", pa.int64())],
        *[("step_s", pa.float64()), ("step_s_samples", pa.list_(pa.float64()))],
        *[("end_to_end_s", pa.float64()), ("end_to_end_samples", pa.list_(pa.float64()))],
        # the largest |loss - engine's| / tolerance of the judged trials: above 1 the row is void
        *[("loss_share", pa.float64()), ("void", pa.string()), ("of_limit", pa.float64())],
    ]
)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """TimeoutError within it after so many seconds."""

    def expire(*_: Any) -> None:
        raise TimeoutError(f"not set up and run once within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def steady(side: Side) -> float:
    """Seconds of a trial-step, over as many runs as STEADY_SECONDS take."""
    spent, runs = 0.0, 0
    while spent < STEADY_SECONDS:
        spent, runs = spent + side.run()[0], runs + 1
    return spent / (runs * side.trial_steps)


def measure(case: Case, rounds: int) -> list[dict[str, Any]]:
    """One row per side."""
    allowed = tolerances(case)
    total = len(case.rates) * case.steps
    rows, built = [], {}
    for kind in (kind for kind in SIDES if kind.takes(case)):
        row = dict.fromkeys(SCHEMA.names) | {
            "problem": case.problem_name,
            "optimizer": case.optimizer_name,
            "side": kind.name,
            "trials": len(case.rates),
            "steps": case.steps,
            "step_s_samples": [],
        }
        rows.append(row)
        began = time.perf_counter()
        try:
            with deadline(SETUP_SECONDS):
                side = kind(case)
                _, losses = side.run()
        except Exception as error:  # a peer that cannot is a row that says why
            if kind is Engine:
                raise
            row["void"] = f"{type(error).__name__}: {one_line(error)[:200]}"
            continue
        row["end_to_end_s"] = time.perf_counter() - began
        row["trials_run"] = len(side.indices)
        built[kind.name] = side, row, losses
    engine, row, losses = built["engine"]
    row["of_limit"], expected = engine.of_limit(), losses[case.judged]
    for _ in range(rounds):
        for side, row, _ in built.values():
            row["step_s_samples"].append(steady(side))
    for side, row, losses in built.values():
        row["step_s"] = statistics.median(row["step_s_samples"])
        row["end_to_end_s"] += row["step_s"] * (total - len(side.indices) * case.steps)
        judged = losses[np.searchsorted(side.indices, case.judged)]
        row["loss_share"] = float(np.max(np.abs(judged - expected) / allowed))
    return rows


def measure_benchopt(sweep: end_to_end.Sweep, count: int, rounds: int) -> list[dict[str, Any]]:
    common = dict.fromkeys(SCHEMA.names) | {"problem": sweep.problem, "optimizer": ALL, "steps": sweep.steps}
    try:
        rows = [common | row for row in end_to_end.measure(sweep, count, rounds)]
    except Exception as error:
        return [common | {"side": "benchopt", "void": one_line(error)[:300]}]
    for row in rows:
        row |= {"trials_run": row["trials"], "end_to_end_s": statistics.median(row["end_to_end_samples"])}
    return rows


def plain(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{float(f'{value:.3g}'):g}"


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per pair: how many times the engine's time each side takes, steady and (end to end)."""
    lines: dict[tuple[str, str, int], dict[str, Any]] = {}
    engines = {(row["problem"], row["optimizer"], row["steps"]): row for row in rows if row["side"] == "engine"}
    for row in rows:
        pair = row["problem"], row["optimizer"], row["steps"]
        line = lines.setdefault(pair, {"problem": short(pair[0]), "optimizer": pair[1], "steps": pair[2]})
        engine = engines.get(pair)
        if row["side"] == "engine" and row["step_s"]:
            line["engine_us"] = plain(row["step_s"] * 1e6)
            line["of_limit"] = percent(row.get("of_limit"))  # which older records do not have
        if row["side"] == "engine" or engine is None:
            continue
        if row["void"] or not row["loss_share"] <= 1:
            line[row["side"]] = "void"
            continue
        steady = plain(row["step_s"] / engine["step_s"]) if row["step_s"] else ""
        line[row["side"]] = f"{steady} ({plain(row['end_to_end_s'] / engine['end_to_end_s'])})".strip()
    return list(lines.values())


def show(rows: list[dict[str, Any]], output_format: str) -> str:
    names = list(dict.fromkeys(row["side"] for row in rows if row["side"] != "engine"))
    columns = [Column("problem", "problem", str), Column("optimizer", "optimizer", str), Column("steps", "steps", str)]
    columns += [Column("engine_us", "engine, µs per trial-step"), Column("of_limit", "of limit")]
    columns += [Column(name, name + "*" * (name in STARRED)) for name in names]
    lines = [dict.fromkeys(column.key for column in columns) | line for line in ratios(rows)]
    text = render(lines if output_format in ("table", "markdown") else rows, columns, output_format)
    for row in rows:
        if row["void"] or not (row["loss_share"] or 0) <= 1:  # nan where there is no tolerance
            why = row["void"] or f"final losses differ by {row['loss_share']:.3g} times what rounding explains"
            print(f"void: {row['problem']} × {row['optimizer']}, {row['side']}: {why}", file=sys.stderr)
    return text


def save(rows: list[dict[str, Any]], folder: Path, rounds: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "peers.parquet")
    found = environment(find_devices(None), "highest")
    for package in ("torch", "benchopt"):
        if importlib.util.find_spec(package):
            found["versions"][package] = importlib.metadata.version(package)
    write_json({"rounds": rounds, "environment": found}, folder / "environment.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rates", type=int, help="how many learning rates; by default each problem's own number")
    parser.add_argument("--rounds", type=int, default=3)
    names = [*GROUPS, *map(short, PROBLEMS)]
    parser.add_argument("--problems", nargs="*", default=list(GROUPS), choices=names)
    parser.add_argument("--optimizers", nargs="*", default=[*OPTIMIZERS, ALL], choices=[*OPTIMIZERS, ALL])
    parser.add_argument("--out", type=Path, help="a folder for peers.parquet and environment.json")
    parser.add_argument("--show", type=Path, help="measure nothing: the table of such a folder")
    parser.add_argument("--format", choices=FORMATS, default="table")
    options = parser.parse_args()
    if options.show:
        rows = pq.read_table(options.show / "peers.parquet").to_pylist()
        print(show([row for row in rows if row["optimizer"] in options.optimizers], options.format))
        return
    find_devices(None)  # before JAX starts with one CPU device
    rows: list[dict[str, Any]] = []

    def add(more: list[dict[str, Any]]) -> None:
        rows.extend(more)
        if options.out:  # after each case, so that a killed measurement leaves what it has
            save(rows, options.out, options.rounds)

    problems = [
        name
        for name in PROBLEMS
        if short(name) in options.problems or any(name in GROUPS.get(group, ()) for group in options.problems)
    ]
    for name in problems:
        for optimizer in [name for name in OPTIMIZERS if name in options.optimizers]:
            print(f"{name} × {optimizer}", file=sys.stderr, flush=True)
            add(measure(Case.of(name, optimizer, options.rates), options.rounds))
    if importlib.util.find_spec("benchopt") and ALL in options.optimizers:
        for sweep in [sweep for sweep in end_to_end.SWEEPS if sweep.problem in problems]:
            print(f"{sweep.problem}, {sweep.steps} steps, benchopt", file=sys.stderr, flush=True)
            rounds = options.rounds if sweep.steps == PROBLEMS[sweep.problem].steps else 1
            add(measure_benchopt(sweep, options.rates or PROBLEMS[sweep.problem].rates, rounds))
    print(show(rows, options.format))


if __name__ == "__main__":
    main()
