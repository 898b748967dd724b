"""The landscape view: which problems have one, and the chart of the loss with paths and valleys on it."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow.compute as pc
import threadpoolctl

from gradbench.analysis.landscape import GRID, Landscape, landscape, valleys
from gradbench.analysis.summary import PairSummary, at_settings, representative_rates, summarise
from gradbench.inputs.problem import Problem
from gradbench.inputs.transfer.sources import given_as_function, recorded_problem
from gradbench.record.store import Run
from gradbench.reporting.charts import alt, encodings, rate_colour, said, spec
from gradbench.reporting.data import short, short_rate
from gradbench.theory.curvature import measured_curvature
from gradbench.theory.quadratic import momentum_of, stable_limit

LOG = logging.getLogger(__name__)
COARSE = 41  # grid points per side where a loss costs more than CHEAP
CHEAP = 1e5  # parameters × examples
MAX_PARAMETERS = 1_000_000
BANDS = 14  # contour bands
ARROWS = 10  # of the gradient field, per side
PATHS = 25  # per optimizer on a page
PATH_POINTS = 120  # per path
WORK = 6e9  # parameters × examples × steps of an optimizer's paths: fewer paths where a step costs more
VALLEY_TRIALS = 120  # per optimizer


@dataclass(frozen=True)
class LandscapeView:
    """A problem's landscape, whose paths have a `colour` by learning rate, or `missing`: why there is none, in words.
    `ends`: the valley of each trial (landscape.valleys; empty where all end in one); `largest_at_start`: L, the
    Hessian's largest eigenvalue by Lanczos at seed 0's start, where the problem states none."""

    seen: Landscape | None = None
    ends: list[dict[str, Any]] = field(default_factory=list)
    largest_at_start: float | None = None
    missing: str = ""


def built_in(spec_text: str) -> bool:
    """Whether a spec names a built-in: a record must not make the report run the files that it names."""
    return not any(sign in spec_text.partition("[")[0] for sign in (":", "/", "."))


def landscape_views(
    runs: Sequence[Run], paths: int = PATHS, objects: Mapping[str, Problem] | None = None
) -> dict[str, LandscapeView]:
    """Problem -> its landscape view, of the first run that has one. An optimizer with a theory, if any, chooses the
    plane, and at most `paths` learning rates of each optimizer are run again for their paths. Where nothing is drawn
    the view says why. `objects`: problems that no file holds, by name."""
    found: dict[str, LandscapeView] = {}
    chosen: dict[str, tuple[Run, Problem, list[PairSummary]]] = {}
    for run in runs:
        lost = given_as_function(run.info)
        every = summarise(run)
        for name in dict.fromkeys(pair.problem for pair in every):
            pairs = [
                pair
                for pair in every
                if pair.problem == name
                and built_in(pair.optimizer)
                and pair.optimizer not in lost
                and run.plan.of(pair.optimizer) is run.plan
            ]
            problem, why = _drawable(runs, run, name, pairs, objects or {})
            if problem is None:
                found.setdefault(name, LandscapeView(missing=why))
            elif name not in chosen:
                chosen[name] = run, problem, sorted(pairs, key=lambda pair: momentum_of(pair.at) is None)
    # Most time goes into XLA's compiling, in threads: the longest first; what is in no picture has jobs of its own.
    order = sorted(chosen.items(), key=lambda item: -item[1][0].info["problems"][item[0]]["parameters"])
    LOG.info("landscapes of %s", ", ".join(chosen))
    # NumPy's own threads would only compete with these.
    with threadpoolctl.threadpool_limits(1, "blas"), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        views = {name: pool.submit(_view, name, *of, paths) for name, of in order}
        local = {name: pool.submit(_largest_at_start, name, *of) for name, of in order}
        for name, view in views.items():
            found[name] = replace(view.result(), largest_at_start=local[name].result())
    return found


def _drawable(
    runs: Sequence[Run], run: Run, name: str, pairs: Sequence[PairSummary], objects: Mapping[str, Problem]
) -> tuple[Problem | None, str]:
    """(the problem, "") if it can be run again, else (None, why not)."""
    size = run.info.get("problems", {}).get(name, {}).get("parameters", 0)
    if not size:
        return None, "the record does not say how many parameters the problem has"
    if size > MAX_PARAMETERS:
        return None, f"the problem has {size:,} parameters, and at most {MAX_PARAMETERS:,} are drawn"
    if not pairs and all(run.plan.of(spec) is not run.plan for spec in run.plan.optimizers):
        return None, "every optimizer has its own steps, batch size or dtype"
    if not pairs:
        return None, "all optimizers are a user's own, and a record's files are not run"
    return (objects[name], "") if name in objects else _same_problem(runs, name)


def _same_problem(runs: Sequence[Run], name: str) -> tuple[Problem | None, str]:
    """sources.recorded_problem, checked against every run that has the problem."""
    problem = None
    for run in runs:
        if name in run.plan.problems:
            problem, why = recorded_problem(run.info, name)
            if problem is None:
                return None, why if len(runs) == 1 else f"{why} ({run.id})"
    return problem, ""


def _view(name: str, run: Run, problem: Problem, pairs: list[PairSummary], paths: int) -> LandscapeView:
    facts = run.info["problems"][name]
    size, stated = facts["parameters"], facts.get("curvature") is not None
    work = size * (facts.get("examples") or 1)
    most = int(min(paths, WORK // (work * run.plan.steps)))
    if size < 2:
        return LandscapeView(missing="the problem has one parameter, and a landscape needs two")
    first, *others = [(pair.at, _path_rates(pair, most)) for pair in pairs]
    seen = landscape(
        problem,
        *first,
        run.plan,
        others=dict(others) if paths else None,
        grid=GRID if work <= CHEAP else COARSE,
        most_points=PATH_POINTS if paths else 200,
    )
    of = {pair.at: pair for pair in pairs}
    for path in seen.paths:
        pair = of[path["optimizer"]]
        ends = pair.rates[0].learning_rate, pair.rates[-1].learning_rate
        path |= {"optimizer": pair.optimizer, "colour": rate_colour(path["learning_rate"], *ends)}
    return LandscapeView(seen, _ends(problem, run, pairs) if size == 2 and not stated else [])


def _largest_at_start(name: str, run: Run, problem: Problem, pairs: list[PairSummary]) -> float | None:
    """L by Lanczos at seed 0's start, where the problem states none and an optimizer has a theory that needs it."""
    if run.info["problems"][name].get("curvature") is not None or not any(momentum_of(pair.at) for pair in pairs):
        return None
    return measured_curvature(problem, None, "float32", 60, 1e-3).largest


