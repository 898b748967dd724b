"""The picture of several axes: a map of two, multiples of three, parallel coordinates of more."""

from __future__ import annotations

import math
import os

import pytest
import vl_convert
from synthetic import make_run
from test_report import page_json
from test_report_in_chromium import CHROMIUM, in_chromium
from test_report_metrics import with_script

from gradbench.analysis.summary import summarise
from gradbench.reporting.heatmap import settings_map
from gradbench.reporting.page import write_figures, write_report


def decay(_, rate, momentum, **others):
    """Best at a rate of 1 - momentum; faster rates than 5 (1 - momentum) diverge."""
    if rate > 5 * (1 - momentum):
        return -1.0
    return 0.05 / (1 + math.log(rate / (1 - momentum)) ** 2) + sum(others.values()) * 1e-3


def swept(spec="sgd[momentum=0.5|0.9|0.99]", rates="1e-3:1e1:9", **settings):
    run = make_run(rates, 1, [spec], decay=decay, **settings)
    [pair] = summarise(run)
    return run, pair


def test_a_map_has_a_cell_for_each_point_the_ridge_and_the_best():
    _, pair = swept()
    data = settings_map(pair)["datasets"]
    assert len(data["cells"]) == 9 * 3
    blown = {(row["rate"], row["up"]) for row in data["cells"] if row["gap"] is None}
    diverged = [point for point in pair.points if "diverged" in point.verdicts]
    assert blown == {(f"{point.learning_rate:.3g}", f"{point.settings['momentum']:g}") for point in diverged}
    ridge = {row["up"]: row["learning_rate"] for row in data["ridge"]}
    assert ridge == {"0.5": pytest.approx(0.316, rel=1e-3), "0.9": pytest.approx(0.1), "0.99": pytest.approx(0.01)}
    [best] = data["best"]
    assert best["learning_rate"] == pytest.approx(pair.best.learning_rate)
    assert best["up"] == f"{pair.settings['momentum']:g}"


def test_three_axes_are_small_multiples_and_more_show_the_lowest_gap():
    spec = "sgd[momentum=0.5|0.9|0.99,end=0.1|0.2,extra=0|1]"
    _, pair = swept(spec)
    made = settings_map(pair)
    cells = [row for row in made["datasets"]["cells"] if row["layer"] == "cells"]
    assert made["facet"]["field"] == "facet"
    assert len(cells) == 9 * 3 * 2  # the axis that explains least is not shown
    shown = {p.gap_median for p in pair.points if p.settings["end"] == 0.2}  # the better of its values
    assert all(row["gap"] is None or any(row["gap"] == pytest.approx(gap, rel=1e-3) for gap in shown) for row in cells)


def test_drawn_points_are_a_scatter_or_parallel_lines():
    _, pair = swept("sgd[momentum=0.5:0.99:5]", design="random:40")
    assert len(settings_map(pair)["datasets"]["cells"]) == 40
    _, pair = swept("sgd[momentum=0.5:0.99:5,end=0.1:0.5:3]", design="sobol:32")
    assert len(settings_map(pair)["datasets"]["cells"]) == 32 * 3


@pytest.mark.parametrize(
    ("spec", "design"),
    [
        ("sgd[momentum=0.5|0.9]", "grid"),
        ("sgd[momentum=0.5|0.9,end=0.1|0.2]", "grid"),
        ("sgd[momentum=0.5:0.9:3]", "random:20"),
        ("sgd[momentum=0.5:0.9:3,end=0.1:0.5:3]", "random:20"),
    ],
)
def test_every_kind_is_drawn(spec, design):
    _, pair = swept(spec, design=design)
    assert vl_convert.vegalite_to_svg(settings_map(pair)).count("<path") > 10


@pytest.mark.thorough
def test_a_page_and_figures_have_the_map_of_pairs_with_axes_only(tmp_path):
    run, _ = swept()
    [pair] = page_json(write_report([run], tmp_path / "page.html"))["pairs"]
    assert pair["map"]["datasets"]["cells"]
    names = [path.name for path in write_figures([run], tmp_path / "figures")]
    [name] = [name for name in names if name.startswith("settings")]
    assert name == "settings-quadratic-bowl-sgd-momentum=0.5-0.9-0.99.svg"
    [pair] = page_json(write_report([make_run(optimizers=["sgd"])], tmp_path / "plain.html"))["pairs"]
    assert pair["map"] is None


DRAWN = """<script>
(async () => {
  for (let i = 0; i < 200 && !document.body.dataset.ready; i++) await new Promise((next) => setTimeout(next, 25));
  const box = find("settings"), drawn = box.querySelector("svg").getBoundingClientRect();
  const result = { hidden: find("settings-panel").hidden, cells: box.querySelectorAll(".mark-rect path").length };
  result.fits = drawn.width <= box.clientWidth + 1;
  element("pre", JSON.stringify(result), document.body).id = "result";
})();
</script>"""


@pytest.mark.thorough
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
@pytest.mark.skipif("CI" in os.environ, reason="the browser test is for a person's machine, not CI")
@pytest.mark.parametrize("width", [500, 1280])
@pytest.mark.parametrize("spec", ["sgd[momentum=0.5|0.9]", "sgd[momentum=0.5|0.9,end=0.1|0.2]"])
def test_in_chromium_the_map_is_drawn_within_its_panel(tmp_path, spec, width):
    run, pair = swept(spec)
    result = in_chromium(with_script(write_report([run], tmp_path / "page.html"), DRAWN), width)
    assert not result["hidden"]
    assert result["cells"] >= len(pair.points)
    assert result["fits"]
