"""Sweeps whose right answer is known: the word for each learning rate, the best one, the good range, the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from quick import observe

from gradbench import Problem
from gradbench.analysis.answers import pair_notes, pair_sentence, rate_row, run_table
from gradbench.analysis.settings.comparison import compare_text
from gradbench.analysis.summary import summarise, summarise_all
from gradbench.analysis.verdicts import Reference, judged, reference, verdicts
from gradbench.engine import events as ev
from gradbench.errors import PlanError
from gradbench.inputs.plan import SweepPlan
from gradbench.record.schema import SCHEMAS

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def of(loss, start=(1.0,), data=None, **facts: Any) -> Problem:
    start = np.asarray(start, np.float32)
    return Problem(lambda key: jnp.asarray(start), loss, data=data, name="mine", **facts)


def square(**facts: Any) -> Problem:
    """x² from 1: a step multiplies x by 1 - 2 rate, and the loss by its square."""
    return of(lambda p, _: jnp.sum(p**2), **facts)


def regression(noise: float, examples: int = 256) -> Problem:
    """Mean squared error of 8 weights from 0; the labels have this much noise, and `minimum` is not stated."""
    generator = np.random.default_rng(3)
    x = generator.normal(size=(examples, 8)).astype(np.float32)
    y = x @ generator.normal(size=8) + noise * generator.normal(size=examples)
    return of(lambda w, d: jnp.mean((d[0] @ w - d[1]) ** 2), np.zeros(8), (x, y.astype(np.float32)), examples=examples)


def one_direction(noise: float) -> Problem:
    """(p - y)² / 2 of one number p: curvature 1; with minibatches of one example the gradient is off by the noise."""
    y = noise * np.random.default_rng(5).normal(size=64).astype(np.float32)
    return of(lambda p, d: jnp.mean((p - d) ** 2) / 2, [20.0], y - y.mean(), examples=64)


@dataclass(frozen=True)
class Case:
    problem: Problem
    rates: list[float]
    words: list[str]
    best: float | None
    good: tuple[float, float] | None
    kind: str = "minimum"
    open_end: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


BATCHES = {"batch_size": 16, "steps": 800}
CASES = {
    "ties at the rounding floor": Case(  # 0.64**100 = 4e-20 of the first gap at both ends, 0 in the middle
        square(minimum=0.0), [0.1, 0.5, 0.9], ["converged"] * 3, 0.5, (0.1, 0.9)
    ),
    "slow": Case(square(minimum=0.0), [1e-4, 3e-4, 1e-3], ["slow"] * 3, 1e-3, (1e-3, 1e-3), open_end="highest"),
    "best at the lowest": Case(
        square(minimum=0.0),
        [0.95, 0.99, 1.5],
        ["converged", "overshoots", "diverged"],
        0.95,
        (0.95, 0.95),
        open_end="lowest",
    ),
    "all diverge": Case(square(minimum=0.0), [1.5, 3.0, 9.0], ["diverged"] * 3, None, None),
    "all end above their start": Case(  # 1.002**200 = 1.5: far from infinite
        square(minimum=0.0), [1.001, 1.002], ["diverged"] * 2, None, None
    ),
    "all end above their start, the best loss found": Case(
        square(), [1.001, 1.002], ["diverged"] * 2, None, None, "best found"
    ),
    "no more than held": Case(  # at 2 / L it jumps from side to side for good
        square(minimum=0.0), [1.0, 1.5], ["overshoots", "diverged"], None, None
    ),
    "below zero": Case(
        of(lambda p, _: jnp.sum(p**2) - 100, [1.0, 1.0]),
        [1e-4, 0.1, 0.4, 1.2],
        ["slow", "converged", "converged", "diverged"],
        0.4,
        (0.1, 0.4),
        "best found",
    ),
    "flat start": Case(
        of(lambda p, _: jnp.sum(jax.nn.relu(p)) + 1.0, [-1.0]), [0.1, 1.0], ["stalled"] * 2, None, None, "best found"
    ),
    "not finite at the start": Case(
        of(lambda p, _: jnp.sum(jnp.log(p)), [-1.0]), [0.1, 1.0], ["diverged"] * 2, None, None, "best found"
    ),
    "a hump on the way": Case(  # adam swings up 1e6 times its first loss on the way down: no scale for that is known
        of(lambda p, _: 0.5 * (p[0] - 1) ** 2 - 0.5 + 500 * p[1] ** 2, [0.0, 1e-4]),
        [0.01, 0.1, 0.3],
        ["converged"] * 3,
        0.1,
        (0.01, 0.3),
        "best found",
        settings={"steps": 300, "optimizer": "adam"},
    ),
    "another minimum": Case(  # p⁴ - p² + p / 4 has a minimum of 0.076 at 0.63 and one of -0.51 at -0.76
        of(lambda p, _: jnp.sum(p**4 - p**2 + p / 4), minimum=-0.5147), [0.03, 0.1], ["stalled"] * 2, 0.03, (0.03, 0.1)
    ),
    "a target not reached": Case(square(target=-1.0), [0.1, 0.5], ["stalled"] * 2, 0.1, (0.1, 0.5), "target"),
    "a target reached": Case(
        square(target=0.01), [1e-3, 0.1, 0.4], ["slow", "converged", "converged"], 0.4, (0.4, 0.4), "target", "highest"
    ),
    "a minimum that is none": Case(
        square(minimum=0.5),
        [1e-3, 0.1, 0.4],
        ["slow", "converged", "converged"],
        0.4,
        (0.1, 0.4),
        "best found",
        "highest",
    ),
    "at the minimum from the start": Case(
        of(lambda p, _: jnp.sum(p**2), [0.0], minimum=0.0), [0.1, 0.4], ["converged"] * 2, 0.1, (0.1, 0.4)
    ),
    "noisy labels, all the data": Case(
        regression(2.0),
        [1e-4, 0.03, 0.1],
        ["slow", "converged", "converged"],
        0.1,
        (0.03, 0.1),
        "best found",
        "highest",
        {"steps": 400},
    ),
    "a noise floor of minibatches": Case(  # the smallest has the least noise
        regression(8.0), [0.01, 0.03, 0.1], ["stalled"] * 3, 0.01, (0.01, 0.03), "best found", "lowest", BATCHES
    ),
    "still going down under noise": Case(
        regression(2.0), [3e-5, 1e-4], ["slow"] * 2, 1e-4, (1e-4, 1e-4), "best found", "highest", BATCHES
    ),
    "no noise in minibatches": Case(  # all agree at the solution, which is reached as with all the data
        regression(0.0), [0.03, 0.1], ["converged"] * 2, 0.1, (0.03, 0.1), "best found", "highest", BATCHES
    ),
    "noise in one direction": Case(  # a step of rate 0.5 goes half the way to the lowest point
        one_direction(1.0),
        [0.5, 1.9],
        ["stalled", "overshoots"],
        0.5,
        (0.5, 0.5),
        "best found",
        "lowest",
        {"batch_size": 1, "steps": 640},
    ),
}


def test_a_gradient_that_is_not_a_number_is_said_not_lower_rates(sweep, tmp_path):
    """sqrt(p - 100) is in the branch that `where` does not take."""
    loss = "lambda p, _: jnp.sum(jnp.where(p > 100, jnp.sqrt(p - 100), p**2))"
    made = f"gradbench.Problem(lambda key: jnp.ones(2), {loss})"
    (tmp_path / "own.py").write_text(f"import gradbench\nimport jax.numpy as jnp\ndef problem():\n    return {made}\n")
    run = sweep(str(tmp_path / "own.py"), ["sgd"], [0.1, 1.0], seeds=1, steps=5)
    [note] = pair_notes(run, list(summarise(run)))
    says = "the gradient at the start is not a number, at any learning rate; go on with: gradbench check"
    assert note == f"{tmp_path / 'own.py'} × sgd: {says} {tmp_path / 'own.py'}"


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("name", CASES)
def test_the_answer_is_the_known_one(sweep, name):
    case = CASES[name]
    settings = {"seeds": 1, "steps": 100, "optimizer": "sgd"} | case.settings
    run = sweep(case.problem, [settings.pop("optimizer")], case.rates, **settings)
    [pair] = summarise(run)
    assert [rate.verdict for rate in pair.rates] == case.words
    assert run.trials["verdict"].to_pylist() == case.words
    assert (pair.best and pair.best.learning_rate) == case.best
    assert pair.good == case.good
    assert pair.reference.kind == case.kind
    assert pair.open_end == case.open_end


def test_noisy_losses_are_judged_by_the_line_through_them():
    """The sums of the device against numpy's fit and scipy's t; drops of a falling and of a flat noisy loss."""
    steps, stride, rows = 900, 10, 91
    generator = np.random.default_rng(11)
    at = np.minimum(stride * np.arange(rows), steps)
    loss = np.stack([5 - at / 300 + generator.normal(0, 0.1, rows), 3 + generator.normal(0, 0.1, rows)], axis=1)
    loss[0] = 9.0
    loss = loss.astype(np.float32)
    config = ev.ObservationConfig(steps, stride, math.nan, math.nan, 1e-4, False, True)
    events, first = jax.device_put(ev.blank(2, np.dtype("float32"))), np.zeros(2, np.int32)
    wanted = np.zeros((7, 1), np.int32)
    for part in np.split(loss, 7):
        seen = ev.Observation(part, part, np.full_like(part, 0.5))
        events, first, _ = observe()(events, seen, first, config.arrays(np.dtype("float32")), wanted)
    found = ev.last_part(ev.Events(*map(np.asarray, events)), config)
    half, quarter = loss[at > steps // 2].astype(float), loss[at > 0.75 * steps].astype(float)
    fits = [scipy.stats.linregress(np.arange(len(half)), half[:, k]) for k in (0, 1)]
    rows_per_quarter = 0.25 * steps / stride
    np.testing.assert_allclose(found["tail_drop"], [-fit.slope * rows_per_quarter for fit in fits], rtol=1e-4)
    quantile = scipy.stats.t.ppf(0.99, len(half) - 2)
    # 26.7.5 cut after two terms is within 1e-3 of the quantile at 43 degrees of freedom
    np.testing.assert_allclose(
        found["tail_drop_error"], [quantile * fit.stderr * rows_per_quarter for fit in fits], rtol=2e-3
    )
    np.testing.assert_allclose(found["smoothed_loss"], quarter.mean(axis=0), rtol=1e-5)
    assert found["tail_drop"][0] > found["tail_drop_error"][0]
    assert found["tail_drop"][1] < found["tail_drop_error"][1]


def test_a_flat_noisy_loss_is_called_slow_in_one_of_a_hundred_cases():
    """tail_drop_error's promise, over 4,000 flat losses: 1 % ± 3 binomial standard deviations (0.5 %)."""
    steps, count = 64, 4000
    loss = 1 + np.random.default_rng(2).normal(0, 0.1, (steps + 1, count)).astype(np.float32)
    config = ev.ObservationConfig(steps, 1, math.nan, math.nan, 1e-4, False, True)
    events = jax.device_put(ev.blank(count, np.dtype("float32")))
    seen, first = ev.Observation(loss, loss, np.zeros_like(loss)), np.zeros(count, np.int32)
    events, _, _ = observe()(events, seen, first, config.arrays(np.dtype("float32")), np.zeros((1, 1), np.int32))
    found = ev.last_part(ev.Events(*map(np.asarray, events)), config)
    assert 0.005 < (found["tail_drop"] > found["tail_drop_error"]).mean() < 0.015


