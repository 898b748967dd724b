"""A record for other tools: CSV files, or each trial as a run of TensorBoard, Weights & Biases or MLflow, on disk.

Nothing is sent anywhere: each tool's own command shows or uploads what is written. The tools are imported only here.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from gradbench.analysis.summary import judged_trials, pair_trials, rows_where, summarise
from gradbench.errors import GradbenchError, PlanError, RunError, nearest, one_line
from gradbench.files import write_json, writing
from gradbench.inputs.specs.axis import OF_PLAN
from gradbench.paths import user_path
from gradbench.record.schema import SCHEMAS, TABLES
from gradbench.record.store import Run

BATCH = 1000  # metrics that MLflow takes at once


@dataclass(frozen=True)
class TrialLog:
    """One trial as trackers have a run: what it was, what it came to, and its points (step, name -> value)."""

    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    points: list[tuple[int, dict[str, float]]]


def export(run: Run, to: str, into: str | Path | None = None, best: bool = False) -> tuple[Path, str]:
    """Write a record into a new folder for the tool `to`, a key of TOOLS; the folder, and the command that shows it.

    into: the folder, by default exports/<id>-<tool>. best: only the trials at each pair's best learning rate.
    Raises PlanError for an unknown tool or a folder that has something in it, GradbenchError where the tool is not
    installed, RunError where it fails.
    """
    if to not in TOOLS:
        raise PlanError(f"to: no {to!r}{nearest(to, TOOLS)} ({', '.join(TOOLS)})")
    if run.trials.num_rows == 0:
        raise GradbenchError(f"{run.id}: no trial has finished yet, so there is nothing to export")
    folder = Path("exports") / f"{run.id}-{to}" if into is None else user_path(into)
    write, show = TOOLS[to]
    try:
        if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
            raise PlanError(
                f"{folder}: is there already, and nothing is overwritten; name another folder with --into, into="
            )
        folder.mkdir(parents=True, exist_ok=True)
        write(run, _best_trials(run) if best else run.trials["trial"].to_numpy(), folder)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {error.strerror or one_line(error)}") from error
    return folder, show.format(folder)


def _best_trials(run: Run) -> np.ndarray:
    """The trials at each pair's best setting."""
    found = [
        rows_where(pair_trials(run, pair), {"learning_rate": pair.best.learning_rate})["trial"].to_numpy()
        for pair in summarise(run)
        if pair.best
    ]
    return np.sort(np.concatenate([np.zeros(0, int), *found]))


def trial_logs(run: Run, trials: np.ndarray) -> Iterator[TrialLog]:
    """These trials, one after another."""
    plan, place = run.plan, run.info["environment"]
    own = {name: plan.of(name) for name in plan.optimizers}
    planned = {name: {key: getattr(of, key) for key in OF_PLAN} for name, of in own.items()}
    common = {"record": run.id, "device": place.get("device_kind"), "git_commit": place.get("git_commit")}
    rows = judged_trials(run).filter(pc.field("trial").isin(pa.array(trials)))
    curves, metrics = _by_trial(run.curves), _by_trial(run.metrics)
    axes = [name for name in rows.column_names if name not in SCHEMAS["trials"].names]
    told = ["problem", "optimizer", "learning_rate", *axes, "seed"]
    for row in rows.to_pylist():
        points: dict[int, dict[str, float]] = {}
        for point in curves(row["trial"]):
            points[point["step"]] = {"loss": point["loss"], "grad_norm": point["grad_norm"]}
        for point in metrics(row["trial"]):
            points.setdefault(point["step"], {})[f"{point['split']}.{point['name']}"] = point["value"]
        known = [(step, {k: v for k, v in points[step].items() if v is not None}) for step in sorted(points)]
        known_of = (*told, *OF_PLAN, "trial")
        summary = {key: value for key, value in row.items() if key not in known_of and value is not None}
        name = f"{row['problem']} {row['optimizer']} lr={row['learning_rate']:g} seed={row['seed']} ({row['trial']})"
        config = common | planned[row["optimizer"]] | {key: row[key] for key in ("trial", *told)}
        yield TrialLog(name, config, summary, known)


def _by_trial(table: pa.Table) -> Callable[[int], list[dict[str, Any]]]:
    """trial -> its rows of a table, by their steps."""
    table = table.sort_by([("trial", "ascending"), ("step", "ascending")])
    numbers = table["trial"].to_numpy()

    def rows(trial: int) -> list[dict[str, Any]]:
        start, end = np.searchsorted(numbers, [trial, trial + 1])
        return table.slice(start, end - start).to_pylist()

    return rows


