"""gradbench: how optimizers converge over learning rates and seeds, what it costs, and whether gradients are right.

Everything public is here. Names load on first use, so that `import gradbench` does not import JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradbench import datasets as datasets
    from gradbench.gradients import assert_gradient as assert_gradient
    from gradbench.gradients import check_gradient as check_gradient
    from gradbench.problem import Problem as Problem
    from gradbench.problem import load_problem as load_problem

__version__ = "0.1.0"

_PUBLIC = {
    "Problem": "problem",
    "load_problem": "problem",
    "GradbenchError": "errors",
    "assert_gradient": "gradients",
    "check_gradient": "gradients",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(f"gradbench.{_PUBLIC[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'gradbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
