"""CSV files as people have them: headers, labels of text, any label column, missing values."""

from __future__ import annotations

import numpy as np
import pytest

from gradbench.datasets import load_table
from gradbench.errors import ProblemError
from gradbench.inputs.problem import load_problem

FEATURES = [[1, 2], [2, 1], [3, 5], [1, 7]]
ROWS = "1,2,cat\n2,1,dog\n3,5,cat\n1,7,dog\n"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (ROWS, None),
        ("a,b,species\n" + ROWS, None),
        ("a,b,species\n" + ROWS, "species"),
        ("species,a,b\ncat,1,2\ndog,2,1\ncat,3,5\ndog,1,7\n", "species"),
        ("1,cat,2\n2,dog,1\n3,cat,5\n1,dog,7\n", 2),
        (",a,b,species\n0,1,2,cat\n1,2,1,dog\n2,3,5,cat\n3,1,7,dog\n", None),
        ("# made by hand\n\na;b;species\n" + ROWS.replace(",", ";"), None),
        ("a b species\n" + ROWS.replace(",", " "), None),
        ('\ufeff"a", "b", species\n' + ROWS.replace("cat", '"cat"'), "species"),
    ],
)
def test_layouts_of_one_table(tmp_path, text, label):
    (tmp_path / "pets.csv").write_text(text, encoding="utf-8")
    features, target = load_table(tmp_path / "pets.csv", label, classes=True)
    np.testing.assert_array_equal(features, FEATURES)
    np.testing.assert_array_equal(target, ["cat", "dog", "cat", "dog"])


def test_labels_of_text_are_two_classes_in_sorted_order(tmp_path, monkeypatch):
    (tmp_path / "pets.csv").write_text("species,a,b\ncat,1,2\ndog,2,1\ncat,3,5\ndog,1,7\n")
    monkeypatch.chdir(tmp_path)
    problem = load_problem("logistic_regression[data=pets.csv,label=species]")
    np.testing.assert_array_equal(problem.data["y"], [-1, 1, -1, 1])


def test_numbers_may_be_labelled_by_any_column(tmp_path):
    (tmp_path / "t.csv").write_text("y,a\n1,2\n3,5\n4,4\n")
    features, target = load_table(tmp_path / "t.csv", "y")
    np.testing.assert_array_equal(features, [[2], [5], [4]])
    np.testing.assert_array_equal(target, [1, 3, 4])


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("a,b,y\n1,2,cat\n2,1,cat\n", "", r"the label has one value only \(cat\); two classes"),
        ("a,b,y\n1,2,cat\n2,1,dog\n3,3,fish\n", "", r"3 different values \(cat, dog, fish\); two classes"),
        ("a,b,y\n1,2,cat\n2,?,dog\n", "", r"line 3, column 2 \(b\) is missing: '\?'"),
        ("a,b,y\n1,2,cat\n2,1,\n", "", r"line 3, column 3 \(y\) is missing"),
        ("1,,cat\n2,1,dog\n", "", "line 1, column 2 is missing"),
        ("a,b,y\n1,2,cat\n\n2,dog\n", "", "line 4 has 2 columns, the first has 3"),
        ("a,b,y\n", "", "needs rows"),
        ("# nothing\n", "", "is empty"),
        ("a,b,y\n1,2,cat\n2,1,dog\n", ",label=x", "no column 'x'.* in line 1: a, b, y"),
        ("a,b,kind\n1,2,cat\n2,1,dog\n", ",label=kid", "no column 'kid', did you mean 'kind'"),
        ("a,b,y\n1,2,cat\n2,1,dog\n", ",label=4", "label=4, but its columns are 1 to 3"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line_with_its_place(tmp_path, monkeypatch, text, settings, words):
    (tmp_path / "t.csv").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProblemError, match=words) as caught:
        load_problem(f"logistic_regression[data=t.csv{settings}]")
    assert "\n" not in str(caught.value)


def test_a_label_without_a_file_of_columns_is_refused(tmp_path):
    with pytest.raises(ProblemError, match="give data= too"):
        load_problem("logistic_regression[label=y]")
    np.savez(tmp_path / "t.npz", X=np.ones((2, 2)), y=np.ones(2))
    with pytest.raises(ProblemError, match="names a column of a CSV file"):
        load_table(tmp_path / "t.npz", "y")


def test_labels_of_text_in_an_npz_file_are_classes_too(tmp_path):
    np.savez(tmp_path / "t.npz", X=np.ones((2, 2)), y=np.array(["dog", "cat"]))
    assert load_table(tmp_path / "t.npz", classes=True)[1].tolist() == ["dog", "cat"]
