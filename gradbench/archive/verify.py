"""Does a record hold? Its files, its plan and its tables agree, and trials drawn at random come out again."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.compute as pc

from gradbench.archive import integrity
from gradbench.archive.again import Pair
from gradbench.archive.cells import Cell, Cells, Judge, cells
from gradbench.engine.units import facts
from gradbench.errors import DamagedError, GradbenchError, PlanError
from gradbench.files import json_bytes, utc_now
from gradbench.inputs.problem import Problem, load_problem, problem_names
from gradbench.inputs.specs.searches import ASKING
from gradbench.inputs.specs.spec import parse_spec
from gradbench.inputs.transfer.sources import difference, recorded_file, sources
from gradbench.machine.devices import cpu_model, find_devices
from gradbench.machine.environment import environment
from gradbench.program.xla.switch import enabled
from gradbench.record.manifest import record_digest
from gradbench.record.schema import FIRST_REVISION, TRIALS
from gradbench.record.store import Run, load_run
from gradbench.tables import Column, check_format, note_lines, number, render, sentence_lines, to_json

SURE = 0.95
COUNTED = ("parameters", "examples", "recorded", "maximise")  # facts of a problem that no rounding changes
PACKAGES = ("gradbench", "jax", "jaxlib", "optax", "numpy")
EXACT, WITHIN, DIFFERS, LEFT_OUT = "bit for bit", "within the bound", "differs", "not replayed"


@dataclass(frozen=True)
class Verification:
    """Whether a record `holds`, and what that rests on.

    rows: a dict for each drawn trial: trial, problem, optimizer, learning_rate, seed, result ("bit for bit", "within
        the bound" of another place's rounding, "differs", "not replayed"), horizon (the step from which that trial
        cannot be predicted in another place, None if it can to its end) and what (what differs, or why not replayed).
    faults: sentences on what contradicts the manifest, the plan or another table, of all trials, and on problems of
        gradbench's own and their data that are not the recorded ones here.
    notes: what was not looked at, and why; so the user's own files and data that are others here.
    """

    record: str
    rows: list[dict[str, Any]]
    faults: list[str]
    notes: list[str]
    trials: int
    replayable: int  # of them, those of pairs that were not left out: what the sample speaks for
    seed: int
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # when, where, and the manifest's digest

    @property
    def replayed(self) -> int:
        return sum(row["result"] != LEFT_OUT for row in self.rows)

    @property
    def holds(self) -> bool:
        return not self.faults and all(row["result"] != DIFFERS for row in self.rows)

    def chance(self, changed: int) -> float:
        """The probability that the trials replayed have one of so many `changed` ones, of those that can be replayed,
        among them (hypergeometric)."""
        from scipy.stats import hypergeom

        return 1 - float(hypergeom.pmf(0, self.replayable, min(changed, self.replayable), self.replayed))

    @property
    def least_found(self) -> int | None:
        """The fewest changed trials of which the sample has one with a probability of 95 %; None where none was
        replayed."""
        if not self.replayed:
            return None
        low, high = 1, self.replayable
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.chance(middle) >= SURE else (middle + 1, high)
        return low

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        kept = {of.name: getattr(self, of.name) for of in dataclasses.fields(self) if of.name != "facts"}
        found = {"holds": self.holds, "replayed": self.replayed, "least_found": self.least_found}
        return {**found, **self.facts, **kept}

    def __str__(self) -> str:
        return verify_text(self, "table")


def verify_run(
    run: Run | Path,
    sample: int = 20,
    seed: int | None = None,
    own_files: bool = False,
    objects: Mapping[str, Problem] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Verification:
    """Check a record, or the one in a folder, as a whole, and run `sample` trials of it again, drawn by `seed` (a new
    one if None).

    A number has to come out bit for bit where platform, device kind, versions, commit and flags are the record's;
    elsewhere within a bound on what rounding does to that trial (archive/cells.py), up to the step from which it cannot
    be predicted. Files that a record names are run only with `own_files`, and only if they are the recorded ones.
    A record of which a file cannot be read does not hold. Raises GradbenchError where there is nothing to replay.
    """
    if sample < 1:
        raise PlanError(f"sample: need at least 1 trial, got {sample}")
    if seed is not None and seed < 0:
        raise PlanError(f"seed: need a whole number of at least 0, got {seed}")
    try:
        record = load_run(run, warn=False) if isinstance(run, Path) else run  # what was changed is among the faults
        return _verified(record, sample, seed, own_files, objects or {}, say)
    except DamagedError as error:
        name = run.resolve().name if isinstance(run, Path) else run.id
        return Verification(name, [], [str(error)], [], 0, 0, 0, {"at": utc_now()})


def _verified(
    run: Run,
    sample: int,
    seed: int | None,
    own_files: bool,
    objects: Mapping[str, Problem],
    say: Callable[[str], None],
) -> Verification:
    if run.trials.num_rows == 0:
        raise GradbenchError(f"{run.id}: no trial has finished yet, so there is nothing to verify")
    seed = secrets.randbits(32) if seed is None else seed
    say("comparing the record with itself")
    faults, notes = integrity.faults(run), _record_notes(run)
    other, changed = _other_files(run, objects)
    faults, notes = faults + other, notes + changed
    devices, elsewhere = _devices(run)
    notes += [f"replayed elsewhere: {', '.join(elsewhere)}"] if elsewhere else []
    present = np.unique(run.trials["trial"].to_numpy())
    present = present[(present >= 0) & (present < run.plan.trials)]
    drawn = drawn_trials(present, sample, seed)
    rows = []
    of_pair = run.plan.pair_of(drawn)
    for pair in np.unique(of_pair).tolist():
        chosen = drawn[of_pair == pair]
        say(f"{' × '.join(run.plan.pairs[pair])}: {len(chosen)} trials again")
        loaded, why, wrong = _loaded(run, pair, devices, own_files, objects)
        faults += [wrong] if wrong and wrong not in faults else []
        if loaded is None:
            rows += [_row(run, trial, LEFT_OUT, what=why or wrong) for trial in chosen]
            notes += [why] if why and why not in notes else []
        else:
            faults += [fault for fault in _other_facts(loaded, bool(elsewhere)) if fault not in faults]
            rows += _replayed(loaded, chosen, len(drawn), bool(elsewhere))
    if not faults and all(row["result"] == LEFT_OUT for row in rows):
        why = "; ".join(dict.fromkeys(row["what"] for row in rows))
        raise GradbenchError(f"{run.id}: no drawn trial can be replayed here: {why}")
    left_out = np.array([row["trial"] for row in rows if row["result"] == LEFT_OUT], int)
    closed = np.unique(run.plan.pair_of(left_out))
    open_to = int((~np.isin(run.plan.pair_of(present), closed)).sum())
    facts = {
        "at": utc_now(),
        "record_sha256": record_digest(run.path),
        "place": environment(devices, run.plan.precision),
    }
    return Verification(run.id, rows, faults, notes, len(present), open_to, seed, facts)


def _other_files(run: Run, objects: Mapping[str, Problem]) -> tuple[list[str], list[str]]:
    """The problems, drawn or not, whose files here are not the recorded ones: faults of gradbench's, notes on own ones,
    which their user may change."""
    recorded = (run.info.get("sources") or {"problems": {}})["problems"]
    of_files = [name for name, source in recorded.items() if source["sha256"] and name not in objects]
    found = {name: why for name in of_files if (why := recorded_file(run.info, name))}
    faults = [why for name, why in found.items() if not _own(name)]
    return faults, list(dict.fromkeys(_not_here(why) for name, why in found.items() if _own(name)))


def _own(problem: str) -> bool:
    """Whether a problem is of a user's file."""
    return parse_spec(problem, GradbenchError).target not in problem_names()


