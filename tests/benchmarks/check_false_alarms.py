"""How often the check accuses a right gradient: problems x seeds x points x dtypes x programs.

    python tests/benchmarks/check_false_alarms.py [--seeds 12] [--out results/reference/check/false_alarms.json]

Writes, per problem and dtype, the gradients judged, the false alarms (FAIL), the INCONCLUSIVE ones and the largest
error in units of the band. Exits 1 if there was an alarm. With --out it can go on problem by problem, with --only.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax

from gradbench import load_problem
from gradbench.gradients import faults
from gradbench.gradients.execution import programs
from gradbench.gradients.execution.execution import Execution
from gradbench.gradients.formula import oracle
from gradbench.inputs.specs.checks import DTYPES
from gradbench.machine.environment import environment

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
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--only", nargs="*", help="these problems; what --out holds of the others is kept")
    parser.add_argument("--out", type=Path)
    choice = parser.parse_args()
    held = json.loads(choice.out.read_text()) if choice.out and choice.out.exists() else {}
    by_problem = held.get("by_problem", {})
    for name in choice.only or [*PROBLEMS, "planted"]:
        by_problem[name] = judge_problem(faults.planted() if name == "planted" else load_problem(name), choice.seeds)
        found = [line for lines in by_problem.values() for line in lines]
        result = {
            "command": f"python tests/benchmarks/check_false_alarms.py --seeds {choice.seeds}",
            **environment(jax.devices(), "of each check"),
            "gradients": sum(line["gradients"] for line in found),
            "false_alarms": sum(line["false_alarms"] for line in found),
            "by_dtype": {dtype: total([line for line in found if line["dtype"] == dtype]) for dtype in DTYPES},
            "by_problem": by_problem,
        }
        print(name, json.dumps(total(by_problem[name])), flush=True)
        if choice.out:
            choice.out.parent.mkdir(parents=True, exist_ok=True)
            choice.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("gradients", "false_alarms", "by_dtype")}, indent=1))
    return int(result["false_alarms"] > 0)


def total(lines):
    return {
        **{key: sum(line[key] for line in lines) for key in ("gradients", "false_alarms", "inconclusive")},
        "largest_error_in_bands": max((line["largest_error_in_bands"] for line in lines), default=0.0),
        "seconds": sum(line["seconds"] for line in lines),
    }


def judge_problem(problem, seeds):
    """A line for each dtype: what was judged, the alarms in words, the largest error in units of the band."""
    lines = []
    for dtype in DTYPES:
        started = time.perf_counter()
        execution = Execution(problem, dtype, "highest", jax.devices()[0])
        runners = {n: p.build(problem.loss, problem.examples) for n, p in programs.PROGRAMS.items()}
        rows, alarms = [], []
        for seed in range(seeds):
            for row in judge_all(execution, runners, oracle.points(problem, dtype, 2, seed)):
                rows.append(row)
                if row.verdict == "FAIL":
                    alarms.append(f"{row.program} seed {seed}, {row.point}: {row.reason}")
                    print(problem.name, dtype, alarms[-1], flush=True)
        lines.append(
            {
                "dtype": dtype,
                "seeds": seeds,
                "gradients": len(rows),
                "false_alarms": len(alarms),
                "inconclusive": sum(row.verdict == "INCONCLUSIVE" for row in rows),
                "largest_error_in_bands": max(row.off for row in rows),
                "seconds": round(time.perf_counter() - started),
                "alarms": alarms,
            }
        )
    return lines


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
