"""Tables in terminals: every value whole and names always there at any width, what is left out is said."""

from __future__ import annotations

import dataclasses
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from synthetic import make_judged_run, make_run

from gradbench import tables
from gradbench.analysis.answers import RATES, SUMMARY, present, run_table
from gradbench.analysis.regress import compare_runs, regress_text
from gradbench.analysis.settings.comparison import compare_text
from gradbench.cli import check
from gradbench.errors import PlanError
from gradbench.gradients.check import check_gradient
from gradbench.record.store import load_run
from gradbench.tables import Column, render, seconds, wrap

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "cpu-2-cores"
WIDTHS = (80, 100, 120, 140, 200)


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of so many columns; None for a pipe."""
    return lambda width: monkeypatch.setattr(tables, "terminal_width", lambda: width)


@pytest.fixture(scope="module")
def record():
    return load_run(REFERENCE)


@pytest.fixture(scope="module")
def texts(record):
    """Every table that people are shown of a record, by name."""
    comparison = compare_runs(record, record)
    return {
        "run": lambda output_format: run_table(record, output_format),
        "compare": lambda output_format: compare_text(record, output_format, 2.0),
        "summary": lambda output_format: compare_text(record, output_format, 2.0, summary_only=True),
        "regress": lambda output_format: regress_text(comparison, output_format),
    }


def words(text: str) -> list[str]:
    """What stands between two spaces or more: values, headings and pieces of prose."""
    return [word for line in text.splitlines() for word in re.split(r"\s{2,}", line.strip()) if word]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_columns_of_a_metric_are_few_and_fit(terminal, width):
    terminal(width)
    run, compared = run_table(make_judged_run(), "table"), compare_text(make_judged_run(), "table", 2.0)
    for text in (run, compared):
        assert max(map(cell_len, text.splitlines())) <= width
        assert re.search(r"^quadratic_bowl +sgd\b", text, re.MULTILINE)
        assert "holdout.loss: at the best lr; best lr by it: by holdout.loss" in text.replace("\n", " ")
    assert "holdout −" not in run  # a heading may take two lines
    assert "holdout −" in compared  # as a column, or as one that is left out


@pytest.mark.parametrize(("columns", "key"), [(RATES, "loss_median"), (SUMMARY, "final_loss")])
def test_a_smoothed_final_loss_is_said_to_be_one(columns, key):
    said = "final loss: with minibatches the mean over the last quarter"
    for rows, smoothed in (([{key: 0.5, "epochs_to_target": 2.0}], True), ([{key: 0.5}], False)):
        assert (said in render(rows, present(columns, rows), "wide")) == smoothed


def test_which_learning_rate_is_best_is_among_the_last_to_leave(terminal):
    terminal(80)
    run = make_judged_run()
    diverged = pa.array([None, None, None, None, 7, None], pa.int64())  # one seed of two: a verdict with counts
    run = dataclasses.replace(run, trials=run.trials.drop("diverged_at").append_column("diverged_at", diverged))
    text = compare_text(run, "table", 2.0, by="holdout.accuracy")
    assert re.search(r"^ +0\.1 .* best", text, re.MULTILINE)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["run", "compare", "summary", "regress"])
def test_a_record_s_tables_fit_the_terminal_with_every_value_whole(terminal, record, texts, name, width):
    terminal(width)
    text = texts[name]("table")
    assert max(map(cell_len, text.splitlines())) <= width
    terminal(None)
    everything = set(words(texts[name]("table")))
    rows = [line for line in text.splitlines() if line.startswith(record.plan.problems) and "×" not in line]
    assert set(words("\n".join(rows))) <= everything
    assert rows or name == "compare"
    for problem, optimizer in record.plan.pairs:
        assert re.search(rf"^{problem} +(× )?{optimizer}\b", text, re.MULTILINE), (problem, optimizer)


def test_a_table_is_as_wide_as_the_terminal_that_it_goes_to():
    """A real one, of 80 columns; the other width of a table, a pipe's, is that of the tests of the command line."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 80))
    line = [sys.executable, "-m", "gradbench", "compare", str(REFERENCE), "--summary"]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    subprocess.run(line, stdout=its, env=environment, check=True)
    os.set_blocking(ours, False)
    text = os.read(ours, 2**16).decode()
    os.close(its)
    os.close(ours)
    assert max(map(cell_len, text.splitlines())) <= 80
    assert "Left out at 80 columns" in text


def test_what_is_left_out_is_named_with_the_way_to_see_it(terminal, texts):
    terminal(80)
    text = texts["summary"]("table")
    said = " ".join(text.splitlines())
    assert "Left out at 80 columns (--wide or --format csv has them): 95 %, time to target" in said
    for output_format, width in (("wide", 80), ("table", None), ("table", 400)):
        terminal(width)
        text = texts["summary"](output_format)
        assert "Left out" not in text
        assert "trial-steps/s" in text


def test_headings_and_values_say_their_units(terminal, texts):
    terminal(None)
    text = texts["regress"]("table")
    assert re.search(r"mlp +adam +step time, solo +348 µs +348 µs", text)
    assert "p: the chance of such samples if nothing got worse" in text
    assert "new/old: above 1 is worse" in text
    assert "steps to target" in texts["run"]("table").splitlines()[0]


@pytest.mark.parametrize("width", [20, 28])
def test_where_not_even_names_fit_a_row_is_a_block(terminal, width):
    terminal(width)
    run = make_run(optimizers=("an_optimizer_of_mine",), problems=("a_problem_of_mine[width=8]",))
    lines = run_table(run, "table").splitlines()
    assert lines[:2] == ["problem", "a_problem_of_mine[width=8]"]
    assert "an_optimizer_of_mine" in lines
    assert not any(line.startswith("Left out") for line in lines)


