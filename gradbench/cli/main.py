"""The command line: one function per verb. Each parses, calls the library and prints; JAX loads only where needed."""

from __future__ import annotations

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from cyclopts import CycloptsError, Group, Parameter

from gradbench.cli.app import (
    INTERRUPTED,
    TABLES,
    Out,
    Quiet,
    Results,
    Tables,
    app,
    discard_stdout,
    note,
    parse_error,
    show,
    whole,
)
from gradbench.cli.archive import board, export, history, suite, verify
from gradbench.cli.run import run
from gradbench.errors import GradbenchError, PlanError
from gradbench.failures import printing_to_stderr, sentence, show_warning

# How --help groups the verbs, in this order.
GROUPS = {
    "Measure": ("run", "suggest", "suite"),
    "Compare and report": ("compare", "report", "regress", "history", "board"),
    "Is it right?": ("check", "verify", "doctor"),
    "Look up and pass on": ("list", "export"),
}
app.command(run, group_parameters=Group.create_ordered("Records, workers and output"))
app.command(verify)
app.command(export)
app.command(history)
app.command(suite)
app.command(board)


@app.command
def compare(
    *records: str,
    problem: tuple[str, ...] = (),
    optimizer: Annotated[tuple[str, ...], Parameter(name=["--optimizer", "-o"])] = (),
    factor: float = 2.0,
    by: str | None = None,
    summary: bool = False,
    races: bool = False,
    tunability: bool = False,
    results: Results = Path("results"),
    output: Tables = TABLES,
) -> int:
    """Learning rates side by side: verdicts, losses and gaps at the end, steps to the target, the best, the good range.

    Parameters
    ----------
    records
        Folders, ids or latest (the default); several are shown side by side, with one reference for all.
    problem
        Only these problems; repeat for more.
    optimizer
        Only these optimizers; repeat for more.
    factor
        A learning rate is in the good range if every seed is within this factor of the best.
    by
        The metric to judge by beside the loss, such as holdout.accuracy. [default: holdout.loss, where there is one]
    summary
        One line per pair, not every learning rate.
    races
        Instead: every two optimizers, how much sooner one reaches the target, and whether that is more than chance.
    tunability
        Instead: what each optimizer reaches by the number of tuning trials, and what it loses at half and twice its
        best learning rate.
    """
    from gradbench.analysis.settings.comparison import compare_text
    from gradbench.record.store import load_run

    runs = [load_run(name, results) for name in records or ("latest",)]
    if races or tunability:
        from gradbench.analysis.races.text import chosen_text

        show(chosen_text(runs, output.chosen, races, tunability, problem, optimizer))
        return 0
    show(compare_text(runs, output.chosen, factor, problem, optimizer, summary, by))
    return 0


@app.command
def report(
    *records: str,
    out: Path = Path("report.html"),
    figures: Path | None = None,
    check: tuple[Path, ...] = (),
    by: str | None = None,
    results: Annotated[Path, Parameter(help="Where records are kept.")] = Path("results"),
    format: Annotated[str, Parameter(name=["--format", "-f"])] = "svg",
    quiet: Quiet = False,
) -> int:
    """One HTML file about one or more records that works offline; or figures for a paper.

    Parameters
    ----------
    records
        Folders, ids or latest (the default); several are drawn in the same charts.
    out
        The page to write; it replaces a report, and no other file.
    figures
        Write each view as a file into this folder instead.
    check
        A record of gradbench check to show on the page; repeat for more. [default: for each problem the newest in
        check/ beside the records]
    by
        The metric that the charts show, such as holdout.accuracy, instead of the gap; the page can change it.
    format
        The format of the figures: svg, png or pdf.
    """
    from gradbench.library.activity import Activity

    with Activity(quiet) as activity:
        activity.say("reading")
        from gradbench.record.store import load_run
        from gradbench.reporting import check_figure_format
        from gradbench.reporting.bundle import bundle_of_vega

        check_figure_format(format)
        runs = [load_run(name, results) for name in records or ("latest",)]
        if figures is None:  # made while JAX is imported
            ThreadPoolExecutor(1).submit(bundle_of_vega)
        activity.say("starting JAX")
        from gradbench.machine.cache import use_cache
        from gradbench.machine.devices import devices_to_check
        from gradbench.reporting.page import write_figures, write_report

        devices_to_check(None)  # whether JAX starts
        use_cache()  # most of a landscape's time is compiling
        if figures is None:
            written = [write_report(runs, out, check, by=by)]
        else:
            written = write_figures(runs, figures, format, by)
    show("\n".join(map(str, written)))
    return 0


