"""The script of the charts: made once, kept where it can be, and a kept one that is no use is no failure."""

from __future__ import annotations

import pytest
import vl_convert

from gradbench.reporting import bundle


@pytest.fixture
def made(monkeypatch, tmp_path) -> list[str]:
    """The scripts that were made, each other than those before; kept under tmp_path."""
    scripts: list[str] = []

    def make() -> str:
        scripts.append(f"script {len(scripts)}: vega </script")
        return scripts[-1]

    monkeypatch.setattr(vl_convert, "javascript_bundle", make)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return scripts


def test_is_made_once_and_closes_no_element(made):
    assert bundle.bundle_of_vega() == bundle.bundle_of_vega() == "script 0: vega <\\/script"
    assert len(made) == 1


def test_of_another_version_is_made_anew(made, monkeypatch):
    bundle.bundle_of_vega()
    monkeypatch.setattr(bundle, "version", lambda package: "0.0.0")
    bundle.bundle_of_vega()
    assert len(made) == 2


def test_an_empty_file_is_made_anew(made, tmp_path):
    bundle.bundle_of_vega()
    [kept] = (tmp_path / "gradbench").iterdir()
    kept.write_text("")
    assert bundle.bundle_of_vega() == bundle.bundle_of_vega() == "script 1: vega <\\/script"


def test_a_folder_that_cannot_be_made(made, tmp_path):
    (tmp_path / "gradbench").write_text("a file where the folder should be")
    assert bundle.bundle_of_vega() != bundle.bundle_of_vega()
