"""Axes and designs: what is written in a spec, and which combinations are tried."""

from __future__ import annotations

import numpy as np
import pytest

from gradbench.errors import GradbenchError, OptimizerError, PlanError
from gradbench.inputs.optimizer import load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.specs.axis import axes_of, concrete, without_axes


def values(text: str) -> tuple[float, ...]:
    [axis] = axes_of(f"adam[{text}]", OptimizerError)
    return axis.values


def test_a_range_is_spaced_as_the_setting_asks_for():
    np.testing.assert_allclose(values("weight_decay=1e-5:1e-1:5"), np.geomspace(1e-5, 1e-1, 5), rtol=1e-6)
    np.testing.assert_allclose(1 - np.array(values("b2=0.9:0.9999:4")), np.geomspace(0.1, 1e-4, 4), rtol=1e-6)
    np.testing.assert_allclose(values("scale=0:3:4"), [0, 1, 2, 3])
    np.testing.assert_allclose(values("b1=0.5:0.9:5:linear"), np.linspace(0.5, 0.9, 5), rtol=1e-6)
    assert values("momentum=0:0.99:3") == (0.0, 0.9, 0.99)
    assert values("warmup=0:100:5") == (0, 25, 50, 75, 100)
    assert values("b1=0.8|0.9|0.95") == (0.8, 0.9, 0.95)


def test_numbers_are_axes_of_one_optimizer_and_everything_else_is_an_optimizer_each():
    plan = SweepPlan(optimizers=("sgd[momentum=0.8|0.9,nesterov=true|false]", "sgd[momentum=none|0.9]"))
    assert plan.optimizers[:2] == ("sgd[momentum=0.8|0.9,nesterov=true]", "sgd[momentum=0.8|0.9,nesterov=false]")
    assert plan.optimizers[2:] == ("sgd[momentum=none]", "sgd[momentum=0.9]")
    assert SweepPlan(problems="mlp[hidden=16|32]").problems == ("mlp[hidden=16]", "mlp[hidden=32]")
    assert without_axes("sgd[momentum=0.8|0.9,nesterov=true]") == "sgd[nesterov=true]"


def test_an_axis_may_stand_beside_the_spec_it_belongs_to():
    plan = SweepPlan(optimizers=("adam", "adamw[b1=0.8]"), axes=["adamw.b2=0.9:0.999:3", "mlp.hidden=8|16"])
    assert plan.optimizers == ("adam", "adamw[b1=0.8,b2=0.9:0.999:3]")
    assert plan.problems[-2:] == ("mlp[hidden=8]", "mlp[hidden=16]")
    given = {"learning_rate": "1e-3:1:4", "weight_decay": [0, 1e-3], "b1": np.array([0.8, 0.9])}
    plan = SweepPlan(optimizers="adamw", axes=given)
    assert (plan.optimizers, plan.learning_rates) == (("adamw[weight_decay=0|0.001,b1=0.8|0.9]",), "1e-3:1:4")
    assert SweepPlan.from_dict(plan.to_dict()) == plan
    assert SweepPlan(optimizers="adamw", axes=["b1=0.8"]).optimizers == ("adamw[b1=0.8]",)
    with pytest.raises(OptimizerError, match="should be at least 0 and below 1"):
        load_optimizer(*SweepPlan(optimizers="adamw", axes=["b1=1.2"]).optimizers)


def test_a_grid_has_every_combination_and_the_learning_rate_changes_fastest():
    plan = SweepPlan(optimizers=("sgd", "adam[b1=0.8|0.9,b2=0.9|0.99|0.999]"), learning_rates=(0.1, 1.0), seeds=2)
    points = plan.points(plan.optimizers[1])
    rows = list(zip(points["b1"], points["b2"], points["learning_rate"]))
    assert rows == [(b1, b2, lr) for b1 in (0.8, 0.9) for b2 in (0.9, 0.99, 0.999) for lr in (0.1, 1.0)]
    assert (plan.trials_of("sgd"), plan.trials_of(plan.optimizers[1])) == (4, 24)
    assert plan.first_trials == [0, 4, 28, 32, 56, 60, 84, 88]
    assert plan.trials == 4 * 28


