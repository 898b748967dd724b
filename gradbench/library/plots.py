"""A record's charts for a notebook: Altair's, with their data inside, so that they show, save and can be changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
import vl_convert

from gradbench.analysis.metrics import chosen_metric, recorded
from gradbench.errors import GradbenchError, PlanError, nearest
from gradbench.inputs.problem import Problem
from gradbench.record.store import Run
from gradbench.reporting import charts
from gradbench.reporting.charts import alt
from gradbench.reporting.data import page_data
from gradbench.reporting.figures import CONFIG, curve_rows, measured_pairs, sensitivity_rows
from gradbench.reporting.scenery import landscape_views, landscapes


class Plots:
    """The charts of one record. Each is of all its problems, or of one; with several problems or pairs they stand below
    one another. `.save("x.svg")` (or png, pdf, html, json) writes one; a notebook shows it, and loads Vega from the
    network for that unless `altair.renderers.enable("svg")` was called.

    `objects` are the problems that were given as objects, by name: a landscape needs the loss itself.
    """

    def __init__(self, run: Run, objects: Mapping[str, Problem] | None = None):
        self._run, self._objects = run, objects or {}

    def sensitivity(self, problem: str | None = None, by: str | None = None) -> Any:
        """Final gap against learning rate for each optimizer: median, spread of the seeds, verdict, stable limit. With
        `by` that metric instead, such as "holdout.accuracy", of the problems that record it."""
        return _chart(self._sensitivity(problem, by))

    def sensitivity_svg(self, problem: str | None = None) -> str:
        """The same as an svg element, which needs neither the network nor scripts."""
        return vl_convert.vegalite_to_svg(_whole(self._sensitivity(problem)))

    def _sensitivity(self, problem: str | None, by: str | None = None) -> list[tuple[str, dict[str, Any]]]:
        made = []
        for name in self._problems(problem, by):
            data = page_data([self._only(name)])
            pairs, measured = measured_pairs(data, name, by)
            chart = charts.sensitivity(gap_to=pairs[0]["gap_to"], **measured)
            made.append((name, charts.spec(chart, sensitivity_rows(pairs), data["optimizers"])))
        return made

    def convergence(self, problem: str | None = None, optimizer: str | None = None, by: str | None = None) -> Any:
        """Gap against step for every learning rate of each pair, with the best in front; `by` as for sensitivity."""
        wanted = _named(optimizer, self._run.plan.optimizers, "optimizer")
        made = []
        for name in self._problems(problem, by):
            pairs, measured = measured_pairs(page_data([self._only(name)]), name, by)
            for pair in pairs:
                if pair["optimizer"] in wanted:
                    title = f"{name} × {pair['optimizer']}"
                    made.append((title, charts.spec(charts.convergence(**measured), curve_rows(pair))))
        return _chart(made)

    def landscape(self, problem: str | None = None) -> Any:
        """The loss over two parameters, or over the plane of a trial's path, with paths of some rates.

        Computed anew: seconds. Raises GradbenchError with the reason where a problem has none.
        """
        names = self._problems(problem)
        found = landscape_views([self._only(*names)], paths=0, objects=self._objects)
        made = [("", spec) for spec in landscapes(found).values()]
        if not made:
            why = [found[name].missing for name in names if name in found and found[name].missing]
            usual = "it needs 2 to 1,000,000 parameters and an optimizer given as a spec of optax"
            raise GradbenchError(f"landscape of {', '.join(names)}: none, {'; '.join(why) or usual}")
        return _chart(made)

    def _problems(self, name: str | None, by: str | None = None) -> Sequence[str]:
        """The one that is named, or all; of a metric, those that record it."""
        names = _named(name, self._run.plan.problems, "problem")
        if by is None:
            return names
        chosen_metric([self._only(*names)], by)
        return [each for each in names if by in recorded(self._run, each)]

    def _only(self, *names: str) -> Run:
        """The record with no other problems."""
        run, its = self._run, pc.field("problem").isin(names)
        tables = {name: getattr(run, name).filter(its) for name in ("trials", "timings", "sharpness")}
        return dataclasses.replace(run, plan=dataclasses.replace(run.plan, problems=names), **tables)


def _named(name: str | None, known: Sequence[str], what: str) -> Sequence[str]:
    if name is not None and name not in known:
        raise PlanError(f"no {what} {name!r} in this record{nearest(name, known)} ({', '.join(known)})")
    return known if name is None else (name,)


def _chart(made: Sequence[tuple[str, dict[str, Any]]]) -> Any:
    """One chart of titles and Vega-Lite specs, in Altair's own type."""
    kind = alt.LayerChart if len(made) == 1 else alt.VConcatChart
    return kind.from_dict(_whole(made), validate=False)


def _whole(made: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """One Vega-Lite spec of titles and specs, with their data inside."""
    parts = [_with_data(spec, spec["datasets"]) | ({"title": title} if title else {}) for title, spec in made]
    top = {"$schema": parts[0]["$schema"], "config": CONFIG}
    if len(parts) == 1:
        return parts[0] | top
    return {"vconcat": [{key: value for key, value in part.items() if key not in top} for part in parts]} | top


def _with_data(value: Any, datasets: Mapping[str, list[dict[str, Any]]]) -> Any:
    """A spec whose parts have the rows of the datasets that they name."""
    if isinstance(value, list):
        return [_with_data(item, datasets) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"name"} and value["name"] in datasets:
        return {"values": datasets[value["name"]]}
    return {key: _with_data(item, datasets) for key, item in value.items() if key != "datasets"}
