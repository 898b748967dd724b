"""What users bring: data of other libraries, modules, state among the params, errors and prints in their own code."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from conftest import time_little

from gradbench.cli import main as cli
from gradbench.engine import units
from gradbench.errors import GradbenchWarning, OptimizerError, ProblemError
from gradbench.inputs.optimizer import load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem, idle_leaves, load_problem


def _sum(params, data):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))


def with_data(data):
    return load_problem(Problem(lambda key: jnp.ones(2), _sum, data=data)).data


def with_init(init):
    return load_problem(Problem(init, _sum))


class Tensor:
    """Has what gradbench uses of a tensor of torch, which needs not be installed."""

    def __init__(self, array):
        self.array = array

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        return self.array


def test_lists_of_numbers_and_tensors_become_arrays():
    data = with_data({"rows": [[1, 2.5], [3, 4]], "tensor": Tensor(np.arange(3)), "pair": (1.0, [2, 3])})
    np.testing.assert_array_equal(data["rows"], [[1, 2.5], [3, 4]])
    np.testing.assert_array_equal(data["tensor"], np.arange(3))
    assert data["pair"][0] == 1.0
    np.testing.assert_array_equal(data["pair"][1], [2, 3])


def test_a_frame_becomes_a_dict_of_its_columns():
    pandas = pytest.importorskip("pandas")
    data = with_data(pandas.DataFrame({"x": [1.0, 2.0], "n": [3, 4]}))
    assert list(data) == ["x", "n"]
    np.testing.assert_array_equal(data["x"], [1.0, 2.0])
    with pytest.raises(ProblemError, match=r"data\['y'\] holds text, such as 'cat'"):
        with_data(pandas.DataFrame({"y": ["cat", "dog"]}))


class Loader:
    def __getitem__(self, index):
        raise IndexError


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([[1, 2], [3]], "rows differ in length"),
        (np.array(["cat", "dog"]), r"holds text, such as 'cat'.*\(labels: numpy.unique"),
        (np.array([1, None]), "holds objects, such as None; data must be arrays of numbers"),
        (np.array(["2020-01-01"], "datetime64[D]"), "holds dates"),
        (np.ones(2) * 1j, r"holds complex numbers; .* \(complex ones: their .real and .imag\)"),
        (scipy.sparse.eye(2, format="csr"), r"is a .*; give its .toarray\(\)"),
        (Loader(), "is a Loader; .* stack its items into arrays first"),
    ],
)
def test_data_that_are_no_numbers_are_refused_in_one_line(data, words):
    with pytest.raises(ProblemError, match=words) as caught:
        with_data(data)
    assert "\n" not in str(caught.value)


def test_params_that_are_no_arrays_are_named():
    with pytest.raises(ProblemError, match=r"params\['name'\] is of type str; parameters must be arrays of floats"):
        with_init(lambda key: {"w": jnp.ones(2), "name": "mine"})


@dataclasses.dataclass
class Weights:
    w: Any


def test_a_dataclass_that_jax_does_not_know_is_told_how_to_be_known():
    with pytest.raises(ProblemError, match=r"params is of type Weights; .*jax.tree_util.register_dataclass"):
        with_init(lambda key: Weights(jnp.ones(2)))


def module_of(place):
    """An object whose class says it comes from `place`, as a module of that library does."""
    return type("Module", (), {"__module__": f"{place}.layers", "__call__": lambda self, key: {}["no"]})()


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("flax.linen", r'model.init\(key, x\)\["params"\]'),
        ("flax.nnx", "nnx.split"),
        ("equinox", "eqx.partition"),
        ("haiku", "hk.transform"),
    ],
)
def test_a_module_of_another_library_is_told_how_to_give_its_params(place, words):
    with pytest.raises(ProblemError, match=words):
        with_init(lambda key: {"net": module_of(place)})
    with pytest.raises(ProblemError, match=words):
        with_init(module_of(place))
    with pytest.raises(ProblemError, match=f"Module is no problem.*{words}"):
        load_problem(module_of(place))


def _partly(params, data):
    used = params["used"].sum() + jax.nn.relu(params["dead relu"]).sum() + params["rows"][jnp.array([0])].sum()
    cut = jax.jit(jax.lax.stop_gradient)(params["cut"]).sum() + jnp.floor(params["steps"]).sum()
    return used + cut + 0 * params["zeroed"].sum()


PARTLY = {name: jnp.zeros(3) for name in ("used", "dead relu", "rows", "zeroed", "cut", "steps", "unused")}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_idle_leaves_are_those_that_no_gradient_can_reach(wrap):
    idle = idle_leaves(Problem(lambda key: PARTLY | {"one": jnp.zeros(())}, wrap(_partly)))
    assert idle == [f"params['{name}']" for name in ("cut", "one", "steps", "unused")]


def test_a_run_warns_of_idle_leaves_before_it_starts():
    problem = Problem(
        lambda key: {"w": jnp.ones(2), "mean": jnp.zeros(2)}, lambda p, d: jnp.sum(p["w"] ** 2), name="norm"
    )
    with pytest.warns(GradbenchWarning, match=r"^norm: no gradient reaches params\['mean'\]") as caught:
        units.prepare(SweepPlan(problems=("norm",), optimizers=("sgd", "adam")), {"norm": problem}, {})
    assert len(caught) == 1


FILE = """import jax
import jax.numpy as jnp
import optax
from gradbench import Problem