def _not_here(why: str) -> str:
    return f"{why}, so it cannot be replayed here"


def _record_notes(run: Run) -> list[str]:
    notes = []
    if run.info["state"] != "complete":
        notes.append(
            f"the run is {run.info['state']}: of its plan's {run.plan.trials:,} trials those that have finished"
        )
    elif record_digest(run.path) is None and not run.info.get("manifest"):  # else it is a fault
        notes.append("no manifest: deleted, or of an older gradbench, which wrote none")
    if run.plan.searching is not None and run.plan.searching.kind in ASKING:
        notes.append(f"what {run.plan.search} asks for is not asked again: a trial of it that is gone is not missed")
    elif run.plan.allowed is not None and run.plan.allowed.unit == "seconds":
        notes.append(f"a trial that is gone is not missed: the budget, {run.plan.budget}, may have left it out")
    if run.timings.num_rows or run.sharpness.num_rows:
        notes.append("timings and sharpness are not replayed: only the manifest vouches for them")
    return notes


def _devices(run: Run) -> tuple[list[jax.Device], list[str]]:
    """The devices to replay on, of the record's platform if there are any; and how this place is another one than the
    record's."""
    began = run.info["environment"]
    try:
        devices = find_devices(began.get("platform") or run.plan.device)
    except PlanError:
        devices = find_devices(None)
    now = environment(devices, run.plan.precision)
    pairs = [(key, began.get(key), now[key]) for key in ("platform", "device_kind", "git_commit", "flags")]
    pairs += [(name, began.get("versions", {}).get(name), now["versions"][name]) for name in PACKAGES]
    pairs.append(("rewriting", run.info.get("rewriting", True), enabled()))
    most = max((of.get("devices", 1) for of in run.info.get("blocks", {}).values()), default=1)
    pairs += [("devices", most, len(devices))] if len(devices) < most else []
    return devices, [f"{name.replace('_', ' ')} {before} → {here}" for name, before, here in pairs if before != here]


