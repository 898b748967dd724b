"""Ways to change a record of sgd and adam on linear_regression, for those who verify."""

import json

import pyarrow as pa

from gradbench.files import write_json, write_table
from gradbench.record import manifest
from gradbench.record.schema import SCHEMAS
from gradbench.record.store import load_run


def change(path, name, edit):
    """Edit the rows of a table of a record, in place or by what is returned."""
    rows = getattr(load_run(path, warn=False), name).to_pylist()
    rows = edit(rows) or rows
    (path / f"{name}.parquet").unlink()
    write_table(pa.Table.from_pylist(rows, schema=SCHEMAS[name]), path / f"{name}.parquet")


def change_info(path, edit):
    info = json.loads((path / "run.json").read_text())
    edit(info)
    write_json(info, path / "run.json")


def close(path):
    """As somebody does who knows of manifests."""
    info = json.loads((path / "run.json").read_text())
    write_json(info, path / "run.json")
    manifest.close(path, [file.name for file in path.glob("*.parquet")], info)


def final_loss(path):
    """Of trial 4 lower, in its row and on its curve."""

    def edit_row(rows):
        rows[4] |= {"final_loss": rows[4]["final_loss"] * 0.999, "best_loss": rows[4]["best_loss"] * 0.999}

    def edit_curve(rows):
        last = max((row for row in rows if row["trial"] == 4), key=lambda row: row["step"])
        last["loss"] *= 0.999

    change(path, "trials", edit_row)
    change(path, "curves", edit_curve)


def curve_point(path):
    def edit(rows):
        next(row for row in rows if row["trial"] == 4 and 0 < row["step"] < 60)["loss"] *= 1.001

    change(path, "curves", edit)


def steps_to_a_gap(path):
    def edit(rows):
        next(row for row in rows if row["steps_to_1e-1"] is not None)["steps_to_1e-1"] -= 1

    change(path, "trials", edit)


def verdict(path):
    def edit(rows):
        next(row for row in rows if row["verdict"] == "diverged")["verdict"] = "slow"

    change(path, "trials", edit)


def dropped_seed(path):
    """The diverged trials are left out."""
    gone = {row["trial"] for row in load_run(path, warn=False).trials.to_pylist() if row["verdict"] == "diverged"}
    for name in ("trials", "curves"):
        change(path, name, lambda rows: [row for row in rows if row["trial"] not in gone])


def seed_twice(path):
    """Another seed's rows stand for one that was worse."""

    def twice(rows):
        better = [row | {"trial": 5} for row in rows if row["trial"] == 4]
        better = [row | {"seed": 2} if "seed" in row else row for row in better]
        return sorted([row for row in rows if row["trial"] != 5] + better, key=lambda row: row["trial"])

    change(path, "trials", twice)
    change(path, "curves", twice)


def rates_swapped(path):
    def edit(rows):
        for a, b in ((rows[0], rows[3]), (rows[1], rows[4]), (rows[2], rows[5])):
            a["learning_rate"], b["learning_rate"] = b["learning_rate"], a["learning_rate"]

    change(path, "trials", edit)


def optimizers_swapped(path):
    """The plan and the rows alike."""

    def plan(info):
        info["plan"]["optimizers"] = ["adam", "sgd"]
        info["sources"]["optimizers"] = {name: info["sources"]["optimizers"][name] for name in ("adam", "sgd")}

    def edit(rows):
        for row in rows:
            row["optimizer"] = {"sgd": "adam", "adam": "sgd"}[row["optimizer"]]

    change_info(path, plan)
    change(path, "trials", edit)


def other_settings(path):
    """The record says it is of another optimizer than was run."""

    def plan(info):
        info["plan"]["optimizers"][0] = "momentum"
        info["sources"]["optimizers"]["momentum"] = info["sources"]["optimizers"].pop("sgd")
        info["blocks"] = {name.replace("sgd", "momentum"): block for name, block in info["blocks"].items()}

    def edit(rows):
        for row in rows:
            row["optimizer"] = row["optimizer"].replace("sgd", "momentum")

    change_info(path, plan)
    change(path, "trials", edit)


def minimum(path):
    """A higher minimum makes every gap smaller; the references say so too."""

    def edit(rows):
        for row in rows:
            row["minimum"] += 1e-3

    def facts(info):
        info["problems"]["linear_regression"]["minimum"] += 1e-3
        info["references"]["linear_regression"]["loss"] += 1e-3

    change(path, "trials", edit)
    change_info(path, facts)


def reference(path):
    change_info(path, lambda info: info["references"]["linear_regression"].update(loss=0.3))


def timing(path):
    def edit(rows):
        rows[0]["step_s_median"] /= 2

    change(path, "timings", edit)


def problem_data(path):
    """Digests of other data: those of the run are no longer what the problem has here."""
    change_info(path, lambda info: info["sources"]["problems"]["linear_regression"].update(data_sha256="0" * 64))


def problem_file(path):
    change_info(path, lambda info: info["sources"]["problems"]["linear_regression"].update(sha256="0" * 64))


def smoothed_losses(path):
    """They are left out, as in a record of an older version; trials are then judged by the last loss, which is luck."""
    change(path, "trials", lambda rows: [row | {"smoothed_loss": None} for row in rows])


def reason(path):
    change(path, "trials", lambda rows: [row | {"tried": "its rate was the best"} for row in rows])


def parameters(path):
    change_info(path, lambda info: info["problems"]["linear_regression"].update(parameters=10**7))


def curvature(path):
    """Another stable limit."""
    change_info(path, lambda info: info["problems"]["linear_regression"].update(curvature=[0.1, 1.0]))


def maximised(path):
    """A fact that the problem has not."""
    change_info(path, lambda info: info["problems"]["linear_regression"].update(maximise=["loss"]))


# How each is found.
TAMPERED = {
    final_loss: "differs",
    curve_point: "differs",
    steps_to_a_gap: "differs",
    seed_twice: "differs",
    other_settings: "differs",
    minimum: "differs",
    optimizers_swapped: "differs",
    verdict: "verdict is not what the other columns give",
    dropped_seed: "of the plan, and not in the record",
    rates_swapped: "the learning_rate is not the plan's",
    reference: "the reference of linear_regression is",
    timing: "batched: step_s_median not what the samples give",
    problem_data: "the data of linear_regression have changed since this run began",
    smoothed_losses: "differs",
    reason: "tried is not what the plan gives",
    parameters: "run.json: parameters of linear_regression is 10000000, here 11",
    curvature: "run.json: curvature of linear_regression is [0.1, 1.0], here",
    maximised: 'run.json: maximise of linear_regression is ["loss"], here null',
    problem_file: "here is not the file of this run",
}
