"""regress finds what was planted, and nothing where nothing was."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from synthetic import ENVIRONMENT, make_run

from gradbench.analysis.regress import compare_runs
from gradbench.errors import GradbenchError

RATES = tuple(np.geomspace(0.06, 1.0, 8).tolist())


def noisy(scale: float, seed: int) -> list[float]:
    """Nine step times with the noise of a busy machine: 3 %, and now and then half as long again."""
    random = np.random.default_rng(seed)
    return (scale * 1e-3 * (1 + 0.03 * random.random(9) + 0.5 * (random.random(9) < 0.2))).tolist()


def verdicts(comparison, what):
    return {row["verdict"] for row in comparison.rows if row["what"].startswith(what)}


def test_a_planted_slowdown_of_15_percent_is_found():
    comparison = compare_runs(make_run(step_seconds=noisy(1.0, 1)), make_run(step_seconds=noisy(1.15, 2)))
    assert comparison.regressed
    assert verdicts(comparison, "step time") == {"slower"}
    assert verdicts(comparison, "steps to target") == {"same"}


def test_ten_noisy_runs_of_the_same_raise_no_alarm():
    old = make_run(step_seconds=noisy(1.0, 0))
    assert not any(compare_runs(old, make_run(step_seconds=noisy(1.0, seed))).regressed for seed in range(1, 11))


def test_a_slowdown_under_the_floor_is_no_regression():
    old, new = make_run(step_seconds=noisy(1.0, 1)), make_run(step_seconds=noisy(1.15, 2))
    assert not compare_runs(old, new, max_slowdown=1.3).regressed


def test_ten_pairs_of_records_whose_processes_differ_raise_no_alarm():
    """Each timing of a record is off by its own factor, up to 1.5, as on a machine that others use as well."""
    names = ["sgd", "adam", "momentum", "lion", "adamw"]

    def disturbed(seed):
        run, random = make_run(optimizers=names), np.random.default_rng(seed)
        rows = run.timings.to_pylist()
        for row in rows:
            row["step_s_samples"] = noisy(1.5 ** random.random(), int(random.integers(1 << 30)))
        return dataclasses.replace(run, timings=pa.Table.from_pylist(rows, schema=run.timings.schema))

    assert not any(compare_runs(disturbed(2 * k), disturbed(2 * k + 1)).regressed for k in range(10))


def test_a_slowdown_seen_in_one_mode_only_is_unsure():
    old, new = make_run(optimizers=["sgd"]), make_run(optimizers=["sgd"], step_seconds=noisy(1.5, 1))
    timings = pa.concat_tables([old.timings.slice(0, 1), new.timings.slice(1, 1)])
    comparison = compare_runs(old, dataclasses.replace(new, timings=timings))
    assert verdicts(comparison, "step time") == {"same", "unsure"}
    assert not comparison.regressed


def test_a_faster_run_is_called_faster():
    comparison = compare_runs(make_run(step_seconds=noisy(1.3, 1)), make_run(step_seconds=noisy(1.0, 2)))
    assert verdicts(comparison, "step time") == {"faster"}
    assert not comparison.regressed


@pytest.mark.parametrize(("factor", "expected"), [(0.7, "worse"), (1.0, "same"), (1.4, "better")])
def test_convergence_is_compared_by_steps_to_the_target(factor, expected):
    old = make_run(RATES, optimizers=["sgd"], steps=400)
    new = make_run(RATES, optimizers=["sgd"], steps=400, decay=lambda optimizer, rate: factor * rate)
    comparison = compare_runs(old, new)
    assert verdicts(comparison, "steps to target") == {expected}
    assert comparison.regressed == (expected == "worse")


def test_diverging_where_it_converged_is_worse():
    new = make_run(RATES, optimizers=["sgd"], decay=lambda optimizer, rate: -rate)
    row = compare_runs(make_run(RATES, optimizers=["sgd"]), new).rows[-1]
    assert (row["verdict"], row["ratio"]) == ("worse", np.inf)


def test_where_no_trial_reaches_the_target_final_gaps_are_compared():
    far = lambda factor: make_run(RATES, optimizers=["sgd"], decay=lambda optimizer, rate: factor * rate / 100)  # noqa: E731
    comparison = compare_runs(far(1.0), far(0.3))
    assert verdicts(comparison, "final gap") == {"worse"}


def test_step_times_of_different_devices_are_not_compared():
    old, new = make_run(), make_run(step_seconds=noisy(9.0, 1))
    new = dataclasses.replace(new, info=new.info | {"environment": ENVIRONMENT | {"device_kind": "another"}})
    comparison = compare_runs(old, new)
    assert not verdicts(comparison, "step time")
    assert "device_kind a chip → another" in comparison.notes[0]


def test_nothing_comparable_is_an_error_of_exit_code_2():
    with pytest.raises(GradbenchError, match="nothing can be compared") as caught:
        compare_runs(make_run(problems=["mlp"]), make_run(problems=["linear_regression"]))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("floor", [0.5, float("inf"), float("nan")])
def test_a_senseless_floor_is_refused(floor):
    with pytest.raises(GradbenchError, match="max_slowdown"):
        compare_runs(make_run(), make_run(), max_slowdown=floor)
