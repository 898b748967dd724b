"""docs/kernels.md: the kernels that are called right pass, and each fault of its table is found at its case."""

import re
import shlex
from pathlib import Path

import pytest

from gradbench import check_function
from gradbench.cli.check_function import load_function
from gradbench.cli.main import invoke

DOCS = Path(__file__).parents[3] / "docs"
TEXT = (DOCS / "kernels.md").read_text()
COMMANDS = re.search(r"```sh\n(.*?)```", TEXT, re.DOTALL)[1].strip().splitlines()
FAULTS = re.findall(r"\| (\w+): (\w+) \| [^|]* \| (\w+): (\S+) \|", TEXT)
ARGS = {re.search(r"\./(\w+)\.py", line)[1]: shlex.split(line)[-1] for line in COMMANDS}


@pytest.mark.guide
@pytest.mark.parametrize("command", COMMANDS)
def test_a_right_kernel_passes_with_its_backward(command, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(DOCS / "kernels")
    assert invoke([*shlex.split(command)[1:], "--fast", "--strict", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"vjp +jit +PASS", out)


def found(kernel, fault, case):
    modules, path = {}, DOCS / "kernels" / f"{kernel}.py"
    mine, plain = (load_function(f"{path}:{name}", modules) for name in (fault, "plain"))
    report = check_function(mine, reference=plain, inputs=ARGS[kernel], case=case)
    return {row.check for row in report.rows if row.verdict == "FAIL"}


def test_there_are_three_faults_of_each_kernel():
    assert sorted(kernel for kernel, *_ in FAULTS) == sorted([*ARGS] * 3)


@pytest.mark.parametrize(
    ("kernel", "fault", "check", "case"),
    [
        pytest.param(*row, marks=[] if row[0] == "softmax" and i == 0 else pytest.mark.guide)
        for i, row in enumerate(FAULTS)
    ],
)
def test_a_fault_is_found_at_its_case(kernel, fault, check, case):
    assert check in found(kernel, fault, case)