def _loaded(
    run: Run, pair: int, devices: list[jax.Device], own_files: bool, objects: Mapping[str, Problem]
) -> tuple[Pair | None, str, str]:
    """A pair to replay; or None with why it is left out, or with what of gradbench's is not the recorded one
    here."""
    name, optimizer = run.plan.pairs[pair]
    recorded = run.info.get("sources")
    if recorded and "given" in recorded["optimizers"].get(optimizer, {}):
        return None, f"{optimizer} was given as a function, which only its own process had", ""
    of_file = [optimizer] if ":" in parse_spec(optimizer, GradbenchError).target else []
    if name not in objects:
        if recorded and name in recorded["problems"] and recorded["problems"][name]["sha256"] is None:
            return None, f"{name} was given as an object, which only its own process had", ""
        if why := recorded_file(run.info, name):
            return (None, _not_here(why), "") if _own(name) else (None, "", why)
        of_file += [name] if _own(name) else []
    if of_file and not own_files:
        return None, f"{' and '.join(of_file)}: a record's own files are run with --own-files, own_files=True, only", ""
    problem = load_problem(objects.get(name, name))
    if recorded:
        alone = dataclasses.replace(run.plan, problems=(name,), optimizers=(optimizer,), until=None)
        began = {
            "problems": {name: recorded["problems"][name]},
            "optimizers": {optimizer: recorded["optimizers"][optimizer]},
        }
        now = sources(alone, {name: problem}, objects)
        if changed := difference(began, now):
            changed = f"{changed} this run began"
            own = _own(name) or not difference(began | {"optimizers": {}}, now)
            return (None, _not_here(changed), "") if own else (None, "", changed)
    return Pair.of(run, pair, devices, problem), "", ""


def _other_facts(pair: Pair, elsewhere: bool) -> list[str]:
    """What run.json says of a pair's problem, and is not so here. `elsewhere` a computed number may be rounded
    otherwise, by NumPy also on another CPU beside the same kind of device, and an older record has fewer facts."""
    name = pair.run.plan.pairs[pair.number][0]
    elsewhere = elsewhere or pair.run.info["environment"].get("cpu_model") != cpu_model()
    recorded, here = pair.run.info.get("problems", {}).get(name, {}), json.loads(json_bytes(facts(pair.trial.problem)))
    compared = [fact for fact in COUNTED if fact in here and fact in recorded] if elsewhere else {**here, **recorded}
    pairs = [(fact, *(json.dumps(of.get(fact)) for of in (recorded, here))) for fact in compared]
    return [f"run.json: {fact} of {name} is {before}, here {now}" for fact, before, now in pairs if before != now]


def _replayed(pair: Pair, chosen: np.ndarray, drawn: int, elsewhere: bool) -> list[dict[str, Any]]:
    """The rows of a pair's chosen trials, by their numbers in the record."""
    run, first = pair.run, pair.run.plan.first_trials[pair.number]
    recorded = {name: getattr(run, name) for name in ("trials", "curves", "metrics")}
    to = run.info.get("references", {}).get(run.plan.pairs[pair.number][0]) or {}
    late = ["verdict", "steps_to_target"] if to.get("kind") == "best found" else []  # known when all pairs are done
    late.append("tried")  # which a search says
    if elsewhere:  # perhaps of a version that did not have all columns; this one does
        late += [
            of.name for of in TRIALS if of.since > FIRST_REVISION and run.trials[of.name].null_count == len(run.trials)
        ]
    before = cells(recorded, chosen, late)
    here = cells(pair.replay(chosen - first), chosen, late)
    rows = {trial: _row(run, trial, EXACT) for trial in chosen if before[trial] == here[trial]}
    unlike = np.array([trial for trial in chosen if trial not in rows], int)
    if len(unlike):
        twins = cells(pair.shaken(unlike - first), unlike, late)
        judges = {
            trial: Judge.of(before[trial], here[trial], twins[trial], pair.noise, pair.block.stride, drawn)
            for trial in unlike
        }
        near = [] if elsewhere else [trial for trial, judge in judges.items() if not judge.outside]
        exact = _of_a_slot(pair, np.array(near, int), before, late)
        for trial, judge in judges.items():
            what = judge.words(before[trial], here[trial])
            if trial in exact:
                rows[trial] = _row(run, trial, EXACT)
            elif elsewhere:
                rows[trial] = _row(run, trial, DIFFERS if judge.outside else WITHIN, judge.horizon, what)
            else:
                within = "" if judge.outside else ": another machine of this kind?"
                rows[trial] = _row(run, trial, DIFFERS, None, what + within)
    return [rows[trial] for trial in chosen]