def _path_rates(pair: PairSummary, most: int) -> dict[float, str]:
    """Rate -> its label, "" between the representative rates; about `most` in all, ascending."""
    named, rates = representative_rates(pair), [rate.learning_rate for rate in pair.rates]
    room = min(most if most >= len(rates) else most - len(named), len(rates))
    spread = [rates[i] for i in np.linspace(0, len(rates) - 1, max(room, 0)).round().astype(int)]
    return {rate: named.get(rate, "") for rate in sorted({*named, *spread})}


def _ends(problem: Any, run: Run, pairs: list[PairSummary]) -> list[dict[str, Any]]:
    """landscape.valleys of the record's trials; empty unless they end in more than one."""
    trials, lost = [], []
    for pair in pairs:
        table = at_settings(run.trials, pair)
        rates = [pair.rates[i].learning_rate for i in np.linspace(0, len(pair.rates) - 1, PATHS).round().astype(int)]
        table = table.filter(pc.field("learning_rate").isin(rates)).sort_by("seed").slice(0, VALLEY_TRIALS)
        for row in table.select(["learning_rate", "seed", "verdict"]).to_pylist():
            trial = pair.at, row["learning_rate"], row["seed"]
            (lost if row["verdict"] == "diverged" else trials).append(trial)
    found = valleys(problem, run.plan, trials) if trials else []
    if len({row["valley"] for row in found}) < 2:
        return []
    gone = [dict(zip(("optimizer", "learning_rate", "seed"), trial)) | {"valley": None} for trial in lost]
    names = {pair.at: pair.optimizer for pair in pairs}
    return [row | {"optimizer": names[str(row["optimizer"])]} for row in (*found, *gone)]


