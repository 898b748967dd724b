"""The page and the figures of a record with metrics, whose values are known."""

import dataclasses
import os

import pyarrow as pa
import pytest
from synthetic import make_judged_run, make_run, with_diverged
from test_report import page_json
from test_report_in_chromium import CHROMIUM, in_chromium

import gradbench
from gradbench.errors import PlanError
from gradbench.reporting import data, scenery
from gradbench.reporting.data import answers, page_data
from gradbench.reporting.figures import figure_specs
from gradbench.reporting.page import write_figures, write_report


@pytest.fixture(autouse=True)
def no_landscape(monkeypatch):
    """It has tests of its own, and takes seconds."""
    monkeypatch.setattr(scenery, "MAX_PARAMETERS", 0)


def test_the_page_has_each_metric_with_its_direction_and_best_learning_rate():
    page = page_data([make_judged_run()])
    [pair] = page["pairs"]
    accuracy, loss = pair["metrics"]["holdout.accuracy"], pair["metrics"]["holdout.loss"]
    assert accuracy["values"] == [[0.6, 0.5, 0.7], [0.6, 0.6, 0.6], [0.9, 0.9, 0.9]]
    assert (accuracy["best"], loss["best"]) == (2, 0)  # training's is 1
    assert pair["metric_grid"] == [0, 100]
    assert loss["curves"][0] == [9.0, 0.7]
    assert page["measures"]["quadratic_bowl"]["holdout.accuracy"] == {
        "more_is_better": True,
        "log": False,
        "range": (0.0, 0.9),
    }
    assert page["measures"]["quadratic_bowl"]["holdout.loss"] == {
        "more_is_better": False,
        "log": True,
        "range": (0.5, 9.0),
    }


def test_the_page_says_where_the_best_by_held_out_loss_is_another_and_the_gap():
    run = make_judged_run()
    said = {name: metric["said"] for name, metric in page_data([run])["pairs"][0]["metrics"].items()}
    best = "by holdout.loss 0.01 is the best learning rate (0.6, 0.8 at the best by training, 0.1)"
    assert said["holdout.loss"] == f"{best}; there holdout − train is 0.7."
    assert said["train.loss"] == (
        "by train.loss 0.1 is the best learning rate as well (0.1); there holdout − train is 0.7."
    )
    assert f"quadratic_bowl × sgd: {best}." in answers([run])[0].notes


def test_a_diverged_learning_rate_has_no_value_and_stands_where_the_worst_do():
    run = with_diverged(make_judged_run(), 1.0)
    metric = page_data([run])["pairs"][0]["metrics"]["holdout.accuracy"]
    assert (metric["values"][2], metric["best"]) == (None, 1)
    heights = {}
    for by in ("holdout.accuracy", "holdout.loss"):
        spec = figure_specs([run], by)["sensitivity-quadratic-bowl"]
        [heights[by]] = [y["value"] for layer in spec["layer"] if "value" in (y := layer["encoding"].get("y", {}))]
    assert heights == {"holdout.accuracy": 295, "holdout.loss": 5}


def test_a_record_without_metrics_has_none_on_its_page():
    page = page_data([make_run()])
    assert page["measures"] == {}
    assert not any("metrics" in pair for pair in page["pairs"])


def test_figures_take_a_metric_and_leave_gaps_to_problems_without_it(tmp_path):
    run = make_judged_run()
    spec = figure_specs([run], "holdout.accuracy")["sensitivity-quadratic-bowl"]
    assert [row["gap"] for row in spec["datasets"]["rates"]] == [0.6, 0.6, 0.9]
    assert [row["best"] for row in spec["datasets"]["rates"]] == [False, False, True]
    titles = [layer["encoding"]["y"].get("title") for layer in spec["layer"] if "y" in layer["encoding"]]
    assert "holdout.accuracy at the end, more is better" in titles
    spec = figure_specs([run], "holdout.accuracy")["convergence-quadratic-bowl-sgd"]
    assert {row["gap"] for row in spec["datasets"]["front"]} == {0.0, 0.9}
    del run.info["problems"]["quadratic_bowl"]["recorded"]
    assert figure_specs([run], "holdout.accuracy") == figure_specs([run])
    with pytest.raises(PlanError, match="no metric 'holdout"):
        write_figures([run], tmp_path, by="holdout.accuracy")


def test_a_notebooks_charts_take_a_metric():
    plot = gradbench.Run.of(make_judged_run()).plot
    for chart in (plot.sensitivity(by="holdout.loss"), plot.convergence(by="holdout.loss")):
        assert "holdout.loss" in chart.to_json()
    with pytest.raises(PlanError, match="did you mean 'holdout"):
        plot.sensitivity(by="holdout.los")


