"""Where the units of a sweep run: any executor of concurrent.futures, or this process."""

from __future__ import annotations

import multiprocessing
import os
import platform
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any

from gradbench.errors import GradbenchError, PlanError, RecordError, one_line
from gradbench.machine.devices import find_devices
from gradbench.machine.environment import difference, environment

IN_FLIGHT = 64  # units given to an executor that does not say how many workers it has


def describe(device: str | None, precision: str) -> dict[str, Any]:
    """`environment` of the process that calls it. Starts JAX."""
    return environment(find_devices(device), precision)


def misfit(began: Mapping[str, Any], device: str | None, precision: str) -> str | None:
    """Why this process may not run units of what `began`, in words; None if it may. How many devices there are does not
    matter to a unit."""
    try:
        here = describe(device, precision)
    except GradbenchError as error:
        return one_line(error)
    return difference(began, of_one_device(here))


def of_one_device(environment: Mapping[str, Any]) -> dict[str, Any]:
    """An environment without how many devices there are."""
    return {name: value for name, value in environment.items() if name != "device_count"}


def name_of_worker() -> str:
    """This process: its host, and its number there."""
    return f"{platform.node()}:{os.getpid()}"


class Workers:
    """An executor as a sweep uses it. One that knows more of its workers says more."""

    blocking = False  # whether submit() returns only when the call is done

    def __init__(self, executor: Executor):
        """Raises PlanError for what is none, and for forked processes, in which JAX would hang."""
        if not callable(getattr(executor, "submit", None)):
            kind = type(executor).__name__
            raise PlanError(f"executor: got a {kind}; give one with submit(), as concurrent.futures has them")
        if isinstance(executor, ProcessPoolExecutor):
            context = getattr(executor, "_mp_context", None) or multiprocessing.get_context()
            if context.get_start_method() == "fork":
                raise PlanError(
                    "executor: forked processes hang in JAX; give "
                    'ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))'
                )
        self.executor = executor

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        """Whoever made the executor shuts it down."""

    def count(self) -> int:
        """How many calls to have under way at once."""
        return IN_FLIGHT

    def alone(self) -> bool:
        """Whether each worker has its device, or all cores of its machine, to itself, so that it may time."""
        return False

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self.executor.submit(function, *arguments)

    def describe(self, device: str | None, precision: str) -> dict[str, Any]:
        """`describe` of the worker that answers first."""
        return self.executor.submit(describe, device, precision).result()

    def admit(self, began: Mapping[str, Any], device: str | None, precision: str) -> None:
        """From now on only workers whose environment may go on with what `began` are used, where that can be chosen:
        a unit looks for itself."""

    def share(self, value: Any) -> Any:
        """What to hand to `submit` in place of an argument that many calls have."""
        return value


class Here(Executor):
    """This process, one call after another, each done when submit() returns."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


class Alone(Workers):
    """This process as the only worker."""

    blocking = True

    def __init__(self) -> None:
        super().__init__(Here())

    def count(self) -> int:
        return 1

    def alone(self) -> bool:
        return True

    def admit(self, began: Mapping[str, Any], device: str | None, precision: str) -> None:
        """Raises RecordError where this process may not go on with it."""
        if what := misfit(began, device, precision):
            raise RecordError(f"the run {what}; go on where it is the same, or begin a new run")
