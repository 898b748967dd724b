"""How often the check accuses a right gradient: problems x seeds x points x dtypes x programs.

    python tests/benchmarks/check_false_alarms.py [--seeds 25] [--out results/reference/check/false_alarms.json]

Prints and writes, per dtype, the gradients judged, the false alarms (FAIL), the INCONCLUSIVE ones and the largest error
in units of the band. Exits 1 if there was an alarm.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax

from gradbench import load_problem
from gradbench.environment import environment
from gradbench.gradients import faults, oracle, programs
from gradbench.gradients.execution import Execution
from gradbench.gradients.formats import DTYPES

PROBLEMS = (
    "quadratic_bowl",
    "quadratic_bowl[dim=2,condition=1]",
    "quadratic_bowl[dim=30,condition=1e4]",
    "rosenbrock[dim=10]",
    "rastrigin[dim=5]",
    "beale",
    "himmelblau",
    "linear_regression",
    "linear_regression[examples=200,features=10]",
    "logistic_regression",
    "logistic_regression[examples=200,features=10]",
    "mlp[hidden=16]",
    "mlp[hidden=16,activation=relu]",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=25)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so long, whole seeds only")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="problems whose name holds one of these words")
    parser.add_argument("--out", type=Path)
    choice = parser.parse_args()
    started = time.perf_counter()
    device = jax.devices()[0]
    totals = {d: {"gradients": 0, "false_alarms": 0, "inconclusive": 0, "largest_error_in_bands": 0.0} for d in DTYPES}
    alarms, executions, runners = [], {}, {}
    problems = {name: load_problem(name) for name in PROBLEMS} | {"planted": faults.planted()}
    if choice.only:
        problems = {name: p for name, p in problems.items() if any(word in name for word in choice.only)}
    seeds = 0
    for seed in range(choice.first_seed, choice.first_seed + choice.seeds):
        for name, problem in problems.items():
            for dtype in DTYPES:
                key = name, dtype
                if key not in executions:
                    executions[key] = Execution(problem, dtype, "highest", device)
                    runners[key] = {n: p.build(problem.loss, problem.examples) for n, p in programs.PROGRAMS.items()}
                for row in judge_all(executions[key], runners[key], oracle.points(problem, dtype, 2, seed)):
                    total = totals[dtype]
                    total["gradients"] += 1
                    total["false_alarms"] += row.verdict == "FAIL"
                    total["inconclusive"] += row.verdict == "INCONCLUSIVE"
                    total["largest_error_in_bands"] = max(total["largest_error_in_bands"], row.off)
                    if row.verdict == "FAIL":
                        alarms.append(f"{name} {dtype} {row.program} seed {seed}, {row.point}: {row.reason}")
                        print(alarms[-1], flush=True)
        seeds += 1
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s, {totals}", flush=True)
        if time.perf_counter() - started > 60 * choice.minutes:
            break
    count = sum(t["gradients"] for t in totals.values())
    result = {
        "command": f"python tests/benchmarks/check_false_alarms.py --first-seed {choice.first_seed} --seeds {seeds}"
        + (f" --only {' '.join(choice.only)}" if choice.only else ""),
        **environment(jax.devices(), "of each check"),
        "gradients": count,
        "problems": list(problems),
        "seeds": seeds,
        "by_dtype": totals,
        "alarms": alarms,
        "seconds": round(time.perf_counter() - started),
    }
    print(json.dumps(result, indent=1))
    if choice.out:
        choice.out.parent.mkdir(parents=True, exist_ok=True)
        choice.out.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(alarms))


def judge_all(execution, runners, points):
    """A row for each program at each point, one call each; programs and bands are those compiled for the first seed."""
    for point in points:
        reference = execution.reference(point)
        for name, runner in runners.items():
            extra = None
            if name == "microbatches":
                extra, _ = execution.microbatches(reference)
                if extra is None:
                    continue
            yield execution.run(name, runner, reference, extra=extra, repeats=1, most=1)
        yield execution.forward(point, reference, repeats=1)


if __name__ == "__main__":
    raise SystemExit(main())