def test_of_more_curves_than_fit_some_are_left_out(monkeypatch):
    run = make_judged_run()
    monkeypatch.setattr(data, "METRIC_VALUES", 4 * 2 * 8)  # of 4 metrics, two curves of 8 points
    [pair] = page_data([run])["pairs"]
    curves = pair["metrics"]["holdout.loss"]["curves"]
    assert [bool(curve) for curve in curves] == [True, False, False, False, False, True]
    assert len(pair["curves"]) == len(curves)
    assert None not in pair["metrics"]["holdout.loss"]["values"]  # every learning rate's end is drawn


def test_a_metric_that_is_never_finite_is_not_offered():
    run = make_judged_run()
    nothing = pa.array([float("nan")] * run.metrics.num_rows)
    metrics = run.metrics.set_column(run.metrics.column_names.index("value"), "value", nothing)
    assert page_data([dataclasses.replace(run, metrics=metrics)])["measures"] == {}


def test_with_minibatches_steps_are_also_epochs(tmp_path):
    run = make_run(optimizers=["sgd"])
    run.info["problems"]["quadratic_bowl"]["examples"] = 53
    run = dataclasses.replace(run, plan=dataclasses.replace(run.plan, batch_size=8))
    text = write_report([run], tmp_path / "page.html").read_text()
    assert "100 steps (16.7 epochs), float32" in text  # of 53 // 8 = 6 steps
    assert "reaches the target in 10 steps (1.67 epochs)" in text.replace("\xa0", " ")
    assert page_json(tmp_path / "page.html")["pairs"][0]["epoch"] == 6


SWITCHED = """<script>
const pause = () => new Promise((next) => setTimeout(next, 25));
const until = async (test) => { for (let i = 0; i < 200 && !test(); i++) await pause(); };
const texts = (where) => [...document.querySelectorAll(where)].map((each) => each.textContent);
const titles = (place) => texts(`#${place} .role-axis-title text`);
const ringed = () => views.sensitivity.data("rates").filter((row) => row.best).map((row) => row.learning_rate);
(async () => {
  await until(() => document.body.dataset.ready);
  const select = find("by"), more = "holdout.accuracy, more is better";
  const result = { hidden: select.parentElement.hidden, start: [select.value, titles("sensitivity")] };
  if (!result.hidden) {
    result.choices = [...select.options].map((option) => option.value);
    select.value = "holdout.accuracy";
    select.dispatchEvent(new Event("change"));
    await until(() => titles("convergence").includes(more));
    result.best = ringed();
    result.hash = location.hash;
    result.axes = titles("sensitivity");
    result.said = find("by-said").textContent;
    result.linear = find("scale").disabled;
    result.front = views.convergence.data("front").map((row) => row.gap);
    result.heading = texts("#rates th")[2];
    history.back();
    await until(() => select.value === "" && !titles("convergence").includes(more));
    result.back = [select.value, ringed(), titles("sensitivity")];
  }
  const made = document.createElement("pre"); made.id = "result"; made.textContent = JSON.stringify(result);
  document.body.append(made);
})();
</script>"""


def with_script(path, script):
    before, _, after = path.read_text().rpartition("</body>")
    path.write_text(before + script + "</body>" + after)
    return path


@pytest.mark.thorough
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
@pytest.mark.skipif("CI" in os.environ, reason="the browser test is for a person's machine, not CI")
def test_in_chromium_the_switch_shows_a_metric_and_the_history_goes_back(tmp_path):
    path = with_script(write_report([make_judged_run()], tmp_path / "page.html"), SWITCHED)
    result = in_chromium(path, 1280)
    assert result["choices"] == ["", "train.loss", "holdout.loss", "train.accuracy", "holdout.accuracy"]
    assert result["best"] == [1.0]
    assert result["hash"].endswith("&time=steps&by=holdout.accuracy")
    assert result["axes"] == ["learning rate", "holdout.accuracy at the end, more is better"]
    assert result["said"].startswith("sgd: by holdout.accuracy 1 is the best learning rate (0.9, 0.6 at the best by")
    assert result["linear"]
    assert set(result["front"]) == {0, 0.6}  # the chosen learning rate is training's best
    assert result["heading"] == "holdout.accuracy"
    assert result["back"] == ["", [0.1], result["start"][1]]
    linked = in_chromium(path, 1280, "#by=holdout.loss")
    assert linked["start"] == ["holdout.loss", ["learning rate", "holdout.loss at the end"]]


@pytest.mark.thorough
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
@pytest.mark.skipif("CI" in os.environ, reason="the browser test is for a person's machine, not CI")
def test_in_chromium_a_page_without_metrics_has_no_switch(tmp_path):
    path = with_script(write_report([make_run(optimizers=["sgd"])], tmp_path / "page.html"), SWITCHED)
    result = in_chromium(path, 1280, "#by=holdout.loss")
    assert result["hidden"]
    assert result["start"][0] == ""


def test_a_page_opens_with_the_metric_that_is_asked_for(tmp_path):
    path = gradbench.report(make_judged_run(), by="holdout.loss", out=tmp_path / "page.html")
    assert page_json(path)["by"] == "holdout.loss"
