"""The page's charts as Vega-Lite with their data inside, one a file, for a paper or a document."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

from gradbench.record import Run
from gradbench.report import charts
from gradbench.report.data import page_data
from gradbench.report.scenery import landscapes
from gradbench.tables import number

FORMATS = ("svg", "png", "pdf")
CONFIG = {"background": "white", "view": {"stroke": None}, "axis": {"labelFontSize": 12, "titleFontSize": 13}}


def figure_specs(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """File stem -> Vega-Lite spec: a sensitivity for each problem, a convergence for each pair, costs, profiles."""
    data = page_data(runs)
    several = len(runs) > 1
    made = {}
    for problem in dict.fromkeys(pair["problem"] for pair in data["pairs"]):
        pairs = [pair for pair in data["pairs"] if pair["problem"] == problem]
        rates = [rate | {"run": p["run"], "optimizer": p["optimizer"]} for p in pairs for rate in p["rates"]]
        largest = max(rate["learning_rate"] for rate in rates)
        limits = [
            {"optimizer": p["optimizer"], "limit": p["limit"], "label": f"stable limit {number(p['limit'])}"}
            for p in pairs
            if p["limit"] is not None and p["limit"] <= largest and p["run"] == pairs[0]["run"]
        ]
        datasets = {"rates": rates, "limits": limits, "chosen": []}
        made[_stem("sensitivity", problem)] = charts.spec(charts.sensitivity(several), datasets)
        for pair in pairs:
            stem = _stem("convergence", problem, pair["optimizer"], *([pair["run"]] if several else []))
            made[stem] = charts.spec(charts.convergence(), curve_rows(pair))
    for title, scene in landscapes(runs).items():
        made[_stem("landscape", title)] = scene
    timings = [
        row | {"what": ", ".join(filter(None, (row["problem"], row["optimizer"], row["run"] if several else None)))}
        for row in data["timings"]
    ]
    made["step-cost"] = charts.spec(charts.step_cost(), {"timings": timings})
    profile, ecdf = charts.overall_rows(runs)
    if profile:
        made["performance-profile"] = charts.spec(charts.profile(), {"profile": profile})
        made["targets-reached"] = charts.spec(charts.ecdf(), {"ecdf": ecdf})
    if data["sharpness"]:
        made["sharpness"] = charts.spec(charts.sharpness(), {"sharpness": data["sharpness"]})
    return {stem: spec | {"config": CONFIG} for stem, spec in made.items()}


def squeezed(png: bytes) -> bytes:
    """The same picture in a fifth of the bytes: its pixels compressed as well as zlib can."""
    kept, pixels, at = [], b"", 8
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            pixels += png[at + 8 : end - 4]
        else:
            kept.append(png[at:end])
        at = end
    body = b"IDAT" + zlib.compress(zlib.decompress(pixels), 9)
    chunk = (len(body) - 4).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)
    return png[:8] + b"".join([*kept[:-1], chunk, kept[-1]])


def curve_rows(pair: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The datasets of a convergence chart: seed 0 of every learning rate, and every seed of the best in front."""
    rows: dict[str, list[dict[str, Any]]] = {"curves": [], "front": [], "ends": []}
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
        if curve["verdict"] == "diverged":
            rows["ends"] += points[-1:]
    return rows


def _stem(*words: str) -> str:
    """A file name without what file systems dislike."""
    return "-".join(re.sub(r"[^A-Za-z0-9=.]+", "-", word).strip("-.") for word in words)