@app.command
def regress(
    old: str,
    *others: str,
    max_slowdown: float = 1.10,
    allow_missing: bool = False,
    results: Results = Path("results"),
    output: Tables = TABLES,
) -> int:
    """Is a new record slower, or does it converge worse, than older ones? Exit 1 if so, by a statistical test.

    Parameters
    ----------
    old
        The record before: its folder, its id, or latest.
    others
        More old records (their median counts), then the new one; latest if none is given.
    max_slowdown
        The factor above which slower or worse is a regression.
    allow_missing
        A pair that only the old records have, or only the new one, is not a regression.
    """
    from gradbench.analysis.regress import compare_runs, regress_text
    from gradbench.record.store import load_run
    from gradbench.tables import check_format

    check_format(output.chosen)
    *olds, new = (load_run(name, results) for name in (old, *(others or ("latest",))))
    if not others and olds[0].path.samefile(new.path):
        raise PlanError(f"{old} is the latest record: name the new one as well, gradbench regress OLD NEW")
    comparison = compare_runs(olds, new, max_slowdown, allow_missing)
    show(regress_text(comparison, output.chosen))
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
    against: str | None = None,
    args: str | None = None,
    case: str | None = None,
    order: Annotated[int, Parameter(converter=whole)] = 1,
    search: Annotated[int, Parameter(converter=whole)] = 0,
    seed: Annotated[int, Parameter(converter=whole)] = 0,
    out: Out = Path("results"),
    quiet: Quiet = False,
    output: Tables = TABLES,
) -> int:
    """Is the gradient that this device computes right? Is a function, a rule or a kernel? Exit 1 on a wrong one.

    With no problem: quadratic_bowl, linear_regression, logistic_regression and mlp.

    Parameters
    ----------
    problems
        Names with settings, groups, such as @networks, or files; see gradbench list. Or a function, ./kernel.py:mine,
        or one of PyTorch's, torch:./port.py:mine.
    dtype
        float32 (if not given), float64, bfloat16 or float16; repeat for more. A self-test takes all four.
    precision
        Of matrix products: highest, tf32 or default (the device's).
    device
        cpu, gpu, tpu or all; JAX's choice if not given. From a platform's second device on, one program is run.
    program
        Only these of the programs that a report names; repeat for more.
    fast
        One point, one program (value_and_grad) and fewer differences; an answer in seconds.
    strict
        Exit 1 also where the answer is INCONCLUSIVE.
    self_test
        Plant faults, and print which are caught and how many right gradients are called wrong.
    against
        Of a function: the reference that says what is right, ./kernel.py:plain. Its own rules are tested without one.
    args
        Of a function: its arrays, as "x: f32[n,d], idx: i32[n] in 0..n"; else cases(key) in its file gives them.
    case
        Of a function: only this case, as a report names it.
    order
        2 checks Hessian-vector products too, in three ways to compute them.
    search
        Of a function: how many more sizes and inputs Hypothesis draws; the smallest that fails is shown.
    seed
        The seed of the points, directions and noise.
    """
    common: dict[str, Any] = {"precision": precision, "device": device, "fast": fast, "strict": strict}
    common |= {"order": order, "out": out, "output_format": output.chosen}
    of_function = {"against": against, "args": args, "case": case, "search": search}
    of_problem = {"programs": program or None, "seed": seed, "self_test": self_test}
    return _checked(problems, dtype, quiet, common, of_function, of_problem)


