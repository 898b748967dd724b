"""A record shows itself: in five lines, in a notebook without scripts, as rows, frames and charts."""

import builtins
import dataclasses
import json
import math
import sys
from types import ModuleType, SimpleNamespace

import jax.numpy as jnp
import pytest
from sampling import sample
from synthetic import make_run

import gradbench
from gradbench.analysis.answers import run_table
from gradbench.analysis.settings.comparison import compare_text
from gradbench.errors import GradbenchError, PlanError
from gradbench.gradients.formula import derivative as formula
from gradbench.library import progress as drawn
from gradbench.library.run import Run
from gradbench.record import store
from gradbench.reporting.data import page_data

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def record(**settings):
    """sgd at 1 needs ceil(ln 1e4) = 10 steps to a gap of 1e-4; adam is half as quick and diverges at 1."""
    decays = {"sgd": lambda rate: rate, "adam": lambda rate: rate / 2 if rate < 1 else -rate}
    return Run.of(make_run(decay=lambda optimizer, rate: decays[optimizer](rate), **settings))


@pytest.mark.parametrize("problems", [("mlp",), tuple(f"problem_{n}" for n in range(9))])
def test_a_record_is_five_lines_at_the_most(problems):
    text = repr(record(problems=problems))
    assert len(text.splitlines()) <= 5
    assert "20260101T000000Z-abcdef: complete" in text
    assert "3 learning rates from 0.01 to 1, 3 seeds, 100 steps" in text
    assert f"{problems[0]} × sgd: best at learning rate 1" in text
    assert ("more pairs: run.best()" in text) == (len(problems) > 1)


def test_a_record_without_a_finished_trial_says_so():
    full = record()
    empty = dataclasses.replace(full, **{name: getattr(full, name).slice(0, 0) for name in ("trials", "curves")})
    assert "no trial has finished yet" in repr(empty)
    assert "no trial has finished yet" in empty._repr_html_()
    assert run_table(empty, "table") == "no trial has finished yet"
    with pytest.raises(GradbenchError, match=f"^{empty.id}: no trial has finished yet"):  # by its id, as other verbs do
        page_data([empty])
    assert json.loads(run_table(empty, "json")) == []


def test_a_notebook_has_the_answers_and_a_chart_without_scripts_or_the_network():
    page = record(problems=("<b>", "mlp"))._repr_html_()
    assert "<td>sgd</td><td>1</td><td>converged</td><td>10</td>" in page
    assert page.count("<svg") == 1
    assert "<script" not in page
    assert "<b>" not in page
    assert "http" not in page.replace("http://www.w3.org/", "")  # the names of SVG


def test_the_best_of_each_pair():
    sgd, adam = record(problems=("mlp",)).best()
    assert (sgd.optimizer, sgd.learning_rate, sgd.verdict, sgd.steps_to_target) == ("sgd", 1.0, "converged", 10)
    assert (adam.learning_rate, adam.steps_to_target) == (0.1, None)
    assert adam.loss == pytest.approx(math.exp(-0.05 * 1.01 * 100))
    none = record(optimizers=("adam",), rates=(1.0, 2.0)).best()[0]
    assert (none.learning_rate, none.verdict) == (None, "none works: all diverge")


def test_the_summary_is_what_compare_prints():
    run = record()
    printed = json.loads(compare_text(run, "json", 2.0, summary_only=True))["pairs"]
    assert [(row["optimizer"], row["best_learning_rate"]) for row in run.summary()] == [("sgd", 1.0), ("adam", 0.1)]
    assert [row.keys() for row in run.summary()] == [row.keys() for row in printed]


def test_without_pandas_a_frame_is_refused_in_a_line(monkeypatch):
    run = record()  # before: pyarrow looks for pandas too
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(GradbenchError, match="pandas is not installed"):
        run.to_pandas()


