"""docs/kernels.md: the kernels that are called right pass, and each fault of its table is found at its case."""

import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import triton
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

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


SHAPES = {"softmax": ["x"], "layer_norm": ["x", "d", "d"], "attention": ["x"] * 3, "scatter_add": ["x", "x", "n"]}
ARRAYS = {"x": ((5, 3), jnp.float32), "d": ((3,), jnp.float32), "n": ((5,), jnp.int32)}


@pytest.mark.guide
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("kernel", sorted(ARGS))
def test_a_kernel_and_its_backward_are_compiled_for_a_gpu(kernel, monkeypatch):
    """Triton takes only sizes that are powers of two: 3 columns must have been widened."""
    modules, path = {}, DOCS / "kernels" / f"{kernel}.py"
    mine = load_function(f"{path}:mine", modules)
    [module] = modules.values()
    monkeypatch.setitem(vars(module), "OPTIONS", module.PLATFORMS["gpu"])
    assert isinstance(module.OPTIONS["compiler_params"], triton.CompilerParams)

    def both(*given):
        value, back = jax.vjp(mine, *given)
        return back(value)

    given = [jax.ShapeDtypeStruct(*ARRAYS[name]) for name in SHAPES[kernel]]
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    with use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device)):
        text = jax.jit(both).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" in text


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
