"""The command line: every verb, its help, its exit codes, and one line for every bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import warnings
from pathlib import Path

import pytest
from quick import child_environment

import gradbench
from gradbench.cli.main import app, invoke
from gradbench.errors import GradbenchWarning

ROOT = Path(__file__).parents[2]
VERBS = [name for name in app if not name.startswith("-")]
QUICK = ["--lr", "0.01,0.1", "--seeds", "1", "--steps", "5"]


@pytest.fixture
def command(sweep, tmp_path, monkeypatch, capsys):
    """Run one command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = invoke(list(arguments))
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_every_verb_has_help_and_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for verb in VERBS:
        assert f"gradbench {verb}" in readme, verb
        text = subprocess.run([sys.executable, "-m", "gradbench", verb, "--help"], capture_output=True, text=True)
        assert text.returncode == 0
        assert "Usage: gradbench" in text.stdout
        assert "[default: None]" not in text.stdout


def test_neither_import_nor_help_loads_jax():
    code = (
        "import sys, gradbench, gradbench.cli.main; gradbench.cli.main.invoke(['--help']); print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_public_names():
    for name in gradbench.__all__:
        assert getattr(gradbench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'swep'"):
        gradbench.swep  # noqa: B018
    assert callable(gradbench.sweep)
    assert gradbench.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_run_and_compare(command):
    code, out, err = command("run", "quadratic_bowl", "-o", "sgd", "-o", "adam", *QUICK)
    assert code == 0
    assert "quadratic_bowl" in out
    assert "record: results/" in err
    code, out, err = command("compare", "latest", "--format", "json")
    assert code == 0
    assert err == ""
    found = json.loads(out)
    assert [(p["problem"], p["optimizer"]) for p in found["pairs"]] == [
        ("quadratic_bowl", "sgd"),
        ("quadratic_bowl", "adam"),
    ]
    assert [rate["learning_rate"] for rate in found["pairs"][0]["rates"]] == [0.01, 0.1]
    assert found["pairs"][0]["stable_limit"] == 1.0
    code, out, _ = command("compare", "--format", "csv", "-o", "adam")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["optimizer"] for row in rows] == ["adam", "adam"]
    code, out, _ = command("compare", "--format", "markdown", "--summary")
    assert out.count("| quadratic_bowl |") == 2
    assert command("compare")[0] == 0


def test_options_win_over_the_config_file(command, tmp_path):
    (tmp_path / "plan.toml").write_text(
        'problems = ["beale"]\noptimizers = ["sgd"]\nlearning_rates = "1e-3:1e-2:3"\nsteps = 5\n'
    )
    code, _, _ = command("run", "--config", "plan.toml", "--seeds", "2", "--quiet")
    assert code == 0
    plan = gradbench.load_run("latest").plan
    assert (plan.problems, plan.seeds, plan.steps, len(plan.rates)) == (("beale",), 2, 5, 3)


def test_list_names_everything(command):
    code, out, _ = command("list", "--format", "json")
    found = json.loads(out)
    assert code == 0
    assert {row["problem"] for row in found["problems"]} >= {"quadratic_bowl", "mlp", "himmelblau"}
    assert {row["optimizer"] for row in found["optimizers"]} >= {"adam", "lion", "momentum"}
    assert found["devices"][0]["device"] == "cpu"
    for output_format in ("table", "csv", "markdown"):
        assert "quadratic_bowl" in command("list", "--format", output_format)[1]


def test_doctor_is_healthy_here(command):
    code, out, _ = command("doctor", "--format", "json")
    assert code == 0
    assert json.loads(out)["healthy"]


def test_quiet_runs_print_data_only(command):
    _, out, err = command("run", "beale", "-o", "sgd", *QUICK, "--quiet", "--format", "csv")
    assert err == ""
    assert len(list(csv.DictReader(io.StringIO(out)))) == 1


BAD = [
    (["run", "quadratic_bowel"], "did you mean 'quadratic_bowl'"),
    (["run", "mlp[hidden"], "brackets do not match"),
    (["run", "-o", "adm"], "did you mean 'adam'"),
    (["run", "--lr", "10:1:5"], "1:10:5"),
    (["run", "--lr", "0:1:5"], "above 0"),
    (["run", "--lr", "nan:1:5"], "above 0"),
    (["run", "--lr=-1:1:5"], "above 0"),
    (["run", "--steps", "0"], "steps"),
    (["run", "--steps", "many"], "steps"),
    (["run", "--steps", "1.5"], "need a whole number, got '1.5'"),
    (["run", "--lr", "1e-50"], "outside the range of float32"),
    (["run", "--seeds", "-1"], "seeds"),
    (["run", "--batch-size", "100000"], "batch_size: quadratic_bowl states no examples="),
    (["run", "mlp", "--batch-size", "100000"], "more than the 1797 examples"),
    (["run", "--dtype", "float23"], "did you mean 'float32'"),
    (["run", "--device", "tpu"], "no tpu on this machine"),
    (["run", "--stepz", "3"], "--stepz"),
    (["run", "--config", "none.toml"], "none.toml"),
    (["run", "--resume", "latest"], "no records here"),
    (["run", "mlp", "--resume", "latest"], "own plan"),
    (["run", "--out", "/dev/null/x"], "cannot make a results folder"),
    (["run", "--format", "yaml"], "--format"),
    (["compare", "nothing"], "no such record"),
    (["compare", "/"], "not a record"),
    (["report", "--format", "json"], "figures are svg, png, pdf"),
    (["list", "--format", "jsn"], "did you mean 'json'"),
    (["rnu"], "rnu"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(command, tmp_path, arguments, words):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err
    assert not list(tmp_path.rglob("run.json"))


def test_whole_numbers_may_be_written_with_an_exponent(command):
    assert command("run", "beale", "-o", "sgd", "--lr", "0.01", "--seeds", "1", "--steps", "1e1", "--quiet")[0] == 0
    assert gradbench.load_run("latest").plan.steps == 10


def test_a_keyboard_interrupt_is_one_line(command, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("gradbench.cli.inventory.list_text", interrupted)
    assert command("list") == (130, "", "gradbench: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["run", "beale", "-o", "sgd", *QUICK], "gradbench.engine.runner.choose_block"),
        (["check", "beale", "--fast"], "gradbench.cli.check.check_gradient"),
        (["compare"], "gradbench.analysis.answers.compare_text"),
        (["report"], "gradbench.reporting.write_report"),
        (["regress", "old"], "gradbench.analysis.regress.compare_runs"),
        (["list"], "gradbench.cli.inventory.list_text"),
        (["doctor"], "gradbench.machine.doctor.examine"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
@pytest.mark.parametrize("fault", [ZeroDivisionError("a fault\nof ours"), SystemExit(1)], ids=repr)
def test_what_nobody_foresaw_is_exit_code_3_and_one_line(command, tmp_path, monkeypatch, arguments, place, fault):
    def fails(*_, **__):
        raise fault

    fault.__notes__ = []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("gradbench.record.store.load_run", lambda *_: None)
    monkeypatch.setattr(place, fails)
    code, _, err = command(*arguments)
    [line] = [line for line in err.splitlines() if not line.startswith("checking")]
    assert code == 3
    kept = re.fullmatch(rf"gradbench: {type(fault).__name__}: .* \(unexpected; the traceback is in (.*)\)", line)
    text = Path(kept[1]).read_text()
    assert "Traceback (most recent call last)" in text
    assert text.splitlines()[-1] in ("of ours", "SystemExit: 1")


def test_a_failing_loss_leaves_its_traceback_in_the_run_s_folder(command, tmp_path, monkeypatch):
    (tmp_path / "loud.py").write_text(
        "import jax\nimport jax.numpy as jnp\nfrom gradbench import Problem\n\n\ndef problem():\n"
        "    def loss(params, data):\n        jax.debug.print('{}', params, ordered=True)\n"
        "        return jnp.sum(params**2)\n\n    return Problem(lambda key: jnp.ones(2), loss)\n"
    )
    code, _, err = command("run", "./loud.py", "-o", "sgd", "--lr", "0.1,0.2", "--steps", "3")
    [path] = tmp_path.glob("results/*/")
    [kept] = path.glob("traceback-*.txt")
    assert code == 3
    assert err.splitlines() == [line for line in err.splitlines() if str(kept.relative_to(tmp_path)) in line]
    assert "ordered effects are not supported" in err
    assert json.loads((path / "run.json").read_text())["state"] == "interrupted"


def test_a_warning_of_ours_is_one_line(command, monkeypatch):
    def warns(_):
        warnings.warn("cannot be locked", GradbenchWarning, stacklevel=1)
        return "text"

    monkeypatch.setattr("gradbench.cli.inventory.list_text", warns)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert command("list") == (0, "text\n", "gradbench: cannot be locked\n")


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_resume(tmp_path):
    line = [sys.executable, "-c", "import quick, gradbench.cli.main as cli; quick.time_little(); cli.main()"]
    line += ["run", "beale", "-o", "sgd", "--steps", "1e8", "--lr", "1e-12,2e-12"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(line, cwd=tmp_path, env=child_environment(), **pipes)
    while not list(tmp_path.glob("results/*/parts/0000/timings.parquet")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with: gradbench run --resume results/" in err
    assert list(tmp_path.glob("results/*/parts/0000/checkpoint.npz"))
    assert "Traceback" not in out + err