def _csv(run: Run, trials: np.ndarray, folder: Path) -> None:
    """Each table as a file, numbers with every digit, and run.json; of a timing's samples a list in one cell."""
    for name in TABLES:
        table = judged_trials(run) if name == "trials" else getattr(run, name)
        if "trial" in table.column_names:
            table = table.filter(pc.field("trial").isin(pa.array(trials)))
        for place, field in enumerate(table.schema):
            if pa.types.is_list(field.type):
                cells = [None if cell is None else " ".join(map(repr, cell)) for cell in table[field.name].to_pylist()]
                table = table.set_column(place, field.name, pa.array(cells, pa.string()))
        if table.num_rows:
            with writing(folder / f"{name}.csv") as temporary:
                pyarrow.csv.write_csv(table, temporary)
    write_json(run.info, folder / "run.json")


def _tensorboard(run: Run, trials: np.ndarray, folder: Path) -> None:
    """A folder of events for each trial: its points as scalars and its configuration as a text."""
    writers = _tool("tensorboard.summary.writer.event_file_writer", "tensorboard")
    protos = [_tool(f"tensorboard.compat.proto.{name}_pb2", "tensorboard") for name in ("event", "summary")]
    event, summary = protos[0].Event, protos[1].Summary
    for log in trial_logs(run, trials):
        writer = writers.EventFileWriter(str(folder / _as_folder(log.name)))
        for step, values in log.points:
            scalars = [summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            writer.add_event(event(wall_time=float(step), step=step, summary=summary(value=scalars)))
        writer.close()


def _wandb(run: Run, trials: np.ndarray, folder: Path) -> None:
    """Each trial as a run of one group, offline."""
    wandb = _tool("wandb", "wandb")
    with _quietly("WANDB_SILENT"):
        settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True)
        for log in trial_logs(run, trials):
            of_run = {"project": "gradbench", "group": run.id, "name": log.name, "config": log.config}
            made = wandb.init(**of_run, dir=str(folder), mode="offline", settings=settings)
            for step, values in log.points:
                made.log(values, step=step)
            made.summary.update(log.summary)
            made.finish()


def _mlflow(run: Run, trials: np.ndarray, folder: Path) -> None:
    """Each trial as a run of one experiment, in a database in the folder."""
    mlflow, entities = _tool("mlflow", "mlflow"), _tool("mlflow.entities", "mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{(folder / 'mlflow.db').resolve().as_posix()}")
    experiment = client.create_experiment(f"gradbench {run.id}", (folder / "artifacts").resolve().as_uri())
    for log in trial_logs(run, trials):
        made = client.create_run(experiment, start_time=0, run_name=log.name).info.run_id
        values = [(name, value, step) for step, of in log.points for name, value in of.items()]
        values += [(key, float(value), 0) for key, value in log.summary.items() if not isinstance(value, str)]
        metrics = [entities.Metric(name, value, step, step) for name, value, step in values if math.isfinite(value)]
        for start in range(0, len(metrics), BATCH):
            client.log_batch(made, metrics[start : start + BATCH])
        params = [entities.Param(key, str(value)) for key, value in log.config.items()]
        tags = [entities.RunTag(key, value) for key, value in log.summary.items() if isinstance(value, str)]
        client.log_batch(made, params=params, tags=tags)
        client.set_terminated(made, end_time=run.plan.steps)


def _tool(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise GradbenchError(f"export: {package} is not installed (pip install {package})") from error


@contextlib.contextmanager
def _quietly(variable: str) -> Generator[None]:
    before = os.environ.get(variable)
    os.environ[variable] = "true"
    try:
        yield
    finally:
        os.environ.pop(variable) if before is None else os.environ.update({variable: before})


def _as_folder(name: str) -> str:
    """A name without what separates folders."""
    return "".join("_" if sign in '/\\:*?"<>|' else sign for sign in name)


Writer = Callable[[Run, np.ndarray, Path], None]
TOOLS: dict[str, tuple[Writer, str]] = {  # by name: what writes, and the command that shows it
    "csv": (_csv, "head {}/trials.csv"),
    "tensorboard": (_tensorboard, "tensorboard --logdir {}"),
    "wandb": (_wandb, "wandb sync {}/wandb/offline-run-*"),
    "mlflow": (_mlflow, "mlflow ui --backend-store-uri sqlite:///{}/mlflow.db"),
}
