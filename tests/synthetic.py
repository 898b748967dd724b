"""Records whose answers are known, made in memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from gradbench.inputs.plan import SweepPlan
from gradbench.record.schema import SCHEMAS, TARGET_COLUMNS, TARGETS, schema_of
from gradbench.record.store import Run

ENVIRONMENT = {"platform": "cpu", "device_kind": "a chip", "device_count": 1, "cpu_model": "a chip", "cpu_cores": 1}


def make_run(
    rates: str | Sequence[float] = (0.01, 0.1, 1.0),
    seeds: int = 3,
    optimizers: Sequence[str] = ("sgd", "adam"),
    problems: Sequence[str] = ("quadratic_bowl",),
    decay=lambda optimizer, rate, **settings: rate,  # the gap is exp(-decay × step); a negative decay diverges
    step_seconds: Sequence[float] = tuple(1e-3 * (1 + 0.01 * k) for k in range(9)),
    steps: int = 100,
    identifier: str = "20260101T000000Z-abcdef",
    curve_steps: Sequence[int] = (0, 1, 10, 100),
    design: str = "grid",
    until: str | None = None,
) -> Run:
    """A record in which trial (optimizer, rate, seed) has the gap exp(-decay(optimizer, rate) (1 + seed/100) step);
    decay gets the values of the optimizer's axes as well, by their names."""
    plan = SweepPlan(
        problems=tuple(problems),
        optimizers=tuple(optimizers),
        learning_rates=rates if isinstance(rates, str) else tuple(rates),
        seeds=seeds,
        steps=steps,
        design=design,
        until=until,
    )
    trials, curves, number = [], [], 0
    for problem, optimizer in plan.pairs:
        points = plan.points(optimizer)
        for values in zip(*points.values()):
            settings = dict(zip(points, map(float, values)))
            rate = settings.pop("learning_rate")
            for seed in range(seeds):
                speed = decay(optimizer, rate, **settings) * (1 + seed / 100)
                final = math.exp(min(-speed * steps, 600))

                def first(gap, speed=speed):
                    step = math.ceil(-math.log(gap) / speed) if speed > 0 else steps + 1
                    return step if step <= steps else None

                hit = first(plan.target)
                row = {"trial": number, "problem": problem, "optimizer": optimizer, "learning_rate": rate, "seed": seed}
                row |= {"verdict": "diverged" if speed < 0 else "converged" if hit is not None else "slow"}
                row |= {"steps_run": steps, "initial_loss": 1.0, "final_loss": final, "best_loss": min(final, 1.0)}
                row |= {"best_step": steps, "final_grad_norm": final, "minimum": 0.0, "steps_to_target": hit}
                row |= {"diverged_at": 7 if speed < 0 else None}
                row |= settings
                trials.append(row | {name: first(gap) for name, gap in zip(TARGET_COLUMNS, TARGETS)})
                for step in curve_steps:
                    loss = math.exp(min(-speed * step, 600))
                    curves.append({"trial": number, "step": step, "loss": loss, "grad_norm": loss})
                number += 1
    samples = np.asarray(step_seconds, float)
    timings = []
    for problem, optimizer in plan.pairs:
        for mode in ("solo", "batched"):
            row = {"problem": problem, "optimizer": optimizer, "mode": mode, "trials": 1, "trusted": True}
            row |= dict.fromkeys(("trace_s", "lower_s", "compile_s", "first_run_s"), 0.1)
            row |= {"step_s_median": float(np.median(samples)), "step_s_min": float(samples.min()), "doubling": 2.0}
            row |= {"step_s_p25": float(samples.min()), "step_s_p75": float(samples.max()), "samples": len(samples)}
            row |= {"flops_per_step": 1.0, "bytes_per_step": 1.0, "flops_per_s": 1.0}
            timings.append(row | {"step_s_samples": samples.tolist()})
    facts = {problem: {"parameters": 100, "curvature": [0.02, 2.0], "minimum": 0.0} for problem in plan.problems}
    info = {"id": identifier, "state": "complete", "plan": plan.to_dict(), "environment": ENVIRONMENT}
    info |= {"started": "2026-01-01T00:00:00Z", "ended": "2026-01-01T00:01:00Z", "problems": facts}
    tables = [
        pa.Table.from_pylist(rows, schema=schema_of(name, plan.axis_names))
        for name, rows in zip(("trials", "curves", "timings"), (trials, curves, timings))
    ]
    return Run(Path(identifier), plan, info, *tables)


def make_large_run():
    """100,000 trials: 10,000 learning rates of two optimizers, 5 seeds each."""
    rates = tuple(10 ** (-4 + 5 * k / 9999) for k in range(10_000))
    return make_run(rates, seeds=5, decay=lambda optimizer, rate: rate / 10, curve_steps=(0, 50, 100))


METRICS = {  # of seeds 0 and 1 at the end, by learning rate; training's best is 0.1
    "train.loss": [(0.5, 0.5), (0.1, 0.1), (0.3, 0.3)],
    "holdout.loss": [(0.7, 0.5), (0.9, 0.7), (0.8, 0.8)],
    "train.accuracy": [(0.6, 0.6), (0.9, 0.9), (0.8, 0.8)],
    "holdout.accuracy": [(0.5, 0.7), (0.6, 0.6), (0.9, 0.9)],  # a tie of the first two
}


def make_judged_run() -> Run:
    """One pair at learning rates 0.01, 0.1 and 1, whose metrics begin at 9 (accuracies at 0) and end at METRICS."""
    speeds = {0.01: 0.01, 0.1: 1.0, 1.0: 0.1}
    run = make_run(tuple(speeds), 2, ["sgd"], decay=lambda _, rate: speeds[rate])
    rows = [
        {"trial": trial, "step": step, "split": split, "name": name}
        | {"value": METRICS[f"{split}.{name}"][trial // 2][trial % 2] if step else 9.0 * (name == "loss")}
        for trial in range(6)
        for step in (0, 100)
        for split, name in (key.split(".") for key in sorted(METRICS))
    ]
    run.info["problems"]["quadratic_bowl"] |= {"recorded": list(METRICS), "maximise": ["accuracy"]}
    return dataclasses.replace(run, metrics=pa.Table.from_pylist(rows, schema=SCHEMAS["metrics"]))


def with_diverged(run: Run, rate: float) -> Run:
    """The record with all trials of a learning rate diverged."""
    words = [
        "diverged" if at == rate else word
        for at, word in zip(*(run.trials[key].to_pylist() for key in ("learning_rate", "verdict")))
    ]
    place = run.trials.schema.get_field_index("verdict")
    trials = run.trials.set_column(place, "verdict", pa.array(words))
    return dataclasses.replace(
        run,
        trials=trials.set_column(
            trials.schema.get_field_index("diverged_at"),
            "diverged_at",
            pa.array([7 if word == "diverged" else None for word in words], pa.int64()),
        ),
    )
