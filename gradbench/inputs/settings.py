"""The settings of a sweep, each declared once: what it is called, says of itself, is by default, and may be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradbench.errors import ProblemError
from gradbench.inputs.built_in import without_groups
from gradbench.inputs.specs import checks, races
from gradbench.inputs.specs.axis import expanded
from gradbench.inputs.specs.checks import PRECISIONS, one_of
from gradbench.inputs.specs.designs import GRID, check_design
from gradbench.inputs.specs.rates import rates_as_kept
from gradbench.inputs.specs.searches import read_budget, read_search

TIMINGS = ("full", "batched", "none")
DEFAULT_PROBLEMS = ("quadratic_bowl", "linear_regression", "logistic_regression", "mlp")
DEFAULT_OPTIMIZERS = ("sgd", "momentum", "adam")
SEEDS, STEPS = 3, 300  # if not given
NO_OPTIONS = ("problems", "targets")  # fields that are no option of the command line
# How a help text groups the options: from this field to the next one named.
GROUPS = {
    "optimizers": "What is swept",
    "search": "Searches and budgets",
    "seeds": "A trial",
    "dtype": "Numbers and device",
    "target": "What is recorded",
}


def _setting(default: Any, text: str, check: Callable[[str, Any], Any], flags: tuple[str, ...] = ()) -> Any:
    """A field of SweepSettings: its help `text`, on the command line too; `check(name, value)`, which returns the value
    as it is kept or raises PlanError; and its option's names there, if not --name."""
    return dataclasses.field(default=default, metadata={"text": text, "check": check, "flags": flags})


def problem_specs(name: str, value: Any) -> tuple[str, ...]:
    specs = checks.specs_of("problem", "mlp")
    named = without_groups(specs(name, value))
    return specs(name, [one for spec in named for one in expanded(spec, ProblemError)])


@dataclass(frozen=True)
class SweepSettings:
    """Each field says what it is and how it is checked; the command line's options, a TOML file's keys and run.json's
    plan are these fields."""

    problems: tuple[str, ...] = _setting(
        DEFAULT_PROBLEMS,
        'Names with settings, such as "mlp[hidden=64]", groups, such as @networks, or files, such as ./mine.py; see '
        "gradbench list.",
        problem_specs,
        ("--problem",),
    )
    optimizers: tuple[str, ...] = _setting(
        DEFAULT_OPTIMIZERS,
        'An optimizer of optax or optax.contrib, such as "adam[b1=0.8]", or ./mine.py:make; repeat for more. A setting '
        'with several values, "adamw[weight_decay=1e-5:1e-1:5,b1=0.8|0.9]", is an axis of the sweep.',
        checks.optimizers,
        ("--optimizer", "-o"),
    )
    learning_rates: str | tuple[float, ...] = _setting(
        "1e-4:10:25",
        "Learning rates: low:high:count, log-spaced, both ends in, or values with commas.",
        lambda name, rates: rates_as_kept(rates),
        ("--lr",),
    )
    axes: tuple[str, ...] = _setting(
        (),
        "One more axis: adamw.b2=0.9:0.9999:4 (low:high:count, spaced by what the setting is: :log, :linear or "
        ":one-minus behind it says how), b1=0.8|0.9 of every optimizer, mlp.hidden=16|32; repeat for more.",
        checks.axis_texts,
        ("--axis",),
    )
    branch_at: str | tuple[int, ...] | None = _setting(
        None,
        "Decays that branch off one stable run of every optimizer, after so many steps, 100,200,400 (schedule=wsd).",
        checks.or_none(checks.listed(checks.whole(1, 2**30))),
    )
    decay: str | tuple[float, ...] | None = _setting(
        None,
        "How long these decays are, as shares of the steps before, 0.1,0.2. [default: 0.2]",
        checks.or_none(checks.listed(checks.share)),
    )
    design: str | tuple[Mapping[str, float], ...] = _setting(
        GRID,
        "Which combinations of the axes' values: grid (all), random:64, sobol:64, or a .csv or .parquet file with a "
        "row for each, of learning_rate and other settings.",
        check_design,
    )
    search: str | None = _setting(
        None,
        "Try only some points of each pair: refine (a coarse grid, then finer around the best, to a factor of 1.1 or "
        "refine:1.05), halving (of the design, only one in 3, or halving:4, goes on at each rung), or optuna (also "
        "optuna:cmaes). range-test is one trial whose rate rises from the lowest to the highest.",
        checks.or_none(lambda name, text: checks.as_written(read_search, text)),
    )
    budget: str | None = _setting(
        None,
        "What the sweep of a pair may take: 60s, 1e6steps or 500trials; what is not run then is left out.",
        checks.or_none(lambda name, text: checks.as_written(read_budget, text)),
    )
    until: str | None = _setting(
        None,
        '"adam<sgd": add seeds until it is decided which of the two wins, by a test that is wrong in at most 5 % of '
        "races however often it looks, or until the seeds or the budget of a pair end; see docs/statistics.md. Exit 1 "
        "where the second one wins.",
        checks.or_none(lambda name, text: races.SIGN.join(races.sides(str(text)))),
    )
    seeds: int = _setting(
        None,
        f"Trials of each learning rate, from seeds 0, 1, ...: {SEEDS} if not given; with --until at most that many, "
        f"{races.SEEDS} if not given.",
        checks.or_none(checks.whole(1, 2**31 - 1)),
    )
    steps: int = _setting(
        None,
        f"Updates of a trial, or several, 100,300; {STEPS} if not given.",
        checks.or_none(checks.several(checks.whole(1, 2**30))),
    )
    batch_size: int | None = _setting(
        None,
        "Rows of a minibatch, or several, 16,64,256; all the data if not given.",
        checks.or_none(checks.several(checks.whole(1, 2**31 - 1))),
    )
    dtype: str = _setting("float32", "float32, float64, bfloat16 or float16, or several.", checks.several(checks.dtype))
    precision: str = _setting(
        "highest", "Precision of matrix products: highest, tf32 or default (the device's).", one_of(PRECISIONS)
    )
    device: str | None = _setting(
        None, "cpu, gpu (also cuda or rocm) or tpu; JAX's choice if not given.", checks.or_none(checks.device)
    )
    target: float = _setting(
        1e-4,
        "The loss gap, relative to the first, that counts as converged; a problem without a known minimum uses its own "
        "target instead.",
        checks.gap,
    )
    target_loss: float | None = _setting(
        None,
        "The loss that counts as converged, of the one problem of the plan, instead of the target.",
        checks.or_none(checks.loss),
    )
    targets: Mapping[str, float] | None = _setting(
        None,
        "The same for several problems, by their specs: a table of a file of settings, no option.",
        checks.or_none(checks.losses),
    )
    record_points: int = _setting(200, "Maximum number of points kept of a trial's curve.", checks.whole(2, 10**6))
    retire: bool = _setting(True, "Replace a finished trial by a waiting one at once.", checks.switch)
    stop_at_target: bool = _setting(False, "A trial is finished when it reaches the target.", checks.switch)
    timing: str = _setting(
        "full",
        "What is timed of a pair after its sweep: full (one trial alone, the loss, its gradient, all trials together), "
        "batched (all trials together) or none.",
        one_of(TIMINGS),
    )
    sharpness: bool = _setting(
        False,
        "Also record the Hessian's top eigenvalue along the paths of up to four learning rates of each pair (too "
        "small, right, too large, diverging), at 8 points each. Costs those trials once more and at most 2,600 "
        "gradients.",
        checks.switch,
    )
