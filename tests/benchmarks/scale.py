"""What it costs to hand out units: `python tests/benchmarks/scale.py pace | cost | crowd`.

pace: 200 units of 1 s on 2 processes, beside the 100 s that they sleep.
cost: from submitting a unit that does nothing to its rows on disk, one at a time.
crowd: 10^4 units of 2 s on 32 workers that are threads of another process; processor time and memory of the driver and
of the process with the scheduler and the workers.

The units sleep, and leave as many rows as one of 64 trials does in a run of 10^4 such units (5 million points a run).
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from gradbench.engine.driver import Driver, Watcher
from gradbench.engine.units import Job, Result, Unit
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.transfer.parcel import Parcel
from gradbench.machine.cluster import connect
from gradbench.machine.workers import Workers
from gradbench.program.program import Block
from gradbench.record.schema import SCHEMAS, TRIALS
from gradbench.record.store import RunWriter

TRIALS_OF_UNIT, POINTS = 64, 7


def sleeping_unit(seconds: float, job: Job, unit: Unit) -> Result:
    """A unit that only sleeps; its rows are made up."""
    time.sleep(seconds)
    problem, optimizer = job.plan.pairs[unit.pair]
    trial = np.arange(unit.first, unit.last) + job.plan.first_trials[unit.pair]
    noise = np.random.default_rng(unit.part).random(len(trial))
    of_kind = {pa.float64(): noise, pa.int64(): np.zeros(len(trial), np.int64), pa.string(): ["slow"] * len(trial)}
    named = {"trial": trial, "problem": [problem] * len(trial), "optimizer": [optimizer] * len(trial)}
    columns = [pa.array(named.get(column.name, of_kind[column.kind]), column.kind) for column in TRIALS]
    trials = pa.Table.from_arrays(columns, schema=SCHEMAS["trials"])
    step, loss = np.tile(np.arange(POINTS), len(trial)), np.repeat(noise, POINTS)
    curves = pa.Table.from_arrays([np.repeat(trial, POINTS), step, loss, loss], schema=SCHEMAS["curves"])
    tables = {"trials": trials, "curves": curves, "metrics": SCHEMAS["metrics"].empty_table()}
    return Result(tables, "worker", seconds, trial_steps=len(trial))


def driven(workers: Workers, pairs: int, units: int, seconds: float, folder: str) -> dict[str, float]:
    """Run `units` units of each of `pairs` pairs; seconds, and this process's own, until all are on disk."""
    rates = tuple(np.geomspace(1e-3, 1, units * TRIALS_OF_UNIT))
    problems, optimizers = [f"p{n}" for n in range(pairs)], ["sgd"]
    plan = SweepPlan(problems, optimizers, rates, seeds=1, timing="none")
    here = workers.describe("cpu", "highest")
    workers.admit(here, "cpu", "highest")
    blocks = (Block(1, TRIALS_OF_UNIT, 1, 1),) * pairs
    job = Job(plan, Parcel((), (), ()), blocks, here, {})
    with RunWriter.create(folder, plan, here) as writer:
        writer.info["problems"] = {name: {"target": None} for name in problems}
        began, own = time.perf_counter(), time.process_time()
        driver = Driver(writer, job, [TRIALS_OF_UNIT] * pairs, workers, Watcher(), partial(sleeping_unit, seconds))
        assert driver.run()
        found = {"seconds": time.perf_counter() - began, "driver_cpu_s": time.process_time() - own}
        found["driver_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        began = time.perf_counter()
        writer.finish()
        return found | {"joined_s": time.perf_counter() - began}


def serve(threads: int, pipe: Any) -> None:
    """A scheduler and its workers, threads of this process, until told to end; then what they cost."""
    import distributed

    settings = {"processes": False, "n_workers": threads, "threads_per_worker": 1, "protocol": "tcp://"}
    settings |= {"memory_limit": 0}  # each thread would take the process's memory for its own
    with distributed.LocalCluster(**settings, dashboard_address=":0", silence_logs="ERROR") as cluster:
        own = time.process_time()
        pipe.send(cluster.scheduler.address)
        pipe.recv()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        pipe.send({"cluster_cpu_s": time.process_time() - own, "cluster_peak_mib": peak})


def crowd(folder: str, pairs: int = 100, units: int = 100, seconds: float = 2.0, threads: int = 32) -> dict[str, float]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(threads, there))
    process.start()
    with connect(here.recv()) as workers:
        found = driven(workers, pairs, units, seconds, folder) | {"ideal_s": pairs * units * seconds / threads}
    here.send("end")
    found |= here.recv()
    process.join()
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if sys.argv[1:] == ["crowd"]:
            found = crowd(folder)
        elif sys.argv[1:] == ["pace"]:
            with connect("local:2", "cpu") as workers:
                found = driven(workers, 2, 100, 1.0, folder) | {"ideal_s": 100.0}
        else:
            with connect("local:1", "cpu") as workers:
                found = driven(workers, 2, 100, 0.0, folder)
            found["ms_per_unit"] = 1000 * found["seconds"] / 200
        print({name: round(value, 3) for name, value in found.items()})


if __name__ == "__main__":
    main()
