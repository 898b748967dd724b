"""Where the CPU seconds of a default run go, and of one that finds its programs compiled.

    python tests/benchmarks/where_time_goes.py

Each run is a process of its own, with a cache of its own, in which nothing overlaps: what a run compiles in other
threads is compiled at once here, so that the process's CPU seconds, of all threads, belong to one part at a time. A
second spent in two nested parts counts for the inner one.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any
from unittest import mock

SECONDS: dict[str, float] = defaultdict(float)
STACK = ["imports"]
LAST = [0.0]  # CPU seconds when the present part began or went on


def switch() -> None:
    """Count the seconds since the last switch for the part on top of the stack."""
    now = time.process_time()
    SECONDS[STACK[-1]] += now - LAST[0]
    LAST[0] = now


def part(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose seconds count as this part."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        switch()
        STACK.append(name)
        try:
            return function(*args, **kwargs)
        finally:
            switch()
            STACK.pop()

    return counted


def at_once(self: Any, job: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Compiler.submit in this thread."""
    done: Future[Any] = Future()
    done.set_result(part("tracing and lowering", job)(*arguments))
    return done


def measure() -> None:
    """A default run in this process; prints its parts."""
    import jax

    from gradbench.cli import main as command
    from gradbench.engine import compiling, pair, runner

    switch()
    STACK[0] = "problems, record, the rest"
    parts = [
        (jax.stages.Lowered, "compile", "XLA: compiling, or loading what is compiled"),
        (pair.PairSweep, "run", "sweeping"),
        (compiling, "time_program", "timing steps"),
        (compiling, "time_evaluation", "timing steps"),
        (runner, "measure_limits", "device limits"),
    ]
    with tempfile.TemporaryDirectory() as out, mock.patch.object(compiling.Compiler, "submit", at_once):
        patches = [mock.patch.object(of, name, part(words, getattr(of, name))) for of, name, words in parts]
        for patch in patches:
            patch.start()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            command.invoke(["run", "--quiet", "--out", out])
    switch()
    for name, seconds in sorted(SECONDS.items(), key=lambda item: -item[1]):
        print(f"{seconds:8.2f}  {name}")
    print(f"{sum(SECONDS.values()):8.2f}  all", flush=True)
    os._exit(0)  # as it is: the patches stay


def main() -> None:
    if "--measure" in sys.argv:
        measure()
    with tempfile.TemporaryDirectory() as cache:
        for words in ("cold", "warm"):
            print(f"CPU seconds, {words}:", flush=True)
            own = os.environ | {"XDG_CACHE_HOME": cache}
            subprocess.run([sys.executable, __file__, "--measure"], env=own, check=True)


if __name__ == "__main__":
    main()
