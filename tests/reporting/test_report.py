"""The page: what it says, how large it is, that it works in a browser; and the figures."""

import dataclasses
import html
import json
import math
import os
import re

import pyarrow as pa
import pytest
import vl_convert
from sampling import sample
from synthetic import make_large_run, make_run

from gradbench.cli.check import run_check
from gradbench.errors import GradbenchError, GradbenchWarning
from gradbench.inputs.problem import load_problem
from gradbench.record.schema import SCHEMAS
from gradbench.reporting.charts import COLOURS, RATES, encodings, rate_colour
from gradbench.reporting.checks import check_rows
from gradbench.reporting.data import answers, page_data
from gradbench.reporting.figures import figure_specs
from gradbench.reporting.page import _prose, write_figures, write_file, write_report
from gradbench.reporting.scenery import landscape_views
from gradbench.theory.curvature import measured_curvature

SHARPNESS = SCHEMAS["sharpness"]


def make_flat_run(*arguments, **settings):
    """make_run without a landscape, which is most of the time that a page takes: others test those."""
    run = make_run(*arguments, **settings)
    for facts in run.info["problems"].values():
        facts["parameters"] = 0
    return run


def diverging(optimizer, rate):
    return -0.1 if optimizer == "sgd" and rate >= 1 else rate


def page_json(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL).group(1))


def test_the_answer_is_one_sentence_with_its_numbers():
    [(_, problem, best, others, notes)] = answers([make_run(decay=diverging)])
    assert problem == "quadratic_bowl"
    # exp(-1 × step) = 1e-4 at step 9.2, so 10 of them (and the slower seed as well), at 1.04 ms
    assert best == "adam: best at learning rate 1, the highest tried, where it reaches the target in 10 steps, " + (
        "10.4 ms; no neighbour on the grid is as good; at no learning rate tried do most seeds diverge."
    )
    assert others == [
        "sgd: best at learning rate 0.1, where it reaches the target in 92 steps, 95.7 ms; 33 % diverge; "
        "no neighbour on the grid is as good; diverges above 0.1."
    ]
    assert notes == [
        "The target is 0.0001 of the first gap to the minimum, 0.",
        "quadratic_bowl × adam: the best learning rate is the highest tried; go on with: "
        "gradbench run quadratic_bowl -o adam --lr 1:100:5 --steps 100",
    ]


def test_a_sentence_of_the_page_keeps_units_with_numbers_and_a_command_whole():
    assert _prose("1.86 µs, 10 steps; 4 % <diverge>") == "1.86\xa0µs, 10\xa0steps; 4\xa0% &lt;diverge&gt;"
    command = "<code><span>run</span> <span>&#x27;a&#x27;</span> <span>--lr</span></code>"
    assert _prose("the highest; go on with: run 'a' --lr") == f"the highest; go on with:{command}"


def test_the_winner_of_a_problem_is_the_pair_of_its_answer():
    page = page_data([make_run(problems=["a", "b"], decay=diverging)])
    assert [(pair["problem"], pair["optimizer"]) for pair in page["pairs"] if pair["winner"]] == [
        ("a", "adam"),
        ("b", "adam"),
    ]


def test_without_timings_the_page_says_so_and_has_no_chart_of_them(tmp_path):
    run = make_flat_run(optimizers=["sgd"])
    run = dataclasses.replace(run, timings=run.timings.slice(0, 0))
    text = write_report([run], tmp_path / "page.html").read_text()
    assert "Nothing was timed" in text
    assert 'id="timing"' not in text
    assert "step-cost" not in figure_specs([run])


@pytest.mark.parametrize(
    ("trusted", "value_p25", "batch", "why"),
    [
        (False, 2e-3, None, "not measured reliably"),
        (True, 1e-3, None, "quartiles overlap"),
        (True, 2e-3, None, "two programs"),
        (True, 2e-3, 64, "of a batch of 64, and alone it is timed on all the data"),
    ],
)
def test_a_solo_step_below_the_loss_alone_comes_with_its_reason(trusted, value_p25, batch, why, tmp_path):
    run = make_flat_run(optimizers=["sgd"])  # a solo step takes 1.04 ms, its upper quartile is 1.08 ms
    alone = run.timings.to_pylist()[0] | {"optimizer": None, "mode": "value", "trusted": trusted}
    alone |= {"step_s_median": 3e-3, "step_s_p25": value_p25, "step_s_p75": 4e-3}
    rows = [*run.timings.to_pylist(), alone]
    run = dataclasses.replace(run, timings=pa.Table.from_pylist(rows, schema=run.timings.schema))
    run.info["plan"]["batch_size"] = batch
    text = write_report([run], tmp_path / "page.html").read_text()
    assert re.search(rf"a solo step of sgd, 1.04 ms, is below the loss alone, 3 ms: [^.]*{why}", text)


