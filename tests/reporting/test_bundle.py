"""The script of the charts: made once, kept where it can be, and a kept one that is no use is no failure."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gradbench.reporting import bundle

COUNTING = """
import sys
with open(sys.argv[1], "a+") as count:
    count.write("x")
    count.seek(0)
    print(f"script {len(count.read()) - 1}: vega </script", end="")
"""


@pytest.fixture
def count(monkeypatch, tmp_path) -> Iterator[Path]:
    """A file with a character for each script that was made, each other than those before; kept under tmp_path."""
    file = tmp_path / "count"
    monkeypatch.setattr(bundle, "COMMAND", [sys.executable, "-c", COUNTING, str(file)])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle._made.cache_clear()
    yield file
    bundle._made.cache_clear()


def test_is_made_once_and_closes_no_element(count):
    assert bundle.bundle_of_vega() == bundle.bundle_of_vega() == "script 0: vega <\\/script"
    assert len(count.read_text()) == 1


def test_of_another_version_is_made_anew(count, monkeypatch):
    bundle.bundle_of_vega()
    monkeypatch.setattr(bundle, "version", lambda package: "0.0.0")
    bundle._made.cache_clear()  # as in another process
    bundle.bundle_of_vega()
    assert len(count.read_text()) == 2


def test_an_empty_file_is_made_anew(count, tmp_path):
    bundle.bundle_of_vega()
    [kept] = (tmp_path / "gradbench").iterdir()
    kept.write_text("")
    bundle._made.cache_clear()  # as in another process
    assert bundle.bundle_of_vega() == bundle.bundle_of_vega() == "script 1: vega <\\/script"


def test_a_folder_that_cannot_be_made(count, tmp_path):
    (tmp_path / "gradbench").write_text("a file where the folder should be")
    assert bundle.bundle_of_vega() == bundle.bundle_of_vega() == "script 0: vega <\\/script"


@pytest.mark.parametrize("command", [[""], [None], [sys.executable, "-c", "raise SystemExit(1)"]])
def test_without_a_python_of_its_own_it_is_made_here(count, monkeypatch, command):
    monkeypatch.setattr(bundle, "COMMAND", command)
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda: "script of this process")
    assert bundle.bundle_of_vega() == "script of this process"


def test_two_that_want_it_at_once_have_one_made(count):
    with ThreadPoolExecutor(2) as pool:
        scripts = [pool.submit(bundle.bundle_of_vega) for _ in range(2)]
    assert {script.result() for script in scripts} == {"script 0: vega <\\/script"}


def test_it_can_be_imported_without_jax():
    asked = "import sys, gradbench.reporting.bundle; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", asked], check=True)
