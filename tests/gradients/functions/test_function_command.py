"""gradbench check FILE.py:mine --against FILE.py:plain."""

import json

import pytest

from gradbench.cli.main import invoke

SOURCE = """
import jax, jax.numpy as jnp

def plain(x):
    return jnp.tanh(x)

def mine(x):
    return jnp.tanh(x) * (1 if len(x) < 129 else 0.99)

@jax.custom_vjp
def rule(x):
    return x * x

rule.defvjp(lambda x: (x * x, x), lambda x, ct: (2 * x * ct,))
number = 3
"""


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kernel.py").write_text(SOURCE)
    (tmp_path / "cased.py").write_text(SOURCE + "\ndef cases(key):\n    return (jax.random.normal(key, (4,)),)\n")


def run(capsys, *line):
    code = invoke(["check", *line])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


LETTERS = ("--args", "x: f32[n]")


def test_a_wrong_kernel_exits_1_and_prints_the_command_of_its_smallest_case(kernel, capsys):
    few = ("--args", "x: f32[n], n in 5|128|129|130")
    code, out, _ = run(capsys, "./kernel.py:mine", "--against", "./kernel.py:plain", "--fast", *few)
    assert code == 1
    case = "--dtype float32 --case n=129,random,0"
    assert case in out
    code, out, _ = run(
        capsys, "./kernel.py:mine", "--against", "./kernel.py:plain", *LETTERS, "--case", "n=129,random,0", "-f", "json"
    )
    assert code == 1
    assert json.loads(out)[0]["culprit"] == "value under jit in float32 at n=129,random,0"


def test_a_rule_by_itself_and_cases_of_the_file(kernel, capsys, tmp_path):
    code, out, _ = run(capsys, "./cased.py:rule", "--case", "random,1")
    assert code == 0
    assert out.splitlines()[0].startswith("./cased.py:rule: PASS")
    (record,) = (tmp_path / "results" / "check").iterdir()
    assert json.loads(record.read_text())["kind"] == "check-function"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("./kernel.py:mine", "--against", "./kernel.py:plain"), "its arguments are missing. Give its arrays, --args"),
        (("./kernel.py:mien", *LETTERS), "./kernel.py has no function 'mien', did you mean 'mine'?"),
        (("./kernel.py:number", *LETTERS), "./kernel.py has no function 'number'"),
        (("./nowhere.py:mine", *LETTERS), "nowhere.py: no such file"),
        (("no_module_of_mine:f", *LETTERS), "no_module_of_mine: cannot be imported"),
        (("./kernel.py:mine", "--against", "./kernel.py", *LETTERS), "name a function, as in ./kernel.py:plain"),
        (("mlp", "--against", "./kernel.py:plain", *LETTERS), "'mlp': name a function"),
        (("--args", "x: f32[n]"), "name the function that is checked"),
        (("./kernel.py:mine", *LETTERS, "--program", "jit"), "are for problems; of a function choose a --case"),
        (("./kernel.py:mine", "--against", "./kernel.py:plain", "--args", "x: f23[n]"), "no dtype 'f23'"),
        (("./kernel.py:mine", "--against", "./kernel.py:plain", *LETTERS, "--dtype", "f32"), "dtype: no 'f32'"),
        (("./kernel.py:mine", *LETTERS, "--search", "-1"), "search=-1: need how many examples are tried"),
        (("./kernel.py:mine", *LETTERS, "--search", "ten"), "search: need a whole number, got 'ten'"),
        (("./kernel.py:mine", *LETTERS, "--order", "3"), "order=3: need 1 for gradients, or 2"),
    ],
)
def test_bad_input_is_one_line_and_exits_2(kernel, capsys, line, words):
    code, out, err = run(capsys, *line)
    assert code == 2
    assert out == ""
    assert words in err.splitlines()[-1]
