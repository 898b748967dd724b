"""gradbench: how optimizers converge over learning rates and seeds, what it costs, and whether gradients are right.

Everything public is here. Names load on first use, so that `import gradbench` does not import JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gradbench.version import __version__

if TYPE_CHECKING:
    from gradbench import datasets as datasets
    from gradbench.errors import GradbenchError as GradbenchError
    from gradbench.gradients import assert_function as assert_function
    from gradbench.gradients import assert_gradient as assert_gradient
    from gradbench.gradients import check_function as check_function
    from gradbench.gradients import check_gradient as check_gradient
    from gradbench.inputs.optimizer import load_optimizer as load_optimizer
    from gradbench.inputs.plan import SweepPlan as SweepPlan
    from gradbench.inputs.problem import Problem as Problem
    from gradbench.inputs.problem import load_problem as load_problem
    from gradbench.inputs.specs.rates import log_range as log_range
    from gradbench.library.run import Run as Run
    from gradbench.library.run import load_run as load_run
    from gradbench.library.verbs import board as board
    from gradbench.library.verbs import compare as compare
    from gradbench.library.verbs import export as export
    from gradbench.library.verbs import history as history
    from gradbench.library.verbs import races as races
    from gradbench.library.verbs import regress as regress
    from gradbench.library.verbs import report as report
    from gradbench.library.verbs import resume as resume
    from gradbench.library.verbs import run_plan as run_plan
    from gradbench.library.verbs import run_suite as run_suite
    from gradbench.library.verbs import standing as standing
    from gradbench.library.verbs import sweep as sweep
    from gradbench.library.verbs import tunability as tunability
    from gradbench.library.verbs import verify as verify
    from gradbench.machine.cluster import connect as connect
    from gradbench.search.suggest import suggest as suggest

_PUBLIC = {
    "GradbenchError": "errors",
    "Problem": "inputs.problem",
    "Run": "library.run",
    "SweepPlan": "inputs.plan",
    "load_optimizer": "inputs.optimizer",
    "load_problem": "inputs.problem",
    "board": "library.verbs",
    "compare": "library.verbs",
    "connect": "machine.cluster",
    "load_run": "library.run",
    "log_range": "inputs.specs.rates",
    "export": "library.verbs",
    "history": "library.verbs",
    "races": "library.verbs",
    "regress": "library.verbs",
    "report": "library.verbs",
    "resume": "library.verbs",
    "run_plan": "library.verbs",
    "run_suite": "library.verbs",
    "standing": "library.verbs",
    "suggest": "search.suggest",
    "sweep": "library.verbs",
    "assert_function": "gradients",
    "tunability": "library.verbs",
    "verify": "library.verbs",
    "assert_gradient": "gradients",
    "check_function": "gradients",
    "check_gradient": "gradients",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gradbench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gradbench.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