@pytest.mark.parametrize(
    ("facts", "optimizer", "why"),
    [
        ({"parameters": 2_000_000}, "sgd", "the problem has 2,000,000 parameters, and at most 1,000,000 are drawn"),
        ({"parameters": 0}, "sgd", "the record does not say how many parameters the problem has"),
        ({}, "./mine.py", "all optimizers are a user's own, and a record's files are not run"),
    ],
)
def test_where_there_is_no_landscape_there_is_a_reason(facts, optimizer, why):
    run = make_run(optimizers=[optimizer])
    run.info["problems"]["quadratic_bowl"] |= facts
    view = landscape_views([run])["quadratic_bowl"]
    assert (view.seen, view.missing) == (None, why)


def test_an_optimizer_has_one_colour_in_every_chart(tmp_path):
    charts_of = page_json(write_report([make_flat_run()], tmp_path / "page.html"))["charts"]
    scales = [
        encoding["color"]["scale"]
        for made in charts_of.values()
        for encoding in encodings(made)
        if encoding.get("color", {}).get("field") in ("optimizer", "solver")
    ]
    assert len(scales) > 5
    assert all(scale == {"domain": ["sgd", "adam"], "range": COLOURS} for scale in scales)
    assert not {*COLOURS} & {*RATES}


def test_a_learning_rates_colour_is_interpolated_on_a_logarithmic_scale():
    assert [rate_colour(rate, 1e-4, 1.0) for rate in (1e-4, 1e-2, 1.0)] == [RATES[0], RATES[4], RATES[-1]]
    assert rate_colour(0.1, 0.1, 0.1) == RATES[0]


def test_diverged_trials_are_on_the_page_as_diverged(tmp_path):
    page = page_json(write_report([make_flat_run(decay=diverging)], tmp_path / "page.html"))
    rates = {rate["learning_rate"]: rate for rate in page["pairs"][0]["rates"]}
    assert rates[1.0]["verdict"] == "diverged"
    assert rates[1.0]["gap"] is None
    assert [curve["diverged_at"] for curve in page["pairs"][0]["curves"] if curve["verdict"] == "diverged"] == [7] * 3


def test_the_page_asks_nothing_of_the_network_and_escapes_names(tmp_path):
    run = make_run(problems=["./<script>alert(1)</script>.py"])
    text = write_report([run], tmp_path / "page.html").read_text()
    text = text.replace(vl_convert.javascript_bundle(), "")
    assert not re.search(r"<(script|iframe)[^>]+src=|<link[^>]+href=\"(?!data:)", text)
    assert "<script>alert" not in text
    assert html.escape("<script>alert(1)</script>") in text


def test_what_is_below_a_target_loss_is_drawn_at_the_foot_and_told_as_it_is(tmp_path):
    """The synthetic loss is exp(-rate × 100): at 1 it is 4e-44, at 0.01 it is 1/e, which is a gap of 0.298 to 0.1."""
    run = make_flat_run(optimizers=["sgd"])
    nothing = pa.nulls(run.trials.num_rows, pa.float64())
    trials = run.trials.set_column(run.trials.column_names.index("minimum"), "minimum", nothing)
    run = dataclasses.replace(run, trials=trials)
    run.info["problems"]["quadratic_bowl"]["target"] = 0.1
    [pair] = page_json(write_report([run], tmp_path / "page.html"))["pairs"]
    slow, _, fast = pair["rates"]
    assert pair["gap_to"] == "the target loss"
    assert slow["final"] == slow["gap"] == pytest.approx((math.exp(-1.01) - 0.1) / 0.9, rel=1e-3)
    assert fast["final"] == pytest.approx(-0.1 / 0.9, rel=1e-3)
    # half the least gap above 0, which is seed 2's at 0.01
    assert fast["gap"] == pytest.approx((math.exp(-1.02) - 0.1) / 0.9 / 2, rel=1e-3)