def _checked(
    problems: tuple[str, ...],
    dtype: tuple[str, ...],
    quiet: bool,
    common: dict[str, Any],
    of_function: dict[str, Any],
    of_problem: dict[str, Any],
) -> int:
    """`check` with the options of both kinds, of functions and of problems."""
    from gradbench.library.activity import Activity

    with Activity(quiet) as activity:
        activity.say("starting JAX")
        from gradbench.cli.check import run_check
        from gradbench.cli.check_function import is_function, run_check_function
        from gradbench.machine.cache import use_cache

        use_cache()  # most of a check's time is compiling; a cached program is the one that would be compiled
        common |= {"note": (lambda text: None) if quiet else note, "activity": activity}
        if any(of_function.values()) or any(map(is_function, problems)):
            if any(of_problem.values()):
                raise PlanError("--program, --seed and --self-test are for problems; of a function choose a --case")
            return run_check_function(problems, dtypes=dtype, **common, **of_function)
        dtypes = dtype or (() if of_problem["self_test"] else ("float32",))
        return run_check(problems, dtypes=dtypes, **common, **of_problem)


@app.command(name="list")
def list_(*, output: Tables = TABLES) -> int:
    """Problems with their settings, optimizers, and devices."""
    from gradbench.cli.inventory import list_text

    show(list_text(output.chosen))
    return 0


@app.command
def suggest(
    *problems: str,
    optimizer: Annotated[tuple[str, ...], Parameter(name=["--optimizer", "-o"])] = ("sgd", "adam"),
    steps: Annotated[int, Parameter(converter=whole)] = 100,
    batch_size: Annotated[int | None, Parameter(converter=whole)] = None,
    output: Tables = TABLES,
) -> int:
    """A learning rate in seconds, from a range test and a short halving: where to begin a sweep.

    Parameters
    ----------
    problems
        Names with settings or files, as run takes them.
    optimizer
        An optimizer's spec; repeat for more.
    steps
        Steps after which learning rates are compared.
    batch_size
        Rows of a minibatch; all the data if not given.
    """
    from gradbench.tables import check_format, render

    check_format(output.chosen)
    if not problems:
        raise PlanError("suggest: name a problem, such as gradbench suggest mlp -o adam")
    from gradbench.machine.cache import use_cache
    from gradbench.search.suggest import COLUMNS, suggest

    use_cache()
    with printing_to_stderr():
        found = [suggest(problem, one, steps=steps, batch_size=batch_size) for problem in problems for one in optimizer]
    show(render([one.row() for one in found], COLUMNS, output.chosen))
    return 0


@app.command
def doctor(*, output: Tables = TABLES) -> int:
    """Versions, devices, the precision in force, and canaries for known compiler faults; exit 1 if one fails."""
    from gradbench.machine.doctor import examine

    text, healthy = examine(output.chosen)
    show(text)
    return 0 if healthy else 1


for _group, _verbs in zip(map(Group.create_ordered, GROUPS), GROUPS.values()):
    for _verb in _verbs:
        app[_verb].group = _group
app.group_commands = Group.create_ordered("General")


def invoke(arguments: list[str]) -> int:
    """Run one command line and return its exit code. A failure is one line on stderr; 1 is only for the answer "no",
    and an error that is not foreseen gives 3."""
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
        note(f"gradbench: {parse_error(error)}")
        return 2
    except BrokenPipeError:  # the reader, such as head, has gone
        discard_stdout()
        return 0
    except KeyboardInterrupt:
        note("gradbench: interrupted")
        return INTERRUPTED
    except (Exception, SystemExit) as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich's error for the same, in a help text
            discard_stdout()
            return 0
        note(f"gradbench: {sentence(error)}")
        return 3
