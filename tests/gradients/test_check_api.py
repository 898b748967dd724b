"""check_gradient, assert_gradient and the command: what a user sees."""

import json
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import sample

import gradbench
from gradbench.cli.check import run_check
from gradbench.errors import GradbenchError, PlanError, ProblemError
from gradbench.gradients import faults
from gradbench.gradients.formula import derivative as formula
from gradbench.gradients.formula import oracle, reference
from gradbench.gradients.rounding import interpreter

ONE = {"fast": True, "programs": ["jit"]}


def test_importing_gradbench_does_not_import_jax():
    code = "import sys, gradbench; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_program_agrees_on_a_regression():
    report = gradbench.check_gradient("linear_regression[examples=40,features=3]")
    assert report.verdict == "PASS"
    assert len(report.rows) == 9
    assert set(report.leaves) == {"params"}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_bowl_passes_in_every_dtype(dtype):
    assert gradbench.check_gradient("quadratic_bowl", dtype=dtype, **ONE).verdict == "PASS"


@pytest.mark.parametrize("name", sample(["beale", "himmelblau", "rastrigin", "rosenbrock"], 2))
def test_analytic_gradients_agree_to_rounding(name):
    report = gradbench.check_gradient(name, **ONE)
    assert {t.name: t.verdict for t in report.formula}["analytic gradient"] == "PASS"


@pytest.mark.parametrize(("spec", "rule"), [("dim=1", "f'(x) = 2x"), ("dim=2,condition=1", "gradient is (2x, 2y)")])
def test_the_lesson(spec, rule):
    text = str(gradbench.check_gradient(f"quadratic_bowl[{spec}]", **ONE))
    assert rule in text
    assert "= its norm" in text


def wrong(factor):
    """sum(a^2 + b^2) whose derivative in b is `factor` times what it is."""
    loss = faults.with_backward(lambda g: {**g, "b": factor * g["b"]}, _squares)
    return gradbench.Problem(init=lambda key: {"a": jnp.ones(3), "b": jnp.ones(2)}, loss=loss, name="wrong")


def _squares(params, data):
    return jnp.sum(params["a"] ** 2) + jnp.sum(params["b"] ** 2)


def test_assert_gradient_raises_with_the_report():
    with pytest.raises(AssertionError, match=r"-1 times") as caught:
        gradbench.assert_gradient(wrong(-1), **ONE)
    assert "['b']" in str(caught.value)


def test_assert_gradient_is_silent_on_a_right_one(capsys):
    gradbench.assert_gradient("quadratic_bowl[dim=3]", **ONE)
    assert capsys.readouterr().out == ""


def at_zero(loss):
    return gradbench.Problem(init=lambda key: jnp.zeros(2), loss=lambda p, d: loss(p))


def test_at_a_kink_the_derivative_may_lie_between_the_slopes():
    problem = at_zero(lambda p: jnp.sum(jnp.abs(p)))
    tests, _ = formula.check(problem, oracle.points(problem, "float64", 2)[1], None, 1.0, True)
    assert tests[0].verdict == "PASS"
    assert "kinks" in tests[0].finding


def test_a_derivative_outside_the_one_sided_slopes_fails():
    problem = at_zero(lambda p: faults.with_backward(lambda g: g + 3, _absolute)(p, ()))
    tests, _ = formula.check(problem, oracle.points(problem, "float64", 2)[1], None, 1.0, True)
    assert tests[0].verdict == "FAIL"


def test_a_gradient_that_is_not_a_number_at_the_start_fails():
    """The norm is finite at 0 and its derivative 0/0 there, though it is fine at every point nearby."""
    for fast in (True, False):
        report = gradbench.check_gradient(at_zero(jnp.linalg.norm), fast=fast, programs=["jit"])
        assert report.verdict == "FAIL"
        assert "at the start: params[0]: the gradient is nan" in str(report)


def test_a_derivative_wrong_at_the_kink_of_the_start_alone_fails():
    absolute = faults._rule(jnp.abs, lambda x, y, ct: ct * jnp.where(x == 0, 3.0, jnp.sign(x)))
    problem = at_zero(lambda p: jnp.sum(absolute(p)))
    report = gradbench.check_gradient(problem, programs=["jit"])
    assert report.verdict == "FAIL"
    assert "at the start: params: slope" in str(report)
    assert "not between the one-sided slopes" in str(report)