def add_local_limits(pairs: Sequence[dict[str, Any]], found: dict[str, LandscapeView]) -> None:
    """Where a problem states no L, give its pairs on the page the stable limit of the Hessian at the start."""
    for pair in pairs:
        view = found[pair["problem"]]
        if pair["limit"] is None and view.largest_at_start:
            limit = stable_limit(pair["at"], view.largest_at_start)
            if limit is not None and limit > 0:
                pair |= {"limit": short(limit), "limit_is": "stable at the start"}


def landscapes(found: dict[str, LandscapeView]) -> dict[str, dict[str, Any]]:
    """Title -> chart of each landscape with the paths of its first optimizer's representative rates, for a file."""
    made = {}
    for name, view in found.items():
        if view.seen is not None:
            paths = [path for path in view.seen.paths if path["word"]]
            made[f"{name}, {view.seen.optimizer}"] = chart(view.seen, paths, view.ends)
    return made


def letter(valley: int) -> str:
    """A, B, … Z, AA, AB, …: a valley's name, from the lowest."""
    return (letter(valley // 26 - 1) if valley >= 26 else "") + chr(ord("A") + valley % 26)


def page_rows(view: LandscapeView) -> dict[str, Any]:
    """A landscape view for the page: `spec` with its surface, `paths` by optimizer to choose from, `ends` by
    letter; or why it is `missing`."""
    seen = view.seen
    made: dict[str, Any] = {"missing": view.missing, "spec": None, "steps": [], "paths": [], "ends": valley_rows(view)}
    if seen is not None:
        made["spec"] = chart(seen, [], view.ends)
        made["steps"] = max((path["steps"] for path in seen.paths), key=len)
        for path in seen.paths:
            line = {key: [short(value) for value in path[key]] for key in ("x", "y", "loss")}
            kept = {key: path[key] for key in ("optimizer", "word", "left", "colour")}
            made["paths"].append(kept | {"learning_rate": short_rate(path["learning_rate"])} | line)
    return made


def valley_rows(view: LandscapeView) -> list[dict[str, Any]]:
    """Each trial's valley by its letter, or diverged."""
    return [
        {"optimizer": row["optimizer"], "learning_rate": short_rate(row["learning_rate"]), "seed": row["seed"]}
        | {"valley": "diverged" if row["valley"] is None else letter(row["valley"])}
        for row in view.ends
    ]


def chart(
    seen: Landscape, paths: Sequence[dict[str, Any]], ends: Sequence[dict[str, Any]], width: int = 420
) -> dict[str, Any]:
    """Contour bands of the loss, arrows against the gradient, one path per learning rate, valleys by letter; its note
    as the subtitle. Data: cells, arrows, floors, paths, front (the chosen path; the page fills it)."""
    lowest = seen.loss[np.isfinite(seen.loss)].min()
    height = np.log10(np.maximum(seen.loss - lowest, 0) + 1e-3 * np.nanmedian(seen.loss - lowest) + 1e-30)
    band = np.floor(BANDS * (height - height.min()) / max(float(np.ptp(height)), 1e-30)).clip(0, BANDS - 1)
    dx, dy = seen.x[1] - seen.x[0], seen.y[1] - seen.y[0]
    cells = []
    for row, y in enumerate(seen.y):  # neighbours of one band are one rectangle; rows overlap, so that no seams show
        start = 0
        for column in range(1, len(seen.x) + 1):
            if column == len(seen.x) or band[row, column] != band[row, start]:
                left, right = seen.x[start] - dx / 2, seen.x[column - 1] + dx / 2
                cells.append([short(float(v)) for v in (left, right, y - dy / 2, y + 0.6 * dy, band[row, start])])
                start = column
    every = max(1, len(seen.x) // ARROWS)
    arrows = [
        {"x": short(float(seen.x[j])), "y": short(float(seen.y[i])), "angle": short(_angle(seen, i, j))}
        for i in range(every // 2, len(seen.y), every)
        for j in range(every // 2, len(seen.x), every)
    ]
    points = [
        {"x": x, "y": y, "step": s, "loss": short(loss), "label": path_label(p)}
        for p in paths
        for x, y, s, loss in zip(p["x"], p["y"], p["steps"], p["loss"])
    ]
    floors = {letter(row["valley"]): (row["x"], row["y"]) for row in ends if row["valley"] is not None}
    data = {
        "cells": [dict(zip(("x", "x2", "y", "y2", "band"), cell)) for cell in cells],
        "arrows": arrows,
        "floors": [{"valley": name, "x": short(x), "y": short(y)} for name, (x, y) in floors.items()],
        "paths": points,
        "front": [],
    }
    made = copy.deepcopy(_layers(width))
    made["title"] |= {"text": f"{seen.problem}, {seen.optimizer}", "subtitle": seen.note}
    axes = {"x": (seen.x, dx / 2, seen.axes[0]), "y": (seen.y, dy / 2, seen.axes[1])}
    colours = {"domain": [path_label(path) for path in paths], "range": [path["colour"] for path in paths]}
    for encoding in encodings(made):
        for name, (values, edge, title) in axes.items():
            window = [float(values[0] - edge), float(values[-1] + edge)]
            encoding.get(name, {}).update(title=title, scale={"domain": window, "nice": False, "zero": False})
        if encoding.get("color", {}).get("field") == "label":
            encoding["color"]["scale"] = colours
    return made | {"datasets": data}


def path_label(path: dict[str, Any]) -> str:
    """A path's legend: its learning rate and label."""
    return f"{path['learning_rate']:.3g} {path['word']}"


def _angle(seen: Landscape, i: int, j: int) -> float:
    """Degrees clockwise from up, as Vega turns a mark, of the downhill direction in the picture's own proportions."""
    across = -seen.slope[i, j, 0] / np.ptp(seen.x)
    up = -seen.slope[i, j, 1] / np.ptp(seen.y)
    return float(np.degrees(np.arctan2(across, up)))


@cache
def _layers(width: int) -> dict[str, Any]:
    """The chart of any landscape, without axes, colours and data: made once, as Altair needs half a second."""
    x, y = alt.X("x:Q"), alt.Y("y:Q")
    band = alt.Color("band:Q", scale=alt.Scale(scheme="greys", domain=[-3, BANDS + 3], reverse=True), legend=None)
    legend = alt.Legend(orient="top", columns=2, symbolType="stroke", symbolStrokeWidth=3)
    colour = alt.Color("label:N", title="learning rate", legend=legend)
    cells = (
        alt.Chart(alt.NamedData(name="cells")).mark_rect(clip=True).encode(x=x, x2="x2:Q", y=y, y2="y2:Q", color=band)
    )
    arrow = {"shape": "arrow", "filled": True, "size": 130, "color": "#222", "opacity": 0.6}
    field = (
        alt.Chart(alt.NamedData(name="arrows"))
        .mark_point(**arrow)
        .encode(x=x, y=y, angle=alt.Angle("angle:Q", scale=None))
    )
    on = {name: alt.Chart(alt.NamedData(name=name)).encode(x=x, y=y) for name in ("paths", "front", "floors")}
    at_start = {"shape": "square", "filled": True, "size": 90, "color": "black", "opacity": 1}
    start = alt.layer(*(on[n].transform_filter("datum.step == 0").mark_point(**at_start) for n in ("paths", "front")))
    for name in ("paths", "front"):
        on[name], loss = said(on[name], "loss", "loss")
        on[name] = on[name].encode(
            order="step:Q", tooltip=[alt.Tooltip("label:N", title="learning rate"), "step:Q", loss]
        )
    paths, front = on["paths"].encode(color=colour), on["front"]
    letters = on["floors"].encode(text="valley:N")
    casing = {"strokeWidth": 4, "clip": True, "color": "#333"}  # a light line would be lost on the light bands
    made = (
        alt.layer(
            cells,
            field,
            alt.layer(
                on["paths"].mark_line(**casing).encode(detail="label:N"),
                paths.mark_line(strokeWidth=2.5, clip=True, cursor="pointer"),
                paths.mark_point(filled=True, size=22, opacity=1, clip=True, cursor="pointer"),
            ),
            alt.layer(
                front.mark_line(strokeWidth=6, clip=True, color="white"),
                front.mark_line(strokeWidth=3, clip=True, color="black"),
                front.mark_point(filled=True, size=26, opacity=1, clip=True, color="black"),
            ),
            start,
            letters.mark_text(clip=True, fontSize=19, fontWeight="bold", stroke="white", strokeWidth=4, color="white"),
            letters.mark_text(clip=True, fontSize=19, fontWeight="bold", color="black"),
        )
        .resolve_scale(color="independent")
        .properties(width=width, height=width * 3 // 4, title=alt.TitleParams("", anchor="start"))
    )
    return spec(made)
