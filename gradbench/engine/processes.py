"""Several processes of one jax.distributed job share a sweep: each takes pairs, process 0 keeps the record.

A pair's tables depend on (plan, pair) alone, so it does not matter who runs it. A process holds the pair it runs with a
lock that the kernel frees when the process ends, however it ends: the others then take the pair up from its checkpoint.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Any

import jax

from gradbench.errors import RecordError, RunError, one_line
from gradbench.inputs.plan import SweepPlan
from gradbench.machine.internals import job
from gradbench.machine.locks import NoLocks, hold
from gradbench.record.store import PairStore, RunWriter, read_info

POLL_SECONDS = 0.2
JOIN_SECONDS = 600.0  # process 0 has to load its problems and choose its blocks in this time
_calls = itertools.count()


class Rendezvous:
    """Where process 0 tells the others which run a call is about. Every process makes one for each call, in the same
    order. A process alone leads, and meets nobody.

    Through JAX's coordination service, as orbax does it: the public collectives would wait for a process that failed.
    """

    def __init__(self) -> None:
        self.job = job()
        self.others = self.job.processes > 1
        self.leads = self.job.number == 0
        self.key = f"gradbench/run/{next(_calls)}"
        self.silent = self.others and self.leads

    def __enter__(self) -> Rendezvous:
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if self.silent:  # process 0 fails before there is a run, and the others must not wait for one
            self._say(f"failed {one_line(error) if error else 'without a word'}")

    def announce(self, path: Path) -> None:
        """Process 0's: here is the run."""
        if self.silent:
            self._say(f"run {path.resolve()}")

    def _say(self, text: str) -> None:
        self.silent = False
        self.job.client.key_value_set(self.key, text)

    def join(self) -> Path:
        """The run's folder. Raises RunError where process 0 has none, or does not say in JOIN_SECONDS."""
        until = time.monotonic() + JOIN_SECONDS
        while time.monotonic() < until:
            try:
                said, _, text = self.job.client.blocking_key_value_get(self.key, 1000).partition(" ")
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" in str(error):  # a second has gone; a chance for Ctrl-C
                    continue
                raise RunError(f"process 0 cannot be reached: {one_line(error)}") from error
            if said == "failed":
                raise RunError(f"process 0 failed: {text}")
            return Path(text)
        raise RunError(f"process 0 has not begun this sweep in {JOIN_SECONDS:.0f} s")


class _Store(PairStore):
    """A pair held by this process."""

    def save(self, name: str, rows: list[dict[str, Any]]) -> None:
        """On a CPU the other processes compute on the same cores meanwhile: such timings are not to be trusted."""
        if name == "timings" and jax.default_backend() == "cpu":
            rows = [row | {"trusted": False} for row in rows]
        super().save(name, rows)


class Shared:
    """What RunWriter is to one process alone, for one of several. `writer` is process 0's; the others have None."""

    def __init__(self, path: Path, writer: RunWriter | None):
        self.path, self.writer = path, writer
        self.info = writer.info if writer else read_info(path)
        self.held: list[IO[Any]] = []

    def prepare(self, pairs: int) -> None:
        """Process 0's, before the announcement: the others look for these locks and make no folder of their own.

        Raises RecordError where there are none: what two processes both take for theirs they would both write.
        """
        for number in range(pairs):
            (self.pair(number).folder / ".lock").touch()
        with (self._folder(0) / ".lock").open("r+") as lock:
            _hold(lock, self.path)
        self.info["processes"] = job().processes
        self.save_info()

    def __enter__(self) -> Shared:
        return self

    def __exit__(self, *_: object) -> None:
        for lock in self.held:
            lock.close()

    def save_info(self) -> None:
        if self.writer:
            self.writer.save_info()

    def pair(self, number: int) -> PairStore:
        return _Store(self._folder(number), SweepPlan.from_dict(self.info["plan"]).axis_names)

    def waiting(self, pairs: int, should_stop: Callable[[], bool]) -> Generator[int]:
        """Pairs for this process to run, each its own until it leaves. Ends when all are complete, or at a stop; while
        others run the last ones it waits, in case it has to take them over."""
        left = list(range(pairs))
        while left and not should_stop():
            left = [number for number in left if not self._complete(number)]
            taken = next(filter(self._take, left), None)
            if taken is None:
                time.sleep(POLL_SECONDS)
            else:
                left.remove(taken)
                yield taken
                left.append(taken)

    def _take(self, number: int) -> bool:
        try:
            lock = (self._folder(number) / ".lock").open("r+")
        except FileNotFoundError:  # process 0 has joined the parts
            return False
        self.held.append(lock)
        if not _hold(lock, self.path):
            self.held.pop().close()
            return False
        return not self._complete(number)

    def _folder(self, number: int) -> Path:
        return self.path / "parts" / f"{number:04d}"

    def _complete(self, number: int) -> bool:
        # In this order: the run is complete before process 0 removes a pair's files.
        return (self._folder(number) / "complete.json").is_file() or self.state() == "complete"

    def complete(self, pairs: int) -> bool:
        return all(map(self._complete, range(pairs)))

    def interrupt(self) -> None:
        if self.writer:
            self.writer.interrupt()

    def finish(self, *revisions: Callable[..., Any]) -> None:
        """Process 0 joins the tables, as RunWriter.finish does."""
        if self.writer:
            self.writer.finish(*revisions)

    def wait(self) -> None:
        """The others wait for it."""
        while self.state() == "running":
            time.sleep(POLL_SECONDS)

    def state(self) -> str:
        """The run's, as run.json has it. Raises RunError if process 0 has ended without a last word."""
        info = read_info(self.path)
        if info["state"] == "running" and not self.writer:
            if info["ended"] != self.info["ended"]:  # stopped, and resumed since: that is another call's
                return "interrupted"
            if self._unlocked():
                info = read_info(self.path)  # the last word is before the lock's end
                if info["state"] == "running":
                    raise RunError(f"process 0 has ended without finishing {self.path}; resume it")
        return info["state"]

    def _unlocked(self) -> bool:
        try:
            with (self.path / ".lock").open("r+") as lock:
                return _hold(lock, self.path, shared=True)
        except FileNotFoundError:
            return True


def _hold(lock: IO[Any], path: Path, shared: bool = False) -> bool:
    """locks.hold, with RecordError where there are no locks."""
    try:
        return hold(lock, shared)
    except NoLocks as error:
        raise RecordError(f"{path}: cannot be locked ({error}), so several processes cannot share it") from error


class Following:
    """A watcher that stops also when process 0 has stopped."""

    def __init__(self, watcher: Any, shared: Shared):
        self.watcher, self.shared, self.looked = watcher, shared, time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.watcher, name)

    def should_stop(self) -> bool:
        if self.watcher.should_stop():
            return True
        if self.shared.writer or time.monotonic() - self.looked < POLL_SECONDS:
            return False
        self.looked = time.monotonic()
        return self.shared.state() == "interrupted"