def _of_a_slot(pair: Pair, trials: np.ndarray, before: Mapping[int, Cells], late: Sequence[str]) -> set[int]:
    """Those of some trials, by their numbers in the record, of which every number is what some slot gives."""
    if not len(trials):
        return set()
    found: dict[int, dict[Cell, set[Any]]] = {int(trial): {} for trial in trials}
    for tables in pair.in_every_slot(trials - pair.run.plan.first_trials[pair.number]):
        for trial, slots in cells(tables, trials, late).items():
            for cell, values in slots.items():
                found[trial].setdefault(cell, set()).update(values)
    return {
        trial
        for trial, slots in found.items()
        if before[trial].keys() == slots.keys() and all(of[0] in slots[cell] for cell, of in before[trial].items())
    }


def _row(run: Run, trial: int, result: str, horizon: int | None = None, what: str = "") -> dict[str, Any]:
    planned = integrity.planned_columns(run, np.array([trial]))
    there = run.trials.filter(pc.field("trial") == int(trial)).slice(0, 1).to_pylist()
    found = {name: there[0][name] for name in ("learning_rate", "seed")} if there else {}
    row = {"trial": int(trial)} | found | {name: values[0] for name, values in planned.items()}
    row = {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
    return row | {"result": result, "horizon": horizon, "what": what}


COLUMNS = (
    Column("trial", "trial"),
    Column("problem", "problem", str),
    Column("optimizer", "optimizer", str),
    Column("learning_rate", "learning rate", priority=2),
    Column("seed", "seed", priority=3),
    Column("result", "result", str),
    Column("horizon", "horizon", number, 4, "the step from which rounding decides, not compared from there on"),
    Column("what", "what differs", lambda text: text or "–", 1, prose=True),
)


def verify_text(verification: Verification, output_format: str) -> str:
    """A verification for people or machines: table and markdown end with the faults, the notes and the answer."""
    check_format(output_format)
    if output_format == "json":
        return to_json(verification.to_dict())
    text = render(verification.rows, COLUMNS, output_format)
    if output_format == "csv":
        return text
    faults = [f"Fault: {fault.rstrip('.')}" for fault in verification.faults]
    said = [*sentence_lines(faults, output_format), *note_lines(verification.notes, output_format)]
    said += sentence_lines([_answer(verification)], output_format)
    return "\n".join([text, "", *said] if verification.rows else said)


def _answer(found: Verification) -> str:
    if not found.trials:
        return f"{found.record} does not hold: it cannot be read"
    counts = Counter(row["result"] for row in found.rows)
    results = ", ".join(f"{count} {word}" for word, count in counts.items())
    head = f"{found.record} {'holds' if found.holds else 'does not hold'}: of {found.trials:,} trials"
    drawn = f"{len(found.rows)} drawn (--seed {found.seed}), {results}"
    least = found.least_found
    if least is None:
        return f"{head} {drawn}"
    odds = f"a changed trial would be found with a probability of {100 * found.chance(1):.3g} %"
    if least > 1:
        odds += f", one of {least:,} changed ones ({100 * least / found.replayable:.3g} %) with 95 %"
    if found.replayable < found.trials:
        odds += f"; nothing is known of the {found.trials - found.replayable:,} trials left out"
    return f"{head} {drawn}; {odds}"


def drawn_trials(numbers: Sequence[int] | np.ndarray, sample: int, seed: int) -> np.ndarray:
    """The trials, out of these numbers, that `seed` draws: without replacement, each alike."""
    return np.sort(np.random.default_rng(seed).choice(numbers, min(sample, len(numbers)), replace=False))
