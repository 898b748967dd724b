"""torch:./port.py:f against a JAX reference; skipped where PyTorch is not installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradbench
from gradbench.cli.main import invoke
from gradbench.errors import ProblemError
from gradbench.gradients.ports import pytorch
from gradbench.gradients.second.products import OVER

try:
    import torch
except ImportError:
    torch = None
needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
LETTERS = "x: f32[n,d], w: f32[d,k]"


def plain(x, w):
    return jax.nn.softmax(x @ w, -1)


def check(function, reference=plain, inputs=LETTERS, **options):
    options = {"fast": True} | options
    return gradbench.check_function(pytorch.TorchFunction(function), reference=reference, inputs=inputs, **options)


def failed(report):
    return {row.check for row in report.rows if row.verdict == "FAIL"}


@needs_torch
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_right_port_passes_in_every_dtype_with_values_vjp_and_jvp(dtype):
    report = check(lambda x, w: torch.softmax(x @ w, -1), dtype=dtype)
    assert report.verdict == "PASS"
    assert {row.check for row in report.rows} == {"value", "vjp", "jvp", "vjp against jvp"}
    assert {row.program for row in report.rows} == {"eager"}


@needs_torch
def test_a_port_over_another_axis_fails():
    assert "value" in failed(check(lambda x, w: torch.softmax(x @ w, 0)))


@needs_torch
def test_a_backward_that_drops_a_tail_fails_at_the_size_that_has_one():
    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.sin(x)

        @staticmethod
        def backward(ctx, ct):
            (x,) = ctx.saved_tensors
            return ct * torch.cos(x) * (torch.arange(len(x)) < 128)

    report = check(Rule.apply, jnp.sin, "x: f32[n]")
    assert failed(report) == {"vjp"}
    assert report.smallest[1].case == "n=129,random,0"
    assert "jvp" in report.skipped


@needs_torch
def test_a_backward_that_raises_and_a_blocked_one_are_faults():
    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.sin(x)

        @staticmethod
        def backward(ctx, ct):
            raise RuntimeError("no residuals")

    assert failed(check(Raises.apply, jnp.sin, "x: f32[n]")) == {"vjp"}
    report = check(lambda x: torch.sin(x.detach()), jnp.sin, "x: f32[n]")
    assert failed(report) == {"jvp"}
    assert "no output depends on a float argument" in report.skipped["vjp"]


@needs_torch
def test_an_argument_changed_in_place_is_a_fault():
    def mine(x, w):
        x += 1
        return torch.softmax((x - 1) @ w, -1)

    report = check(mine)
    assert report.verdict == "FAIL"
    assert "is changed by the call" in str(report)


@needs_torch
def test_a_module_with_its_parameters_given_is_differentiated_to_them_and_twice():
    def reference(p, x):
        return jnp.tanh(x @ p["weight"].T + p["bias"])

    class Layer(torch.nn.Linear):
        def __init__(self):
            super().__init__(3, 4)

        def forward(self, x):
            return torch.tanh(super().forward(x))

    def cases(key):
        return {"weight": jax.random.normal(key, (4, 3)), "bias": jnp.ones(4)}, jax.random.normal(key, (5, 3))

    report = check(Layer, reference, cases, order=2)
    assert report.verdict == "PASS"
    assert {"vjp", OVER[1]} <= {row.check for row in report.rows}
    module = Layer()
    own = {name: p.detach().numpy().copy() for name, p in module.named_parameters()}
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    found = gradbench.check_function(pytorch.TorchFunction(module), x, reference=lambda x: reference(own, x), fast=True)
    assert found.verdict == "PASS"


@needs_torch
def test_indices_are_torchs_and_whole_results_are_compared():
    def reference(t, i):
        return t[i], jnp.argsort(i)

    letters = "t: f32[m,2], i: i32[n] in 0..m, m in 1..200"
    assert check(lambda t, i: (t[i], torch.argsort(i, stable=True)), reference, letters).verdict == "PASS"
    assert check(lambda t, i: (t[i], torch.argsort(-i, stable=True)), reference, letters).verdict == "FAIL"


@needs_torch
def test_whole_numbers_beyond_32_bits_are_compared_as_they_are():
    letters = "t: f32[n], i: i32[n] in 0..9"
    assert check(lambda t, i: (t, i + 2**32), lambda t, i: (t, i), letters).verdict == "FAIL"

    def changes(t, i):
        i += 2**32
        return t

    assert "is changed by the call" in str(check(changes, lambda t, i: t, letters))


@needs_torch
def test_torchs_precision_and_a_module_are_left_as_they_were():
    module = torch.nn.Linear(2, 2, bias=False)
    weight = module.weight.detach().numpy().copy()
    function, x = pytorch.TorchFunction(module), np.ones((3, 2), np.float32)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        options = {"reference": lambda x: x @ weight.T, "fast": True, "dtype": ["bfloat16", "float16"]}
        gradbench.check_function(function, x, **options)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert function(torch.ones(3, 2)).dtype == torch.float32


@needs_torch
@pytest.mark.thorough
def test_what_torch_compile_makes_is_judged_too():
    report = check(lambda x, w: torch.softmax(x @ w, -1), fast=False, case="n=5,d=3,k=7,random,0")
    assert report.verdict == "PASS"
    assert pytorch.COMPILED in {row.program for row in report.rows} or pytorch.COMPILED in report.skipped


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "port.py").write_text("import torch\n\ndef mine(x):\n    return torch.tanh(x)\n")
    (tmp_path / "ours.py").write_text("import jax.numpy as jnp\n\ndef plain(x):\n    return jnp.tanh(x)\n")


@needs_torch
def test_the_command(files, capsys):
    line = ["check", "torch:./port.py:mine", "--against", "./ours.py:plain", "--args", "x: f32[n]", "--fast"]
    assert invoke(line) == 0
    assert capsys.readouterr().out.startswith("torch:./port.py:mine against ./ours.py:plain: PASS")


def test_a_torch_reference_is_refused(files, capsys):
    assert invoke(["check", "./ours.py:plain", "--against", "torch:./port.py:mine", "--args", "x: f32[n]"]) == 2
    assert "a reference is written with jax.numpy" in capsys.readouterr().err


@needs_torch
def test_without_a_reference_it_is_refused(files, capsys):
    assert invoke(["check", "torch:./port.py:mine", "--args", "x: f32[n]"]) == 2
    assert "give a reference" in capsys.readouterr().err.splitlines()[-1]


def test_without_pytorch_one_line_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ProblemError, match="PyTorch is not installed"):
        pytorch.TorchFunction(plain)
