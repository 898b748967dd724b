"""Shared by the tests: two CPU devices, small blocks on demand, and runs kept out of the checkout."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

# What is compiled once is compiled for the session: for all workers, and for the processes that tests start.
if "PYTEST_XDIST_WORKER" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="gradbench-compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import quick

import gradbench
from gradbench.engine import runner, units
from gradbench.machine.devices import find_devices
from gradbench.program import program, spread
from gradbench.program.block import observation_stride
from gradbench.program.program import Block

find_devices("cpu")  # before any test starts JAX with a single CPU device


def pytest_collection_finish() -> None:
    """JAX's traces are many small objects: a tenth of the tests' time went into looking through all there are."""
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import jax

    if jax.default_backend() != "gpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU here"))


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk() -> Iterator[None]:
    """To put its files on disk takes more than a quarter of a small run's time, in which a core is idle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which raises where the file is not open, too
        yield


@pytest.fixture
def compiled_afresh() -> Iterator[None]:
    """Within the test nothing comes out of the session's cache."""
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    def use_cache(enabled: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", enabled)
        reset_cache()  # JAX looks at the setting once

    use_cache(False)
    yield
    use_cache(True)


def compile_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    def options(platform, *_, **__):
        return quick.compile_little() if platform == "cpu" else {}

    monkeypatch.setattr(program, "loop_options", options)
    monkeypatch.setattr(spread, "compiler_options", options)  # of the starts
    monkeypatch.setattr(*quick.OBSERVE)


@pytest.fixture
def compiled_quickly(monkeypatch) -> None:
    """For tests of what is done with a block's numbers, whatever program they come from."""
    compile_quickly(monkeypatch)


def time_little(monkeypatch: pytest.MonkeyPatch) -> None:
    quick.time_little(monkeypatch.setattr)


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> Callable[..., Any]:
    """gradbench.sweep into this test's own folder; it times nothing unless asked to, and then the least."""
    time_little(monkeypatch)

    def run(*arguments: Any, **settings: Any) -> Any:
        return gradbench.sweep(*arguments, out=tmp_path / "results", **{"timing": "none"} | settings)

    return run


@pytest.fixture
def small_blocks(monkeypatch) -> Callable[..., None]:
    """Force the block shape, so that a few trials already queue, retire and refill."""

    def force(lanes: int = 3, rows: int = 16, devices: int = 2) -> None:
        def block(trial: Any, found: list, trials: int) -> Block:
            count = min(devices, len(found))
            return Block(count, lanes, rows, observation_stride(trial.problem, trial.plan))

        for place in (runner, units):
            monkeypatch.setattr(place, "choose_block", block)

    return force


class StopAfter(runner.Watcher):
    """Asks for a stop at the n-th question; the engine asks before every chunk and pair."""

    def __init__(self, questions: int):
        self.questions = questions

    def should_stop(self) -> bool:
        self.questions -= 1
        return self.questions < 0