@pytest.mark.parametrize("kind", ["random", "sobol"])
def test_a_drawn_design_lies_in_the_ranges_and_is_the_same_every_time(kind):
    settings = {"optimizers": "adam[b2=0.9:0.9999:3,eps=1e-8|1e-4]", "learning_rates": "1e-3:1:9", "seeds": 2}
    plan = SweepPlan(**settings, design=f"{kind}:64")
    found = plan.points(plan.optimizers[0])
    assert plan.trials == 4 * 64 * 2
    assert {len(of) for of in found.values()} == {64}
    # Uniform on the axis's scale: of 64 numbers a share's mean is within 4 / sqrt(12 * 64) = 0.14 of 1/2.
    shares = np.log10(found["learning_rate"]) / 3 + 1, (-1 - np.log10(1 - found["b2"])) / 3, found["eps"] == 1e-4
    for share, width in zip(shares, (0.145, 0.145, 0.25)):
        assert share.min() >= 0
        assert share.max() <= 1
        assert abs(share.mean() - 0.5) < width
    np.testing.assert_array_equal(plan.points(plan.optimizers[0])["b2"], found["b2"])
    other = SweepPlan(**settings, design=f"{kind}:64:1").points(plan.optimizers[0])
    assert not np.array_equal(other["b2"], found["b2"])


def test_a_list_of_points_comes_from_a_file_or_from_python(tmp_path):
    rows = ({"learning_rate": 0.1, "b1": 0.9}, {"learning_rate": 1.0, "b1": 0.5})
    file = tmp_path / "points.csv"
    file.write_text("learning_rate,b1\n0.1,0.9\n1,0.5\n")
    for design in (rows, str(file)):
        plan = SweepPlan(optimizers="adam", design=design, seeds=1)
        assert plan.design == rows
        assert plan.learning_rates == (0.1, 1.0)
        assert plan.axis_names == ("b1",)
        assert {name: of.tolist() for name, of in plan.points(plan.optimizers[0]).items()} == {
            "b1": [0.9, 0.5],
            "learning_rate": [0.1, 1.0],
        }
        assert SweepPlan.from_dict(plan.to_dict()) == plan


def test_several_batch_sizes_and_steps_are_an_optimizer_each():
    plan = SweepPlan(optimizers=("sgd", "adam[b1=0.8|0.9]"), batch_size=(16, 64), steps=[100, 300])
    assert plan.optimizers[:4] == tuple(f"sgd[batch_size={b},steps={n}]" for b in (16, 64) for n in (100, 300))
    assert len(plan.optimizers) == 8
    assert plan.axes_of(plan.optimizers[-1])[0].values == (0.8, 0.9)
    own = plan.of("sgd[batch_size=16,steps=100]")
    assert (own.batch_size, own.steps) == (16, 100)
    assert SweepPlan.from_dict(plan.to_dict()) == plan
    assert plan.of("sgd") is plan
    assert SweepPlan(optimizers="sgd", axes=["sgd.batch_size=8|16"]).optimizers == (
        "sgd[batch_size=8]",
        "sgd[batch_size=16]",
    )
    with pytest.raises(PlanError, match="batch_size: need values, each once"):
        SweepPlan(batch_size=(16, 16))
    with pytest.raises(PlanError, match="steps: need a whole number"):
        SweepPlan(steps=(0, 10))


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ("adam[b1=0.9:0.5:3]", "need low below high"),
        ("adam[b1=0.5:0.9]", "need low:high:count"),
        ("adam[b1=0.5:0.9:1]", "2 to 10,000 values"),
        ("adam[b1=0.5:0.9:3:cube]", "no scale 'cube'"),
        ("adamw[weight_decay=0:1:3]", "low should be above 0"),
        ("adam[b1=0.5:1:3]", "high should be below 1"),
        ("adam[b1=0.5|]", "a value is missing"),
        ("adam[b1=0.5|0.5]", "a value is given twice"),
        ("adam[schedule=cosine,warmup=1.5:3.5:3]", "need whole numbers"),
        ("adam[schedule=cosine,warmup=0:2:9]", "has no 9 whole numbers"),
    ],
)
def test_a_bad_axis_gets_one_line(optimizer, words):
    with pytest.raises(OptimizerError, match=words) as caught:
        SweepPlan(optimizers=optimizer)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"axes": ["b3"]}, "should be NAME=VALUES"),
        ({"axes": ["adamm.b1=0.8|0.9"]}, "no 'adamm', did you mean 'adam'"),
        ({"axes": {"learning_rate": "1:0.1:3"}}, "need low below high"),
        ({"design": "gird"}, "did you mean 'grid'"),
        ({"design": "random:many"}, "should be random:N"),
        ({"design": "random:0"}, "at least 1 point"),
        ({"design": "nowhere.csv"}, "No such file"),
        ({"design": [{"b1": 0.9}]}, "no learning_rate"),
        ({"design": [{"learning_rate": 0.1}, {"b1": 0.1}]}, "row 2 has b1"),
        ({"design": [{"learning_rate": "x"}]}, "should be a finite number"),
        ({"design": [{"learning_rate": 0.0}]}, "should be above 0"),
        ({"design": 7}, "need grid"),
    ],
)
def test_a_bad_plan_of_axes_gets_one_line(settings, words):
    with pytest.raises(GradbenchError, match=words) as caught:
        SweepPlan(optimizers=("sgd", "adam"), **settings)
    assert isinstance(caught.value, PlanError | OptimizerError)
    assert len(str(caught.value).splitlines()) == 1


