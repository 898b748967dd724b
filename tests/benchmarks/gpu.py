"""What to choose on this device, measured: run by `make gpu`, and the same at a small size on a CPU.

    python tests/benchmarks/gpu.py [--out results] [--small] [--rounds 5] [--budget 480] [--only 'loops: (cnn|lstm)']

scale: seconds per trial-step of a sweep of 1 to 65,536 trials, on the device and on the host's CPU in turn: where does
the device overtake it? Then A/Bs, each as a ratio to its first variant, the variants in turn in each round, medians:
loops (with deterministic kernels, with any, as a CUDA graph), unroll (of the scan), tiny dots (batched or broadcast,
multiplied and summed), lookups (and as products), network (as rewritten, as written, one trial after another), block
(trials that go side by side), kernel (one launch for many steps, kernel.py, with its results compared).

A variant that fails or does not apply is a row that says why. Saved after each case in
OUT/gpu-<device>/ as measurements.parquet and measurements.json.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import gpu_cases as cases
import pyarrow as pa
from gpu_cases import SMALL, Size, Variant

from gradbench.errors import one_line
from gradbench.files import write_json, write_table
from gradbench.machine.devices import describe, find_devices
from gradbench.machine.environment import environment
from gradbench.tables import Column, render

SCHEMA = pa.schema(
    [
        *[("case", pa.string()), ("variant", pa.string()), ("problem", pa.string()), ("platform", pa.string())],
        *[("trials", pa.int64()), ("trials_run", pa.int64()), ("steps", pa.int64())],
        *[("trial_step_s", pa.float64()), ("trial_step_s_samples", pa.list_(pa.float64()))],
        # the median of each round's ratio to the case's first variant; and why there is no number
        *[("ratio", pa.float64()), ("reason", pa.string())],
    ]
)
Case = tuple[str, Callable[[], list[Variant]]]
SLOW_SECONDS = 2.0  # a call that takes longer ends its series


def compare(case: str, variants: list[Variant], rounds: int, platform: str) -> list[dict[str, Any]]:
    """One row per variant: the variants in turn in each round."""
    slow = False
    for variant in variants:
        if variant.reason is None and slow:
            variant.reason = f"a call of the size before took over {SLOW_SECONDS:g} s"
        if variant.reason is not None:
            continue
        try:
            once, *size = variant.build()
            once()  # compiles, warms
            slow = once() > SLOW_SECONDS
            variant.once, variant.size = once, (size[0], size[1])
        except Exception as error:  # a variant that cannot is a row that says why
            variant.reason = f"{type(error).__name__}: {one_line(error)[:300]}"
    for _ in range(rounds):
        for variant in [variant for variant in variants if variant.once is not None]:
            try:
                variant.samples.append(variant.once() / (variant.size[0] * variant.size[1]))
            except Exception as error:
                variant.once, variant.reason = None, f"{type(error).__name__}: {one_line(error)[:300]}"
    base = variants[0].samples
    rows = []
    for variant in variants:
        median = statistics.median(variant.samples) if variant.samples and not variant.reason else None
        ratios = [mine / its for mine, its in zip(variant.samples, base)]
        row = {"case": case, "variant": variant.name, "problem": variant.problem, "trials": variant.trials}
        row |= {"platform": variant.platform or platform, "trials_run": variant.size[0], "steps": variant.size[1]}
        row |= {"trial_step_s": median, "trial_step_s_samples": variant.samples, "reason": variant.reason}
        rows.append(row | {"ratio": statistics.median(ratios) if median is not None and ratios else None})
    return rows


def overtaking(rows: list[dict[str, Any]]) -> dict[str, int | None]:
    """A problem's least trials from which on, for the rest of those measured, the device is faster than the host."""
    found: dict[str, int | None] = {}
    for row in sorted(
        (row for row in rows if row["case"] == "scale" and row["platform"] != "cpu"), key=itemgetter("trials")
    ):
        if row["ratio"] is not None:
            faster = row["ratio"] < 1
            found[row["problem"]] = (found.get(row["problem"]) or row["trials"]) if faster else None
    return found


def measure(
    size: Size, device: Any, rounds: int, budget: float, save: Callable[[list], None], only: str = ""
) -> list[dict[str, Any]]:
    began, rows = time.monotonic(), []

    def network(name: str, trials: int) -> Case:
        return "network", lambda: cases.networks(name, size, device, trials)

    few, *more = size.network_trials
    todo: list[Case] = [
        *[network(name, few) for name in size.networks],
        *[("loops", lambda p=name: cases.loops(p, size, device, rounds)) for name in size.loops_of],
        *[("unroll", lambda p=name: cases.unrolls(p, size, device)) for name in size.unrolls_of],
        ("tiny dots", lambda: cases.tiny_dots(size, device)),
        ("lookups", lambda: cases.lookups(size, device)),
    ]
    for name in ("quadratic_bowl", "logistic_regression"):
        todo += [("scale", lambda v=variants: v) for variants in cases.scale(name, size, device)]
    todo += [
        *[("block", lambda p=name: cases.blocks(p, size, device)) for name in size.lanes_of],
        *[("kernel", lambda t=trials: cases.kernels(size, device, t)) for trials in size.kernel_trials],
        *[network(name, trials) for name in size.networks for trials in more],
    ]
    for case, variants in todo:
        spent = time.monotonic() - began
        sides = [side for side in variants() if re.match(only, f"{case}: {side.problem}: {side.name}")]
        if not sides:
            continue
        print(f"{spent:5.0f} s  {case}: {sides[0].problem}, {sides[0].trials} trials", file=sys.stderr, flush=True)
        if spent > budget:
            for side in sides:
                side.reason = side.reason or f"the budget of {budget:g} s was spent"
        rows += compare(case, sides, rounds, device.platform)
        save(rows)
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    columns = [Column("case", "case", str), Column("problem", "problem", str), Column("variant", "variant", str)]
    columns += [Column("trials", "trials"), Column("ns", "ns per trial-step"), Column("ratio", "ratio")]
    columns.append(Column("reason", "why not", lambda reason: reason or ""))

    def number(value: float | None, scale: float = 1.0) -> str | None:
        return None if value is None else f"{value * scale:.3g}"

    lines = [row | {"ns": number(row["trial_step_s"], 1e9), "ratio": number(row["ratio"])} for row in rows]
    return render(lines, columns, "table")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--small", action="store_true", help="a size for a CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=480.0, help="seconds after which no case begins")
    parser.add_argument("--only", default="", metavar="REGEX", help="of 'case: problem: variant', its beginning")
    options = parser.parse_args()
    device = find_devices(None)[0]
    kind = re.sub(r"[^a-z0-9]+", "-", describe(device).lower()).strip("-")
    folder = options.out / f"gpu-{kind}"
    folder.mkdir(parents=True, exist_ok=True)

    def save(rows: list[dict[str, Any]]) -> None:
        write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "measurements.parquet")
        about = {"rounds": options.rounds, "small": options.small, "overtakes_cpu_from_trials": overtaking(rows)}
        write_json(about | {"environment": environment([device], "highest")}, folder / "measurements.json")

    rows = measure(SMALL if options.small else Size(), device, options.rounds, options.budget, save, options.only)
    print(show(rows))
    print(f"record: {folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
