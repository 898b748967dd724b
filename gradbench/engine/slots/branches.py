"""Trials that begin as copies of a running one: decays of a wsd schedule that branch off one stable run.

Trials that differ only in where their learning rate begins to fall, and how long that takes, make the same steps before
(Hu et al., MiniCPM, 2024; Hägele et al., Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations,
NeurIPS 2024). The one that falls last is the trunk. Each other is a branch: at the last chunk that begins before its
fall, a copy of the trunk's state, made on the device, waits for a free slot. The arithmetic of a slot depends on no
neighbour, so a branch is the trial that would have run from its start, bit for bit (docs/engine.md, The same bits).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from gradbench.engine.slots.packing import joined
from gradbench.errors import RecordError
from gradbench.inputs.specs.schedules import COOLING
from gradbench.search.queue import Queue

Columns = dict[str, np.ndarray]


def branches_of(queue: Queue, falls: np.ndarray, chunk: int, before: int) -> Branches:
    """Find the branches among a queue's trials and take them out of its order; none in a search. `falls` (N,): the step
    at which each trial's rate begins to fall, 0 where it shares nothing. See Branches."""
    trunk, begin, mine = np.arange(len(falls)), np.zeros(len(falls), np.int64), queue.order
    if queue.why is None and falls.any():
        settings = {name: of[mine] for name, of in queue.settings.items()}
        of, begin[mine] = shared(settings, queue.seeds[mine], falls[mine], chunk)
        trunk[mine] = mine[of]
        queue.order = mine[begin[mine] == 0]
    return Branches(trunk, begin, before)


