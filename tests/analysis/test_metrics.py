"""Learning rates judged by a metric, on a record whose metrics are known."""

from __future__ import annotations

import dataclasses

import pytest
from synthetic import make_judged_run as judged
from synthetic import make_run, with_diverged

import gradbench
from gradbench.analysis import metrics
from gradbench.analysis.summary import summarise
from gradbench.errors import PlanError


def test_the_held_out_loss_is_shown_where_there_is_one():
    found = gradbench.compare(judged())
    [pair] = found.pairs
    assert (pair["by"], pair["best_learning_rate"]) == ("holdout.loss", 0.1)
    assert pair["by_best_learning_rate"] == 0.01
    assert pair["by_value"] == pytest.approx(0.6)
    assert pair["by_value_at_best"] == pytest.approx(0.8)
    assert pair["generalisation_gap"] == pytest.approx(0.7)
    assert [row["holdout.loss"] for row in found.rates] == pytest.approx([0.6, 0.8, 0.8])
    assert [row["mark"].endswith("best by holdout.loss") for row in found.rates] == [True, False, False]
    assert any(
        "by holdout.loss 0.01 is the best learning rate (0.6, 0.8 at the best by training" in n for n in found.notes
    )


def test_a_record_s_metrics_are_read_once_and_not_for_each_pair(monkeypatch):
    run, read = judged(), []
    pairs, rows_where = summarise(run), metrics.rows_where
    monkeypatch.setattr(metrics, "rows_where", lambda table, values: read.append(values) or rows_where(table, values))
    found = [metrics.ByMetric.of(run, pair, metrics.HELD_OUT) for pair in pairs * 2]
    assert read == [{"split": "holdout", "name": "loss"}, {"split": "train", "name": "loss"}]
    assert found[0] == found[1]


def test_after_a_search_only_learning_rates_with_the_most_seeds_are_compared():
    run = judged()
    run = dataclasses.replace(run, trials=run.trials.slice(1))  # 0.01, the best of all, has one seed of two
    found = gradbench.compare(run)
    assert found.pairs[0]["by_best_learning_rate"] == 0.1
    assert [row["mark"].endswith("best by holdout.loss") for row in found.rates] == [False, True, False]
    assert not any("by holdout.loss" in note for note in found.notes)
    [pair] = summarise(run)
    assert "0.1 is the best learning rate as well" in metrics.ByMetric.of(run, pair, metrics.HELD_OUT).sentence(pair)


def test_more_is_better_of_what_is_maximised_and_a_diverged_rate_is_none():
    [pair] = gradbench.compare(judged(), by="holdout.accuracy").pairs
    assert pair["by_best_learning_rate"] == 1.0
    [pair] = gradbench.compare(with_diverged(judged(), 1.0), by="holdout.accuracy").pairs
    assert pair["by_best_learning_rate"] == 0.1  # of two alike the one that is training's best
    assert pair["generalisation_gap"] == pytest.approx(0.6 - 0.9)


def test_the_gap_has_one_sign_whichever_split_is_named():
    [held_out], [train] = (gradbench.compare(judged(), by=f"{split}.loss").pairs for split in ("holdout", "train"))
    assert held_out["generalisation_gap"] == train["generalisation_gap"]


def test_an_unknown_metric_is_one_line_with_those_there_are():
    with pytest.raises(
        PlanError, match=r"no metric 'holdout.acuracy', did you mean 'holdout.accuracy'\? \(recorded: train"
    ):
        gradbench.compare(judged(), by="holdout.acuracy")
    with pytest.raises(PlanError, match="recorded: none"):
        gradbench.compare(make_run(), by="holdout.loss")


def test_a_record_without_metrics_has_no_columns_of_them():
    [pair, _] = gradbench.compare(make_run()).pairs
    assert "by" not in pair
    assert "epochs_to_target" not in pair


def test_steps_are_also_epochs_with_minibatches():
    run = judged()
    run.info["problems"]["quadratic_bowl"]["examples"] = 50
    [pair] = gradbench.compare(dataclasses.replace(run, plan=dataclasses.replace(run.plan, batch_size=8))).pairs
    assert pair["epochs_to_target"] == pair["steps_to_target"] / 6
