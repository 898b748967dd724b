"""Many records as one table of optimizers and problems: one entry per optimizer, problem and record."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gradbench.analysis.metrics import HELD_OUT, ByMetric
from gradbench.analysis.races.outcomes import Outcomes, check_comparable, outcomes
from gradbench.analysis.summary import PairSummary, name_among, summarise_all
from gradbench.errors import OptimizerError
from gradbench.inputs.specs.spec import parse_spec
from gradbench.record.store import Run
from gradbench.suites.definition import SELF_TUNING, TUNED

FAMILIES = {
    "gradient descent": "sgd momentum nesterov noisy_sgd schedule_free_sgd optimistic_gradient_descent lars fromage",
    "Adam": "adam adamw nadam nadamw radam adamax adamaxw adabelief amsgrad yogi adan ademamix simplified_ademamix "
    "adopt acprop lamb novograd optimistic_adam_v2 schedule_free_adamw",
    "Adagrad and RMSProp": "adagrad adadelta rmsprop adafactor sm3 madgrad",
    "sign": "lion sign_sgd signum rprop",
    "no learning rate": "prodigy dadapt_adamw dog dowg cocob momo momo_adam",
    "matrix and second order": "lbfgs muon galore sophia",
}
OWN = "own"  # the family of a user's optimizer


@dataclass(frozen=True, eq=False)
class Entry:
    """An optimizer on a problem in one record. `name` is unique where several records have the same spec."""

    name: str
    ruleset: str
    run: Run
    summary: PairSummary
    outcomes: Outcomes

    @property
    def problem(self) -> str:
        return self.summary.problem

    @property
    def device(self) -> str:
        """The kind of device that it ran on."""
        return device_of(self.run)

    @property
    def trial_step_s(self) -> float | None:
        """Seconds of a trial's step, all trials together; None where nothing was timed."""
        rate = self.summary.trial_steps_per_s
        return 1 / rate if rate else None

    @property
    def holdout(self) -> float | None:
        """The held-out loss at the end, at the best setting."""
        found = ByMetric.of(self.run, self.summary, HELD_OUT)
        return found.row(self.summary)["by_value_at_best"] if found else None


def device_of(run: Run) -> str:
    """The kind of device in a record's run.json, else its platform, else "unknown"."""
    place = run.info.get("environment", {})
    return str(place.get("device_kind") or place.get("platform") or "unknown")


def ruleset_of(run: Run) -> str:
    """The record's ruleset; where it states none: self-tuning if it ran one setting, else tuned."""
    mark: dict[str, Any] = run.info.get("suite") or {}
    alone = run.plan.search is None and len(run.plan.rates) == 1 and not run.plan.axis_names
    return mark.get("ruleset", SELF_TUNING if alone else TUNED)


def family_of(optimizer: str) -> str:
    """The family of an optimizer's spec; OWN if unknown."""
    target = parse_spec(optimizer, OptimizerError).target
    return next((family for family, names in FAMILIES.items() if target in names.split()), OWN)


def entries(runs: Sequence[Run]) -> list[Entry]:
    """Every optimizer on every problem of these records. Raises GradbenchError, which names the records, where two of
    them were not run alike, and where no trial has finished."""
    check_comparable(runs)
    names = _names(runs)
    by_pair = {}
    for run, pairs in zip(runs, summarise_all(runs)):
        by_pair |= {(run.id, pair.problem, pair.optimizer): pair for pair in pairs}
    found = []
    for problem in dict.fromkeys(problem for run in runs for problem in run.plan.problems):
        sharing = [run for run in runs if problem in run.plan.problems]
        known = outcomes(sharing, [problem])
        for place, run in enumerate(sharing, 1):
            for optimizer in run.plan.optimizers:
                of = known.get(name_among(sharing, place, optimizer), {}).get(problem)
                if of is not None:
                    pair = by_pair[run.id, problem, optimizer]
                    found.append(Entry(names[run.id, optimizer], ruleset_of(run), run, pair, of))
    return found


def by_name(found: Sequence[Entry], ruleset: str) -> dict[str, dict[str, Outcomes]]:
    """The outcomes of a ruleset, by optimizer and problem."""
    table: dict[str, dict[str, Outcomes]] = defaultdict(dict)
    for entry in found:
        if entry.ruleset == ruleset:
            table[entry.name][entry.problem] = entry.outcomes
    return dict(table)


def _names(runs: Sequence[Run]) -> dict[tuple[str, str], str]:
    """(record's id, spec) -> the optimizer's name: its spec and, where another record has it on the same problem, what
    tells the two apart: the device, else the folder that they are in, else their ids."""
    labels: tuple[Callable[[Run], str], ...] = (device_of, lambda run: run.path.parent.name, lambda run: run.id[-6:])
    names = {}
    for key in dict.fromkeys((optimizer, ruleset_of(run)) for run in runs for optimizer in run.plan.optimizers):
        having = [run for run in runs if key[0] in run.plan.optimizers and ruleset_of(run) == key[1]]
        clashes = list(_clashing(having))
        apart = next((label for label in labels if all(label(a) != label(b) for a, b in clashes)), labels[-1])
        for run in having:
            names[run.id, key[0]] = f"{key[0]} ({apart(run)})" if clashes else key[0]
    return names


def _clashing(runs: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    for place, run in enumerate(runs):
        for other in runs[:place]:
            if set(run.plan.problems) & set(other.plan.problems):
                yield other, run