def columns(**values: float) -> dict[str, np.ndarray]:
    base = {"initial_loss": 1.0, "final_loss": 0.5, "best_loss": 0.5, "steps_to_target": math.nan, "tail_overshot": 0.0}
    base |= {"smoothed_loss": math.nan, "tail_drop": 0.0, "tail_drop_error": math.nan, "diverged_at": math.nan}
    return {name: np.array([value]) for name, value in (base | values).items()}


@pytest.mark.parametrize(
    ("word", "minimum", "values"),
    [
        ("converged", 0.0, {"steps_to_target": 30}),
        ("diverged", 0.0, {"steps_to_target": 30, "diverged_at": 50}),
        ("diverged", 0.0, {"final_loss": 1.01}),
        ("stalled", 0.0, {"final_loss": 1.0001}),  # half of float32's digits
        ("overshoots", 0.0, {"tail_overshot": 0.4}),
        ("stalled", 0.0, {"tail_overshot": 0.39}),
        ("slow", 0.0, {"tail_drop": 0.006}),  # 1.2 % of what is left
        ("stalled", 0.0, {"tail_drop": 0.002}),
        ("slow", 0.4999, {"tail_drop": 0.002}),  # nearly all of what is left
        ("slow", 0.0, {"final_loss": 0.9999999, "best_loss": 0.9999999, "tail_drop": 2e-8}),  # tiny, as fast as ever
        ("stalled", 0.0, {"best_loss": 1.0, "final_loss": 1.0}),
        ("overshoots", 0.0, {"smoothed_loss": 0.5, "tail_overshot": 0.67}),
        ("stalled", 0.0, {"smoothed_loss": 0.5, "tail_overshot": 0.65}),
        ("stalled", 0.0, {"smoothed_loss": 0.5, "tail_drop": 0.1, "tail_drop_error": 0.11}),
        ("slow", 0.0, {"smoothed_loss": 0.5, "tail_drop": 0.1, "tail_drop_error": 0.09}),
        ("diverged", 0.0, {"smoothed_loss": 1.1, "final_loss": 0.9}),
    ],
)
def test_each_word_by_its_numbers(word, minimum, values):
    assert verdicts(columns(**values), Reference("minimum", minimum), "float32") == [word]