def test_several_dtypes_are_an_optimizer_each_and_the_widest_stands_for_them():
    plan = SweepPlan(optimizers=("sgd", "adam[b1=0.8|0.9]"), dtype="bfloat16, float64")
    assert plan.optimizers[:2] == ("sgd[dtype=bfloat16]", "sgd[dtype=float64]")
    assert (plan.dtype, plan.dtypes) == ("float64", ("bfloat16", "float64"))
    assert plan.of(plan.optimizers[2]).dtype == "bfloat16"
    assert SweepPlan(optimizers="sgd", dtype=["float32"]).optimizers == ("sgd",)
    assert SweepPlan.from_dict(plan.to_dict()) == plan
    with pytest.raises(PlanError, match="did you mean 'bfloat16'"):
        SweepPlan(dtype="float32,bfloat")
    with pytest.raises(PlanError, match="dtype: need values, each once"):
        SweepPlan(dtype=("float32", "float32"))
    with pytest.raises(PlanError, match="outside the range of float32"):
        SweepPlan(dtype="float64,float32", learning_rates=(1e-50,))


def test_branches_are_axes_of_a_wsd_schedule_and_say_the_steps():
    plan = SweepPlan(optimizers=("adam", "sgd[schedule=wsd,warmup=5]"), branch_at="100,400", decay=[0.1, 0.2])
    cooling = "stable=100|400,cooldown=0.1|0.2"
    assert plan.optimizers == (f"adam[schedule=wsd,{cooling}]", f"sgd[schedule=wsd,warmup=5,{cooling}]")
    assert plan.steps == 480
    assert SweepPlan.from_dict(plan.to_dict()) == plan
    assert SweepPlan(optimizers="adam", branch_at=100).optimizers == ("adam[schedule=wsd,stable=100,cooldown=0.2]",)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"decay": 0.1}, "give the steps at which the rates begin to fall"),
        ({"branch_at": "100,100"}, "need values, each once"),
        ({"branch_at": [100.5]}, "need a whole number"),
        ({"branch_at": 100, "decay": "half"}, "need shares of the steps before"),
        ({"branch_at": 100, "steps": 50}, "say how long trials are, 120 steps"),
        ({"branch_at": 100, "optimizers": "adam[schedule=cosine]"}, "schedule is given twice"),
    ],
)
def test_bad_branches_get_one_line(settings, words):
    with pytest.raises(GradbenchError, match=words) as caught:
        SweepPlan(**settings)
    assert len(str(caught.value).splitlines()) == 1


def test_a_number_of_steps_stays_one_when_a_record_has_it_as_a_float():
    text = "adam[schedule=wsd,stable=100|200,cooldown=0.1|0.2]"
    one = concrete(text, {"stable": 200.0, "cooldown": 0.2}, OptimizerError)
    assert one == "adam[schedule=wsd,stable=200,cooldown=0.2]"
    assert load_optimizer(one).spec == one