def test_several_runs_overlay(tmp_path):
    runs = [make_flat_run(), make_flat_run(identifier="20260102T000000Z-fedcba")]
    page = page_json(write_report(runs, tmp_path / "page.html"))
    assert {pair["run"] for pair in page["pairs"]} == {"abcdef", "fedcba"}
    assert page["charts"]["sensitivity"]["layer"][4]["encoding"]["strokeDash"]["field"] == "run"


def test_the_runs_of_a_problem_stand_together():
    runs = [make_run(problems=["a", "b"]), make_run(problems=["b", "a"], identifier="20260102T000000Z-fedcba")]
    assert [(problem, run) for run, problem, *_ in answers(runs)] == [
        *[("a", "abcdef"), ("a", "fedcba")],
        *[("b", "abcdef"), ("b", "fedcba")],
    ]


def test_an_axis_of_seconds_gives_each_label_its_own_prefix():
    """Vega's format for a whole axis takes one prefix, and 1e-6 s read as 0m beside 1m."""
    specs = figure_specs([make_run(optimizers=["sgd"], problems=["a"])])
    svg = vl_convert.vegalite_to_svg(specs["targets-reached-seconds"])
    labels = re.findall(r">([0-9.]+[µmk]?)</text>", svg)
    assert {"0", "10m", "100m"} <= set(labels)
    assert "0m" not in labels


def test_problems_have_a_landscape_and_a_records_own_files_are_not_run(tmp_path):
    run = make_run(problems=["rosenbrock", "./mine.py"], optimizers=["sgd"], rates=(1e-4, 1e-3))
    for facts in run.info["problems"].values():
        facts["parameters"] = 2
    page = page_json(write_report([run], tmp_path / "page.html"))
    assert page["landscapes"]["rosenbrock"]["spec"]["title"]["text"] == "rosenbrock, sgd"
    theirs = page["landscapes"]["./mine.py"]
    assert theirs["spec"] is None
    assert theirs["missing"].endswith("not one of gradbench's own problems, and a record's files are not run")


def test_a_record_reports_without_the_data_file_it_was_made_from(tmp_path):
    run = make_run(problems=["linear_regression[data=gone.csv]"], optimizers=["sgd"])
    [view] = page_json(write_report([run], tmp_path / "page.html"))["landscapes"].values()
    assert view["spec"] is None
    assert "gone.csv" in view["missing"]


@pytest.mark.thorough
def test_every_learning_rate_of_every_optimizer_has_a_path_in_the_landscape(tmp_path):
    run = make_run((1e-4, 1e-3, 1e-2), problems=["rosenbrock"])
    run.info["problems"]["rosenbrock"] |= {"parameters": 2, "curvature": None}
    page = page_json(write_report([run], tmp_path / "page.html"))
    paths = page["landscapes"]["rosenbrock"]["paths"]
    assert {(path["optimizer"], path["learning_rate"]) for path in paths} == {
        (optimizer, rate) for optimizer in ("sgd", "adam") for rate in (1e-4, 1e-3, 1e-2)
    }
    steps = page["landscapes"]["rosenbrock"]["steps"]
    assert all(len(path["x"]) == len(path["loss"]) == len(steps) or path["left"] for path in paths)


@pytest.mark.thorough
def test_where_no_curvature_is_stated_the_limit_is_that_of_the_start_and_says_so(tmp_path):
    run = make_run((1e-4, 1e-3), optimizers=["sgd", "momentum", "adam"], problems=["rosenbrock"])
    run.info["problems"]["rosenbrock"] |= {"parameters": 2, "curvature": None}
    page = page_json(write_report([run], tmp_path / "page.html"))
    largest = measured_curvature(load_problem("rosenbrock")).largest
    limits = {pair["optimizer"]: (pair["limit"], pair["limit_is"]) for pair in page["pairs"]}
    assert limits["adam"][0] is None
    for optimizer, factor in (("sgd", 2.0), ("momentum", 2 * 1.9)):
        assert limits[optimizer] == (pytest.approx(factor / largest, rel=2e-3), "stable at the start")


