"""The command line as a process of its own: a full stdout, a reader that goes away, a platform that is none, Ctrl-C."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from quick import child_environment

from gradbench.cli.progress import watching
from gradbench.library.activity import Activity

ROOT = Path(__file__).parents[2]


def run_apart(*arguments: str, **options) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "gradbench", *arguments]
    return subprocess.run(line, text=True, stderr=subprocess.PIPE, **options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_stdout_is_exit_code_3_and_one_line():
    with open("/dev/full", "w") as full:
        done = run_apart("list", stdout=full)
    assert done.returncode == 3
    assert done.stderr == "gradbench: stdout: cannot be written: No space left on device\n"


@pytest.mark.thorough
def test_a_platform_that_jax_does_not_know_is_bad_input(tmp_path):
    record = str(ROOT / "results" / "reference" / "cpu-2-cores")  # is read before JAX starts
    lines = [["list"], ["run", "beale"], ["check", "beale"], ["report", record]]
    code = f"from gradbench.cli.main import invoke; print([invoke(line) for line in {lines}])"
    environment = child_environment(JAX_PLATFORMS="banana")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout == "[2, 2, 2, 2]\n"
    assert re.fullmatch("(gradbench: device: JAX cannot start: .*'banana'.*\n){4}", done.stderr)


def test_ctrl_c_while_jax_is_imported_is_one_line(tmp_path):
    """An extension module turns a KeyboardInterrupt of its own import into an ImportError: this one does."""
    (tmp_path / "jax.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    raise ImportError from None\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    # A background job's is ignored, and so it would be by its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = run_apart("list", stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path})
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "gradbench: interrupted\n")


def test_ctrl_c_while_garbage_is_collected_is_not_lost():
    """Python ignores what a callback of its collector raises, and JAX has one, of this name."""
    script = """
import gc, signal
from gradbench.__main__ import _interrupted
def _xla_gc_callback(*_):
    if gc.callbacks:
        gc.callbacks.clear()
        signal.raise_signal(signal.SIGINT)
signal.signal(signal.SIGINT, _interrupted)
gc.callbacks[:] = [_xla_gc_callback]
try:
    gc.collect()
    signal.pause()
except KeyboardInterrupt:
    print("interrupted")
"""
    line, pipes = [sys.executable, "-c", script], {"capture_output": True, "text": True}
    done = subprocess.run(line, env=child_environment(), timeout=60, **pipes)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


def test_ctrl_c_ends_at_once_while_no_record_is_begun():
    """As in a problem's file that never ends."""
    with watching(Activity(quiet=True)), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.thorough
def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_resume(tmp_path):
    line = [sys.executable, "-c", "import quick, gradbench.__main__ as cli; quick.time_little(); cli.main()"]
    line += ["run", "beale", "-o", "sgd", "--steps", "1e8", "--lr", "1e-12,2e-12"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(line, cwd=tmp_path, env=child_environment(), **pipes)
    while not list(tmp_path.glob("results/*/parts/0000")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with: gradbench run --resume results/" in err
    assert list(tmp_path.glob("results/*/parts/0000/checkpoint.npz"))
    assert "Traceback" not in out + err


def test_a_reader_of_a_help_text_may_go_away(tmp_path):
    """gradbench check --help | head: rich raises SystemExit(1) there."""
    command = f"{shlex.quote(sys.executable)} -m gradbench check --help | true; echo ${{PIPESTATUS[0]}}"
    environment = child_environment(TMPDIR=str(tmp_path))
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert not list(tmp_path.iterdir())