def shared(
    settings: Mapping[str, np.ndarray], seeds: np.ndarray, falls: np.ndarray, chunk: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of trials by their settings, seeds and the steps at which their rates begin to fall, each (N,): the trunk of each
    (itself if it is no branch), and the step at which it branches off, a multiple of `chunk`, else 0; both (N,)."""
    place = np.arange(len(seeds))
    others = [of for name, of in settings.items() if name not in COOLING]
    group = np.unique(np.column_stack([*others, seeds]), axis=0, return_inverse=True)[1].reshape(-1)
    order = np.lexsort((-falls, group))
    first = np.flatnonzero(np.diff(group[order], prepend=-1))
    trunk = order[first][group]
    begin = np.where(trunk == place, 0, falls // chunk * chunk)
    return np.where(begin > 0, trunk, place), begin


@dataclass(frozen=True)
class Ready:
    """A branch that waits for a slot: its state is row `place` of the copies number `copy`."""

    trial: int
    copy: int
    place: int


class Branches:
    """The branches of a pair, by their trials' numbers in it: pending ones, whose trunk has not reached the step at
    which they branch off, and ready ones. `before` is the number of the pair's first trial in the record."""

    def __init__(self, trunk: np.ndarray, begin: np.ndarray, before: int):
        self.trunk, self.begin, self.before = trunk, begin, before
        self.pending: dict[int, list[int]] = {}  # by trunk, the next one first
        trials = np.flatnonzero(begin > 0)
        for trial in trials[np.argsort(begin[trials], kind="stable")].tolist():
            self.pending.setdefault(int(trunk[trial]), []).append(trial)
        self.waits = begin > 0  # has neither a slot nor ended
        self.has_any = np.zeros(len(trunk), bool)
        self.has_any[list(self.pending)] = True
        self.ready: list[Ready] = []
        self.copies: dict[int, Any] = {}
        self.past: dict[str, list[Columns]] = {}  # rows of trunks, by table

    def note(self, table: str, rows: Columns) -> None:
        """Rows of a table that trials have made; those of trunks are kept for their branches."""
        if self.pending:
            of_trunk = self.has_any[rows["trial"] - self.before]
            if of_trunk.any():
                self.past.setdefault(table, []).append({name: of[of_trunk] for name, of in rows.items()})

    def leave(self, slot_trial: np.ndarray, first: np.ndarray, copied: Callable[[np.ndarray], Any]) -> None:
        """Make copies for the branches that are due: `first` (S,) are the steps of the slots' trials, `copied(slots)`
        copies their states."""
        if not self.pending:
            return
        slots, due = [], []
        for slot, trial in enumerate(slot_trial.tolist()):
            waiting = self.pending.get(trial, [])
            now = [branch for branch in waiting if self.begin[branch] == first[slot]]
            if now:
                due += [(branch, len(slots)) for branch in now]
                slots.append(slot)
                self._set_pending(trial, waiting[len(now) :])
        if slots:
            number = max(self.copies, default=-1) + 1
            size = 1 << (len(slots) - 1).bit_length()  # few sizes are few programs
            self.copies[number] = copied(np.resize(slots, size))
            self.ready += [Ready(trial, number, place) for trial, place in due]

    def _set_pending(self, trunk: int, branches: list[int]) -> None:
        if branches:
            self.pending[trunk] = branches
        else:
            del self.pending[trunk]

    def enter(self, count: int) -> list[Ready]:
        """The next branches, at most `count`, that get slots now."""
        found, self.ready = self.ready[:count], self.ready[count:]
        self.waits[[of.trial for of in found]] = False
        return found

    def ended(self, trials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The branches whose trunk, one of these trials, ended before they branched off, so that they end as it did:
        the trunk's place in `trials`, and the branch's own trial, of each."""
        gone = [(place, branch) for place, of in enumerate(trials.tolist()) for branch in self.pending.pop(of, ())]
        places, branches = np.array(gone, np.int64).reshape(-1, 2).T
        self.waits[branches] = False
        return places, branches

    def rows_of(self, branches: Sequence[int], whole: bool = False) -> Iterator[tuple[str, Columns]]:
        """Rows of each table that branches take from their trunks: those before they branch off, or all if `whole`."""
        for table, pieces in self.past.items() if len(branches) else ():
            rows = joined(pieces)
            order = np.argsort(rows["trial"], kind="stable")
            of_trunk = self.trunk[branches] + self.before
            low, high = (np.searchsorted(rows["trial"], of_trunk, side, sorter=order) for side in ("left", "right"))
            place = np.concatenate([order[start:end] for start, end in zip(low, high)])
            owner = np.repeat(branches, high - low)
            mine = whole | (rows["step"][place] < self.begin[owner])
            copies = {name: of[place][mine] for name, of in rows.items()}
            yield table, copies | {"trial": owner[mine] + self.before}

    def forget(self, slot_trial: np.ndarray) -> None:
        """Drop copies and rows that no branch needs any more."""
        used = {of.copy for of in self.ready}
        self.copies = {number: of for number, of in self.copies.items() if number in used}
        needed = self._trunks(slot_trial)
        for table, pieces in self.past.items():
            rows = joined(pieces)
            mine = np.isin(rows["trial"], needed)
            self.past[table] = [{name: of[mine] for name, of in rows.items()}]

    def _trunks(self, slot_trial: np.ndarray) -> np.ndarray:
        """Trunks with branches to come, by their numbers in the record."""
        running = [trial for trial in slot_trial.tolist() if trial in self.pending]
        return np.array([*running, *(int(self.trunk[of.trial]) for of in self.ready)], np.int64) + self.before

    def arrays(self, packed: Callable[[Any], list[np.ndarray]]) -> Columns:
        """What a checkpoint keeps."""
        found = {"ready": np.array([(of.trial, of.copy, of.place) for of in self.ready], np.int64).reshape(-1, 3)}
        for number in {of.copy for of in self.ready}:
            found |= {f"copy{number}leaf{i}": leaf for i, leaf in enumerate(packed(self.copies[number]))}
        return found

    def restore(
        self,
        arrays: Mapping[str, np.ndarray],
        slot_trial: np.ndarray,
        tables: Mapping[str, pa.Table],
        unpacked: Callable[[str], Any],
    ) -> None:
        """Go on from a checkpoint: `tables` are the rows so far, `unpacked(prefix)` a state from its leaves. Raises
        RecordError where an older version, whose trials share no steps, made it."""
        if "ready" not in arrays:
            raise RecordError("an older version, whose trials share no steps, began this run; begin a new one")
        self.ready = [Ready(*row) for row in arrays["ready"].tolist()]
        self.copies = {number: unpacked(f"copy{number}leaf") for number in {of.copy for of in self.ready}}
        begun = {*(tables["trials"]["trial"].to_numpy() - self.before).tolist()}
        begun |= set(slot_trial[slot_trial >= 0].tolist())
        begun |= {of.trial for of in self.ready}
        for trunk, branches in list(self.pending.items()):
            self._set_pending(trunk, [branch for branch in branches if branch not in begun])
        self.waits[list(begun)] = False
        self.waits[[of.trial for of in self.ready]] = True
        needed = self._trunks(slot_trial)
        for name in ("curves", "metrics"):
            rows = {key: of.to_numpy(zero_copy_only=False) for key, of in zip(tables[name].column_names, tables[name])}
            mine = np.isin(rows["trial"], needed)
            if mine.any():
                self.past[name] = [{key: of[mine] for key, of in rows.items()}]
