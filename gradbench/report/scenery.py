"""The landscape as a chart, and which landscapes a page shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbench.analysis import summarise, telling_rates
from gradbench.landscape import GRID, Landscape, landscape
from gradbench.problem import load_problem, problem_names
from gradbench.record import Run
from gradbench.report.charts import COLOURS, alt, spec
from gradbench.report.data import short
from gradbench.theory import momentum_of

WORDS = ["too small", "right", "too large", "diverging"]
COARSE = 41  # points of a side where a loss costs more
MOST_PARAMETERS = 1_000_000
BANDS = 14  # of the contours
ARROWS = 10  # of a side of the gradient field


def built_in(spec_text: str) -> bool:
    """Whether a spec names something of ours: a record must not make the report run files it names."""
    return not any(sign in spec_text.partition("[")[0] for sign in (":", "/", "."))


def landscapes(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Title -> chart, a problem of ours each: of the first run that has it, an optimizer with theory if any.

    Problems of one parameter have no plane, and of more than a million none that is quick.
    """
    made: dict[str, dict[str, Any]] = {}
    for run in runs:
        facts = run.info.get("problems", {})
        for pair in sorted(summarise(run), key=lambda pair: momentum_of(pair.optimizer) is None):
            name = pair.problem
            known = built_in(name) and name.partition("[")[0] in problem_names() and built_in(pair.optimizer)
            size = facts.get(name, {}).get("parameters", 0)
            if known and 2 <= size <= MOST_PARAMETERS and not any(title.startswith(f"{name}, ") for title in made):
                grid = GRID if size == 2 else COARSE
                seen = landscape(load_problem(name), pair.optimizer, telling_rates(pair), run.plan, grid=grid)
                made[f"{name}, {pair.optimizer}"] = chart(seen)
    return made


def chart(seen: Landscape, width: int = 420) -> dict[str, Any]:
    """Contour bands of the loss, arrows against the gradient, a path a learning rate; its note as the subtitle."""
    lowest = seen.loss[np.isfinite(seen.loss)].min()
    height = np.log10(np.maximum(seen.loss - lowest, 0) + 1e-3 * np.nanmedian(seen.loss - lowest) + 1e-30)
    band = np.floor(BANDS * (height - height.min()) / max(float(np.ptp(height)), 1e-30)).clip(0, BANDS - 1)
    dx, dy = seen.x[1] - seen.x[0], seen.y[1] - seen.y[0]
    cells = []
    for row, y in enumerate(seen.y):  # neighbours of one band are one rectangle; rows overlap: no seams
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
        {"x": x, "y": y, "step": s, "loss": short(loss), "learning_rate": p["learning_rate"], "word": p["word"]}
        for p in seen.paths
        for x, y, s, loss in zip(p["x"], p["y"], p["steps"], p["loss"])
    ]
    data = {
        "cells": [dict(zip(("x", "x2", "y", "y2", "band"), cell)) for cell in cells],
        "arrows": arrows,
        "paths": points,
    }
    return spec(_layers(seen, width), data)


def _angle(seen: Landscape, i: int, j: int) -> float:
    """Degrees clockwise from up, as Vega turns a mark, of the downhill direction in the picture's own proportions."""
    across = -seen.slope[i, j, 0] / np.ptp(seen.x)
    up = -seen.slope[i, j, 1] / np.ptp(seen.y)
    return float(np.degrees(np.arctan2(across, up)))


def _layers(seen: Landscape, width: int) -> Any:
    def axis(name: str, values: np.ndarray, title: str) -> dict[str, Any]:
        edge = (values[1] - values[0]) / 2
        scale = alt.Scale(domain=[float(values[0] - edge), float(values[-1] + edge)], nice=False, zero=False)
        return {"shorthand": f"{name}:Q", "scale": scale, "title": title}

    x, y = alt.X(**axis("x", seen.x, seen.axes[0])), alt.Y(**axis("y", seen.y, seen.axes[1]))
    band = alt.Color("band:Q", scale=alt.Scale(scheme="greys", domain=[-3, BANDS + 3], reverse=True), legend=None)
    rates = [path["learning_rate"] for path in seen.paths]
    scale = alt.Scale(domain=rates, range=[COLOURS[WORDS.index(p["word"])] for p in seen.paths])
    names = " : ".join(
        f"datum.value == {p['learning_rate']!r} ? '{p['learning_rate']:.3g} {p['word']}'" for p in seen.paths
    )
    legend = alt.Legend(
        orient="top", columns=2, labelExpr=f"{names} : datum.label", symbolType="stroke", symbolStrokeWidth=3
    )
    colour = alt.Color("learning_rate:N", scale=scale, title="learning rate", legend=legend)
    cells = (
        alt.Chart(alt.NamedData(name="cells")).mark_rect(clip=True).encode(x=x, x2="x2:Q", y=y, y2="y2:Q", color=band)
    )
    arrow = {"shape": "arrow", "filled": True, "size": 130, "color": "#222", "opacity": 0.6}
    field = (
        alt.Chart(alt.NamedData(name="arrows"))
        .mark_point(**arrow)
        .encode(x=x, y=y, angle=alt.Angle("angle:Q", scale=None))
    )
    tooltip = ["learning_rate:Q", "step:Q", "loss:Q"]
    paths = alt.Chart(alt.NamedData(name="paths")).encode(x=x, y=y, color=colour, order="step:Q", tooltip=tooltip)
    start = alt.Chart(alt.NamedData(name="paths")).transform_filter("datum.step == 0").encode(x=x, y=y)
    title = alt.TitleParams(f"{seen.problem}, {seen.optimizer}", subtitle=seen.note, anchor="start")
    return (
        alt.layer(
            cells,
            field,
            alt.layer(
                paths.mark_line(strokeWidth=2.5, clip=True),
                paths.mark_point(filled=True, size=22, opacity=1, clip=True),
            ),
            start.mark_point(shape="square", filled=True, size=90, color="black", opacity=1),
        )
        .resolve_scale(color="independent")
        .properties(width=width, height=width * 3 // 4, title=title)
    )