def _absolute(params, data):
    return jnp.sum(jnp.abs(params))


def host(params):
    return jax.pure_callback(lambda x: np.sum(x * x), jax.ShapeDtypeStruct((), params.dtype), params)


def on_the_host():
    """The sum of squares by a callback, which has no rounding rule, with a right derivative."""
    loss = jax.custom_jvp(host)
    loss.defjvp(lambda primals, tangents: (loss(*primals), 2 * jnp.sum(primals[0] * tangents[0])))
    return gradbench.Problem(init=lambda key: jnp.ones(2) * 3, loss=lambda p, d: loss(p))


def test_a_primitive_without_a_rule_is_inconclusive():
    report = gradbench.check_gradient(on_the_host(), **ONE)
    assert report.rows[0].verdict == "INCONCLUSIVE"
    assert "pure_callback" in report.rows[0].reason


def test_a_loss_without_a_gradient_is_one_line():
    with pytest.raises(ProblemError, match="no gradient") as caught:
        gradbench.check_gradient(gradbench.Problem(init=lambda key: jnp.ones(2), loss=lambda p, d: host(p)))
    assert "\n" not in str(caught.value)


def test_a_callback_that_raises_is_inconclusive_and_quotes_it():
    def broken(x):
        raise RuntimeError("the host says no")

    @jax.custom_vjp
    def loss(params, data):
        return jax.pure_callback(broken, jax.ShapeDtypeStruct((), params.dtype), params)

    loss.defvjp(lambda p, d: (loss(p, d), p), lambda p, ct: (ct * p, None))
    report = gradbench.check_gradient(gradbench.Problem(init=lambda key: jnp.ones(2), loss=loss), **ONE)
    assert {test.verdict for test in report.formula} == {row.verdict for row in report.rows} == {"INCONCLUSIVE"}
    assert "the host says no" in report.formula[0].finding


def _counted(loss, turns=3):
    """`loss` plus the 0 that a while loop counts up to."""
    return lambda p, d: loss(p, d) + jax.lax.while_loop(lambda n: n < turns, lambda n: n + 1, 0) - turns


@pytest.mark.parametrize(
    ("inside", "error", "verdicts"),
    [
        (False, 1e-8, {"PASS", "INCONCLUSIVE"}),
        (False, 1e-5, {"FAIL"}),
        (True, 1e-5, {"INCONCLUSIVE"}),
        (True, 1e-3, {"FAIL"}),
    ],
)
def test_a_rule_that_iterates_to_a_tolerance_is_not_accused(inside, error, verdicts):
    def corrupt(gradient):
        return gradient * (1 + error)

    loss = faults.with_backward(corrupt, _counted(_cube)) if inside else _counted(faults.with_backward(corrupt, _cube))
    problem = at_zero(lambda p: loss(p, ()))
    tests, _ = formula.check(problem, oracle.points(problem, "float64", 1)[0], None, 1.0, True)
    assert tests[0].verdict in verdicts
    assert (tests[0].resolves is not None) == (tests[0].verdict != "FAIL")


def test_a_rule_that_is_off_at_the_start_alone_is_not_passed_over():
    counted = _counted(lambda x, d: (x + 1) ** 3)
    cube = faults._rule(
        lambda x: counted(x, ()), lambda x, y, ct: ct * 3 * (x + 1) ** 2 * jnp.where(x == 0, 1 + 1e-5, 1)
    )
    report = gradbench.check_gradient(at_zero(lambda p: jnp.sum(cube(p))), programs=["jit"])
    assert report.verdict == "INCONCLUSIVE"
    assert any("at the start" in test.finding for test in report.formula)


@pytest.mark.thorough
def test_an_implicit_root_by_a_loose_iteration_is_not_accused():
    def root(f, guess):
        return jax.lax.while_loop(lambda x: jnp.abs(f(x)) > 1e-6, lambda x: x - 0.1 * f(x), guess)

    def loss(p, d):
        return jnp.sum(p**2) * jax.lax.custom_root(
            lambda x: x**3 - p[0] - 3, 1.5 + 0 * p[0], root, lambda g, y: y / g(1.0)
        )

    report = gradbench.check_gradient(gradbench.Problem(init=lambda key: jnp.ones(2), loss=loss), programs=["jit"])
    assert report.verdict == "INCONCLUSIVE"
    assert "iterates to a tolerance" in report.formula[0].finding


