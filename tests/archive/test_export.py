"""A record read back by the tools it was exported to."""

import csv
import json
import sys

import numpy as np
import pytest
from synthetic import make_judged_run, make_run

from gradbench.archive.export import export
from gradbench.errors import GradbenchError, PlanError


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_every_number_of_every_table(tmp_path):
    run = make_run()
    folder, _ = export(run, "csv", tmp_path / "out")
    for name in ("trials", "curves"):
        rows, table = rows_of(folder / f"{name}.csv"), getattr(run, name).to_pylist()
        assert len(rows) == len(table)
        for row, expected in zip(rows, table):
            numbers = {key: type(value)(row[key]) for key, value in expected.items() if value is not None}
            assert numbers == {key: value for key, value in expected.items() if value is not None}
            assert {key for key in row if row[key] == ""} == {key for key in expected if expected[key] is None}
    first = rows_of(folder / "timings.csv")[0]
    assert [float(cell) for cell in first["step_s_samples"].split()] == run.timings["step_s_samples"][0].as_py()


def test_the_best_alone(tmp_path):
    """sgd is best at the highest of three learning rates that all converge: 3 trials of 9."""
    run = make_run([0.1, 0.2, 0.4], optimizers=["sgd"], steps=1000)
    folder, _ = export(run, "csv", tmp_path / "out", best=True)
    rates = [float(row["learning_rate"]) for row in rows_of(folder / "trials.csv")]
    assert rates == [0.4] * 3


def test_nothing_is_overwritten_and_unknown_tools_are_refused(tmp_path):
    export(make_run(), "csv", tmp_path / "out")
    with pytest.raises(PlanError, match="is there already"):
        export(make_run(), "csv", tmp_path / "out")
    with pytest.raises(PlanError, match="is there already"):
        export(make_run(), "csv", tmp_path / "out" / "trials.csv")
    with pytest.raises(PlanError, match="no 'tensorbord', did you mean 'tensorboard'"):
        export(make_run(), "tensorbord", tmp_path / "other")


def test_a_tool_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(GradbenchError, match=r"wandb is not installed \(pip install wandb\)"):
        export(make_run(), "wandb", tmp_path / "out")


def curve(run, trial):
    rows = [row for row in run.curves.to_pylist() if row["trial"] == trial]
    return [row["step"] for row in rows], [row["loss"] for row in rows]


def test_tensorboard_reads_the_curves(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = make_judged_run()
    folder, _ = export(run, "tensorboard", tmp_path / "out")
    folders = sorted(folder.iterdir(), key=lambda path: int(path.name.rpartition("(")[2].rstrip(")")))
    assert len(folders) == run.trials.num_rows
    for trial, path in enumerate(folders):
        events = accumulators.EventAccumulator(str(path))
        events.Reload()
        steps, losses = curve(run, trial)
        scalars = events.Scalars("loss")
        assert [scalar.step for scalar in scalars] == steps
        assert [scalar.value for scalar in scalars] == np.float32(losses).tolist()
        assert events.Scalars("holdout.accuracy")[-1].step == 100


@pytest.mark.filterwarnings("ignore")  # MLflow's own, of the SQLAlchemy beneath it
def test_mlflow_reads_the_curves_and_the_settings(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")  # of the whole mlflow
    run = make_run([0.1], seeds=2, optimizers=["sgd"])
    folder, _ = export(run, "mlflow", tmp_path / "out")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(f"gradbench {run.id}")
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == run.trials.num_rows
    for made in found:
        trial = int(made.data.params["trial"])
        steps, losses = curve(run, trial)
        history = sorted(client.get_metric_history(made.info.run_id, "loss"), key=lambda point: point.step)
        assert ([point.step for point in history], [point.value for point in history]) == (steps, losses)
        assert made.data.params["optimizer"] == "sgd"
        assert made.data.tags["verdict"] == run.trials["verdict"][trial].as_py()


def wandb_records(file):
    """The records of a run that W&B keeps offline: a header of 7 bytes, then LevelDB's log format: blocks of 32 KiB of
    pieces, each with a checksum, a length and whether more follows."""
    from wandb.proto import wandb_internal_pb2

    data, at, piece = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        piece += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(piece)
            piece = b""
            yield record


def test_wandb_reads_the_curves_offline(tmp_path):
    pytest.importorskip("wandb")
    run = make_run([0.1], seeds=2, optimizers=["sgd"])
    folder, _ = export(run, "wandb", tmp_path / "out")
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    trials = set()
    for file in files:
        losses, config = {}, {}
        for record in wandb_records(file):
            if record.HasField("run"):
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("history"):
                items = {item.nested_key[0] if item.nested_key else item.key: item for item in record.history.item}
                losses[record.history.step.num] = float(items["loss"].value_json)
        steps, expected = curve(run, config["trial"])
        assert (list(losses), list(losses.values())) == (steps, expected)
        assert (config["optimizer"], config["learning_rate"]) == ("sgd", 0.1)
        trials.add(config["trial"])
    assert trials == {0, 1}
