"""Groups of built-in problems: declared in their files, named with an @ wherever problems are named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradbench
from gradbench.cli.check import run_check
from gradbench.errors import GradbenchError, PlanError, ProblemError
from gradbench.gradients.report import CheckReport
from gradbench.inputs import built_in
from gradbench.inputs.built_in import GROUPS, grouped_names, problem_group, problem_names, without_groups
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.settings import DEFAULT_PROBLEMS


def test_every_built_in_problem_is_in_one_group():
    groups = grouped_names()
    assert tuple(groups) == GROUPS
    assert sorted(name for names in groups.values() for name in names) == problem_names()
    assert all(groups.values())


def test_every_built_in_problem_is_in_the_documentation_under_its_group():
    text = (Path(__file__).parents[2] / "docs" / "problems.md").read_text(encoding="utf-8")
    sections = dict(section.split("\n", 1) for section in text.split("\n## ")[1:])
    for group, names in grouped_names().items():
        listed = re.findall(r"^\| `(\w+)", sections[group.capitalize()], re.MULTILINE)
        assert sorted(listed) == names


def test_groups_are_read_without_jax():
    code = (
        "import sys; from gradbench.inputs.plan import SweepPlan; SweepPlan(['@all']); sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_without_a_group_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(built_in, "problems_folder", lambda: tmp_path)
    for text in ("", 'GROUP = "animals"\n'):
        (tmp_path / "cat.py").write_text(text)
        with pytest.raises(ProblemError, match='write GROUP = "landscapes", or one of convex'):
            problem_group("cat")


def test_a_group_stands_for_its_problems():
    groups = grouped_names()
    assert without_groups(["beale", "@science", "./mine.py"]) == ["beale", *groups["science"], "./mine.py"]
    assert without_groups(["@all"]) == [name for names in groups.values() for name in names]
    assert SweepPlan(problems="@networks").problems == tuple(groups["networks"])
    assert SweepPlan().problems == DEFAULT_PROBLEMS


def unknown_in_sweep(name, folder):
    gradbench.sweep(name, out=folder)


def unknown_in_check(name, folder):
    run_check([name], out=folder)


@pytest.mark.parametrize("ask", [unknown_in_sweep, unknown_in_check])
def test_an_unknown_group_is_refused_in_one_line_with_the_known_ones(ask, tmp_path):
    words = "'@netwrks', did you mean '@networks'.*@all, @landscapes, @convex, @networks, @science"
    with pytest.raises(GradbenchError, match=words) as caught:
        ask("@netwrks", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_problem_and_its_group_name_it_twice():
    with pytest.raises(PlanError, match="'mlp' is named twice"):
        SweepPlan(problems=("mlp", "@networks"))


def test_a_group_is_checked_problem_by_problem(monkeypatch):
    monkeypatch.setattr(
        "gradbench.cli.check.check_gradient",
        lambda problem, **_: CheckReport(problem.name, [], [], {}, [], None, 2, 0.0),
    )
    noted = []
    run_check(["@landscapes"], out=None, output_format="json", note=noted.append)
    assert noted == [f"checking {name} ..." for name in grouped_names()["landscapes"]]