def test_the_valley_of_every_trial_is_on_the_page(tmp_path):
    rates = (0.005, 0.01, 10.0)
    run = make_run(rates, seeds=8, optimizers=["sgd"], problems=["himmelblau"], steps=200, decay=lambda _, r: 1 - r)
    run.info["problems"]["himmelblau"] |= {"parameters": 2, "curvature": None}
    page = page_json(write_report([run], tmp_path / "page.html"))
    ends = {(row["learning_rate"], row["seed"]): row["valley"] for row in page["landscapes"]["himmelblau"]["ends"]}
    assert set(ends) == {(rate, seed) for rate in rates for seed in range(8)}
    assert {ends[10.0, seed] for seed in range(8)} == {"diverged"}
    assert {ends[rate, seed] for rate in rates[:2] for seed in range(8)} <= {"A", "B", "C", "D"}
    floors = page["landscapes"]["himmelblau"]["spec"]["datasets"]["floors"]
    assert {floor["valley"] for floor in floors} == set(ends.values()) - {"diverged"}


def test_sharpness_is_on_the_page_and_in_a_figure(tmp_path):
    row = {"problem": "quadratic_bowl", "optimizer": "sgd", "learning_rate": 0.1, "seed": 0, "loss": 1.0}
    rows = [row | {"step": step, "sharpness": 2.0, "error": 0.0, "edge": 20.0} for step in (0, 50, 100)]
    run = dataclasses.replace(make_flat_run(optimizers=["sgd"]), sharpness=pa.Table.from_pylist(rows, schema=SHARPNESS))
    page = page_json(write_report([run], tmp_path / "page.html"))
    assert [(row["step"], row["sharpness"], row["edge"]) for row in page["sharpness"]] == [
        (0, 2.0, 20.0),
        (50, 2.0, 20.0),
        (100, 2.0, 20.0),
    ]
    assert "sharpness-quadratic-bowl-sgd" in figure_specs([run])


def test_predicted_and_fitted_rates_stand_side_by_side():
    """The synthetic gap is exp(-rate × step); theory's is the bowl's own, with mu = 0.02 and L = 2."""
    run = make_run((0.05, 0.5), optimizers=["sgd"], curve_steps=range(0, 101, 5))
    rates = page_data([run])["pairs"][0]["rates"]
    assert [row["fitted"] for row in rates] == [pytest.approx(math.exp(-rate), rel=1e-3) for rate in (0.05, 0.5)]
    assert [row["predicted"] for row in rates] == [pytest.approx((1 - rate * 0.02) ** 2) for rate in (0.05, 0.5)]


def test_the_best_of_every_pair_comes_with_its_interval_and_robustness(tmp_path):
    text = write_report([make_flat_run((0.1, 0.15, 1.0), optimizers=["sgd"])], tmp_path / "page.html").read_text()
    cells = re.findall(r"<td>(.*?)</td>", text)[:11]
    # exp(-1.01 × step) < 1e-k at step ceil(2.303 k / 1.01) for the middle seed
    steps = [str(math.ceil(k * math.log(10) / 1.01)) for k in range(1, 7)]
    assert cells == ["quadratic_bowl × sgd", "1", "1", "0 decades", "1.04 ms", *steps]


@pytest.mark.parametrize("runs", [[], [make_run(rates=(0.1,), seeds=1)]])
def test_nothing_to_report_is_an_error(runs, tmp_path):
    runs = [dataclasses.replace(run, trials=run.trials.slice(0, 0)) for run in runs]
    with pytest.raises(GradbenchError):
        write_report(runs, tmp_path / "page.html")


def test_what_cannot_be_written_or_read_is_one_line_before_anything_is_computed(tmp_path, monkeypatch):
    for name in ("landscape_views", "figure_specs"):
        monkeypatch.setattr(f"gradbench.reporting.page.{name}", lambda *_, **__: pytest.fail("computed"))
    file, run = tmp_path / "file", make_flat_run()
    file.touch()
    with pytest.raises(GradbenchError, match="cannot be written"):
        write_report([run], file / "page.html")
    with pytest.raises(GradbenchError, match="is not a folder"):
        write_figures([run], file)
    with pytest.raises(GradbenchError, match="No such file"):
        write_report([run], tmp_path / "page.html", [tmp_path / "none.json"])


