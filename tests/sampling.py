"""Which of a test's many parameters `make test` takes; .ci/run takes all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy


def in_each_dtype(values: Iterable[tuple], first: str = "float32", second: str = "bfloat16") -> list[tuple]:
    """Each once, in the two dtypes by turns; then each in the other one."""
    chosen = list(values)
    return [(*v, (first, second)[(n + later) % 2]) for later in (0, 1) for n, v in enumerate(chosen)]


def drawn(few: int, many: int, *strategies: SearchStrategy) -> Callable[[Callable], Callable]:
    """hypothesis.given with `few` examples for every run, and with `many` for the thorough one."""

    def decorate(test: Callable) -> Callable:
        @pytest.mark.parametrize("examples", sample([few, many]))
        def run(examples: int) -> None:
            settings(deadline=None, max_examples=examples)(given(*strategies)(test))()

        run.__doc__ = test.__doc__
        return run

    return decorate


def sample(values: Iterable[Any], count: int = 1) -> list[Any]:
    """Parameters of a test, one each or tuples: the first `count` for every run, the others for the thorough one."""
    chosen = list(values)
    later = (pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.thorough) for v in chosen[count:])
    return [*chosen[:count], *later]
