"""The command line: every verb, its help, its exit codes, and one line for every bad input."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

import gradbench
from gradbench.cli.main import GROUPS, app, invoke
from gradbench.engine import runner
from gradbench.errors import GradbenchWarning, RunError
from gradbench.inputs.built_in import grouped_names, problem_names

pytestmark = pytest.mark.usefixtures("compiled_quickly")
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


def test_every_verb_has_help_and_is_in_the_readme(command):
    readme = (ROOT / "README.md").read_text()
    for verb in VERBS:
        assert f"gradbench {verb}" in readme, verb
        code, out, _ = command(verb, "--help")
        assert code == 0
        assert "Usage: gradbench" in out
        assert "[default: None]" not in out


def test_help_groups_every_verb_and_every_option_of_the_plan(command):
    assert sorted(verb for verbs in GROUPS.values() for verb in verbs) == sorted(VERBS)
    _, out, _ = command("run", "--help")
    panels = out.split("╭─ ")
    swept = next(panel for panel in panels if panel.startswith("What is swept"))
    assert "--lr" in swept
    assert "--all" in swept
    assert not any(panel.startswith("Parameters") for panel in panels)


def test_neither_import_nor_help_loads_jax():
    code = (
        "import sys, gradbench, gradbench.cli.main; gradbench.cli.main.invoke(['--help']); print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_public_names():
    names = "GradbenchError Problem Run SweepPlan __version__ assert_function assert_gradient board check_function"
    names += " check_gradient compare connect export history load_optimizer load_problem load_run log_range races"
    names += " regress report resume run_plan run_suite standing suggest sweep tunability verify"
    assert sorted(gradbench.__all__) == names.split()
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
    assert {row["group"] for row in found["problems"]} == {"landscapes", "convex", "networks", "science"}
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


def test_a_quiet_check_prints_its_report_only(command):
    code, out, err = command("check", "beale", "--fast", "--quiet")
    assert (code, err) == (0, "")
    assert out.startswith("beale: PASS")


LONG = "a" * 300  # no file system takes such a name

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
    (["run", "--batch-size", "100000"], "batch_size: quadratic_bowl states no Problem(examples=N)"),
    (["run", "mlp", "--batch-size", "100000"], "more than the 1797 examples"),
    (["run", "--dtype", "float23"], "did you mean 'float32'"),
    (["run", "--device", "tpu"], "no tpu on this machine"),
    (["run", "--stepz", "3"], "no option --stepz, did you mean --steps? (see gradbench run --help)"),
    (["run", "--nosuch", "3"], "no option --nosuch (see gradbench run --help)"),
    (["check", "--dtpe=float32"], "no option --dtpe, did you mean --dtype? (see gradbench check --help)"),
    (["run", "--lr", "0.1,,0.2"], "'0.1,,0.2': need low:high:count or numbers with commas"),
    (["run", "--device", "cuda"], "no gpu on this machine"),
    (["check", "--device", "rocm"], "JAX finds none here"),
    (["run", "mlp", "--epochs", "2", "--steps", "3"], "give one of epochs and steps"),
    (["run", "mlp", "--epochs", "0"], "at least 1"),
    (["run", "beale", "--epochs", "2"], "beale states no Problem(examples=N)"),
    (["run", "mlp", "--epochs", "2", "--batch-size", "100000"], "more than the 1797 examples"),
    (
        ["run", "mlp", "linear_regression", "--epochs", "2", "--batch-size", "64"],
        "an epoch is 28 steps of mlp, 6 steps of linear_regression; a run has one number of steps",
    ),
    (["compare", "--results", "file.txt"], "file.txt: cannot be read: Not a directory"),
    (["run", "--config", "none.toml"], "none.toml"),
    (["run", "--resume", "latest"], "no records here"),
    (["run", "mlp", "--resume", "latest"], "own plan"),
    (["run", "mlp", "--all"], "--all runs every built-in problem; give no problem beside it"),
    (["run", "@netwrks"], "no group '@netwrks', did you mean '@networks'? (groups: @all, @landscapes, @convex,"),
    (["check", "@nets"], "no group '@nets'"),
    (["run", "--until", "adamm<sgd"], "no optimizer 'adamm', did you mean 'adam'?"),
    (["run", "--until", "adam"], "until: 'adam' should be two optimizers, such as adam<sgd"),
    (["run", "--until", "sgd<momentum<adam"], "should be two optimizers"),
    (["run", "--until", "adam<adam"], "until: 'adam' is compared with itself"),
    (["run", "-o", "adam", "--until", "adam<sgd"], "the plan has adam; give no others"),
    (["run", "--until", "adam<sgd", "--search", "refine"], "give no search beside it"),
    (["run", "--until", "adam<sgd", "--seeds", "13"], "allow 13 seeds, which cannot decide it; allow at least 14"),
    (["run", "--until", "adam<sgd", "--budget", "349trials"], "allow at least 14"),
    (["run", "--until", "sgd[nesterov=true|false]<adam"], "stands for 3 optimizers"),
    (["run", "--strict"], "--strict is for --until"),
    (["run", "--out", "/dev/null/x"], "cannot make a results folder"),
    (["run", "--format", "yaml"], "--format"),
    (["compare", "nothing"], "no such record"),
    (["compare", "/"], "not a record"),
    (["report", "--format", "json"], "figures are svg, png, pdf"),
    (["list", "--format", "jsn"], "did you mean 'json'"),
    (["rnu"], "rnu"),
    (["run", LONG], "no problem 'aaa"),
    (["run", f"./{LONG}.py"], "no such file"),
    (["run", "-o", f"./{LONG}.py:make"], "no such file"),
    (["run", f"linear_regression[data={LONG}.csv]"], "no such file"),
    (["check", LONG], "no problem 'aaa"),
    (["compare", LONG], "no such record"),
    (["board", LONG], "no such record"),
    (["history", LONG], "no complete records"),
    (["run", "~nobody-here/mine.py"], "no such file"),  # no user, so no home
    (["run", "-o", "~nobody-here/mine.py:make"], "no such file"),
    (["check", "~nobody-here/mine.py:f", "--args", "x: f32[n]"], "no such file"),
    (["compare", "~nobody-here/record"], "no such record"),
    (["history", "~nobody-here/results"], "no complete records"),
    (["report", "latest", "--results", LONG], "cannot be read: File name too long"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments)[:80] for arguments, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(command, tmp_path, arguments, words):
    (tmp_path / "file.txt").touch()
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize(("argument", "named"), [("--all", problem_names()), ("@science", grouped_names()["science"])])
def test_all_and_a_group_run_their_problems(command, monkeypatch, argument, named):
    def run(plan, **_):
        raise RunError(" ".join(sorted(plan.problems)))

    monkeypatch.setattr(runner, "run_plan", run)
    assert command("run", argument, "--quiet")[2].split()[1:] == named


def test_whole_numbers_may_be_written_with_an_exponent(command):
    assert command("run", "beale", "-o", "sgd", "--lr", "0.01", "--seeds", "1", "--steps", "1e1", "--quiet")[0] == 0
    assert gradbench.load_run("latest").plan.steps == 10


def test_epochs_are_steps_by_the_engine_s_rule(command):
    line = ("-o", "sgd", "--lr", "0.01", "--seeds", "1", "--quiet", "--epochs", "2")
    assert command("run", "linear_regression", *line, "--batch-size", "100")[0] == 0
    assert gradbench.load_run("latest").plan.steps == 2 * (442 // 100)  # 42 rows fill no minibatch
    assert command("run", "linear_regression", *line)[0] == 0
    assert gradbench.load_run("latest").plan.steps == 2


def test_a_file_may_name_settings_as_the_options_are(command, tmp_path):
    (tmp_path / "plan.toml").write_text(
        'problem = "linear_regression"\noptimizer = "sgd"\nlr = "0.1,0.2"\nbatch-size = 64\nepochs = 3\nseeds = 1\n'
    )
    assert command("run", "--config", "plan.toml", "--quiet", "--lr", "0.01", "--steps", "4")[0] == 0
    plan = gradbench.load_run("latest").plan
    assert (plan.problems, plan.optimizers, plan.batch_size) == (("linear_regression",), ("sgd",), 64)
    assert (plan.rates, plan.steps) == ([0.01], 4)  # an option wins over the file, --steps over its epochs


def test_records_are_found_under_either_name_of_their_folder(command):
    assert command("run", "beale", "-o", "sgd", *QUICK, "--quiet", "--results", "kept")[0] == 0
    for option in ("--out", "--results"):
        assert command("compare", option, "kept")[0] == 0
        assert command("regress", "latest", "latest", option, "kept")[0] == 0


def test_a_complete_run_says_that_nothing_is_left(command):
    _, first, _ = command("run", "beale", "-o", "sgd", *QUICK)
    code, out, err = command("run", "--resume", "latest")
    assert (code, out) == (0, first)
    assert err.endswith(" (complete: nothing was left to run)\n")


def test_a_record_is_not_held_against_itself_by_default(command):
    command("run", "beale", "-o", "sgd", *QUICK, "--quiet")
    code, out, err = command("regress", "latest")
    assert (code, out) == (2, "")
    assert err == "gradbench: latest is the latest record: name the new one as well, gradbench regress OLD NEW\n"


def test_every_verb_with_tables_has_them_wide(command):
    command("run", "beale", "-o", "sgd", *QUICK, "--quiet")
    for line in (["compare"], ["compare", "--summary"], ["regress", "latest", "latest"], ["list"]):
        plain = command(*line)
        assert command(*line, "--wide") == command(*line, "--format", "wide") == plain  # stdout is no terminal here
        assert command(*line, "--wide", "--format", "csv") == command(*line, "--format", "csv")


def test_version_and_completion(command, tmp_path, monkeypatch):
    assert command("-V") == command("--version")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ZSH_VERSION", "FISH_VERSION", "PSModulePath", "ZSH", "ZSH_CUSTOM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BASH_VERSION", "5")
    assert command("--install-completion")[0] == 0
    [script] = (path for path in tmp_path.rglob("gradbench") if path.is_file())
    assert all(verb in script.read_text() for verb in VERBS)


def test_a_run_names_its_record_even_if_its_table_cannot_be_written(command, monkeypatch):
    def full(_):
        raise RunError("stdout: cannot be written")

    monkeypatch.setattr("gradbench.cli.run.show", full)
    code, _, err = command("run", "beale", "-o", "sgd", *QUICK)
    assert code == 3
    assert [line.split(":")[0] for line in err.splitlines()[-2:]] == ["record", "gradbench"]


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
        (["compare"], "gradbench.analysis.settings.comparison.compare_text"),
        (["report"], "gradbench.reporting.page.write_report"),
        (["regress", "old", "new"], "gradbench.analysis.regress.compare_runs"),
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


def test_a_failing_run_leaves_its_traceback_in_its_folder(command, tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("the device is gone")

    monkeypatch.setattr(runner, "choose_block", fails)
    code, _, err = command("run", "quadratic_bowl", "-o", "sgd", "--lr", "0.1,0.2", "--steps", "3")
    [path] = tmp_path.glob("results/*/")
    [kept] = path.glob("traceback-*.txt")
    assert code == 3
    assert err.splitlines() == [line for line in err.splitlines() if str(kept.relative_to(tmp_path)) in line]
    assert "the device is gone" in err
    assert json.loads((path / "run.json").read_text())["state"] == "interrupted"


def test_a_warning_of_ours_is_one_line(command, monkeypatch):
    def warns(_):
        warnings.warn("cannot be locked", GradbenchWarning, stacklevel=1)
        return "text"

    monkeypatch.setattr("gradbench.cli.inventory.list_text", warns)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert command("list") == (0, "text\n", "gradbench: cannot be locked\n")
