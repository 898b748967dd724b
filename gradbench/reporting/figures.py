"""The page's charts as Vega-Lite with their data inside, one per file, for a paper or a document."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from gradbench.record.store import Run
from gradbench.reporting import charts
from gradbench.reporting.data import by_metric, page_data
from gradbench.reporting.scenery import add_local_limits, landscape_views, landscapes, valley_rows
from gradbench.tables import number

LABEL_PIXELS = 120  # along the rule of a stable limit
CONFIG = {"background": "white", "view": {"stroke": None}, "axis": {"labelFontSize": 12, "titleFontSize": 13}}


def figure_specs(runs: Sequence[Run], by: str | None = None) -> dict[str, dict[str, Any]]:
    """File stem -> Vega-Lite spec: a sensitivity for each problem, a convergence for each pair, costs, profiles; the
    first two of the metric `by`, where a problem records it."""
    data = page_data(runs)
    found = landscape_views(runs, paths=0)
    add_local_limits(data["pairs"], found)
    several, optimizers = len(runs) > 1, data["optimizers"]
    made = {}
    for problem in dict.fromkeys(pair["problem"] for pair in data["pairs"]):
        pairs, measured = measured_pairs(data, problem, by)
        chart = charts.sensitivity(several, gap_to=pairs[0]["gap_to"], **measured)
        made[_stem("sensitivity", problem)] = charts.spec(chart, sensitivity_rows(pairs), optimizers)
        for pair in pairs:
            stem = _stem("convergence", problem, pair["optimizer"], *([pair["run"]] if several else []))
            made[stem] = charts.spec(charts.convergence(**measured), curve_rows(pair))
            if pair["map"]:
                made[stem.replace("convergence", "settings", 1)] = pair["map"]
    for title, landscape in landscapes(found).items():
        made[_stem("landscape", title)] = landscape
    for problem, view in found.items():
        ends = valley_rows(view)
        for optimizer in dict.fromkeys(row["optimizer"] for row in ends):
            mine = [row for row in ends if row["optimizer"] == optimizer]
            made[_stem("valleys", problem, optimizer)] = charts.spec(charts.valley_map(), {"ends": mine, "chosen": []})
    timings = [
        row | {"what": ", ".join(filter(None, (row["problem"], row["optimizer"], row["run"] if several else None)))}
        for row in data["timings"]
    ]
    if timings:
        made["step-cost"] = charts.spec(charts.step_cost(), {"timings": timings})
    stems = {"profile": "performance-profile", "ecdf": "targets-reached"}
    for name, (chart, rows) in charts.overall(runs).items():
        kind, _, seconds = name.partition("_")
        made[_stem(stems[kind], seconds)] = charts.spec(chart, {name: rows}, () if several else optimizers)
    for key in dict.fromkeys((row["run"], row["problem"], row["optimizer"]) for row in data["sharpness"]):
        rows = [row for row in data["sharpness"] if (row["run"], row["problem"], row["optimizer"]) == key]
        stem = _stem("sharpness", *key[1:], *([key[0]] if several else []))
        made[stem] = charts.spec(charts.sharpness(), {"sharpness": rows})
    return {stem: spec | {"config": CONFIG} for stem, spec in made.items()}


def measured_pairs(data: dict[str, Any], problem: str, by: str | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(a problem's pairs, how its charts show the metric `by`); with gaps, and {}, where it does not record that
    metric."""
    pairs = [pair for pair in data["pairs"] if pair["problem"] == problem]
    measure = data["measures"].get(problem, {}).get(by)
    if by is None or measure is None:
        return pairs, {}
    return [by_metric(pair, by) for pair in pairs], {"by": by, "measure": measure}


def sensitivity_rows(pairs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The datasets of a sensitivity chart: every learning rate of one problem's pairs, the stable limits among them,
    with labels one below another, and the good range of the best pair."""
    rates = [rate | {"run": pair["run"], "optimizer": pair["optimizer"]} for pair in pairs for rate in pair["rates"]]
    largest = max(rate["learning_rate"] for rate in rates)
    limits = [
        {"optimizer": p["optimizer"], "limit": p["limit"], "label": f"{p['limit_is']}: {number(p['limit'])}"}
        for p in pairs
        if p["limit"] is not None and p["limit"] <= largest and p["run"] == pairs[0]["run"]
    ]
    good = [
        {"optimizer": pair["optimizer"], "low": pair["good"][0], "high": pair["good"][1]}
        for pair in pairs
        if pair["winner"] and pair["good"]
    ]
    levels = [row | {"level": LABEL_PIXELS * place} for place, row in enumerate(limits)]
    return {"rates": rates, "limits": levels, "good": good, "chosen": []}


def curve_rows(pair: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The datasets of a convergence chart: seed 0 of every learning rate, and every seed of the best in front."""
    rows: dict[str, list[dict[str, Any]]] = {"curves": [], "front": [], "ends": [], "theory": []}
    for trial, curve in enumerate(pair["curves"]):
        rate = pair["rates"][curve["rate"]]
        if curve["seed"] > 0 and not rate["best"]:
            continue
        fixed = {"trial": trial, "learning_rate": rate["learning_rate"], "seed": curve["seed"]}
        fixed["verdict"] = curve["verdict"]
        points = [fixed | {"x": x, "gap": gap} for x, gap in zip(pair["grid"], curve["gaps"]) if gap is not None]
        rows["curves"] += points
        if rate["best"]:
            rows["front"] += points
            if curve["seed"] == 0:
                rows["theory"] = predicted_rows(rate["predicted"], points)
        if curve["verdict"] == "diverged":
            rows["ends"] += points[-1:]
    return rows


def predicted_rows(rate: float | None, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The gap that falls by `rate` per step and ends where the curve does, over the curve's last three quarters and
    within its height; the page's script does the same."""
    if rate is None or not points:
        return []
    last, gaps = points[-1], [point["gap"] for point in points]
    steps = [last["x"] * (0.25 + 0.75 * k / 40) for k in range(41)]
    rows = [
        {"x": step, "gap": last["gap"] * math.exp((step - last["x"]) * math.log(max(rate, 1e-9)))} for step in steps
    ]
    return [row for row in rows if min(gaps) <= row["gap"] <= max(gaps)]


def _stem(*words: str) -> str:
    """A file name without characters that file systems refuse."""
    return "-".join(re.sub(r"[^A-Za-z0-9=.]+", "-", word).strip("-.") for word in words if word)
