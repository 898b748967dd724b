"""What decays that branch off one stable run save: `python tests/benchmarks/branches.py`.

The same plan with its branches, with every trial from its start to the end of its decay, and for the steps that the
longest takes, as trials ran before they ended where their rate is 0: trial-steps, and the sweep's seconds, the least of
a few rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile

import gradbench
from gradbench.engine.pair import Progress
from gradbench.engine.runner import Watcher
from gradbench.inputs.plan import SweepPlan
from gradbench.tables import Column, render, seconds

COLUMNS = (
    Column("problem", "problem", str),
    Column("how", "how", str),
    Column("trial_steps", "trial-steps"),
    Column("seconds", "in", seconds),
)


class Last(Watcher):
    """What a sweep said last of itself."""

    def chunk(self, progress: Progress) -> None:
        self.progress = progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="*", default=("logistic_regression", "mlp"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = []
    for problem in options.problems:
        plan = SweepPlan(
            (problem,), ("adam",), "1e-3:0.1:9", branch_at="100,200,400", decay="0.1,0.2", seeds=2, timing="none"
        )
        ways = {"branches": None, "each from its start": "10000trials"}
        found: dict[str, list[Progress]] = {how: [] for how in ways}
        for _ in range(options.rounds):
            for how, budget in ways.items():
                last = Last()
                with tempfile.TemporaryDirectory() as out:
                    gradbench.run_plan(dataclasses.replace(plan, budget=budget), out=out, watcher=last)
                found[how].append(last.progress)
        for how, of in found.items():
            least = min(progress.seconds for progress in of)
            rows.append({"problem": problem, "how": how, "trial_steps": of[0].trial_steps, "seconds": least})
        every = {"how": "each for all steps", "trial_steps": plan.trials * plan.steps, "seconds": None}
        rows.append({"problem": problem} | every)
    print(render(rows, COLUMNS, "markdown"))


if __name__ == "__main__":
    main()