def test_wide_characters_are_counted_as_the_terminal_shows_them(terminal):
    terminal(40)
    columns = (Column("name", "名", str), Column("time", "time", seconds))
    lines = render([{"name": "問題", "time": 2e-6}, {"name": "µ×…", "time": 0.5}], columns, "table").splitlines()
    assert lines == ["名      time", "────  ──────", "問題    2 µs", "µ×…   500 ms"]


def test_control_characters_of_a_name_do_not_reach_the_terminal(terminal):
    terminal(80)
    assert "\x1b" not in render([{"name": "a\x1b[31m\nb"}], (Column("name", "name", str),), "table")


def test_csv_and_json_do_not_depend_on_the_terminal(terminal, texts):
    for output_format in ("csv", "json", "markdown"):
        terminal(40)
        narrow = texts["summary"](output_format)
        terminal(None)
        assert texts["summary"](output_format) == narrow


def test_wide_is_a_format_like_the_others():
    with pytest.raises(PlanError, match="did you mean 'wide'"):
        render([], (), "wode")


@pytest.mark.parametrize(
    ("cells", "below"),
    [
        ((1.0, 2.0), "s: of a step."),
        ((1.0, None), "s: of a step, – where not timed."),
        ((None, None), "s: – where not timed."),
    ],
)
def test_a_footnote_is_printed_only_where_there_is_something_of_it(cells, below):
    columns = (Column("name", "name", str, dash="no name"), Column("s", "s", about="of a step", dash="where not timed"))
    text = render([{"name": "a", "s": cell} for cell in cells], columns, "table")
    assert text.splitlines()[-1] == below


@pytest.mark.parametrize("width", range(60, 130, 10))
def test_what_leaves_of_several_records_leaves_of_all(terminal, width):
    terminal(width)
    runs = [make_run(identifier=f"20260101T000000Z-{name}") for name in ("old", "new")]
    table = compare_text(runs, "wide", 2.0).split("\n\n")[0]
    left_out = re.sub(r"\s+", " ", compare_text(runs, "table", 2.0).split("\n\n")[0]).partition("Left out")[2]
    assert "old: steps to target" in table.replace("\n", " ")
    for heading in ("final loss", "final gap", "steps to target", "verdict"):
        assert (f"old: {heading}" in left_out) == (f"new: {heading}" in left_out)


def test_a_check_fits_the_terminal_but_for_its_commands(monkeypatch):
    monkeypatch.setattr(check, "terminal_width", lambda: 80)
    report = check_gradient("quadratic_bowl[dim=3]", fast=True)
    row = report.rows[0]
    row.verdict, row.reason = "FAIL", "a reason of several words " * 5
    lines = check._wrapped(report, "table").splitlines()
    assert [line.split()[:2] for line in lines if cell_len(line) > 80] == [["gradbench", "check"]]
    at = next(i for i, line in enumerate(lines) if line.strip().startswith(row.program))
    assert lines[at - 1].endswith("would have caught")  # as wide as the row: one line each
    assert lines[at].endswith(f"{row.resolves:.1e}")


@pytest.mark.parametrize("width", [1, 8, 20])
def test_prose_is_wrapped_at_its_spaces_alone(width):
    text = "every word of this is whole wherever it stands"
    lines = wrap(text, width)
    assert " ".join(lines) == text
    assert all(cell_len(line) <= width or " " not in line for line in lines)


PRINTABLE = st.text(st.characters(exclude_categories=("C", "Z")), max_size=30)
SENTENCES = st.lists(PRINTABLE, max_size=8).map(" ".join)


@st.composite
def any_table(draw):
    """(columns, rows): one to three names, then columns of any priority, some of them prose. Headings and values say
    where they belong, so that none can be taken for another's."""
    names, others = draw(st.integers(1, 3)), draw(st.integers(0, 5))
    columns = []
    for i in range(names + others):
        heading = draw(st.sampled_from((f"h{i}", f"heading{i}", f"a longer heading{i}")))
        priority = 0 if i < names else draw(st.integers(0, 4))
        columns.append(Column(f"{i}", heading, str, priority, prose=i >= names and draw(st.booleans())))
    rows = [
        {of.key: f"<{row},{of.key}>{draw(SENTENCES if of.prose else PRINTABLE)}<end>" for of in columns}
        for row in range(draw(st.integers(1, 3)))
    ]
    return columns, rows


@settings(max_examples=60, deadline=None)
@given(any_table(), st.integers(40, 220))
def test_any_table_fits_any_width_from_40_with_every_value_whole(table, width):
    columns, rows = table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "terminal_width", lambda: width)
        text = render(rows, columns, "table")
    lines = text.splitlines()
    pieces = {column.key: ([row[column.key] for row in rows], column.prose) for column in columns}
    words = {
        key: [w for v in values for w in (v.split(" ") if prose else [v])] for key, (values, prose) in pieces.items()
    }
    said = " ".join(lines).partition("Left out at")[2]
    for column in columns:
        left_out = column.heading in said
        assert all(word in text for word in words[column.key]) != left_out
        assert not (left_out and column.priority == 0)
    blocks = not any(line.startswith("─") for line in lines)
    alone = {word for of in words.values() for word in of} if blocks else set()
    assert all(cell_len(line) <= width or line in alone for line in lines)
    assert not (blocks and said)
