"""Progress of a run on stderr: a bar on a terminal, one line per finished pair everywhere; and Ctrl-C."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

from gradbench.analysis.answers import pair_sentence, step_words
from gradbench.analysis.summary import epoch_steps, summarise_tables
from gradbench.engine import pair as engine
from gradbench.engine.driver import PairTables, UnitProgress, Watcher
from gradbench.failures import FORESEEN
from gradbench.inputs.plan import SweepPlan
from gradbench.library.activity import Activity
from gradbench.library.progress import rates_words
from gradbench.record.store import read_info


class TerminalWatcher(Watcher):
    """Updates the line, prints one sentence per pair. The first Ctrl-C asks for a checkpoint, the second stops."""

    def __init__(self, activity: Activity):
        self.activity, self.stopping = activity, False
        self.path: Path | None = None
        self.pairs = 0
        self.lengths: dict[str, str] = {}  # problem -> a trial's epochs in words

    def started(self, path: Path) -> None:
        self.path = path
        info = read_info(path)
        plan = SweepPlan.from_dict(info["plan"])
        self.pairs = len(plan.pairs)
        epochs = {problem: epoch_steps(plan, facts) for problem, facts in info["problems"].items()}
        self.lengths = {problem: f", {step_words(plan.steps, epoch)}" for problem, epoch in epochs.items() if epoch}

    def pair_started(self, number: int, problem: str, optimizer: str) -> None:
        what = f"{problem} × {optimizer}{self.lengths.get(problem, '')}"
        self.activity.begin(f"pair {number + 1} of {self.pairs}, {what}: ", "compiling")

    def chunk(self, progress: engine.Progress) -> None:
        if not self.activity.shown:
            return
        rate = progress.trial_steps / max(progress.seconds, 1e-9)
        waiting = progress.trials - progress.done - progress.running
        text = (
            f"sweeping, {progress.running} alive, {progress.done} retired, {waiting} waiting, {rate:.3g} trial-steps/s"
        )
        total = progress.total_steps
        self.activity.say(text, total=total, completed=total - progress.steps_left)

    def units(self, progress: UnitProgress) -> None:
        if not self.activity.shown:
            return
        waiting = progress.units - progress.done - progress.running - progress.failed
        text = f"{progress.done} units done, {progress.running} running, {waiting} waiting"
        text += f", {progress.failed} failed" if progress.failed else ""
        self.activity.say(f"{text}{rates_words(progress)}", total=progress.units, completed=progress.done)

    def looked(self, words: str) -> None:
        self.activity.begin(f"{words}: ")

    def pair_swept(self, number: int, problem: str, optimizer: str, tables: PairTables) -> None:
        self.activity.begin("")
        if not self.activity.console.quiet:
            for summary in summarise_tables(tables.plan, tables.trials, tables.timings, tables.facts):
                self.activity.print(pair_sentence(summary, alone=len(tables.plan.optimizers) > 1))

    def should_stop(self) -> bool:
        return self.stopping


@contextlib.contextmanager
def watching(activity: Activity, again: str | None = None) -> Generator[TerminalWatcher]:
    """A watcher for one run. After an interruption, or an expected failure, it says how to go on: by `again`, if given,
    else by the command that resumes the run's record."""
    watcher = TerminalWatcher(activity)

    def stop(number: int, frame: Any) -> None:
        if watcher.stopping or watcher.path is None:  # before a record is begun there is nothing to finish
            raise KeyboardInterrupt
        watcher.stopping = True

    in_main_thread = threading.current_thread() is threading.main_thread()
    caught = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
    before = [signal.signal(number, stop) for number in caught]
    try:
        yield watcher
    except FORESEEN:
        watcher.stopping = watcher.path is not None
        raise
    finally:
        for number, handler in zip(caught, before):
            signal.signal(number, handler)
        if watcher.stopping and watcher.path is not None:
            command = again or f"gradbench run --resume {shlex.quote(str(watcher.path))}"
            print(f"stopped; go on with: {command}", file=sys.stderr)