def helper(params):
    return params @ jnp.ones(4)

def problem(kind="loss", ordered=False):
    def shown(params, data):
        jax.debug.print("seen {}", params[0], ordered=ordered)
        return jnp.sum(params**2)
    if kind == "problem":
        helper(jnp.ones(3))
    start = helper if kind == "init" else lambda key: jnp.ones(3)
    return Problem(start, shown if kind == "shown" else lambda params, data: helper(params))

def broken(learning_rate):
    return optax.adam(learning_rate, b1=undefined)

def warm(learning_rate):
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, learning_rate, 10, 100))
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", ["loss", "init", "problem"])
def test_an_error_names_the_line_of_the_users_own_code(mine, kind):
    with pytest.raises(ProblemError, match=r" \(mine.py:7\)$") as caught:
        load_problem(f"./mine.py[kind={kind}]")
    assert "\n" not in str(caught.value)


def test_a_loss_that_takes_no_minibatch_is_refused_with_its_line(mine):
    def loss(params, data):
        return jnp.sum(data.reshape(10, 3) @ params)

    problem = Problem(lambda key: jnp.ones(3), loss, np.ones((10, 3)), examples=10, name="rigid")
    plan = SweepPlan(problems=("rigid",), optimizers=("sgd",), batch_size=4)
    with pytest.raises(ProblemError, match=r"rigid: on a minibatch of 4 of its 10 .* \(.*test_users_code.py:\d+\)$"):
        units.prepare(plan, {"rigid": problem}, {})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("./mine.py:broken", r"NameError: .*undefined.* \(mine.py:19\)$"),
        ("./mine.py:warm", r"\(mine.py:22\); .* ./mine.py:warm\[schedule=cosine,warmup=100\], or make one of peak 1"),
    ],
)
def test_an_optimizer_that_cannot_be_traced_says_where_and_how(mine, sweep, spec, words):
    with pytest.raises(OptimizerError, match=words):
        sweep("quadratic_bowl[dim=2]", spec, [0.1], steps=2, seeds=1)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("sgd[momentum=x]", "momentum=x should be a number$"),
        ("adam[b1=x]", "b1=x should be a number, such as b1=0.9"),
        ("adamw[weight_decay=x]", "weight_decay=x should be a number, such as weight_decay=0.0001"),
    ],
)
def test_text_where_an_optimizer_takes_a_number_is_refused(spec, words):
    with pytest.raises(OptimizerError, match=words):
        load_optimizer(spec)


@pytest.mark.parametrize("spec", ["sgd[accumulator_dtype=bfloat16]", "muon[preconditioning=aol]"])
def test_text_where_an_optimizer_takes_text_is_kept(spec):
    assert load_optimizer(spec).build(0.1, 10)


def test_what_a_loss_prints_stays_out_of_the_data(mine, monkeypatch, capfd):
    time_little(monkeypatch)
    words = "run ./mine.py[kind=shown] -o sgd --lr 0.1 --steps 2 --seeds 1 --format json"
    assert cli.invoke(words.split()) == 0
    captured = capfd.readouterr()
    assert len(json.loads(captured.out)) == 1
    assert "seen 1.0" in captured.err


def test_an_ordered_print_is_refused(mine):
    with pytest.raises(ProblemError, match=r"ordered=True.*leave ordered out"):
        load_problem("./mine.py[kind=shown,ordered=true]")
