"""One contract for every problem file, its facts against other libraries, and what the loader refuses."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit_quickly

import gradbench
from gradbench import datasets
from gradbench.datasets import load_table
from gradbench.errors import ProblemError
from gradbench.inputs.problem import cast, load_problem, problem_names, problems_folder

# The networks small, since compiling them is most of the time.
SMALL = {"lstm": "[hidden=8,length=4]", "transformer": "[layers=1,width=8,heads=2,length=4]", "cnn": "[channels=2]"}
SPECS = [
    *(name + SMALL.get(name, "") for name in problem_names()),
    "quadratic_bowl[dim=1]",
    "quadratic_bowl[dim=2,condition=1]",
    "linear_regression[examples=60,features=5]",
    "logistic_regression[examples=60,features=5,l2=0.1]",
    "mlp[hidden=(8,4),activation=relu]",
    "rosenbrock[dim=5]",
    "rastrigin[dim=3,amplitude=1]",
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_problem_keeps_the_contract(spec):
    problem = load_problem(spec)
    assert problem.name == spec
    assert set(problem.maximise) <= set(problem.metrics)
    for name, split in itertools.product(problem.metrics, (problem.data, problem.holdout)):
        start = jax.eval_shape(problem.init, jax.random.key(0))
        assert jax.eval_shape(problem.metrics[name], start, cast(split, jnp.float32)).shape == ()
    with jax.enable_x64(True):

        @jit_quickly
        def of(key, data):
            params = cast(problem.init(key), jnp.float64)
            value = problem.loss(params, data)
            if problem.gradient is None:  # that there is one by differentiation, loading has seen
                return value, (), ()
            return value, problem.gradient(params, data), jax.grad(problem.loss)(params, data)

        for seed in range(3):
            value, analytic, grads = of(jax.random.key(seed), problem.data)
            assert np.isfinite(value)
            if problem.minimum is not None:
                assert value >= problem.minimum
            # float64 sums in another order, of under 600 terms of mixed sign
            for got, known in zip(jax.tree.leaves(analytic), jax.tree.leaves(grads), strict=True):
                np.testing.assert_allclose(got, known, rtol=1e-12, atol=1e-12 * np.abs(known).max())


@pytest.mark.parametrize("name", problem_names())
def test_a_problem_file_is_short_and_says_its_source(name):
    text = (problems_folder() / f"{name}.py").read_text()
    assert "Source" in text or "Data:" in text or "data:" in text
    assert len(text.splitlines()) <= 60


def test_the_lesson_gradients():
    one, two = load_problem("quadratic_bowl[dim=1]"), load_problem("quadratic_bowl[dim=2,condition=1]")
    assert jax.grad(one.loss)(jnp.array([3.0]), one.data).tolist() == [6.0]
    assert jax.grad(two.loss)(jnp.array([1.0, -2.0]), cast(two.data, jnp.float32)).tolist() == [2.0, -4.0]


@pytest.mark.parametrize("spec", ["linear_regression", "linear_regression[examples=200,features=7]"])
def test_linear_regression_minimum_is_scikit_learns(spec):
    from sklearn.linear_model import LinearRegression

    problem = load_problem(spec)
    design, target = problem.data["X"], problem.data["y"]
    fitted = LinearRegression(fit_intercept=False).fit(design, target)
    expected = 0.5 * np.mean((fitted.predict(design) - target) ** 2)
    assert problem.minimum == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("score", [0.0, -0.0, 3.0, -3.0, 1e3, -1e3])
def test_logistic_loss_keeps_its_derivatives_at_a_tie_and_far_out(score):
    problem = load_problem("logistic_regression[examples=4,features=1,l2=0]")
    data = {"X": jnp.ones((1, 1)), "y": jnp.ones(1)}
    with jax.enable_x64(True):
        w = jnp.array([score])
        value, (slope,) = jax.jit(jax.value_and_grad(problem.loss))(w, data)
        ((bend,),) = jax.jit(jax.hessian(problem.loss))(w, data)
    p, q = (1 / (1 + np.exp(np.clip([score, -score], -700, 700)))).tolist()
    rtol = 8 * np.finfo(float).eps  # an exp, a log1p, a sum, a quotient and a product on either side
    np.testing.assert_allclose(value, np.logaddexp(0, -score), rtol=rtol)
    np.testing.assert_allclose([slope, bend], [-p, p * q], rtol=rtol, atol=1e-300)


@pytest.mark.parametrize("spec", ["logistic_regression", "logistic_regression[l2=0.1]", "logistic_regression[l2=1e-6]"])
def test_logistic_regression_minimum_is_scipys(spec):
    from scipy.optimize import minimize

    problem = load_problem(spec)
    with jax.enable_x64(True):
        both = jit_quickly(jax.value_and_grad(problem.loss))
        hessian = jit_quickly(jax.hessian(problem.loss))

        def of(function):
            return lambda w: jax.tree.map(np.asarray, function(jnp.asarray(w), problem.data))

        start = np.zeros(problem.data["X"].shape[1])
        solved = minimize(of(both), start, jac=True, hess=of(hessian), method="trust-exact", options={"gtol": 1e-11})
    assert problem.minimum == pytest.approx(solved.fun, rel=1e-8)


@pytest.mark.parametrize("spec", ["quadratic_bowl", "linear_regression", "logistic_regression"])
def test_stated_curvature_bounds_the_hessian(spec):
    problem = load_problem(spec)
    with jax.enable_x64(True):
        params = cast(problem.init(jax.random.key(0)), jnp.float64)
        hessian = jit_quickly(jax.hessian(problem.loss))
        eigenvalues = np.linalg.eigvalsh(hessian(params, problem.data))
    low, high = problem.curvature
    slack = 1e-12 * high
    assert low - slack <= eigenvalues[0]
    assert eigenvalues[-1] <= high + slack
    if spec != "logistic_regression":  # whose bounds are reached at some other point, if anywhere
        assert high == pytest.approx(eigenvalues[-1], rel=1e-9)


def write_tables(folder, features, target):
    np.savetxt(folder / "a.csv", np.column_stack([features, target]), delimiter=",", header="a,b,y", comments="")
    np.savetxt(folder / "b.txt", np.column_stack([features, target]))
    np.savez(folder / "c.npz", X=features, y=target)
    lines = [f"{y} " + " ".join(f"{i + 1}:{x}" for i, x in enumerate(row)) for row, y in zip(features, target)]
    (folder / "d.svm").write_text("\n".join(lines) + "\n")
    return ["a.csv", "b.txt", "c.npz", "d.svm"]


def test_every_file_format_gives_the_same_data(tmp_path):
    generator = np.random.default_rng(0)
    features, target = generator.normal(size=(20, 2)), generator.normal(size=20)
    for name in write_tables(tmp_path, features, target):
        read_features, read_target = load_table(tmp_path / name)
        np.testing.assert_allclose(read_features, features, rtol=1e-15)
        np.testing.assert_allclose(read_target, target, rtol=1e-15)
        assert load_problem(f"linear_regression[data={tmp_path / name}]").examples == 20


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", "", "at least one feature column"),
        ("ragged.csv", "1,2,3\n4,5\n", "line 2 has 2 columns, the first has 3"),
        ("gap.csv", "a,b,c\n1,2,3\n4,,6\n", r"line 3, column 2 \(b\) is missing"),
        ("nan.csv", "1,2\nnan,4\n", "line 2, column 1 is missing: 'nan'"),
        ("words.csv", "1,2\nred,4\n", "line 2, column 1: 'red' is not a finite number"),
        ("infinite.csv", "1,2\ninf,4\n", "line 2, column 1: 'inf' is not a finite number"),
        ("animals.csv", "a,b,species\n1,2,cat\n", r"line 2, column 3 \(species\): 'cat' is not a finite number"),
        ("narrow.csv", "1\n2\n", "at least one feature column"),
        ("table.xls", "1,2\n", "cannot tell the format"),
        ("broken.npz", "not a zip", "npz"),
    ],
)
def test_bad_data_files_are_refused_with_their_place(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ProblemError, match=words) as caught:
        load_problem(f"linear_regression[data={tmp_path / name}]")
    assert "\n" not in str(caught.value)


def test_complex_data_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.ones((3, 2)) * 1j, y=np.ones(3))
    with pytest.raises(ProblemError, match="complex"):
        load_table(tmp_path / "a.npz")


GOOD = """import jax
import jax.numpy as jnp
import numpy as np
from gradbench import Problem
def problem(width=2):
    """


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return Problem(lambda k: jnp.ones(2), lambda p, d: p)", r"must be a scalar, got shape \(2,\)"),
        ("return Problem(lambda k: jnp.ones(2), lambda p, d: jnp.sum(p > 0))", "must be a float, got int32"),
        ("return Problem(lambda k: jnp.ones(2, int), lambda p, d: jnp.sum(p) * 1.0)", "parameters must be floats"),
        ("return Problem(lambda k: jnp.ones(2, complex), lambda p, d: jnp.sum(p).real)", "take complex arguments"),
        ("return Problem(lambda k: {}, lambda p, d: 0.0)", "no parameters"),
        (
            "return Problem(lambda k: {'a': jnp.ones((0, 2))}, lambda p, d: 0.0)",
            r"params\['a'\] is empty, of shape \(0, 2\)",
        ),
        ("return Problem(lambda k: jnp.ones(2), lambda p, d: p @ jnp.ones(3))", "loss.* raised TypeError"),
        (
            "return Problem(lambda k: jnp.ones(2), lambda p: jnp.sum(p))",
            r"the loss takes \(p\); write loss\(params, data\)",
        ),
        ("return Problem(lambda k: 1 / 0, lambda p, d: 0.0)", "init.* raised ZeroDivisionError"),
        ("return Problem(lambda k: jnp.ones(2), lambda p, d: jnp.sum(p), [1.0, np.nan])", "not finite"),
        ("return Problem(lambda k: jnp.ones(2), lambda p, d: jnp.sum(p), 'text')", "must be arrays of numbers"),
        ("return Problem(lambda k: jnp.ones(2), lambda p, d: jnp.sum(p), np.ones(3), examples=5)", "examples=5"),
        ("return Problem(lambda k: jnp.ones(2), lambda p, d: jnp.sum(p), minimum=np.nan)", "minimum is nan"),
        ("return Problem(lambda k: jnp.ones(2), lambda p, d: jnp.sum(p), minimum='low')", "minimum is 'low'"),
        ("return Problem(lambda k: jnp.ones(2), lambda p, d: jnp.sum(p), np.ones(3), examples='3')", "examples='3'"),
        ("return Problem(lambda k: jnp.ones(2), lambda p, d: 1.0)", "a JAX array that depends on params, got a float"),
        ("return Problem(lambda k: jnp.ones(2), lambda p, d: jnp.sum(p), curvature=2.0)", "curvature is 2.0; give"),
        ("return Problem(lambda k: jnp.ones(2), lambda p, d: jnp.sum(p), curvature=(np.nan, 1))", "curvature is"),
        ("return Problem(lambda k: jnp.ones(2), lambda p, d: jnp.sum(p), curvature=(2, 1))", "mu at most L"),
        ("return Problem(lambda k: jnp.ones(2), lambda p, d: jnp.sum(p), gradient=3)", "gradient is a int; give"),
        (
            "return Problem(lambda k: jnp.ones(2),"
            " lambda p, d: jax.lax.while_loop(lambda p: p.sum() > 1, lambda p: p / 2, p).sum())",
            "loss.* has no gradient: ValueError: Reverse-mode.* Try using lax.scan, or using fori_loop",
        ),
        ("return 3", "returned int"),
        ("raise KeyError('lost')", "raised KeyError"),
        ("raise SystemExit(3)", "raised SystemExit"),
    ],
)
def test_a_bad_problem_file_is_refused_in_one_line(tmp_path, body, words):
    file = tmp_path / "mine.py"
    file.write_text(GOOD + body + "\n")
    with pytest.raises(ProblemError, match=words) as caught:
        load_problem(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("x = 1", "has no function problem"), ("import nothing_at_all", "No module named"), ("def (", "SyntaxError")],
)
def test_a_file_that_is_no_problem_is_refused(tmp_path, text, words):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ProblemError, match=words):
        load_problem(str(tmp_path / "mine.py"))


def test_a_users_file_takes_settings_like_a_built_in_one(tmp_path):
    (tmp_path / "mine.py").write_text(
        GOOD + "return Problem(lambda k: jnp.ones(width), lambda p, d: jnp.sum(p * p), minimum=0.0)\n"
    )
    problem = load_problem(f"{tmp_path / 'mine.py'}[width=8]")
    assert problem.init(jax.random.key(0)).shape == (8,)
    assert isinstance(problem, gradbench.Problem)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("quadratic_bowel", "did you mean 'quadratic_bowl'"),
        ("mlp[hiden=3]", "did you mean 'hidden'"),
        ("mlp[hidden]", "not key=value"),
        ("mlp[hidden=3", "brackets do not match"),
        ("mlp[hidden=(3]", "brackets do not match"),
        ("mlp]", "brackets do not match"),
        ("mlp[hidden=3,hidden=4]", "given twice"),
        ("[hidden=3]", "name is missing"),
        ("quadratic_bowl[dim=0]", "need dim >= 1"),
        ("quadratic_bowl[dim=2.5]", "should be a whole number"),
        ("quadratic_bowl[condition=nan]", "should be a number"),
        ("quadratic_bowl[condition=0.5]", "condition >= 1"),
        ("mlp[activation=step]", "need one of tanh"),
        ("linear_regression[examples=5]", "needs both"),
        ("./nowhere.py", "no such file"),
    ],
)
def test_bad_specs_are_refused_in_one_line(spec, words):
    with pytest.raises(ProblemError, match=words) as caught:
        load_problem(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("name", ["diabetes", "breast_cancer", "digits"])
def test_bundled_is_what_scikit_learn_loads(name, moved, monkeypatch):
    import sklearn.datasets

    settings = {"scaled": False} if name == "diabetes" else {}
    expected = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True, **settings)
    if moved:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for got, wanted in zip(datasets.bundled(name), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype.kind == wanted.dtype.kind