def test_a_record_from_before_the_last_quarter_was_kept_reads_on():
    """Its words stand, but for trials above their start and those at the best loss found."""
    base = dict.fromkeys(SCHEMAS["trials"].names) | {
        "problem": "p",
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "seed": 0,
    }
    keys = ("trial", "verdict", "initial_loss", "final_loss", "best_loss", "steps_run")
    rows = [(0, "overshoots", 2.0, 1.5, 1.5, 9), (1, "slow", 2.0, 2.5, 1.9, 9), (2, "slow", 2.0, 1.0, 1.0, 9)]
    table = pa.Table.from_pylist([base | dict(zip(keys, row)) for row in rows], schema=SCHEMAS["trials"])
    points = [
        {"trial": 2, "step": step, "loss": loss, "grad_norm": 0.0} for step, loss in ((0, 2.0), (5, 1.0), (9, 1.0))
    ]
    curves = pa.Table.from_pylist(points, schema=SCHEMAS["curves"])
    found = judged(table, curves, reference(table), 1e-4, "float32")
    assert found["verdict"].to_pylist() == ["overshoots", "diverged", "converged"]
    assert found["steps_to_target"].to_pylist() == [None, None, 5]


def test_several_records_are_judged_against_one_reference(sweep):
    """The second finds a lower loss, beside which the first's best is no longer converged."""
    problem = square()
    runs = [sweep(problem, ["sgd"], rates, seeds=1, steps=30) for rates in ([0.01, 0.02], [0.02, 0.3])]
    assert [rate.verdict for rate in summarise(runs[0])[0].rates] == ["slow", "slow"]
    (first,), (second,) = summarise_all(runs)
    assert first.reference == second.reference == Reference("best found", second.best.loss_median, 1)
    assert second.best.verdict == "converged"
    text = compare_text(runs, "markdown", 2.0)
    names = [run.id.rpartition("-")[2] for run in runs]
    head = next(line for line in text.split("\n") if "learning rate" in line)
    assert all(f"{name}: {word}" in head for name in names for word in ("verdict", "final loss", "final gap"))
    [row] = [line for line in text.split("\n") if line.startswith("| 0.02 |")]
    assert row.count("slow") == 2


