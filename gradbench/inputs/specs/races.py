"""Seeds that are added until it is decided which of two optimizers wins: which two, and when one looks."""

from __future__ import annotations

from gradbench.errors import PlanError
from gradbench.inputs.specs.searches import Budget

SIGN = "<"
SEEDS = 100  # at the most, if not given
FEWEST = 7  # units with which the test can decide (analysis/races/sequential.py)
ADDED = 4  # seeds after which it is looked again, or an eighth of those so far


def sides(text: str) -> tuple[str, str]:
    """The two optimizers of `adam<sgd`, the one that is asked about first. Raises PlanError for another text."""
    names = [name.strip() for name in text.split(SIGN)]
    if len(names) != 2 or not all(names):
        raise PlanError(f"until: {text!r} should be two optimizers, such as adam{SIGN}sgd: does adam win over sgd?")
    if names[0] == names[1]:
        raise PlanError(f"until: {names[0]!r} is compared with itself; name two optimizers")
    return names[0], names[1]


def unit_seeds(points: int) -> int:
    """Seeds of which the test takes one value: two, each judged at the setting that is best on the other one; or one,
    where there is a single setting, so that none is chosen."""
    return 1 if points == 1 else 2


def round_ends(points: int, seeds: int) -> list[int]:
    """The numbers of seeds after which one looks, ascending, of at most `seeds`: whole units, the fewest that can
    decide, then ADDED more or an eighth. Raises PlanError where so few cannot decide."""
    size = unit_seeds(points)
    ends, most = [FEWEST * size], seeds // size * size
    if most < ends[0]:
        raise PlanError(
            f"until: seeds and budget allow {seeds} seeds, which cannot decide it; allow at least {ends[0]}"
        )
    while ends[-1] < most:
        ends.append(min(most, ends[-1] + max(ADDED, ends[-1] // 8 // size * size)))
    return ends


def allowed_seeds(seeds: int, points: int, steps: int, budget: Budget | None) -> int:
    """How many of the seeds a budget allows in any case. Of steps that is as many as do not retire; of seconds all."""
    if budget is None or budget.unit == "seconds":
        return seeds
    of_seed = points if budget.unit == "trials" else points * steps
    return min(seeds, int(budget.amount // of_seed))
