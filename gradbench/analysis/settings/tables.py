"""The axes of a pair as a table and as notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradbench.analysis.settings.effects import Effects, at_an_end, effects
from gradbench.analysis.settings.moves import Move, families, fitted, move
from gradbench.analysis.summary import PairSummary, pair_trials, problem_trials, trials_of
from gradbench.errors import OptimizerError
from gradbench.inputs.specs.axis import axes_of, concrete
from gradbench.inputs.specs.schedules import risen
from gradbench.inputs.transfer.sources import given_as_object
from gradbench.inputs.transfer.written import command_of_pair
from gradbench.record.store import Run
from gradbench.tables import GO_ON, Column, percent, span

AXES = (
    Column("axis", "axis", str),
    Column("low", "tried", span, and_key="high", priority=3),
    Column("values", "values", priority=4),
    Column("best", "best"),
    Column(
        "good_low",
        "good range",
        span,
        1,
        "with the other axes at their best; of drawn points, all good ones",
        and_key="good_high",
    ),
    Column("explains", "explains", percent, 2, "share of the variance of log gap over all points"),
)


def axis_rows(pair: PairSummary, found: Effects) -> list[dict[str, Any]]:
    """One row per axis, the learning rate first."""
    return [
        {
            "problem": pair.problem,
            "optimizer": pair.optimizer,
            "axis": effect.name,
            "low": min(effect.levels),
            "high": max(effect.levels),
            "values": len(effect.levels),
            "best": effect.best,
            "good_low": effect.good and effect.good[0],
            "good_high": effect.good and effect.good[1],
            "explains": effect.share,
            "means": [
                {"value": value, "mean_log_gap": mean, "lowest_log_gap": low}
                for value, (mean, low) in effect.levels.items()
            ],
        }
        for effect in found.axes
    ]


def moves(run: Run, pair: PairSummary) -> list[Move]:
    """How the best learning rate moves along each other axis of a pair, where that can be fitted."""
    trials = trials_of(problem_trials(run, pair.problem, pair.reference), pair.problem, pair.optimizer)
    found = (move(pair, trials, axis) for axis in pair.settings)
    return [of for of in found if of is not None]


def family_notes(run: Run, pairs: Sequence[PairSummary]) -> list[str]:
    """How the best learning rate moves over pairs that differ in one number, such as a batch size or a width."""
    notes = []
    for what, name, family in families(pairs):
        trials = {value: (pair_trials(run, pair), pair.reference) for value, pair in family.items()}
        found = fitted(name, trials)
        if found is not None:
            notes.append(f"{what}: {found.words}")
    return notes


def axis_notes(run: Run, pair: PairSummary, found: Effects) -> list[str]:
    """What axes explain together, how the best learning rate moves, and an axis whose best is its first or last."""
    name = f"{pair.problem} × {pair.optimizer}"
    notes = [
        f"{name}: {one} and {other} together explain {percent(share)} more than each alone"
        for (one, other), share in found.interactions.items()
    ]
    notes += [f"{name}: {of.words}" for of in (moves(run, pair) if found.exact else [])]
    return notes + edge_notes(run, pair, found)


def edge_notes(run: Run, pair: PairSummary, found: Effects | None = None) -> list[str]:
    """An axis whose best value is its lowest or highest, with the command that goes on."""
    notes = []
    for effect in (found or effects(pair)).axes:
        end = at_an_end(effect, pair.ties)
        if end is None:
            continue
        what = f"{pair.problem} × {pair.optimizer}: the best {effect.name} is the {end} tried"
        further = next(
            (axis.beyond(end) for axis in axes_of(pair.optimizer, OptimizerError) if axis.name == effect.name), None
        )
        if further is None or given_as_object(run.info):
            notes.append(what)
            continue
        optimizer = concrete(pair.optimizer, {effect.name: further}, OptimizerError)
        notes.append(f"{what}{GO_ON}{command_of_pair(run.plan, pair.problem, optimizer)}")
    return notes


def of_pairs(pairs: Sequence[PairSummary]) -> list[tuple[PairSummary, Effects]]:
    """The pairs that have axes beside the learning rate, with their effects."""
    swept = [pair for pair in pairs if pair.settings and len(pair.points) > 1 and not risen(pair.optimizer)]
    return [(pair, effects(pair)) for pair in swept]