def test_a_frame_has_the_curves_with_their_trials():
    pytest.importorskip("pandas")
    frame = record().to_pandas()
    assert list(frame.columns[:6]) == ["trial", "problem", "optimizer", "learning_rate", "seed", "verdict"]
    assert len(frame) == record().curves.num_rows
    one = frame.query("optimizer == 'sgd' and learning_rate == 0.1 and seed == 0")
    assert one["step"].tolist() == [0, 1, 10, 100]
    assert one["loss"].tolist() == pytest.approx([math.exp(-0.1 * step) for step in (0, 1, 10, 100)])


@pytest.mark.parametrize(
    ("chart", "parts"),
    sample(
        [
            (lambda plot: plot.sensitivity("mlp"), 0),
            (lambda plot: plot.convergence(optimizer="sgd"), 2),
            (lambda plot: plot.sensitivity(), 2),
            (lambda plot: plot.convergence("mlp", "sgd"), 0),
        ],
        2,
    ),
)
def test_charts_have_their_data_and_save(chart, parts, tmp_path):
    made = chart(record(problems=("mlp", "rosenbrock")).plot)
    assert len(made.to_dict().get("vconcat", ())) == parts
    made.save(str(tmp_path / "chart.svg"))
    drawn = (tmp_path / "chart.svg").read_text()
    assert drawn.count("aria-roledescription") > 10  # of its marks


def test_a_chart_of_what_is_not_there_names_the_nearest():
    with pytest.raises(PlanError, match="no problem 'mpl' in this record, did you mean 'mlp'"):
        record(problems=("mlp",)).plot.sensitivity("mpl")
    with pytest.raises(PlanError, match="no optimizer 'adem' in this record, did you mean 'adam'"):
        record().plot.convergence(optimizer="adem")


def valley():
    return gradbench.Problem(init=lambda key: jnp.array([1.0, 2.0]), loss=lambda p, _: p[0] ** 2 + 3 * p[1] ** 2)


@pytest.mark.thorough
def test_a_landscape_of_a_problem_that_only_this_process_has(sweep):
    run = sweep(valley, "sgd", [0.1, 0.2], seeds=1, steps=5)
    cells = run.plot.landscape().to_dict()["layer"][0]
    assert cells["mark"]["type"] == "rect"
    with pytest.raises(GradbenchError, match="landscape of valley: none, valley was given as an object"):
        gradbench.load_run(run.path).plot.landscape()


def test_a_summary_is_numbers_and_words_and_none_where_there_is_nothing():
    run = Run.of(make_run(decay=lambda optimizer, rate: rate if optimizer == "sgd" else -1.0))
    words = ("problem", "optimizer", "verdict", "reference", "open_end", "limit")
    for row in run.summary():
        kinds = {key: type(value) for key, value in row.items() if value is not None}
        assert {key for key, kind in kinds.items() if kind is str} <= set(words)
        assert set(kinds.values()) <= {str, float, int, list}
        assert "–" not in row.values()
    assert run.summary()[1]["good_low"] is None


def test_compare_has_rows_and_reads_as_on_the_command_line():
    run = record(problems=("mlp",))
    found = gradbench.compare(run, optimizers="sgd")
    assert [(row["optimizer"], row["best_learning_rate"]) for row in found.pairs] == [("sgd", 1.0)]
    assert [row["learning_rate"] for row in found.rates] == [0.01, 0.1, 1.0]
    assert str(found) == compare_text(run, "table", 2.0, optimizers=("sgd",))
    assert "the best learning rate is the highest tried" in found.notes[0]
    assert "<td>mlp</td><td>sgd</td><td>1</td>" in found._repr_html_()


def test_a_table_is_text_in_a_notebook_too(monkeypatch):
    run, shell = record(), type("ZMQInteractiveShell", (), {})
    outside = str(gradbench.compare(run))
    monkeypatch.setattr(builtins, "get_ipython", shell, raising=False)
    assert str(gradbench.compare(run)) == outside


def test_compare_of_several_names_the_records():
    found = gradbench.compare(
        record(identifier="20260101T000000Z-aaaaaa"), record(identifier="20260101T000000Z-bbbbbb")
    )
    assert [row["record"] for row in found.pairs] == ["aaaaaa", "bbbbbb"] * 2
    assert {row["record"] for row in found.rates} == {"aaaaaa", "bbbbbb"}
    assert "<th>record</th>" in found._repr_html_()