def test_a_link_such_as_dev_stdout_stays_and_what_it_leads_to_is_written(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(file)
    write_file(link, b"page")
    assert link.is_symlink()
    assert file.read_bytes() == b"page"


def test_a_page_takes_the_place_of_a_page_and_of_no_other_file(tmp_path):
    page, run = tmp_path / "page.html", make_flat_run(optimizers=["sgd"])
    page.write_text("<!doctype html><title>mine</title>")
    with pytest.raises(GradbenchError, match="exists and is not a report; name another file"):
        write_report([run], page)
    assert "mine" in page.read_text()
    page.write_text("")
    write_report([run], page)
    write_report([run], page)  # made anew: nothing to be said
    with pytest.warns(GradbenchWarning, match=f"page.html: replaces the report of {run.id}$"):
        write_report([make_flat_run(optimizers=["sgd"], identifier="20260102T000000Z-bbbbbb")], page)


def test_a_page_does_not_take_the_place_of_a_device(tmp_path):
    os.mkfifo(tmp_path / "page.html")
    with pytest.raises(GradbenchError, match="not a regular file"):
        write_report([make_flat_run()], tmp_path / "page.html")
    assert (tmp_path / "page.html").is_fifo()


@pytest.mark.thorough
def test_a_record_of_100_000_trials_stays_under_5_megabytes(tmp_path):
    run = make_large_run()
    assert run.trials.num_rows == 100_000
    assert write_report([run], tmp_path / "page.html").stat().st_size < 5e6
    pair = page_data([run])["pairs"][0]
    assert pair["all_rates"] == 10_000  # and the page says how many of them it draws
    assert any(rate["best"] for rate in pair["rates"])


@pytest.mark.parametrize(
    ("fmt", "start", "make"),
    sample([("svg", b"<svg", make_run), ("png", b"\x89PNG", make_flat_run), ("pdf", b"%PDF", make_flat_run)]),
)
def test_figures_are_files_of_their_format(fmt, start, make, tmp_path):
    paths = write_figures([make(optimizers=["sgd"], decay=diverging)], tmp_path, fmt)
    names = {path.stem for path in paths}
    assert names >= {"sensitivity-quadratic-bowl", "convergence-quadratic-bowl-sgd", "step-cost"}
    assert all(path.read_bytes().startswith(start) for path in paths)


def test_an_unknown_figure_format_names_the_nearest(tmp_path):
    with pytest.raises(GradbenchError, match="did you mean 'svg'"):
        write_figures([make_run()], tmp_path, "svgz")


def check_record(path, problem="quadratic_bowl", verdict="PASS", written="2026-01-01T00:00:00Z"):
    """A file as gradbench check writes it, as far as it is read."""
    program = {"program": "jit", "dtype": "float32", "precision": "highest", "device": "cpu:0", "verdict": verdict}
    program |= {"reason": "twice too large", "resolves": 1.5e-6}
    formula = {"name": "analytic gradient", "verdict": "PASS", "finding": "agrees", "resolves": None}
    checks = [{"problem": problem, "formula": [formula], "programs": [program]}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": 1, "kind": "check", "written": written, "checks": checks}))
    return path


def test_the_newest_check_beside_a_record_is_on_its_page(tmp_path):
    run = dataclasses.replace(make_flat_run(optimizers=["sgd"]), path=tmp_path / "a-record")
    check_record(tmp_path / "check" / "20260101-a.json", verdict="PASS", written="the first")
    check_record(tmp_path / "check" / "20260102-b.json", verdict="FAIL", written="the second")
    check_record(tmp_path / "check" / "20260103-c.json", problem="mlp", written="another problem")
    (tmp_path / "check" / "peers.json").write_text("[]")
    rows = check_rows([run])
    assert [(row["part"], row["verdict"], row["finding"]) for row in rows] == [
        ("formula", "PASS", "all 1: analytic gradient"),
        ("execution", "FAIL", "jit: twice too large"),
    ]
    assert {row["checked"] for row in rows} == {"the second"}
    assert "twice too large" in write_report([run], tmp_path / "page.html").read_text()


def test_checks_that_are_named_are_shown_and_must_be_checks(tmp_path):
    named = check_record(tmp_path / "mine.json", problem="mlp[hidden=8]")
    assert {row["problem"] for row in check_rows([make_run()], [named])} == {"mlp[hidden=8]"}
    (tmp_path / "other.json").write_text('{"kind": "check", "checks": [{}]}')
    for name, words in (("other.json", "not a record of gradbench check"), ("none.json", "No such file")):
        with pytest.raises(GradbenchError, match=words):
            check_rows([make_run()], [tmp_path / name])


def test_what_gradbench_check_writes_is_read(tmp_path):
    assert run_check(["quadratic_bowl[dim=3]"], fast=True, out=tmp_path, note=lambda text: None) == 0
    [file] = (tmp_path / "check").glob("*.json")
    assert {(row["part"], row["verdict"]) for row in check_rows([], [file])} == {
        ("formula", "PASS"),
        ("execution", "PASS"),
    }
