"""The plan: one dataclass from the command line, TOML, Python and run.json, and what it refuses."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from gradbench.errors import PlanError
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.specs.rates import log_range, parse_rates
from gradbench.inputs.transfer.written import command_of_pair, read_config


def test_a_plan_survives_json_and_toml(tmp_path):
    plan = SweepPlan(("mlp[hidden=8]",), ("adam",), [0.1, 0.3], seeds=2, batch_size=16, dtype="float64", retire=False)
    assert SweepPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    file = tmp_path / "plan.toml"
    file.write_text('problems = ["mlp[hidden=8]"]\noptimizers = ["adam"]\nlearning_rates = [0.1, 0.3]\n')
    with file.open("a") as out:
        out.write('seeds = 2\nbatch_size = 16\ndtype = "float64"\nretire = false\n')
    assert SweepPlan.from_dict(read_config(file)) == plan


@pytest.mark.parametrize(
    "rates", ["1e-4:10:25", log_range(1e-4, 10, 25), log_range(np.float64(1e-4), np.int64(10), 25)]
)
def test_a_range_is_log_spaced_with_both_ends(rates):
    values = SweepPlan(learning_rates=rates).rates
    assert values[0] == 1e-4
    assert values[-1] == 10
    np.testing.assert_allclose(values, np.geomspace(1e-4, 10, 25), rtol=1e-13)


def test_a_tuple_is_a_range_for_one_version_more_and_says_so():
    with pytest.warns(
        FutureWarning, match=r'"0\.1:1:10" or gradbench\.log_range\(0\.1, 1, 10\).* \[0\.1, 1, 10\]'
    ) as caught:
        plan = SweepPlan(learning_rates=(0.1, 1, 10))
    assert caught[0].filename == __file__
    assert plan == SweepPlan(learning_rates="0.1:1:10")
    assert SweepPlan(learning_rates=(0.1, 1, 10.0)).rates == [0.1, 1.0, 10.0]
    assert SweepPlan(learning_rates=[0.1, 1, 10]).rates == [0.1, 1.0, 10.0]


RANGES_OF_NONE = [(1, 0.1, 5), (0, 1, 5), (0.1, 1, 1), (0.1, 1, 2.5), (0.1, float("nan"), 5), ("a", 1, 5), (None, 1, 5)]


@pytest.mark.parametrize("arguments", RANGES_OF_NONE)
def test_a_range_that_is_none_is_refused(arguments):
    with pytest.raises(PlanError, match="learning rates"):
        log_range(*arguments)


def test_values_keep_their_order():
    assert SweepPlan(learning_rates=parse_rates("0.3,0.1,1")).rates == [0.3, 0.1, 1.0]
    assert SweepPlan(learning_rates=np.array([0.5, 0.25])).rates == [0.5, 0.25]
    assert SweepPlan(learning_rates=[0.1, 1, 5]).rates == [0.1, 1.0, 5.0]
    assert SweepPlan(learning_rates=0.5).rates == [0.5]
    assert SweepPlan.from_dict({"learning_rates": [0.1, 1, 5]}).rates == [0.1, 1.0, 5.0]  # as TOML has it: no range


def test_a_range_of_one_value_is_that_value_however_it_is_written():
    assert SweepPlan(learning_rates=log_range(1, 1, 1)).rates == SweepPlan(learning_rates="1:1:1").rates == [1.0]


def test_numbers_of_numpy_are_numbers():
    plan = SweepPlan(seeds=np.int64(2), steps=np.int32(5), target=np.float32(0.5), learning_rates=[np.float32(0.5)])
    assert plan == SweepPlan(seeds=2, steps=5, target=0.5, learning_rates=[0.5])
    assert json.loads(json.dumps(plan.to_dict()))["seeds"] == 2
    for dtype in (np.dtype("float64"), np.float64, jnp.float64):
        named = SweepPlan(("mlp",), target_loss=np.float32(0.5), dtype=dtype).to_dict()
        assert json.dumps(named) == json.dumps(SweepPlan(("mlp",), target_loss=0.5, dtype="float64").to_dict())
    assert SweepPlan(("mlp",), dtype=[jnp.float32, jnp.bfloat16]).dtypes == ("float32", "bfloat16")
    with pytest.raises(PlanError, match=r"dtype: no 'int32'.* \(float32, float64, bfloat16, float16\)"):
        SweepPlan(("mlp",), dtype=np.int32)


def test_settings_may_be_named_as_the_command_line_s_options_are():
    named = {"problem": "mlp", "optimizer": ["adam"], "lr": "0.1,0.2", "batch-size": 8, "stop-at-target": True}
    plan = SweepPlan(("mlp",), ("adam",), [0.1, 0.2], batch_size=8, stop_at_target=True)
    assert SweepPlan.from_dict(named) == plan
    with pytest.raises(PlanError, match=r"^plan: learning_rates is given twice, here as 'lr'$"):
        SweepPlan.from_dict({"learning_rates": "0.1", "lr": "0.2"})


@pytest.mark.parametrize("name", ["cuda", "rocm"])
def test_jax_s_names_of_a_gpu_are_gpu(name):
    assert SweepPlan(device=name).device == "gpu"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rates": "10:1:5"}, "1:10:5"),
        ({"learning_rates": "0:1:5"}, "above 0"),
        ({"learning_rates": "-1:1:5"}, "above 0"),
        ({"learning_rates": "nan:1:5"}, "above 0"),
        ({"learning_rates": "1:inf:5"}, "finite"),
        ({"learning_rates": "1:2"}, "low:high:count"),
        ({"learning_rates": "1:2:x"}, "low:high:count"),
        ({"learning_rates": "1:2:0"}, "count of at least 2"),
        ({"learning_rates": "a,b"}, "numbers with commas"),
        ({"learning_rates": ","}, "none given"),
        ({"learning_rates": [0.0]}, "above 0"),
        ({"learning_rates": [float("nan")]}, "above 0"),
        ({"learning_rates": [0.1, 0.1]}, "twice"),
        ({"learning_rates": {}}, "got dict"),
        ({"learning_rates": [1e-50]}, "outside the range of float32"),
        ({"learning_rates": "1e-3:1e300:5", "dtype": "bfloat16"}, "outside the range of float32"),
        ({"learning_rates": "1:1.0000001:50"}, "too many to tell apart in float32"),
        ({"problems": 3}, "at least one problem"),
        ({"seeds": -1}, "seeds: need a whole number from 1"),
        ({"seeds": True}, "whole number"),
        ({"steps": 0}, "steps: need a whole number from 1"),
        ({"steps": 1.5}, "whole number"),
        ({"batch_size": 0}, "batch_size"),
        ({"record_points": 1}, "record_points"),
        ({"dtype": "float23"}, "did you mean 'float32'"),
        ({"precision": "hihgest"}, "did you mean 'highest'"),
        ({"device": "gpus"}, "did you mean 'gpu'"),
        ({"target": 0.0}, "between 0 and 1"),
        ({"target": float("nan")}, "between 0 and 1"),
        ({"retire": "yes"}, "true or false"),
        ({"problems": []}, "at least one problem"),
        ({"problems": ["mlp", "mlp"]}, "named twice"),
        ({"seeds": 2**31 - 1}, "trials"),
        ({"stepz": 3}, "did you mean 'steps'"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, words):
    with pytest.raises(PlanError, match=words) as caught:
        SweepPlan.from_dict(settings)
    assert "\n" not in str(caught.value)


def test_a_float64_run_takes_learning_rates_of_its_range():
    assert SweepPlan(learning_rates=[1e-50], dtype="float64").rates == [1e-50]
    assert len(SweepPlan(learning_rates="1:1.0000001:50", dtype="float64").rates) == 50


@pytest.mark.parametrize(("content", "words"), [(b"a = ", "not TOML"), (b"\xff\xfe", "not TOML")])
def test_a_bad_config_file_is_refused(tmp_path, content, words):
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(PlanError, match=words):
        read_config(tmp_path / "bad.toml")
    with pytest.raises(PlanError, match="No such file"):
        read_config(tmp_path / "none.toml")


def test_the_warning_about_a_tuple_names_the_callers_line_through_the_library_too():
    with pytest.warns(FutureWarning, match="log_range") as caught:
        SweepPlan.from_dict({"learning_rates": (0.1, 1, 10)})
    assert caught[0].filename == __file__


def test_what_is_given_is_not_taken_for_a_default():
    """Defaults give way to a race's two optimizers and to the steps of branches; the same values, if given, do not."""
    assert SweepPlan(until="adam<sgd").optimizers == ("adam", "sgd")
    with pytest.raises(PlanError, match="give no others"):
        SweepPlan(until="adam<sgd", optimizers=("sgd", "momentum", "adam"))
    assert SweepPlan(branch_at=(100, 200)).steps == 240
    with pytest.raises(PlanError, match="leave steps out"):
        SweepPlan(branch_at=(100, 200), steps=300)
    assert SweepPlan().steps == 300
    assert command_of_pair(SweepPlan(), "mlp", "adam") == "gradbench run mlp -o adam"


@pytest.mark.parametrize(("problem", "words"), [("himmelblau", " --target-loss -14.77"), ("beale", "")])
def test_the_command_of_a_pair_has_its_own_of_the_targets(problem, words):
    plan = SweepPlan(("beale", "himmelblau"), ("sgd", "adam"), [0.1], targets={"himmelblau": -14.77})
    assert command_of_pair(plan, problem, "sgd", steps=7) == f"gradbench run {problem} -o sgd --lr 0.1 --steps 7{words}"
