"""regress finds what was planted, and nothing where nothing was."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
from synthetic import ENVIRONMENT, make_run

from gradbench.analysis.regress import compare_runs, regress_text
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
    assert verdicts(comparison, "gap to minimum, at lr 1") == {"worse"}


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


def test_a_pair_that_is_gone_or_new_is_a_regression_unless_allowed():
    old, new = make_run(optimizers=["sgd", "adam"]), make_run(optimizers=["sgd", "lion"])
    comparison = compare_runs(old, new)
    found = {row["optimizer"]: row["verdict"] for row in comparison.rows if row["what"] == "pair"}
    assert found == {"adam": "missing", "lion": "added"}
    assert comparison.regressed
    assert "1 missing, 1 added" in regress_text(comparison, "table")
    assert "--allow-missing accepts pairs that only one side has" in regress_text(comparison, "table")
    assert not compare_runs(old, new, allow_missing=True).regressed


def test_unsure_says_what_would_settle_it():
    old, new = make_run(optimizers=["sgd"]), make_run(optimizers=["sgd"], step_seconds=noisy(1.5, 1))
    timings = pa.concat_tables([old.timings.slice(0, 1), new.timings.slice(1, 1)])
    text = regress_text(compare_runs(old, dataclasses.replace(new, timings=timings)), "table")
    assert "time both again with nothing else running (--timing full)" in text
    few = make_run([0.5], 3, ["sgd"]), make_run([0.5], 3, ["sgd"], decay=lambda optimizer, rate: rate / 2)
    [row] = [row for row in compare_runs(*few).rows if row["what"] == "steps to target"]
    assert (row["verdict"], row["hint"]) == ("unsure", "more --seeds in both: 3 trials are too few")


def test_times_have_their_unit_for_people_and_are_seconds_for_machines():
    comparison = compare_runs(make_run(optimizers=["sgd"]), make_run(optimizers=["sgd"]))
    assert "1.04 ms" in regress_text(comparison, "table")
    assert json.loads(regress_text(comparison, "json"))["rows"][0]["old"] == pytest.approx(1.04e-3)


def test_a_record_against_the_median_of_several():
    """One slow record among three hides nothing and accuses nobody."""
    olds = [make_run(step_seconds=noisy(scale, seed)) for seed, scale in ((1, 1.0), (2, 3.0), (3, 1.0))]
    assert verdicts(compare_runs(olds, make_run(step_seconds=noisy(1.0, 4))), "step time") == {"same"}
    assert verdicts(compare_runs(olds[::2], make_run(step_seconds=noisy(1.3, 4))), "step time") == {"slower"}


def test_what_changed_between_records_is_said():
    versions = [
        ENVIRONMENT | {"versions": {"jax": jax}, "git_commit": commit}
        for jax, commit in (("1", "a"), ("2", "a"), ("2", "b"))
    ]
    runs = [
        dataclasses.replace(run, info=run.info | {"environment": of, "id": f"run{k}"})
        for k, (run, of) in enumerate(zip((make_run(), make_run(), make_run()), versions))
    ]
    notes = compare_runs(runs[:2], runs[2]).notes
    assert notes == ["from run0 to run1: jax 1 → 2", "from run1 to run2: git commit a → b"]


def test_a_problem_that_is_another_one_is_said():
    runs = [
        dataclasses.replace(run, info=run.info | {"sources": {"problems": {"quadratic_bowl": {"sha256": text}}}})
        for run, text in ((make_run(), "a"), (make_run(), "b"))
    ]
    assert compare_runs(*runs).notes == ["quadratic_bowl is not the same problem in these records"]
    assert compare_runs(runs[0], runs[0]).notes == []


def test_records_without_timings_are_compared_by_convergence():
    old, new = make_run(), make_run()
    new = dataclasses.replace(new, timings=new.timings.slice(0, 0))
    comparison = compare_runs(old, new)
    assert {row["what"] for row in comparison.rows} == {"steps to target"}
    assert "(--timing full records them)" in comparison.notes[0]


def test_records_without_a_common_pair_say_so():
    with pytest.raises(GradbenchError, match="nothing can be compared: they share no problem and optimizer"):
        compare_runs(make_run(optimizers=["sgd"]), make_run(optimizers=["adam"]))
