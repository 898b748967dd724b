"""Every command of the guide runs, and every picture it shows is one that its commands make."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import time_little

from gradbench.cli import main as cli
from gradbench.reporting import scenery

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    for line in block.strip().splitlines()
]
PICTURES = re.findall(r"!\[[^\]]*\]\(pictures/([^)]*)\)", GUIDE.read_text())


@pytest.mark.guide
def test_every_command_of_the_guide_runs_and_makes_its_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    time_little(monkeypatch)
    monkeypatch.setattr(scenery, "COARSE", 5)  # a network's landscape at 41 × 41 points costs seconds
    for command in COMMANDS:
        words = shlex.split(command)
        assert words[0] == "gradbench"
        assert cli.invoke(words[1:]) == 0, command
    assert {path.name for path in (tmp_path / "pictures").glob("*")} >= set(PICTURES)


def test_the_guides_pictures_are_in_the_repository_and_small():
    for name in PICTURES:
        assert (GUIDE.parent / "pictures" / name).stat().st_size < 150_000


SUITES = (GUIDE.parent / "suites.md").read_text()


@pytest.mark.guide
def test_every_command_of_the_page_on_suites_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"```sh\n(.*?)```", SUITES, re.DOTALL)
    for command in block.strip().splitlines():
        assert cli.invoke(shlex.split(command)[1:]) == 0, command
    assert (tmp_path / "board.html").is_file()
