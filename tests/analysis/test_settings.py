"""Which axes matter, which of their values are good and how the best rate moves, on sweeps whose answer is known."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import scipy.stats
from synthetic import make_run

from gradbench.analysis.settings.comparison import RecordComparison, compare_text
from gradbench.analysis.settings.effects import MAX_BINS, effects
from gradbench.analysis.settings.tables import edge_notes, family_notes, moves
from gradbench.analysis.summary import summarise
from gradbench.errors import OptimizerError
from gradbench.inputs.specs.axis import axes_of
from gradbench.inputs.specs.spec import parse_spec

RATES = (0.01, 0.1, 1.0)


def pair_of(optimizer, decay, rates=RATES, **settings):
    run = make_run(rates, settings.pop("seeds", 1), [optimizer], decay=decay, **settings)
    [pair] = summarise(run)
    return run, pair


def test_axes_that_add_up_share_the_variance_and_nothing_is_left_to_pairs():
    # The gap's logarithm is -steps × speed; the variances of 0.01 (0, 1, 2) and 0.03 (0, 1) are 2/3 and 9/4 of 1e-4.
    place = {0.01: 0, 0.1: 1, 1.0: 2}
    _, pair = pair_of(
        "sgd[momentum=0.5|0.9]", lambda _, rate, momentum: 0.02 + 0.01 * place[rate] + 0.03 * (momentum == 0.9)
    )
    found = effects(pair)
    assert found.exact
    assert found.interactions == {}
    assert [effect.name for effect in found.axes] == ["learning_rate", "momentum"]
    shares = [effect.share for effect in found.axes]
    np.testing.assert_allclose(shares, np.array([2 / 3, 9 / 4]) / (2 / 3 + 9 / 4), rtol=1e-9)
    assert [effect.best for effect in found.axes] == [1.0, 0.9]


def test_what_neither_axis_explains_alone_is_their_interaction():
    _, pair = pair_of(
        "sgd[momentum=0.5|0.9]",
        lambda _, rate, momentum: 0.05 + 0.02 * (1 if (rate == 0.1) == (momentum == 0.9) else -1),
        rates=(0.1, 1.0),
    )
    found = effects(pair)
    np.testing.assert_allclose([effect.share for effect in found.axes], 0, atol=1e-12)
    assert found.interactions == {("learning_rate", "momentum"): pytest.approx(1)}


@pytest.mark.parametrize("seed", range(3))
def test_an_axis_that_does_nothing_explains_no_more_than_chance_does_in_a_drawn_design(seed):
    _, pair = pair_of(
        "sgd[momentum=0:0.99:5]",
        lambda _, rate, momentum: 0.02 + 0.01 * math.log10(rate) ** 2,
        rates="1e-3:1:9",
        design=f"random:200:{seed}",
        seeds=1,
    )
    found = effects(pair)
    rate, momentum = (effect.share for effect in found.axes)
    # By chance groups share SSB / SST ~ Beta((k - 1) / 2, (N - k) / 2).
    assert momentum < scipy.stats.beta.ppf(0.999, (MAX_BINS - 1) / 2, (200 - MAX_BINS) / 2)
    assert not found.exact
    # 8 bins of a parabola's 3 decades leave at most (width / 2)² of it inside: 95 % is between them.
    assert rate > 0.9


def test_the_good_values_of_each_axis_are_those_at_the_others_best():
    speeds = {0.5: 0.1, 0.8: 0.19, 0.9: 0.2}  # steps to the target of exp(-9.2): 93, 49, 47
    _, pair = pair_of("sgd[momentum=0.5|0.8|0.9]", lambda _, rate, momentum: speeds[momentum] * rate, rates=(0.1, 1.0))
    good = {effect.name: effect.good for effect in effects(pair, factor=1.5).axes}
    assert good == {"learning_rate": (1.0, 1.0), "momentum": (0.8, 0.9)}


def ridge(exponent):
    """Best where log rate = exponent × log weight_decay - 1, falling off to both sides."""

    def decay(_, rate, weight_decay):
        return 0.1 / (1 + (math.log(rate) - exponent * math.log(weight_decay) + 1) ** 2)

    return decay


@pytest.mark.parametrize("exponent", [-1.0, 0.5])
def test_the_best_rate_is_seen_to_move_along_an_axis(exponent):
    run, pair = pair_of("adamw[weight_decay=1e-2:1:5]", ridge(exponent), rates="1e-4:1e4:65", seeds=3)
    [move] = moves(run, pair)
    # Bests lie within half a step, log(10) / 16, of the ridge: over 5 values along log(100) a slope is within 0.04.
    assert move.exponent == pytest.approx(exponent, abs=0.04)
    assert move.low <= exponent <= move.high
    assert move.high - move.low < 0.2
    assert f"∝ weight_decay^{exponent:g}" in move.words
    assert move.theory is not None


def test_a_best_rate_that_stays_is_not_said_to_move():
    run, pair = pair_of("adamw[weight_decay=1e-2:1:5]", ridge(0.0), rates="1e-3:1e1:33", seeds=3)
    [move] = moves(run, pair)
    assert move.low <= 0 <= move.high
    assert "no move" in move.words


def test_the_best_rate_is_followed_over_pairs_that_differ_in_one_number():
    def decay(optimizer, rate):
        batch = parse_spec(optimizer, OptimizerError).settings["batch_size"]
        return 0.1 / (1 + (math.log(rate) - 0.5 * math.log(batch) + 3) ** 2)

    run = make_run("1e-3:1e1:65", 2, [f"sgd[batch_size={size}]" for size in (8, 32, 128)], decay=decay)
    [note] = family_notes(run, summarise(run))
    found = re.match(r"quadratic_bowl × sgd: best learning rate ∝ batch_size\^(\S+) ", note)
    # Half a step of the grid, log(10) / 32, at each end of log(16).
    assert float(found[1]) == pytest.approx(0.5, abs=math.log(10) / 16 / math.log(16) + 0.005)
    assert "0.5 as the square root" in note


def test_an_axis_whose_best_value_is_its_last_is_said_with_the_command_that_goes_on():
    run, pair = pair_of("adamw[weight_decay=1e-4:1e-2:3]", lambda _, rate, weight_decay: rate * weight_decay)
    [note] = edge_notes(run, pair)
    assert "the best weight_decay is the highest tried" in note
    assert "'adamw[weight_decay=0.01:1:3]'" in note
    run, pair = pair_of("adamw[weight_decay=1e-4:1e-2:3]", lambda _, rate, weight_decay: rate)
    assert edge_notes(run, pair) == []  # all values are equally good


@pytest.mark.parametrize(
    ("text", "end", "further"),
    [
        ("weight_decay=1e-4:1e-2:3", "lowest", "1e-06:0.0001:3"),
        ("b2=0.9:0.999:3", "highest", "0.999:0.99999:3"),
        ("b2=0.9:0.999:3", "lowest", "0:0.9:3"),
        ("b2=0:0.999:3", "lowest", None),
        ("b1=0.5:0.7:3:linear", "highest", "0.7:0.9:3:linear"),
        ("b1=0.5|0.7|0.9", "highest", None),
    ],
)
def test_a_range_goes_on_as_it_is_spaced(text, end, further):
    [axis] = axes_of(f"adam[{text}]", OptimizerError)
    assert axis.beyond(end) == further


def test_compare_shows_the_axes_and_every_point():
    run, _ = pair_of("adamw[weight_decay=1e-2:1:5]", ridge(-1.0), rates="1e-2:1e2:17")
    table = compare_text(run, "table", 2.0)
    assert "axes of quadratic_bowl × adamw[weight_decay=1e-2:1:5]" in table
    assert "best learning rate ∝ weight_decay^" in table
    found = json.loads(compare_text(run, "json", 2.0))
    assert [row["axis"] for row in found["axes"]] == ["learning_rate", "weight_decay"]
    assert len(found["pairs"][0]["rates"]) == 17 * 5
    lines = compare_text(run, "csv", 2.0).splitlines()
    assert len(lines) == 1 + 17 * 5
    assert "weight_decay" in lines[0]
    several = RecordComparison.of([run, run], 2.0)
    assert len(several.axes()) == 4
