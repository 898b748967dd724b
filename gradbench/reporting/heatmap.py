"""The settings of a pair with several axes: a heat map of two, small multiples of three, parallel coordinates of
more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradbench.analysis.points import RateSummary
from gradbench.analysis.settings.effects import RATE, effects, value_of
from gradbench.analysis.summary import PairSummary
from gradbench.reporting.charts import INK, alt, spec
from gradbench.tables import number

MULTIPLES = 6  # values of a third axis that get a map each; over more, or a fourth axis, the lowest gap is shown
BANDS = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0)  # decades of the gap for each colour: the finest that makes at most MAX_BANDS
MAX_BANDS = 8
LINES = 600  # points drawn as parallel coordinates
BLOWN = "#8886"  # no gap: most seeds diverge


def settings_map(pair: PairSummary) -> dict[str, Any] | None:
    """The chart of a pair's settings as Vega-Lite, its data in it; None where only the learning rate was varied.

    The x axis is the learning rate, the y axis the setting that explains most beside it; there is one map per value of
    the third. Colours are bands of the gap, so that their edges are its contours; hatched cells are those where most
    seeds diverge; the line joins the best learning rates, and the ring is the best point.
    """
    if not pair.settings or len(pair.points) < 2:
        return None
    found = effects(pair)
    others = sorted(found.axes[1:], key=lambda effect: -(effect.share or 0))
    names = [effect.name for effect in others]
    facet = names[1] if len(names) > 1 and found.exact and len(others[1].levels) <= MULTIPLES else None
    if not found.exact:
        return _parallel(pair, names) if len(names) > 1 else _scatter(pair, names[0])
    return _map(pair, names[0], facet)


def _gap(point: RateSummary, floor: float) -> float | None:
    """The gap as drawn: not below the floor; None where the trials diverge."""
    return float(f"{min(max(point.gap_median, floor), 1.0):.4g}") if math.isfinite(point.gap_median) else None


def _row(pair: PairSummary, point: RateSummary) -> dict[str, Any]:
    settings = {name: number(value) for name, value in point.settings.items()}
    gap = _gap(point, max(pair.floor, 1e-16))
    row = {"learning_rate": float(f"{point.learning_rate:.7g}"), "rate": number(point.learning_rate), "gap": gap}
    row["steps"] = point.steps_to_target
    row |= {"verdict": point.verdict, "settings": ", ".join(f"{name} {value}" for name, value in settings.items())}
    return row | {"slice": point.settings == pair.settings}


def _map(pair: PairSummary, up: str, facet: str | None) -> dict[str, Any]:
    """Draws for every pair of values the lowest gap over the axes that are not shown."""
    shown = [name for name in (up, facet) if name]
    lowest: dict[tuple[float, ...], RateSummary] = {}
    for point in pair.points:
        key = (point.learning_rate, *(point.settings[name] for name in shown))
        if key not in lowest or point.gap_median < lowest[key].gap_median:
            lowest[key] = point
    cells: list[dict[str, Any]] = [
        _row(pair, point) | {"up": number(point.settings[up]), "facet": number(point.settings[facet]) if facet else ""}
        for point in lowest.values()
    ]
    rates, values = (list(dict.fromkeys(number(of) for of in sorted(found))) for found in _axes(pair, up))
    ridge = [row for row in _ridge(cells) if row["gap"] is not None]
    best = [row for row in cells if pair.best and row == _at(pair.best, cells, up, facet, pair)]
    x = alt.X("rate:O", sort=rates, title="learning rate", axis=alt.Axis(labelAngle=0, labelOverlap="greedy"))
    y = alt.Y("up:O", sort=values[::-1], title=up)
    source = alt.Chart(alt.NamedData(name="cells")).encode(x=x, y=y, tooltip=_tooltip())
    layers = [
        source.transform_filter("isValid(datum.gap)")
        .mark_rect(cursor="pointer")
        .encode(color=_colour([row["gap"] for row in cells])),
        source.transform_filter("!isValid(datum.gap)").mark_rect(color=BLOWN),
        source.transform_filter("!isValid(datum.gap)").mark_text(text="╱╱", color=INK, opacity=0.5, fontSize=9),
        alt.Chart(alt.NamedData(name="ridge"))
        .mark_line(color=INK, strokeDash=[4, 3], strokeWidth=2, point={"color": INK, "size": 12})
        .encode(x=x, y=y, order="place:Q"),
        alt.Chart(alt.NamedData(name="best"))
        .mark_point(size=260, strokeWidth=2.5, color="#d55e00", filled=False)
        .encode(x=x, y=y, tooltip=_tooltip()),
    ]
    data = {"cells": cells, "ridge": ridge, "best": best}
    if facet is None:
        return spec(alt.layer(*layers).properties(width=560, height=max(120, 24 * len(values))), data)
    whole = [dict(row, layer=name) for name, rows in data.items() for row in rows]  # a facet has one source
    for layer, name in zip(layers, ("cells", "cells", "cells", "ridge", "best")):
        layer.data = alt.Undefined
        kept = [alt.FilterTransform(f"datum.layer === '{name}'")]
        layer.transform = kept + (list(layer.transform) if isinstance(layer.transform, list) else [])
    order = list(dict.fromkeys(number(value) for value in sorted({p.settings[facet] for p in pair.points})))
    chart = alt.layer(*layers, data=alt.NamedData(name="cells")).properties(width=230, height=max(90, 16 * len(values)))
    return spec(chart.facet(facet=alt.Facet("facet:N", sort=order, title=facet), columns=2), {"cells": whole})


def _axes(pair: PairSummary, up: str) -> tuple[set[float], set[float]]:
    return {point.learning_rate for point in pair.points}, {point.settings[up] for point in pair.points}


def _at(best: RateSummary, cells: Sequence[dict[str, Any]], up: str, facet: str | None, pair: PairSummary) -> Any:
    """The cell of the best point."""
    key = number(best.learning_rate), number(best.settings[up]), number(best.settings[facet]) if facet else ""
    return next((row for row in cells if (row["rate"], row["up"], row["facet"]) == key), None)


def _ridge(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best learning rate for each y value: the fewest steps to the target, else the lowest gap."""

    def rank(row: dict[str, Any]) -> list[float]:
        return [math.inf if row[key] is None else row[key] for key in ("steps", "gap")]

    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in cells:
        key = row["facet"], row["up"]
        best[key] = min(best.get(key, row), row, key=rank)
    return [row | {"place": place} for place, row in enumerate(best.values())]


