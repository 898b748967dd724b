"""The command line: one function a verb. Each parses, calls the library and prints; JAX loads only where needed."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter, Token

from gradbench.errors import GradbenchError, PlanError
from gradbench.failures import sentence, show_warning
from gradbench.version import __version__

INTERRUPTED = 130  # what a shell reports for Ctrl-C
app = App(
    name="gradbench",
    help="How optimizers converge over learning rates and seeds, what it costs, and whether gradients are right.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # invoke() says so in our words
    default_parameter=Parameter(negative="", show_default=lambda v: None if v in (None, ()) or v is False else str(v)),
)
Format = Annotated[str, Parameter(name=["--format", "-f"])]


def _whole(_type: Any, tokens: Sequence[Token]) -> int:
    """A whole number, also as 1e3. Cyclopts itself would round 1.5."""
    text = tokens[0].value
    try:
        return int(text) if not float(text).is_integer() or "e" not in text.lower() else int(float(text))
    except (ValueError, OverflowError):
        raise ValueError(f"need a whole number, got {text!r}") from None


Whole = Annotated[int | None, Parameter(converter=_whole)]


def note(text: str) -> None:
    """Progress and notes go to stderr; stdout is for data."""
    print(text, file=sys.stderr, flush=True)


@app.command
def run(
    *problems: str,
    optimizer: Annotated[tuple[str, ...], Parameter(name=["--optimizer", "-o"])] = (),
    lr: str | None = None,
    seeds: Whole = None,
    steps: Whole = None,
    batch_size: Whole = None,
    dtype: str | None = None,
    precision: str | None = None,
    device: str | None = None,
    target: float | None = None,
    stop_at_target: bool | None = None,
    record_points: Whole = None,
    retire: Annotated[bool | None, Parameter(name="--retire", negative="--no-retire")] = None,
    sharpness: bool | None = None,
    config: Path | None = None,
    resume: str | None = None,
    out: Path = Path("results"),
    quiet: bool = False,
    format: Format = "table",
) -> int:
    """Sweep learning rates and seeds, and record convergence and timing.

    With no problem: quadratic_bowl, linear_regression, logistic_regression and mlp, with sgd, momentum and adam.

    Parameters
    ----------
    problems
        Names with settings, such as "mlp[hidden=64]", or files, such as ./mine.py; see gradbench list.
    optimizer
        An optimizer of optax or optax.contrib, such as "adam[b1=0.8]", or ./mine.py:make; repeat for more.
    lr
        Learning rates: low:high:count, log-spaced, or values with commas. [default: 1e-4:10:25]
    seeds
        Trials of each learning rate, from seeds 0, 1, ... [default: 3]
    steps
        Updates of a trial. [default: 300]
    batch_size
        Rows of a minibatch; all the data if not given.
    dtype
        float32, float64, bfloat16 or float16. [default: float32]
    precision
        Of matrix products: highest, tf32 or default (the device's). [default: highest]
    device
        cpu, gpu or tpu; JAX's choice if not given.
    target
        The loss gap, relative to the first, that counts as converged. [default: 1e-4]
    stop_at_target
        A trial is finished when it reaches the target.
    record_points
        Points of a trial's curve at most. [default: 200]
    retire
        Finished trials make room for waiting ones. [default: yes]
    sharpness
        Also record the Hessian's top eigenvalue along the paths of up to four learning rates of each pair (too small,
        right, too large, diverging), at 8 points each. Costs those trials once more and at most 2,600 gradients.
    config
        A TOML file with these settings, by the names that run.json uses; options given here win.
    resume
        Go on with an interrupted run: its folder, its id, or latest.
    out
        Where records are kept.
    quiet
        No progress and no notes.
    format
        Of the closing table: table, json, csv or markdown.
    """
    from gradbench.inputs.plan import SweepPlan, parse_rates, read_config
    from gradbench.tables import check_format

    check_format(format)
    options = {
        "problems": problems or None,
        "optimizers": optimizer or None,
        "learning_rates": None if lr is None else parse_rates(lr),
        "seeds": seeds,
        "steps": steps,
        "batch_size": batch_size,
        "dtype": dtype,
        "precision": precision,
        "device": device,
        "target": target,
        "stop_at_target": stop_at_target,
        "record_points": record_points,
        "retire": retire,
        "sharpness": sharpness,
    }
    given = {key: value for key, value in options.items() if value is not None}
    if resume is not None and (given or config):
        raise PlanError("--resume goes on with a run's own plan; give no problem or option beside it")
    from gradbench.cli.progress import watching
    from gradbench.machine.cache import use_cache

    use_cache()
    with watching(quiet, resume_with=f"gradbench run --resume {{path}}{_out_option(out)}") as watcher:
        if resume is not None:
            from gradbench.engine.runner import resume as go_on

            record = go_on(resume, results=out, watcher=watcher)
        else:
            settings = read_config(config) if config else {}
            plan = SweepPlan.from_dict(settings | given, where=str(config) if config and not given else "run")
            from gradbench.engine.runner import run_plan

            record = run_plan(plan, out=out, watcher=watcher)
    from gradbench.analysis.answers import run_table

    print(run_table(record, format))
    if record.info["state"] != "complete":
        return INTERRUPTED
    if not quiet:
        note(f"record: {record.path}")
    return 0


def _out_option(out: Path) -> str:
    return "" if out == Path("results") else f" --out {out}"


@app.command
def compare(
    record: str = "latest",
    *,
    problem: tuple[str, ...] = (),
    optimizer: Annotated[tuple[str, ...], Parameter(name=["--optimizer", "-o"])] = (),
    factor: float = 2.0,
    summary: bool = False,
    results: Path = Path("results"),
    format: Format = "table",
) -> int:
    """Learning rates side by side: verdicts, final gaps, steps and time to target, the best, the safe range.

    Parameters
    ----------
    record
        A record's folder, its id, or latest.
    problem
        Only these problems; repeat for more.
    optimizer
        Only these optimizers; repeat for more.
    factor
        A learning rate is safe if every seed is within this factor of the best.
    summary
        One line a pair, not every learning rate.
    results
        Where records are kept.
    format
        table, json, csv or markdown.
    """
    from gradbench.analysis.answers import compare_text
    from gradbench.record.store import load_run

    print(compare_text(load_run(record, results), format, factor, problem, optimizer, summary))
    return 0


@app.command
def report(
    *records: str,
    out: Path = Path("report.html"),
    figures: Path | None = None,
    check: tuple[Path, ...] = (),
    results: Path = Path("results"),
    format: Format = "svg",
) -> int:
    """One HTML file about one or more records that works offline; or figures for a paper.

    Parameters
    ----------
    records
        Folders, ids or latest (the default); several are laid over one another.
    out
        The page to write.
    figures
        Write each view as a file into this folder instead.
    check
        A record of gradbench check to show on the page; repeat for more. [default: for each problem the newest in
        check/ beside the records]
    results
        Where records are kept.
    format
        Of the figures: svg, png or pdf.
    """
    from gradbench.record.store import load_run
    from gradbench.reporting import check_figure_format, write_figures, write_report

    check_figure_format(format)
    runs = [load_run(name, results) for name in records or ("latest",)]
    written = [write_report(runs, out, check)] if figures is None else write_figures(runs, figures, format)
    print("\n".join(map(str, written)))
    return 0


@app.command
def regress(
    old: str,
    new: str = "latest",
    *,
    max_slowdown: float = 1.10,
    results: Path = Path("results"),
    format: Format = "table",
) -> int:
    """Is the new record slower, or does it converge worse, than the old one? Exit 1 if so, by a statistical test.

    Parameters
    ----------
    old
        The record before: its folder, its id, or latest.
    new
        The record after.
    max_slowdown
        The factor from which slower or worse counts.
    results
        Where records are kept.
    format
        table, json, csv or markdown.
    """
    from gradbench.analysis.regress import compare_runs, regress_text
    from gradbench.record.store import load_run
    from gradbench.tables import check_format

    check_format(format)
    comparison = compare_runs(load_run(old, results), load_run(new, results), max_slowdown)
    print(regress_text(comparison, format))
    return 1 if comparison.regressed else 0


@app.command
def check(
    *problems: str,
    dtype: tuple[str, ...] = (),
    precision: str = "highest",
    device: str | None = None,
    program: tuple[str, ...] = (),
    fast: bool = False,
    strict: bool = False,
    self_test: bool = False,
    seed: Annotated[int, Parameter(converter=_whole)] = 0,
    out: Path = Path("results"),
    format: Format = "table",
) -> int:
    """Is the gradient that this device computes right? Exit 1 on a wrong one.

    With no problem: quadratic_bowl, linear_regression, logistic_regression and mlp.

    Parameters
    ----------
    problems
        Names with settings, or files; see gradbench list.
    dtype
        float32 (if not given), float64, bfloat16 or float16; repeat for more. A self-test takes all four.
    precision
        Of matrix products: highest, tf32 or default (the device's).
    device
        cpu, gpu, tpu or all; JAX's choice if not given. On a platform's second and later devices one program is run.
    program
        Only these of the programs that a report names; repeat for more.
    fast
        One point, one program (value_and_grad) and fewer differences; an answer in seconds.
    strict
        Exit 1 also where the answer is INCONCLUSIVE.
    self_test
        Plant faults, and print which are caught and which right gradients are accused.
    seed
        Of the points, directions and noise.
    out
        Where records are kept.
    format
        table, json, csv or markdown.
    """
    from gradbench.cli.check import run_check

    return run_check(
        problems,
        dtypes=dtype or (() if self_test else ("float32",)),
        precision=precision,
        device=device,
        programs=program or None,
        fast=fast,
        strict=strict,
        seed=seed,
        self_test=self_test,
        output_format=format,
        out=out,
        note=note,
    )


@app.command(name="list")
def list_(*, format: Format = "table") -> int:
    """Problems with their settings, optimizers, and devices.

    Parameters
    ----------
    format
        table, json, csv or markdown.
    """
    from gradbench.cli.inventory import list_text

    print(list_text(format))
    return 0


@app.command
def doctor(*, format: Format = "table") -> int:
    """Versions, devices, the precision in force, and canaries for known compiler faults; exit 1 if one fails.

    Parameters
    ----------
    format
        table, json, csv or markdown.
    """
    from gradbench.machine.doctor import examine

    text, healthy = examine(format)
    print(text)
    return 0 if healthy else 1


def main() -> None:
    """The `gradbench` command: every failure is one line on stderr and an exit code of the contract."""
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: list[str]) -> int:
    """Run one command line; its exit code. 1 is an answer: whatever is not foreseen is 3."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning  # ty: ignore[invalid-assignment]
            result: Any = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except GradbenchError as error:
        note(f"gradbench: {error}")
        return error.exit_code
    except CycloptsError as error:
        note(f"gradbench: {' '.join(str(error).split())} (see gradbench --help)")
        return 2
    except BrokenPipeError:  # the reader, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        note("gradbench: interrupted")
        return INTERRUPTED
    except (Exception, SystemExit) as error:
        note(f"gradbench: {sentence(error)}")
        return 3


if __name__ == "__main__":
    main()
