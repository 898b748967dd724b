"""A record that shows itself: in five lines, in a notebook, as frames and as charts."""

from __future__ import annotations

import dataclasses
import html
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gradbench.analysis.answers import pair_sentence, summary_row
from gradbench.analysis.metrics import chosen_metric, metric_row
from gradbench.analysis.summary import summarise
from gradbench.errors import GradbenchError
from gradbench.inputs.plan import SweepPlan
from gradbench.library import show
from gradbench.record import store

if TYPE_CHECKING:  # the readers of records do not wait for JAX
    from gradbench.inputs.problem import Problem
    from gradbench.library.plots import Plots

_SHOWN = 3  # lines of answers in a repr


class Best(NamedTuple):
    """A pair's best learning rate and what it does, medians over the seeds. Where none works, `learning_rate` and what
    comes of it are None, and `verdict` says so."""

    problem: str
    optimizer: str
    learning_rate: float | None
    verdict: str
    steps_to_target: float | None
    time_to_target_s: float | None
    loss: float | None
    good_low: float | None
    good_high: float | None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run(store.Run):
    """A record: `path`, `plan`, `info` (run.json) and the tables (pyarrow) `trials`, `curves`, `timings`, `sharpness`,
    which is empty unless the plan asked for it, and `metrics`, which is empty unless a problem records some. A notebook
    shows its answers and a chart.

    `objects` are the problems of a run of this process that were given as objects, by name: no file holds them.
    """

    objects: Mapping[str, Problem] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, record: store.Run, objects: Mapping[str, Problem] | None = None) -> Run:
        """The same record; its tables are shared."""
        if isinstance(record, cls):
            return record
        kept = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
        return cls(**kept, objects=objects or {})

    def best(self) -> list[Best]:
        """For each pair of which a trial has finished, its best learning rate."""
        rows = map(summary_row, summarise(self))
        names = {"learning_rate": "best_learning_rate", "loss": "final_loss"}
        return [Best(**{field: row[names.get(field, field)] for field in Best._fields}) for row in rows]

    def summary(self) -> list[dict[str, Any]]:
        """A dict for each pair of which a trial has finished: what `gradbench compare --summary --format json` has."""
        by = chosen_metric([self], None)
        return [summary_row(pair, self) | metric_row(self, pair, by) for pair in summarise(self)]

    def to_pandas(self) -> Any:
        """A pandas.DataFrame of the curves, a row for each recorded point, with its trial's columns beside it:

            run.to_pandas().query("seed == 0").pivot(index="step", columns="learning_rate", values="loss").plot()

        `run.trials.to_pandas()` has a row for each trial. Raises GradbenchError where pandas is not installed.
        """
        try:
            importlib.import_module("pandas")
        except ImportError as error:
            raise GradbenchError(
                "to_pandas: pandas is not installed (pip install pandas); run.trials and run.curves are pyarrow tables"
            ) from error
        names = ["trial", "problem", "optimizer", *self.plan.axis_names, "learning_rate", "seed", "verdict"]
        trials = self.trials.select(names)
        joined = trials.join(self.curves, keys="trial", join_type="inner")
        return joined.sort_by([("trial", "ascending"), ("step", "ascending")]).to_pandas()

    @property
    def plot(self) -> Plots:
        """Charts of Altair: plot.sensitivity(), plot.convergence() and plot.landscape()."""
        from gradbench.library.plots import Plots  # Altair takes half a second

        return Plots(self, self.objects)

    def __repr__(self) -> str:
        said = [f"  {pair_sentence(pair)}" for pair in summarise(self)] or ["  no trial has finished yet"]
        if len(said) > _SHOWN:
            said[_SHOWN - 1 :] = [f"  … and {len(said) - _SHOWN + 1} more pairs: run.best()"]
        state = f"{self.info['state']}, {self.trials.num_rows:,} trials"
        return "\n".join([f"Run {self.id}: {state}", f"  {plan_words(self.plan)}", *said])

    def _repr_html_(self) -> str:
        head = f"{self.id}: {self.info['state']}, {self.trials.num_rows:,} trials; {plan_words(self.plan)}"
        pairs = summarise(self)
        if not pairs:
            return f"<p>{html.escape(head)}; no trial has finished yet</p>"
        answers = show.answers([summary_row(pair) for pair in pairs])
        return f"<p>{html.escape(head)}</p>{answers}{self.plot.sensitivity_svg(pairs[0].problem)}"


def plan_words(plan: SweepPlan) -> str:
    """What a plan runs, in one line."""
    names = [_some(plan.problems), _some(plan.optimizers)]
    rates, seeds = len(plan.rates), plan.seeds
    low, high = min(plan.rates), max(plan.rates)
    span = f"{low:g}" if rates == 1 else f"{rates:,} learning rates from {low:g} to {high:g}"
    most, dtypes = "up to " if plan.until else "", ", ".join(plan.dtypes)
    return f"{' × '.join(names)}; {span}, {most}{seeds} seed{'s' * (seeds != 1)}, {plan.steps:,} steps, {dtypes}"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def load_run(name: str | Path, results: str | Path = "results") -> Run:
    """Read a record, by path, id or `latest`. An unfinished run has the rows written so far.

    Raises RecordError if it is missing, damaged or of a newer schema.
    """
    return Run.of(store.load_run(name, results))
