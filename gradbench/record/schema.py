"""Every column of a record, declared once.

From here follow the Parquet files' schemas, what is checked when a record is read, how the arrays of a sweep become
columns, and the table of columns in docs/record.md (`python -m gradbench.record.schema` prints it). A new number per
trial is declared here, found in engine/events.py, and tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1
FIRST_REVISION = 1  # of the tables; a later column says which revision it came with
NUMBER, COUNT, TEXT, FLAG = pa.float64(), pa.int64(), pa.string(), pa.bool_()
TARGETS = tuple(10.0**-k for k in range(1, 7))  # relative gaps whose first step every trial records


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name, kind: as the Parquet file has them.
        unit: of the number; empty where it has none.
        meaning: one line.
        nullable: whether a cell may be empty (null); a count below 0 ("never") is written as null.
        since: the revision of the tables that it came with; it is null where an older record is read.
        source: "events" if it is the field of this name of engine.events.Events.
        unknown_is_null: whether NaN stands for "unknown" and is written as null.
    """

    name: str
    kind: pa.DataType
    unit: str
    meaning: str
    nullable: bool = True
    since: int = FIRST_REVISION
    source: str = ""
    unknown_is_null: bool = False


_PROBLEM = Column("problem", TEXT, "", "the problem's spec", nullable=False)
_OPTIMIZER = Column("optimizer", TEXT, "", "the optimizer's spec", nullable=False)
_LEARNING_RATE = Column("learning_rate", NUMBER, "", "the learning rate; a schedule's peak", nullable=False)
_SEED = Column("seed", COUNT, "", "seed of the starting point and of the minibatch order", nullable=False)

_LAST_PART: dict[str, Any] = {"since": 3, "unknown_is_null": True}  # engine.events.last_part
_TAIL = "over the last quarter of the steps"

TRIALS = (
    Column("trial", COUNT, "", "the trial's number in the record, from 0", nullable=False),
    _PROBLEM,
    _OPTIMIZER,
    _LEARNING_RATE,
    _SEED,
    Column(
        "verdict", TEXT, "", "converged, diverged, overshoots, slow or stalled (analysis/verdicts.py)", nullable=False
    ),
    Column("steps_run", COUNT, "steps", "updates made before the trial was finished", nullable=False, source="events"),
    Column("initial_loss", NUMBER, "loss", "at the start", nullable=False, source="events"),
    Column("final_loss", NUMBER, "loss", "after the last update", source="events"),
    Column("best_loss", NUMBER, "loss", "the lowest finite one", source="events"),
    Column("best_step", COUNT, "steps", "where the best loss was first seen", source="events"),
    Column("final_grad_norm", NUMBER, "loss per parameter", "the gradient's norm at the end", source="events"),
    Column("minimum", NUMBER, "loss", "the problem's known minimum; null where unknown", unknown_is_null=True),
    Column(
        "diverged_at",
        COUNT,
        "steps",
        "first step with a loss not finite or 1e4 first gaps above the start; null if none",
        source="events",
    ),
    *(
        Column(f"steps_to_1e-{k}", COUNT, "steps", f"first step whose gap is under 1e-{k} of the first; null if never")
        for k in range(1, len(TARGETS) + 1)
    ),
    Column("steps_to_target", COUNT, "steps", "first step that reaches the plan's target; null if never"),
    Column(
        "smoothed_loss",
        NUMBER,
        "loss",
        f"mean {_TAIL}, with wsd and a stable length the last loss; null where the gradients have no noise",
        **_LAST_PART,
    ),
    Column("tail_drop", NUMBER, "loss", f"by how much the loss fell {_TAIL}", **_LAST_PART),
    Column("tail_drop_error", NUMBER, "loss", "the tail_drop that noise alone exceeds in 1 of 100 cases", **_LAST_PART),
    Column(
        "tail_overshot", NUMBER, "", f"share of the updates {_TAIL} past the lowest point of their line", **_LAST_PART
    ),
    Column("tried", TEXT, "", "why a search or a race tried it; null where all of a design is run", since=5),
    Column("dtype", TEXT, "", "of the trial's numbers; null in an older record, whose plan has one for all", since=6),
)
TARGET_COLUMNS = tuple(column.name for column in TRIALS if column.name.startswith("steps_to_1e-"))
EVENT_COLUMNS = tuple(column.name for column in TRIALS if column.source == "events")

CURVES = (
    Column("trial", COUNT, "", "as in trials", nullable=False),
    Column("step", COUNT, "steps", "updates made", nullable=False),
    Column("loss", NUMBER, "loss", "at that step, of all the data; with that step's key, if the loss takes one"),
    Column("grad_norm", NUMBER, "loss per parameter", "the gradient's Euclidean norm there"),
)

_METRICS: dict[str, Any] = {"since": 4, "nullable": False}
METRICS = (
    Column("trial", COUNT, "", "as in trials", **_METRICS),
    Column("step", COUNT, "steps", "updates made", **_METRICS),
    Column("split", TEXT, "", "train or holdout", **_METRICS),
    Column("name", TEXT, "", "loss, a metric, or an auxiliary scalar of the loss", **_METRICS),
    Column("value", NUMBER, "", "there, of all the split's data; without the loss's randomness if it can be", since=4),
)