def test_a_loop_that_never_ends_is_inconclusive(monkeypatch):
    for module in (reference, interpreter):
        monkeypatch.setattr(module, "MAX_ITERATIONS", 100)

    def loss(params, data):
        return _cube(params, data) + jax.lax.while_loop(lambda n: n < 1, lambda n: n * 1, 0)

    report = gradbench.check_gradient(gradbench.Problem(init=lambda key: jnp.ones(2), loss=loss), **ONE)
    assert report.verdict == "INCONCLUSIVE"
    assert "a while loop has not ended after 100 iterations" in report.rows[0].reason


def _cube(params, data):
    return jnp.sum((params + 1) ** 3)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_random_numbers_in_the_loss_are_those_of_the_dtype_that_is_checked(dtype):
    """Of one key JAX draws other numbers in float64 than in float32."""

    def loss(p, d):
        return jnp.sum((p - jax.random.normal(jax.random.key(0), (2,))) ** 2)

    report = gradbench.check_gradient(gradbench.Problem(init=lambda key: jnp.ones(2), loss=loss), dtype=dtype, **ONE)
    assert report.rows[0].verdict == "PASS"


def test_a_loss_that_takes_a_key_and_state_is_checked_with_both_fixed():
    def loss(params, state, data, key):
        keep = jax.random.bernoulli(key, 0.5, (2,))
        return jnp.sum(keep * _cube(params, data)) + jnp.sum(state["shift"] * params), state, {"norm": jnp.sum(params)}

    problem = gradbench.Problem(lambda key: (jnp.ones(2), {"shift": jnp.arange(2.0)}), loss, stateful=True)
    report = gradbench.check_gradient(problem, **ONE)
    assert report.verdict == "PASS"
    assert "fixed throughout: the key and the state" in str(report)


@pytest.mark.parametrize(("size", "words"), [(1e30, "too large for float16"), (1e-30, "become 0 in float16")])
def test_data_that_a_dtype_cannot_hold_is_inconclusive(size, words):
    problem = gradbench.Problem(
        init=lambda key: jnp.ones(3), loss=lambda p, d: jnp.sum(d * p * p), data=np.full(3, size)
    )
    row = gradbench.check_gradient(problem, dtype="float16", **ONE).rows[0]
    assert row.verdict == "INCONCLUSIVE"
    assert words in row.reason


def test_a_loss_that_cancels_in_bfloat16_is_not_accused():
    """What is left of 1e8 - 1e8 is 3 in float64 and anything up to millions in bfloat16, gradient included."""
    problem = gradbench.Problem(
        init=lambda key: jnp.ones(3), loss=lambda p, d: jnp.sum((p + 1e4) ** 2 - 1e8 - 2e4 * p), name="cancels"
    )
    assert gradbench.check_gradient(problem, dtype="bfloat16", **ONE).verdict == "INCONCLUSIVE"


def test_a_custom_rule_of_a_small_leaf_is_suspected():
    def small(params, data):
        return 1e-6 * _squares(params, data)

    wrong_loss = faults.with_backward(lambda g: {**g, "b": 1.001 * g["b"]}, small)
    problem = gradbench.Problem(init=lambda key: {"a": jnp.ones(3), "b": jnp.ones(2)}, loss=wrong_loss)
    assert "the gradient of ['b'] differs" in str(gradbench.check_gradient(problem, **ONE))


def test_a_wrong_scale_is_explained():
    assert "2 times: a factor counted twice?" in str(gradbench.check_gradient(wrong(2), **ONE))


def test_the_command_that_shows_it_again_keeps_seed_and_quotes(tmp_path):
    path = tmp_path / "it's mine.py"
    path.write_text(
        "import jax.numpy as jnp, jax, gradbench\n"
        "def problem(size: int = 2):\n"
        "    return gradbench.Problem(init=lambda key: jnp.ones(size),\n"
        "        loss=lambda p, d: jnp.sum(p * p * jax.lax.stop_gradient(p)))\n"
    )
    report = gradbench.check_gradient(f"{path}[size=3]", seed=7, **ONE)
    words = shlex.split(report.command())
    assert words[2] == f"{path}[size=3]"
    assert words[-2:] == ["--seed", "7"]
    assert "--program jit --seed 7" in report.command(report.rows[0])


