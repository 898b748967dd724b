"""SweepPlan: what to run. The command line's options, a TOML file, the Python API and run.json are all this."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradbench.errors import OptimizerError, PlanError, ProblemError, nearest, one_line
from gradbench.inputs.settings import DEFAULT_OPTIMIZERS, SEEDS, STEPS, SweepSettings, problem_specs
from gradbench.inputs.specs import checks, races
from gradbench.inputs.specs.axis import LISTED, OF_PLAN, Axis, axes_of, with_axis
from gradbench.inputs.specs.designs import GRID, count, listed, points
from gradbench.inputs.specs.rates import check_rates_fit, rate_values, rates_as_kept
from gradbench.inputs.specs.schedules import branched, rising
from gradbench.inputs.specs.searches import (
    ASKED,
    ASKING,
    HALVING,
    OPTUNA,
    OPTUNA_POINTS,
    RANGE_TEST,
    REFINE,
    REFINE_POINTS,
    RUNGS,
    Budget,
    Search,
    read_budget,
    read_search,
)
from gradbench.inputs.specs.spec import parse_spec

if TYPE_CHECKING:
    import numpy as np

MAX_TRIALS = 2**31 - 1  # trial numbers are int32 on the device


@dataclass(frozen=True)
class SweepPlan(SweepSettings):
    """Every combination of problem, optimizer, learning rate and seed, and how to run them."""

    def __post_init__(self) -> None:
        chosen = self.optimizers is not DEFAULT_OPTIMIZERS
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, field.metadata["check"](field.name, getattr(self, field.name)))
        self._take_sides(chosen)
        self._take_branches()
        self._spread()
        self._take_axes()
        self._take_list()
        self._check_search()
        self._check_until()
        check_rates_fit(self.learning_rates, self.dtypes)
        if self.target_loss is not None and len(self.problems) > 1:
            raise PlanError(f"target_loss: one loss is for one problem; this plan has {len(self.problems)}")
        if self.target_loss is not None and self.targets is not None:
            raise PlanError("targets: target_loss is given too; give one of them")
        if self.trials > MAX_TRIALS:
            raise PlanError(f"the plan has {self.trials:,} trials; at most {MAX_TRIALS:,} fit one run")

    def _take_sides(self, chosen: bool) -> None:
        """Of a race: its two optimizers; others that are `chosen` beside it are refused. And the seeds if not given."""
        if self.seeds is None:
            object.__setattr__(self, "seeds", SEEDS if self.until is None else races.SEEDS)
        if self.until is None:
            return
        named = checks.optimizers("until", races.sides(self.until))
        if chosen and set(self.optimizers) != set(named):
            both = " and ".join(self.optimizers)
            raise PlanError(f"until: {self.until} compares two optimizers, and the plan has {both}; give no others")
        object.__setattr__(self, "optimizers", named)

    def _check_until(self) -> None:
        if self.until is None:
            return
        if len(self.optimizers) != 2:
            raise PlanError(f"until: {self.until} stands for {len(self.optimizers)} optimizers, one for each value")
        if self.search is not None:
            raise PlanError("until: it adds seeds to every setting of a design; give no search beside it")
        object.__setattr__(self, "until", races.SIGN.join(self.optimizers))  # with their axes
        _ = self.round_ends

    def _spread(self) -> None:
        """Of several batch sizes, numbers of steps or dtypes, an optimizer for each; the largest stands for all."""
        for name in OF_PLAN:
            values = getattr(self, name)
            if isinstance(values, tuple):
                specs = [with_axis(spec, name, values, OptimizerError) for spec in self.optimizers]
                object.__setattr__(self, "optimizers", checks.optimizers("optimizers", specs))
                object.__setattr__(self, name, checks.largest(values))

    def solved(self, problem: str) -> float | None:
        """The loss of a problem that the plan says counts as converged; None where it says none."""
        return self.target_loss if self.targets is None else self.targets.get(problem)

    def of(self, optimizer: str) -> SweepPlan:
        """The plan with the batch size, the steps and the dtype that an optimizer's spec sets for its trials."""
        if not any(name in optimizer for name in OF_PLAN):
            return self
        settings = parse_spec(optimizer, OptimizerError).settings
        own = {name: settings[name] for name in OF_PLAN if name in settings}
        return dataclasses.replace(self, **own) if own else self

    def _take_branches(self) -> None:
        """Give every optimizer the schedule of `branch_at` and `decay`; the longest of them says the steps."""
        if self.branch_at is None and self.decay is None:
            object.__setattr__(self, "steps", STEPS if self.steps is None else self.steps)
            return
        specs, steps = branched(self.optimizers, self.branch_at, self.decay)  # the longest one's
        if self.steps not in (None, steps):
            raise PlanError(f"steps: branch_at and decay say how long trials are, {steps} steps; leave steps out")
        for name, value in (("optimizers", specs), ("steps", steps), ("branch_at", None), ("decay", None)):
            object.__setattr__(self, name, value)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes of the trials, each once: the plan's, or those that optimizers' specs set."""
        settings = [parse_spec(spec, OptimizerError).settings if "dtype" in spec else {} for spec in self.optimizers]
        return tuple(dict.fromkeys(of.get("dtype", self.dtype) for of in settings))

    def _take_axes(self) -> None:
        """Put each of `axes` into the specs it belongs to."""
        for text in self.axes:
            name, _, values = (part.strip() for part in text.partition("="))
            values = values.replace(",", "|")
            target, _, setting = name.rpartition(".")
            if setting == "learning_rate":
                object.__setattr__(self, "learning_rates", rates_as_kept(values.replace("|", ",")))
                continue
            found = False
            for field, error in (("optimizers", OptimizerError), ("problems", ProblemError)):
                specs = getattr(self, field)
                named = [spec for spec in specs if parse_spec(spec, error).target == target]
                named = named or (list(specs) if not target and field == "optimizers" else [])
                found |= bool(named)
                after = [with_axis(spec, setting, values, error) if spec in named else spec for spec in specs]
                check = checks.optimizers if field == "optimizers" else problem_specs
                object.__setattr__(self, field, check(field, after))
            if not found:
                known = [parse_spec(spec, PlanError).target for spec in (*self.optimizers, *self.problems)]
                raise PlanError(f"axes: {text}: the plan has no {target!r}{nearest(target, known)}")
        object.__setattr__(self, "axes", ())

    def _take_list(self) -> None:
        """Give every optimizer the axes of a list of points, and refuse others."""
        if isinstance(self.design, str):
            return
        names, specs = listed(self.design), []
        for spec in self.optimizers:
            settings = parse_spec(spec, OptimizerError).settings
            for name in names:
                if settings.get(name, LISTED) != LISTED:
                    raise PlanError(f"design: the list has {name}, which {spec!r} sets; give it once")
                spec = spec if name in settings else with_axis(spec, name, LISTED, OptimizerError)
            if others := [axis.name for axis in axes_of(spec, OptimizerError) if axis.name not in names]:
                raise PlanError(f"design: the list has no {others[0]}, which is an axis of {spec!r}")
            specs.append(spec)
        object.__setattr__(self, "optimizers", tuple(specs))
        rates = dict.fromkeys(float(row["learning_rate"]) for row in self.design)
        object.__setattr__(self, "learning_rates", tuple(rates))

    def _check_search(self) -> None:
        found = self.searching
        if found is None:
            return
        if found.kind == RANGE_TEST:
            object.__setattr__(self, "optimizers", rising(self.optimizers, self.rates))
            object.__setattr__(self, "learning_rates", (max(self.rates),))
        if found.kind != HALVING and self.design != GRID:
            raise PlanError(f"search: {found.kind} chooses its own points; give no design beside it")
        scheduled = (parse_spec(spec, OptimizerError) for spec in self.optimizers)
        if found.kind == HALVING and any(spec.settings.get("schedule", "constant") != "constant" for spec in scheduled):
            raise PlanError("search: halving compares trials before a schedule has ended; it is for constant rates")

    @property
    def searching(self) -> Search | None:
        """The search, if there is one."""
        return None if self.search is None else read_search(self.search)

    @property
    def allowed(self) -> Budget | None:
        """The budget of a pair, if there is one."""
        return None if self.budget is None else read_budget(self.budget)

    @property
    def eta(self) -> int:
        """Of halving, how many come for each that goes on at a rung."""
        return self.searching.argument if self.searching else 1

    @property
    def rungs(self) -> list[int]:
        """The steps after which halving compares trials."""
        found = self.searching
        if found is None or found.kind != HALVING:
            return []
        return [at for k in range(RUNGS, 0, -1) if (at := self.steps // found.argument**k) > 0]

    @property
    def settings(self) -> int:
        """Combinations that a race tries of each optimizer; of the two the more."""
        return max(count(self.design, self.learning_rates, self.axes_of(optimizer)) for optimizer in self.optimizers)

    @property
    def round_ends(self) -> list[int]:
        """The numbers of seeds after which a race is looked at, as far as seeds and budget allow in any case."""
        return races.round_ends(self.settings, races.allowed_seeds(self.seeds, self.settings, self.steps, self.allowed))

    @property
    def rates(self) -> list[float]:
        """The learning rates as numbers, in the order given."""
        return rate_values(self.learning_rates)

    def axes_of(self, optimizer: str) -> tuple[Axis, ...]:
        """What varies of an optimizer of the plan beside its learning rate."""
        of_list = listed(self.design)
        return tuple(of_list.get(axis.name, axis) for axis in axes_of(optimizer, OptimizerError))

    def points(self, optimizer: str) -> dict[str, np.ndarray]:
        """Setting -> its values at every point that is tried of an optimizer, float64 (N,), the learning rate last."""
        return points(self.design, self.learning_rates, self.axes_of(optimizer))

    def trials_of(self, optimizer: str) -> int:
        """Trials of one (problem, optimizer) pair; of a search, at the most."""
        found = self.searching
        if found is not None and found.kind == REFINE:
            return REFINE_POINTS * (1 + len(self.axes_of(optimizer))) + 3 * self.seeds
        if found is not None and found.kind == OPTUNA:
            budget = self.allowed
            trials = budget.amount if budget and budget.unit == "trials" else OPTUNA_POINTS * self.seeds
            return self.seeds * max(1, int(trials) // self.seeds)
        return self.seeds * count(self.design, self.learning_rates, self.axes_of(optimizer))

    def side_by_side(self, optimizer: str) -> int:
        """Trials of a pair that may be under way at once: a search asks for few at a time."""
        trials, found = self.trials_of(optimizer), self.searching
        if self.until is not None:
            return min(trials, races.ADDED * self.settings)
        if found is None or found.kind not in ASKING:
            return trials
        return min(trials, ASKED if found.kind == REFINE else ASKED * self.seeds)

    @property
    def first_trials(self) -> list[int]:
        """The number of each pair's first trial, in the order of `pairs`."""
        counts = [self.trials_of(optimizer) for _, optimizer in self.pairs]
        return list(itertools.accumulate(counts, initial=0))[:-1]

    def pair_of(self, trials: np.ndarray) -> np.ndarray:
        """Which pair each of these trials is of, by their numbers in the record."""
        import numpy as np

        return np.searchsorted(np.array(self.first_trials), trials, side="right") - 1

    @property
    def axis_names(self) -> tuple[str, ...]:
        """The settings that any optimizer's axes vary in one program, each a column of the trials."""
        return tuple(dict.fromkeys(axis.name for optimizer in self.optimizers for axis in self.axes_of(optimizer)))

    @property
    def trials(self) -> int:
        """Trials of all pairs."""
        return len(self.problems) * sum(self.trials_of(optimizer) for optimizer in self.optimizers)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(problem, optimizer) specs, in running order."""
        return [(problem, optimizer) for problem in self.problems for optimizer in self.optimizers]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON takes it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "plan") -> SweepPlan:
        """A plan from a JSON or TOML table; unknown keys are refused with the nearest known one."""
        known = [field.name for field in dataclasses.fields(cls)]
        values = with_full_names(values, where)
        for key in values:
            if key not in known:
                raise PlanError(f"{where}: no setting {key!r}{nearest(key, known)} (settings: {', '.join(known)})")
        try:
            plan = cls(**values)
            if others := [name for name in plan.targets or () if name not in plan.problems]:
                raise PlanError(f"targets: the plan has no {others[0]!r}{nearest(others[0], plan.problems)}")
            return plan
        except PlanError as error:
            raise PlanError(f"{where}: {error}") from error
        except TypeError as error:
            raise PlanError(f"{where}: {one_line(error)}") from error


def with_full_names(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings by SweepPlan's fields; they may be named as the command line's options are, such as lr or batch-size.

    PlanError for a setting that is given twice. Other names stay as they are."""
    fields = dataclasses.fields(SweepPlan)
    options = {flag.lstrip("-"): field.name for field in fields for flag in field.metadata["flags"]}
    named: dict[str, Any] = {}
    for key, value in values.items():
        name = options.get(key, key.replace("-", "_"))
        if name in named:
            raise PlanError(f"{where}: {name} is given twice, here as {key!r}")
        named[name] = value
    return named


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Updates in which every row is taken once; the rows that fill no minibatch sit the epoch out."""
    return examples // batch_size
