"""The compilation cache of `gradbench run`: used where it is sound, never a reason to fail, the same results."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from quick import child_environment

from gradbench.machine import cache
from gradbench.machine.cache import cache_folder, trim
from gradbench.record.store import Run, load_run

# The command line with the least of timing, but of one trial alone as well.
COMMAND = """
import gradbench.__main__ as cli, quick
from gradbench.engine import runner
timed = runner.TIMED
quick.time_little()
runner.TIMED = timed
cli.main()
"""


def run(home: Path, out: Path, **variables: str) -> Run:
    command = [sys.executable, "-c", COMMAND, "run", "quadratic_bowl[dim=3]", "-o", "sgd", "--lr", "0.01:1:3"]
    command += ["--seeds", "1", "--steps", "20", "--out", str(out)]
    environment = child_environment(XDG_CACHE_HOME=str(home), **variables)
    environment = {name: value for name, value in environment.items() if "CACHE" not in name or "XDG" in name}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "ache" not in done.stderr
    assert "cpu_aot_loader" not in done.stderr  # what XLA logs before 0.12
    return load_run("latest", out)


@pytest.mark.thorough
def test_second_run_loads_what_the_first_compiled(tmp_path):
    home = tmp_path / "home"
    cold, warm = (run(home, tmp_path / name) for name in ("cold", "warm"))
    assert not any(cold.timings["compile_cached"].to_pylist())
    assert all(warm.timings["compile_cached"].to_pylist())
    assert warm.trials.equals(cold.trials)
    assert warm.curves.equals(cold.curves)
    entries = [file for file in home.rglob("*") if file.is_file()]
    assert entries
    for entry in entries:  # as after a crash
        entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    damaged = run(home, tmp_path / "damaged")
    assert damaged.trials.equals(cold.trials)
    assert not any(damaged.timings["compile_cached"].to_pylist())


@pytest.mark.thorough
def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    assert not any(run(tmp_path / "file", tmp_path / "out").timings["compile_cached"].to_pylist())


@pytest.fixture
def settings() -> Iterator[Callable[[str, object], None]]:
    """Sets an option of JAX for one test."""
    before = {key: getattr(jax.config, key) for key in ("jax_enable_compilation_cache", "jax_compilation_cache_dir")}
    yield jax.config.update
    for key, value in before.items():
        jax.config.update(key, value)


def test_users_folder_wins(settings, tmp_path):
    settings("jax_enable_compilation_cache", True)
    settings("jax_compilation_cache_dir", str(tmp_path))
    assert cache_folder() == tmp_path
    settings("jax_enable_compilation_cache", False)
    assert cache_folder() is None


def test_folder_is_the_users_cache(settings, monkeypatch, tmp_path):
    settings("jax_enable_compilation_cache", True)
    settings("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "has_accelerators", lambda: False)
    folder = cache_folder()
    assert folder is not None
    assert folder.parent == tmp_path / "gradbench"


def test_errors_of_accelerators_are_not_hidden(settings, monkeypatch):
    settings("jax_enable_compilation_cache", True)
    settings("jax_compilation_cache_dir", None)
    monkeypatch.setattr(cache, "has_accelerators", lambda: True)
    monkeypatch.setattr(cache, "_logs_errors", lambda: True)
    assert cache_folder() is None


def test_trim_keeps_the_newest(tmp_path):
    for age, size in enumerate([40, 0, 40, 40]):
        file = tmp_path / str(age)
        file.write_bytes(b"x" * size)
        os.utime(file, (1e9 - age, 1e9 - age))
    trim(tmp_path, 100)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "2"]