def test_a_problem_made_in_python_is_shown_again_by_a_call_of_python():
    report = gradbench.check_gradient(wrong(2), **ONE)
    assert eval(report.command(), {"gradbench": gradbench, "problem": wrong(2)}).verdict == "FAIL"
    assert "programs=['jit']" in report.command(report.rows[0])


def test_a_loss_that_is_not_a_mean_is_not_cut_into_microbatches():
    data = np.random.default_rng(0).standard_normal((8, 3))
    problem = gradbench.Problem(
        init=lambda key: jnp.ones(3), loss=lambda p, d: jnp.sum((d @ p) ** 2), data=data, examples=8
    )
    assert "not the mean" in gradbench.check_gradient(problem, programs=["microbatches"]).skipped["microbatches"]


@pytest.mark.parametrize(
    "bad", [{"dtype": "float23"}, {"precision": "high"}, {"device": "abacus"}, {"programs": ["jitt"]}, {"seed": -1}]
)
def test_bad_choices_raise_one_line(bad):
    with pytest.raises(GradbenchError) as caught:
        gradbench.check_gradient("quadratic_bowl", **bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, jnp.float32, np.dtype("float32"), [jnp.float32]])
def test_a_dtype_may_be_one_of_numpy_or_jax(dtype):
    report = gradbench.check_gradient("quadratic_bowl[dim=2]", dtype=dtype, fast=True)
    assert {row["dtype"] for row in report.table()} == {"float64", "float32"}  # the formula is checked in float64


def test_an_unknown_problem_raises():
    with pytest.raises(ProblemError, match="did you mean"):
        gradbench.check_gradient("quadratic_bowll")


def test_the_command_prints_data_and_writes_a_record(tmp_path, capsys):
    code = run_check(["quadratic_bowl[dim=2]"], fast=True, output_format="json", out=tmp_path)
    captured = capsys.readouterr()
    assert code == 0
    assert json.loads(captured.out)[0]["verdict"] == "PASS"
    assert "record" in captured.err
    record = json.loads(next((tmp_path / "check").glob("*.json")).read_text())
    assert record["checks"][0]["problem"] == "quadratic_bowl[dim=2]"


def test_a_bad_name_is_found_before_anything_is_checked(capsys):
    with pytest.raises(ProblemError, match="nosuch"):
        run_check(["quadratic_bowl[dim=2]", "nosuch"], fast=True, out=None)
    assert capsys.readouterr() == ("", "")


def test_a_self_test_takes_no_problem():
    with pytest.raises(PlanError, match="give no problem"):
        run_check(["mlp"], self_test=True, out=None)


def test_the_command_exits_1_on_a_wrong_gradient(capsys):
    assert run_check([wrong(2)], fast=True, programs=["jit"], out=None) == 1
    assert "2 times" in capsys.readouterr().out


def test_strict_counts_inconclusive(capsys):
    options = {"fast": True, "programs": ["value_and_grad"], "out": None}
    assert run_check([on_the_host()], **options) == 0
    assert run_check([on_the_host()], strict=True, **options) == 1


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU")
def test_tf32_is_seen_in_force_on_a_gpu():
    report = gradbench.check_gradient("mlp", precision="tf32", device="gpu", programs=["value_and_grad"])
    assert report.verdict == "PASS"
    assert any("in force" in note for note in report.rows[0].notes)


def test_a_loss_is_traced_anew_by_every_check(monkeypatch):
    """In a notebook what a loss calls is defined anew while the loss stays the same object."""

    @jax.custom_jvp
    def wrong(x):
        return x**2

    wrong.defjvp(lambda primals, tangents: (wrong(*primals), 3 * primals[0] * tangents[0]))
    part = {"of": lambda x: x**2}
    problem = gradbench.Problem(lambda key: jnp.arange(1.0, 4.0), lambda params, _: jnp.sum(part["of"](params)))
    assert gradbench.check_gradient(problem, **ONE).verdict == "PASS"
    monkeypatch.setitem(part, "of", wrong)
    assert gradbench.check_gradient(problem, **ONE).verdict == "FAIL"
    monkeypatch.setitem(part, "of", lambda x: 2 * x**2)
    assert gradbench.check_gradient(problem, **ONE).verdict == "PASS"
