"""Where a number changed over records whose changes are known."""

import dataclasses
import math

import numpy as np
import pytest
from synthetic import make_run

from gradbench.archive.history import STEPS, Change, bars, history, history_text, load_runs
from gradbench.errors import RecordError

TIME = "step time, solo"


def records(times, speeds=None, **settings):
    """One record per day, one for each step time in ms, with samples 1 % apart; `speeds`: sgd's decay over its rate."""
    rng, made = np.random.default_rng(0), []
    for day, (time, speed) in enumerate(zip(times, speeds or [1.0] * len(times)), 1):
        samples = time * 1e-3 * (1 + 0.01 * rng.standard_normal(12))
        name = f"202601{day:02}T000000Z-abcdef"
        run = make_run(
            [0.01, 0.02, 0.05, 0.1, 0.2, 0.4],
            optimizers=["sgd"],
            steps=2000,
            step_seconds=samples,
            identifier=name,
            decay=lambda optimizer, rate, speed=speed: speed * rate,
            **settings,
        )
        place = run.info["environment"] | {"git_commit": f"{day:040}"}
        info = run.info | {"started": f"2026-01-{day:02}T00:00:00Z", "environment": place}
        made.append(dataclasses.replace(run, info=info))
    return made


def row(found, what):
    [row] = [row for row in found.rows if row["what"] == what]
    return row


def test_a_slowdown_is_dated_to_the_record_it_came_with():
    found = history(records([1, 1, 1, 1, 1.5, 1.5, 1.5]))
    [change] = row(found, TIME)["changes"]
    assert change == "1.5× slower since 2026-01-05 (000000000000)" or change.startswith("1.5")
    assert "2026-01-05" in change
    assert "one record" not in change
    assert row(found, STEPS)["changes"] == []
    [point] = [point for point in found.points if point["change"]]
    assert point["started"] == "2026-01-05T00:00:00Z"


def test_each_of_two_changes_is_found_against_what_was_before_it():
    changes = row(history(records([1, 1, 1, 2, 2, 2, 1.2, 1.2, 1.2])), TIME)["changes"]
    assert ["2026-01-04" in changes[0], "slower" in changes[0]] == [True, True]
    assert ["2026-01-07" in changes[1], "faster" in changes[1]] == [True, True]
    assert len(changes) == 2


def test_one_slow_record_between_others_is_no_change():
    assert row(history(records([1, 1, 1, 1.5, 1, 1])), TIME)["changes"] == []


def test_the_last_record_alone_is_said_to_be_alone():
    [change] = row(history(records([1, 1, 1, 1.5])), TIME)["changes"]
    assert change.endswith("so far one record")


def test_worse_convergence_is_dated():
    """Twice the steps from the fourth record on, at all six learning rates and three seeds."""
    [change] = row(history(records([1] * 6, [1, 1, 1, 0.5, 0.5, 0.5])), STEPS)["changes"]
    assert "2026-01-04" in change
    assert "worse" in change


def test_a_target_that_is_no_longer_reached_has_no_ratio():
    [run] = records([1])
    assert str(Change(run, "worse", math.inf, True)) == "not reached any more since 2026-01-01 (000000000000)"
    assert str(Change(run, "better", 0.0, True)).startswith("reached now since")


def test_a_problem_that_is_another_one_is_said():
    runs = [
        dataclasses.replace(run, info=run.info | {"sources": {"problems": {"quadratic_bowl": {"sha256": text}}}})
        for run, text in zip(records([1, 1, 1]), "aab")
    ]
    assert history(runs).notes == ["quadratic_bowl is not the same problem in these records"]
    assert history(runs[:2]).notes == []


def test_records_of_another_machine_are_another_line():
    here, there = records([1, 1, 1]), records([2, 2, 2])
    there = [dataclasses.replace(r, info=r.info | {"environment": {"device_kind": "another"}}) for r in there]
    found = history([*here, *there])
    assert {row["device"] for row in found.rows} == {"a chip", "another"}
    assert all(row["changes"] == [] for row in found.rows)


def test_steady_noise_is_seldom_a_change():
    """5 histories of 12 records, each of whose times is up to 5 % off: under the floor of 10 %, none is a change."""
    rng = np.random.default_rng(1)
    times = 1 + 0.05 * rng.uniform(-1, 1, (5, 12)) / 1.05
    assert all(row(history(records(list(of))), TIME)["changes"] == [] for of in times)


def test_bars_rise_with_the_values_and_lie_flat_for_noise():
    assert bars([1, 10, 100]) == "▁▅█"
    assert set(bars([1, 1.001, 1.002])) == {"▁"}


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(RecordError, match="no complete records here"):
        load_runs(tmp_path)


def test_records_without_numbers_say_so_in_the_place_of_a_header():
    run = make_run([0.001], steps=10)
    found = history([dataclasses.replace(run, timings=run.timings.slice(0, 0))])
    assert history_text(found, "table") == "Note: no pair has steps to a target or step times."
    header, *rows = history_text(found, "csv").splitlines()
    assert rows == []
    assert header.split(",") == list(history(records([1])).points[0])
