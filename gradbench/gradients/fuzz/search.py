"""The smallest choice at which something fails, searched and shrunk by Hypothesis: the same one in every run.

Hypothesis keeps failures and a pool of constants, which it reads from every loaded module and writes into
`.hypothesis`. Both are switched off: nothing is written, and what else is loaded changes no answer.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any
from unittest import mock

from gradbench.errors import PlanError

_FAR = 3 * 10**12  # numbers are drawn from here on, where Hypothesis has no constant of its own to prefer


def known(examples: Any, case: str | None) -> None:
    """Raises PlanError for a bad number of examples, for one together with a case, and without Hypothesis."""
    if not isinstance(examples, int) or isinstance(examples, bool) or examples < 0:
        raise PlanError(f"search={examples!r}: need how many examples are tried, such as 100, or 0 for none")
    if examples and case:
        raise PlanError("search and case: a case is run alone; give one of the two")
    if examples:
        _hypothesis()


def _hypothesis() -> Any:
    try:
        return importlib.import_module("hypothesis")
    except ImportError as error:
        raise PlanError("search: needs hypothesis: pip install hypothesis") from error


def smallest(
    fails: Callable[[tuple[int, ...]], bool | None], counts: Sequence[int], examples: int
) -> tuple[int, ...] | None:
    """Of up to `examples` drawn choices the first that fails, shrunk by Hypothesis; a local minimum: each number is
    the least that fails with the others unchanged.

    Args:
        fails: whether a choice fails, the same at every call; None where it is not allowed.
        counts: how many values each number of a choice has, 0 to count - 1, the simplest first.

    Returns None where none fails.
    """
    hypothesis = _hypothesis()
    choices = hypothesis.strategies.tuples(
        *(hypothesis.strategies.integers(_FAR, _FAR + count - 1).map(lambda x: x - _FAR) for count in counts)
    )

    def condition(choice: tuple[int, ...]) -> bool:
        failed = fails(choice)
        if failed is None:
            hypothesis.reject()
        return bool(failed)

    settings = hypothesis.settings(
        database=None,
        deadline=None,
        max_examples=examples,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )
    errors = importlib.import_module("hypothesis.errors")
    with _no_constants():
        try:
            found = hypothesis.find(choices, condition, settings=settings, random=random.Random(0))
        except (errors.NoSuchExample, errors.Unsatisfiable):
            return None
    for place, number in enumerate(found):
        lower = ((*found[:place], n, *found[place + 1 :]) for n in range(number))
        found = next(filter(fails, lower), found)
    return found


@contextlib.contextmanager
def _no_constants() -> Generator[None]:
    """Hides the constants of loaded modules, which Hypothesis reads since 6.131."""
    module: Any = sys.modules.get("hypothesis.internal.conjecture.providers")
    name = "_get_local_constants"
    with mock.patch.object(module, name, module.Constants) if hasattr(module, name) else contextlib.nullcontext():
        yield