_LIMITS, _PLACE = 2, 5
TIMINGS = (
    _PROBLEM,
    Column("optimizer", TEXT, "", "the optimizer's spec; null where none is part of what is timed"),
    Column("mode", TEXT, "", "solo, batched, value or value_and_grad", nullable=False),
    Column("trials", COUNT, "", "trials timed together", nullable=False),
    Column("trace_s", NUMBER, "s", "to trace the program"),
    Column("lower_s", NUMBER, "s", "to lower it"),
    Column("compile_s", NUMBER, "s", "to compile it, or to load it (compile_cached)"),
    Column("first_run_s", NUMBER, "s", "of the first call"),
    Column("step_s_median", NUMBER, "s", "of one step of all the trials together: median"),
    Column("step_s_p25", NUMBER, "s", "first quartile"),
    Column("step_s_p75", NUMBER, "s", "third quartile"),
    Column("step_s_min", NUMBER, "s", "the least"),
    Column("samples", COUNT, "", "timed samples"),
    Column("flops_per_step", NUMBER, "FLOP", "counted by XLA in the compiled program"),
    Column("bytes_per_step", NUMBER, "bytes", "likewise"),
    Column("flops_per_s", NUMBER, "FLOP/s", "flops_per_step / step_s_median"),
    Column("doubling", NUMBER, "", "T(2n)/T(n) of the timed work"),
    Column("trusted", FLAG, "", "whether doubling is within 1.9 to 2.1 and nothing else of ours ran"),
    Column("step_s_samples", pa.list_(NUMBER), "s", "each sample's seconds per step"),
    Column("compile_cached", FLAG, "", "compile_s is what loading it from the compilation cache took", since=_LIMITS),
    Column("compile_ahead", FLAG, "", "compiled while a sweep or another compilation used the cores", since=_LIMITS),
    Column("devices", COUNT, "", "devices of the program", since=_LIMITS),
    Column("kernels_per_step", COUNT, "", "kernels of one step", since=_LIMITS),
    Column("moved_bytes", NUMBER, "bytes", "least bytes that a step must read or write", since=_LIMITS),
    Column("limit_s", NUMBER, "s", "the least seconds in which the devices could do a step", since=_LIMITS),
    Column("limit", TEXT, "", "what sets limit_s: flops, bytes or launches", since=_LIMITS),
    Column("of_limit", NUMBER, "", "limit_s / step_s_median", since=_LIMITS),
    Column("host", TEXT, "", "the machine it was measured on", since=_PLACE),
    Column("device_kind", TEXT, "", "the kind of its devices, such as NVIDIA H200, or the CPU's model", since=_PLACE),
)

SHARPNESS = (
    _PROBLEM,
    _OPTIMIZER,
    _LEARNING_RATE,
    _SEED,
    Column("step", COUNT, "steps", "updates made"),
    Column("loss", NUMBER, "loss", "there"),
    Column("sharpness", NUMBER, "", "the Hessian's largest eigenvalue there"),
    Column("error", NUMBER, "", "a bound on its distance from an eigenvalue"),
    Column("edge", NUMBER, "", "the sharpness at which the learning rate stops being stable; null where unknown"),
)

TABLES = {"trials": TRIALS, "curves": CURVES, "timings": TIMINGS, "sharpness": SHARPNESS, "metrics": METRICS}
SWEPT = ("trials", "curves", "metrics")  # written while a sweep runs


def columns_of(table: str, axes: Sequence[str] = ()) -> tuple[Column, ...]:
    """The columns of a table; a trial has one more for each of `axes`, settings varied beside the learning rate."""
    about = "the trial's value of an axis; null where its optimizer has none of this name"
    return TABLES[table] + tuple(Column(axis, NUMBER, "", about, since=5) for axis in axes if table == "trials")


def schema_of(table: str, axes: Sequence[str] = ()) -> pa.Schema:
    """The Parquet schema of a table; `axes` as in columns_of."""
    return pa.schema([pa.field(column.name, column.kind) for column in columns_of(table, axes)])


SCHEMAS = {name: schema_of(name) for name in TABLES}  # of a record without axes


def markdown() -> str:
    """The tables of columns, as docs/record.md has them."""
    blocks = []
    for name, columns in TABLES.items():
        rows = [
            f"## {name}.parquet",
            "",
            "| column | type | unit | meaning | may be null | since |",
            "|---|---|---|---|---|---|",
        ]
        for column in columns:
            nullable = "yes" if column.nullable else "no"
            rows.append(
                f"| `{column.name}` | {column.kind} | {column.unit} | {column.meaning} | {nullable} | {column.since} |"
            )
        if name == "trials":
            axis = columns_of(name, ["*an axis*"])[-1]
            rows.append(f"| {axis.name} | {axis.kind} | {axis.unit} | {axis.meaning} | yes | {axis.since} |")
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