def test_regress_takes_one_old_record_or_several():
    run = record()
    for old in (run, [run, run]):
        found = gradbench.regress(old, run)
        assert not found.regressed
        assert "no regression" in str(found)


def test_verbs_take_records_by_path_and_refuse_what_is_none(sweep, tmp_path):
    run = sweep("quadratic_bowl[dim=2]", "sgd", [0.1], seeds=1, steps=3)
    assert gradbench.compare(str(run.path)).pairs == gradbench.compare("latest", results=run.path.parent).pairs
    assert (
        gradbench.report(store.load_run(run.path), out=tmp_path / "page.html").read_text().startswith("<!doctype html>")
    )
    with pytest.raises(GradbenchError, match='no record given: a run, its folder, its id, or "latest"'):
        gradbench.compare()
    with pytest.raises(GradbenchError, match=r"need a record: .*; got list"):
        gradbench.compare([run])


def test_a_run_is_a_record_of_the_store_and_is_read_again_as_one(sweep):
    run = sweep("quadratic_bowl[dim=2]", "sgd", [0.1], seeds=1, steps=3)
    again = gradbench.load_run(run.path)
    assert isinstance(run, gradbench.Run)
    assert isinstance(again, store.Run)
    assert repr(again) == repr(run)
    assert gradbench.resume(run.path).trials.equals(run.trials)


def test_a_check_is_four_lines_and_a_table():
    tests = [formula.Test("differences", "PASS", "agrees", 1e-9), formula.Test("suspects", "FAIL", "a rule", None)]
    right = gradbench.gradients.CheckReport("mlp", tests, [], {}, [], None, 7, 1.5)
    assert repr(right).splitlines() == [
        "CheckReport mlp: PASS, 7 parameters, 1.5 s",
        "  formula: PASS, 1 of 1",
        "  execution: INCONCLUSIVE, not run",
        "  print() shows the report",
    ]
    wrong = dataclasses.replace(right, formula=[formula.Test("<directions>", "FAIL", "off by 2", 1e-9), *tests])
    assert "  formula: FAIL, <directions>" in repr(wrong)
    assert "<td>&lt;directions&gt;</td><td>float64</td><td>formula</td><td>FAIL</td>" in wrong._repr_html_()


def sweep_two(sweep, progress):
    sweep("quadratic_bowl[dim=2]", ["sgd", "adam"], [0.1], seeds=1, steps=3, progress=progress)


def test_a_program_is_told_nothing_unless_it_asks(sweep, capfd, compiled_afresh):
    sweep_two(sweep, None)
    assert capfd.readouterr() == ("", "")
    sweep_two(sweep, True)
    name = "quadratic_bowl[dim=2]"
    lines = f"pair 1 of 2, {name} × sgd: done\npair 2 of 2, {name} × adam: done\n"
    assert capfd.readouterr() == ("", lines)


def test_a_notebook_shows_a_bar_that_goes(sweep, monkeypatch, capfd, compiled_afresh):
    shown = []
    handle = SimpleNamespace(update=shown.append)
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=None)
    display.HTML, display.display = str, lambda first, display_id: shown.append(first) or handle
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    sweep_two(sweep, None)
    assert shown[0] == shown[-1] == ""
    assert '<progress max="1" value="0.500"></progress> pair 1 of 2, quadratic_bowl[dim=2] × sgd: done' in shown
    assert shown[-2] == '<progress max="1" value="1.000"></progress> pair 2 of 2, quadratic_bowl[dim=2] × adam: done'
    shown.clear()
    sweep_two(sweep, False)
    assert shown == []
    assert capfd.readouterr() == ("", "")


def test_a_bar_goes_also_when_the_run_fails(monkeypatch):
    closed = []
    monkeypatch.setattr(drawn, "_Lines", lambda: SimpleNamespace(close=lambda: closed.append(True)))
    with pytest.raises(RuntimeError, match="mine"), drawn.watching(True):
        raise RuntimeError("mine")
    assert closed == [True]
