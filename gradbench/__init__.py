"""gradbench: how optimizers converge over learning rates and seeds, what it costs, and whether gradients are right.

Everything public is here. Names load on first use, so that `import gradbench` does not import JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradbench import datasets as datasets
    from gradbench.errors import GradbenchError as GradbenchError
    from gradbench.gradients import assert_gradient as assert_gradient
    from gradbench.gradients import check_gradient as check_gradient
    from gradbench.optimizer import load_optimizer as load_optimizer
    from gradbench.plan import SweepPlan as SweepPlan
    from gradbench.plan import log_range as log_range
    from gradbench.problem import Problem as Problem
    from gradbench.problem import load_problem as load_problem
    from gradbench.record import Run as Run
    from gradbench.record import load_run as load_run
    from gradbench.runner import resume as resume
    from gradbench.runner import run_plan as run_plan
    from gradbench.runner import sweep as sweep

__version__ = "0.1.0"

_PUBLIC = {
    "GradbenchError": "errors",
    "Problem": "problem",
    "Run": "record",
    "SweepPlan": "plan",
    "load_optimizer": "optimizer",
    "load_problem": "problem",
    "load_run": "record",
    "log_range": "plan",
    "resume": "runner",
    "run_plan": "runner",
    "sweep": "runner",
    "assert_gradient": "gradients",
    "check_gradient": "gradients",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gradbench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gradbench.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