@pytest.mark.thorough
def test_a_target_loss_is_what_counts_as_converged(sweep):
    run = sweep(square(), ["sgd"], [0.001, 0.1], seeds=1, steps=50, target_loss=0.5)
    # 0.998**2n is 0.5 at n = 173, 0.64**n at 1.55: the second step is the first under it
    assert run.trials["verdict"].to_pylist() == ["slow", "converged"]
    assert run.trials["steps_to_target"].to_pylist() == [None, 2]
    assert summarise(run)[0].reference == Reference("target", 0.5)
    known = sweep(square(minimum=0.0), ["sgd"], [0.1], seeds=1, steps=50, target_loss=0.5)
    assert known.trials["steps_to_target"].to_pylist() == [2]
    assert summarise(known)[0].reference == Reference("minimum", 0.0)


def test_equals_differ_by_less_than_what_is_told_apart(sweep):
    # At 0.01 the loss ends at 0.98**200 = 0.018, at 0.5 at 0: of a first gap of 1e6 that is 1.8e-8, which float32 does
    # not tell apart. Of one of 11, after 10 steps, 0.8**20 (0.1) is 0.1 % and 0.98**20 (0.01) is 6 %
    near = summarise(sweep(square(minimum=-1e6), ["sgd"], [0.01, 0.5], seeds=1, steps=100))[0]
    assert len(near.ties) == 1
    target = summarise(sweep(square(target=-10.0), ["sgd"], [0.01, 0.1, 0.5], seeds=1, steps=10))[0]
    assert [rate.learning_rate for rate in target.ties] == [0.1]