def _tooltip() -> list[Any]:
    return [
        alt.Tooltip("learning_rate:Q", format=".4g", title="learning rate"),
        alt.Tooltip("settings:N"),
        alt.Tooltip("verdict:N"),
        alt.Tooltip("gap:Q", format=".3g", title="gap (median)"),
    ]


def _colour(gaps: Sequence[float | None]) -> Any:
    """Bands of the gap, of the least width in BANDS that gives at most MAX_BANDS of them."""
    logs = [math.log10(gap) for gap in gaps if gap]
    low, high = (min(logs), max(logs)) if logs else (-1.0, 0.0)
    width = next((band for band in BANDS if (high - low) / band <= MAX_BANDS), (high - low) / MAX_BANDS)
    first, last = math.floor(low / width) + 1, math.ceil(high / width)
    edges = [float(f"{10 ** (width * k):.2g}") for k in range(first, last)]
    scale = alt.Scale(type="threshold", domain=edges or [1.0], scheme="viridis", reverse=True)
    legend = alt.Legend(orient="top", format="~g", title="gap", labelOverlap="greedy")
    return alt.Color("gap:Q", scale=scale, legend=legend)


def _scatter(pair: PairSummary, up: str) -> dict[str, Any]:
    """The points of a design that is not a grid."""
    points = [_row(pair, point) | {"up": point.settings[up]} for point in pair.points]
    scale = alt.Scale(type="log" if min(row["up"] for row in points) > 0 else "linear", nice=False, padding=8)
    x = alt.X("learning_rate:Q", scale=alt.Scale(type="log", nice=False, padding=8), title="learning rate")
    source = alt.Chart(alt.NamedData(name="cells")).encode(
        x=x, y=alt.Y("up:Q", scale=scale, title=up), tooltip=_tooltip()
    )
    best = [row | {"up": pair.best.settings[up]} for row in [_row(pair, pair.best)]] if pair.best else []
    layers = [
        source.transform_filter("isValid(datum.gap)")
        .mark_point(filled=True, size=90, opacity=1)
        .encode(color=_colour([row["gap"] for row in points])),
        source.transform_filter("!isValid(datum.gap)").mark_point(shape="cross", filled=True, size=70, color="#888"),
        source.mark_point(size=260, strokeWidth=2.5, color="#d55e00").properties(data=alt.NamedData(name="best")),
    ]
    return spec(alt.layer(*layers).properties(width=560, height=300), {"cells": points, "best": best})


def _parallel(pair: PairSummary, names: Sequence[str]) -> dict[str, Any]:
    """One line per point across its settings, each axis from its lowest to its highest value by rank, the best lines
    on top."""
    every = [RATE, *names]
    ranked = sorted(pair.points, key=lambda point: -point.gap_median)[-LINES:]
    levels = {name: sorted({value_of(point, name) for point in pair.points}) for name in every}
    rows: list[dict[str, Any]] = [
        _row(pair, point)
        | {"point": place, "axis": name.replace("_", " "), "value": number(value_of(point, name))}
        | {"place": levels[name].index(value_of(point, name)) / max(len(levels[name]) - 1, 1)}
        for place, point in enumerate(ranked)
        for name in every
    ]
    ends = [
        {"axis": name.replace("_", " "), "place": at, "value": number(values[-1 if at else 0])}
        for name, values in levels.items()
        for at in (0.0, 1.0)
    ]
    x = alt.X("axis:N", sort=[name.replace("_", " ") for name in every], title=None, axis=alt.Axis(labelAngle=0))
    y = alt.Y("place:Q", axis=None, scale=alt.Scale(domain=[-0.06, 1.06]))
    lines = alt.Chart(alt.NamedData(name="cells")).encode(x=x, y=y, detail="point:N", tooltip=_tooltip())
    colour = _colour([row["gap"] for row in rows])
    layers = [
        lines.transform_filter("!isValid(datum.gap)").mark_line(color="#888", opacity=0.25),
        lines.transform_filter("isValid(datum.gap)").mark_line(opacity=0.7).encode(color=colour),
        alt.Chart(alt.NamedData(name="ends"))
        .mark_text(color=INK, fontSize=11, dy=alt.expr("datum.place ? -8 : 10"))
        .encode(x=x, y=y, text="value:N"),
    ]
    return spec(alt.layer(*layers).properties(width=560, height=300), {"cells": rows, "ends": ends})
