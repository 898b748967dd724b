"""What the board shows of many records, as JSON takes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbench.analysis.profiles import performance_profile
from gradbench.analysis.races.outcomes import Outcomes, suite_words
from gradbench.analysis.races.races import GAP, STEPS
from gradbench.analysis.races.tunability import tunability_of
from gradbench.archive.verified import standing_verification
from gradbench.record.store import Run
from gradbench.suites.definition import TUNED, short_names
from gradbench.suites.entries import Entry, by_name, device_of, entries, family_of
from gradbench.suites.ranking import Ranked, ranks

Row = dict[str, Any]


def board_data(runs: Sequence[Run]) -> Row:
    """Everything that the page holds. Raises GradbenchError, which names them, for records that do not compare."""
    found = entries(runs)
    rulesets = sorted({entry.ruleset for entry in found}, key=lambda name: name != TUNED)
    tables = {ruleset: by_name(found, ruleset) for ruleset in rulesets}
    places = {ruleset: ranks(table) for ruleset, table in tables.items()}
    return {
        "suite": suite_words(runs[0]),
        "rulesets": rulesets,
        "problems": short_names(dict.fromkeys(entry.problem for entry in found)),
        "optimizers": [row for ruleset in rulesets for row in _optimizers(found, ruleset, places[ruleset])],
        "cells": [row for ruleset in rulesets for row in _cells(found, ruleset, places[ruleset])],
        "profile": [row for ruleset in rulesets for row in _profile(ruleset, places[ruleset])],
        "tuning": [row for ruleset in rulesets for row in _tuning(ruleset, tables[ruleset])],
        "records": [_record(run) for run in runs],
    }


def _finite(value: float | None, digits: int = 4) -> float | None:
    """A number rounded to `digits` significant digits, for a small page; None for NaN, infinity and None."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def _optimizers(found: Sequence[Entry], ruleset: str, places: Sequence[Ranked]) -> list[Row]:
    """A row for each optimizer over all problems, the best first."""
    rows = []
    for name in dict.fromkeys(entry.name for entry in found if entry.ruleset == ruleset):
        of = [entry for entry in found if (entry.name, entry.ruleset) == (name, ruleset)]
        place = next((place for place in places if place.optimizer == name and place.problem is None), None)
        row: Row = {"name": name, "ruleset": ruleset, "family": family_of(of[0].summary.optimizer)}
        row |= {"devices": sorted({entry.device for entry in of}), "records": sorted({entry.run.id for entry in of})}
        rows.append(row | {"place": _place(place) if place else None})
    return sorted(rows, key=lambda row: row["place"]["rank"] if row["place"] else math.inf)


def _place(place: Ranked) -> Row:
    row = {key: value for key, value in vars(place).items() if key not in ("optimizer", "problem", "comparisons")}
    comparisons = {
        name: [*(_finite(value, 3) for value in other[:3]), int(other.shown), int(other.what == GAP)]
        for name, other in place.comparisons.items()
    }
    return {key: _finite(value) if isinstance(value, float) else value for key, value in row.items()} | {
        "comparisons": comparisons
    }


def _cells(found: Sequence[Entry], ruleset: str, places: Sequence[Ranked]) -> list[Row]:
    """A row for each optimizer and problem, with its sweep."""
    known = {(place.optimizer, place.problem): place for place in places}
    rows = []
    for entry in found:
        if entry.ruleset != ruleset:
            continue
        pair = entry.summary
        row: Row = {"name": entry.name, "ruleset": ruleset, "problem": entry.problem, "device": entry.device}
        row |= _place(known[entry.name, entry.problem])
        row |= {"learning_rate": _finite(pair.best.learning_rate if pair.best else None)}
        row |= {"good": [_finite(end) for end in pair.good] if pair.good and len(pair.rates) > 1 else None}
        row |= {"good_decades": _finite(pair.good_decades), "diverged": _finite(pair.diverged_share, 3)}
        row |= {"holdout": _finite(entry.holdout), "step_s": _finite(entry.trial_step_s)}
        row |= {"solo_s": _finite(pair.solo_step_s)}
        rows.append(row | {"sweep": _sweep(entry.outcomes)})
    return rows


def _sweep(of: Outcomes) -> Row:
    """Each setting's median steps to the target and final gap, by learning rate; null where never reached."""
    order = np.argsort(of.rates, kind="stable")
    steps, gaps = (np.median(values, axis=1)[order] for values in (of.steps, of.gaps))
    return {
        "rates": [_finite(rate, 3) for rate in of.rates[order].tolist()],
        "steps": [_finite(value) for value in steps.tolist()],
        "gaps": [_finite(value, 3) for value in gaps.tolist()],
    }


def _profile(ruleset: str, places: Sequence[Ranked]) -> list[Row]:
    """Performance profiles in steps to the target, over the problems that all optimizers have."""
    costs: dict[str, dict[str, float]] = {}
    for place in places:
        if place.problem is not None:
            reached = place.what == STEPS and place.reached > 0.5
            costs.setdefault(place.optimizer, {})[place.problem] = place.value if reached else math.inf
    shared = sorted(set.intersection(*(set(by) for by in costs.values())))
    if not shared:
        return []
    rows = []
    for name, (ratios, shares) in performance_profile(
        {of: [by[p] for p in shared] for of, by in costs.items()}
    ).items():
        points = dict(zip((float(f"{ratio:.3g}") for ratio in ratios), shares.tolist()))
        rows += [{"ruleset": ruleset, "name": name, "ratio": x, "share": _finite(y, 3)} for x, y in points.items()]
    return rows


def _tuning(ruleset: str, table: dict[str, dict[str, Outcomes]]) -> list[Row]:
    """Expected steps against the number of tuning trials, over the problems that all optimizers have, and on each."""
    several = {name: by for name, by in table.items() if all(len(of.rates) > 1 for of in by.values())}
    if ruleset != TUNED or not several:
        return []
    shared = set.intersection(*(set(by) for by in several.values()))
    whole = {name: {problem: of for problem, of in by.items() if problem in shared} for name, by in several.items()}
    if not shared:
        return []
    keys = ("problem", "trials", "optimizer", "what", "value", "low", "high")
    curves = [{key: row[key] for key in keys} for row in tunability_of(whole).curves]
    made = [
        {
            **{key: _finite(value) if isinstance(value, float) else value for key, value in row.items()},
            "ruleset": ruleset,
            "name": row["optimizer"],
        }
        for row in curves
    ]
    return [{key: value for key, value in row.items() if key != "optimizer"} for row in made]


def _record(run: Run) -> Row:
    """Where a record was made, and what a verification found of it as it is now."""
    place, verified = run.info["environment"], standing_verification(run)
    versions = place.get("versions", {})
    return {
        "id": run.id,
        "folder": run.path.parent.name,
        "device": device_of(run),
        "machine": " ".join(str(place[key]) for key in ("cpu_cores", "cpu_model") if place.get(key)),
        "versions": ", ".join(f"{name} {of}" for name, of in versions.items() if name in ("jax", "optax", "gradbench")),
        "started": run.info.get("started"),
        "trials": run.trials.num_rows,
        "ruleset": (run.info.get("suite") or {}).get("ruleset"),
        "problems": list(run.plan.problems),
        "verified": verified,
    }