def test_where_a_loss_without_bound_hides_what_others_gain_that_is_said(sweep):
    # sgd at 1 triples the parameter at each step, to a loss of -1.5e38; adam at 1e-3 ends at -1.1
    run = sweep(of(lambda p, _: -jnp.sum(p**2)), ["sgd", "adam"], [1e-3, 1.0], seeds=1, steps=40)
    adam = summarise(run)[1]
    assert adam.rates[0].loss_median < adam.initial_loss
    assert pair_sentence(adam) == "mine × adam: no learning rate works: none comes nearer to the best loss found"


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (square(minimum=0.0), "as good as the best"),
        (square(target=-10.0), "within 1 % of the best"),
    ],
)
def test_a_tie_is_named_by_what_is_told_apart(sweep, problem, words):
    # 1 - 2 × rate is 0.2 and -0.2
    pair = summarise(sweep(problem, ["sgd"], [0.4, 0.6], seeds=1, steps=100))[0]
    assert [rate_row(rate, pair)["mark"] for rate in pair.ties] == [words]


def test_one_target_loss_is_for_one_problem():
    with pytest.raises(PlanError, match="one loss is for one problem; this plan has 4"):
        SweepPlan(target_loss=0.3)


@pytest.mark.thorough
def test_what_the_tables_cannot_say_stands_below_them(sweep):
    run = sweep("quadratic_bowl[dim=1]", ["sgd"], [1e-4, 1e-3], seeds=1, steps=10)
    [pair] = summarise(run)
    assert "best at learning rate 0.001, the highest tried, where it" in pair_sentence(pair)
    go_on = "gradbench run 'quadratic_bowl[dim=1]' -o sgd --lr 0.001:0.1:5 --seeds 1 --steps 10"
    for text in (run_table(run, "table"), compare_text(run, "table", 2.0)):
        note = "Note: quadratic_bowl[dim=1] × sgd: the best learning rate is the highest tried; go on with:"
        assert f"{note}\n  {go_on}" in text
    wide = sweep("quadratic_bowl[dim=1]", ["sgd"], [0.1, 0.5, 0.9], seeds=1, steps=100)
    assert "at no learning rate tried do most seeds diverge; go on with:" in compare_text(wide, "table", 2.0)
    assert "Note" not in run_table(wide, "table")
    wrong = sweep(square(minimum=0.5), ["sgd"], [0.1], seeds=1, steps=100)
    assert "Note: mine states the minimum 0.5, but trial 0 reached" in run_table(wrong, "table")
    none = sweep(square(minimum=0.0), ["sgd"], [1.5, 3.0], seeds=1, steps=100)
    assert pair_sentence(summarise(none)[0]) == "mine × sgd: no learning rate works: all diverge"
    assert "none works: all diverge" in run_table(none, "table")
    text = "mine × sgd: even the lowest learning rate tried diverges; go on with:"
    assert f'Note: {text}\n  learning_rates="0.015:1.5:8"' in run_table(none, "table")
    slow = sweep("quadratic_bowl[dim=1]", ["sgd"], [1e-5, 2e-5, 1.5], seeds=1, steps=10)
    more = "gradbench run 'quadratic_bowl[dim=1]' -o sgd --lr 1e-05,2e-05,1.5 --seeds 1 --steps 100"
    assert f"every learning rate is still going down, or diverges; go on with:\n  {more}" in run_table(slow, "table")
    broken = sweep(CASES["not finite at the start"].problem, ["sgd"], [0.1], seeds=1, steps=10)
    assert "go on" not in run_table(broken, "table")
    solved = sweep(square(), ["sgd"], [0.1], seeds=1, steps=10, target_loss=5.0)
    text = "mine × sgd: starts at 1, no higher than the target loss, 5: it is reached before the first step"
    assert f"Note: {text}." in run_table(solved, "table")
