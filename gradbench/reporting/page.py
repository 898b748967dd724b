"""The report: one page that works offline, and the same charts as files."""

from __future__ import annotations

import contextlib
import html
import json
import logging
import math
import os
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from gradbench.analysis.answers import labels, step_words
from gradbench.analysis.metrics import chosen_metric
from gradbench.analysis.profiles import best_rate_interval, steps_at_best
from gradbench.analysis.summary import epoch_steps, pair_trials, summarise_all
from gradbench.errors import GradbenchError, GradbenchWarning, RunError
from gradbench.files import writing
from gradbench.inputs.problem import Problem
from gradbench.paths import user_path
from gradbench.record.store import Run
from gradbench.reporting import charts, check_figure_format
from gradbench.reporting.bundle import bundle_of_vega
from gradbench.reporting.checks import check_rows
from gradbench.reporting.data import answers, page_data
from gradbench.reporting.figures import figure_specs
from gradbench.reporting.scenery import add_local_limits, landscape_views, page_rows
from gradbench.tables import GO_ON, number, seconds

LOG = logging.getLogger(__name__)


WEB = Path(__file__).parent / "web"
SCRIPTS = ("common.js", "metrics.js", "settings.js", "page.js")


def write_report(
    runs: Sequence[Run],
    out: str | Path,
    checks: Sequence[str | Path] = (),
    objects: Mapping[str, Problem] | None = None,
    by: str | None = None,
) -> Path:
    """Write one self-contained HTML file about the runs, and return its path. Neither writing nor reading it needs a
    network.

    `checks` are records of gradbench check to show; without any, the newest beside the runs for their problems.
    `objects` are problems that no file holds, by name. `by` is the metric that the page opens with, instead of the gap.
    A page that is there is replaced, with a GradbenchWarning where it is of other records; no other file is. Raises
    GradbenchError where there is no run, no finished trial, a file in `checks` is no such record, or `out` cannot be
    written, and PlanError for a metric that no problem records.
    """
    out = user_path(out)
    records = ", ".join(run.id for run in runs)
    check_replaceable(out, records)
    data: dict[str, Any] = page_data(runs) | {"by": by and chosen_metric(runs, by)}
    check_writable(out)
    checked = check_rows(runs, checks)
    with ThreadPoolExecutor(2) as pool:  # XLA's compiling for landscapes takes longest; the rest is made meanwhile
        views, bundle = pool.submit(landscape_views, runs, objects=objects), pool.submit(bundle_of_vega)
        overall = _add_charts(data, runs)
        pairs = _pairs(runs)
        found = views.result()
    add_local_limits(data["pairs"], found)
    data["landscapes"] = {name: page_rows(view) for name, view in found.items()}
    text = page_json(data)
    template = Template((WEB / "page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        style=(WEB / "style.css").read_text(encoding="utf-8"),
        records=html.escape(records),
        header=_header(runs, data),
        answers=_answers(runs),
        pairs=pairs,
        hide_overall="" if overall else " hidden",
        cost=_cost(data),
        checks=_checks(checked),
        environment="".join(_environment(run) for run in data["runs"]),
        data=text,
        bundle=bundle.result(),
        script="".join((WEB / name).read_text(encoding="utf-8") for name in SCRIPTS),
    )
    write_file(out, page.encode())
    return out


def _add_charts(data: dict[str, Any], runs: Sequence[Run]) -> bool:
    """Add the charts, and the rows of those over all pairs, to the page's data; returns whether there are such rows."""
    overall = charts.overall(runs)
    data["overall"] = {name: rows for name, (_, rows) in overall.items()}
    optimizers, solvers = data["optimizers"], data["optimizers"] if len(runs) == 1 else ()
    made = {
        "sensitivity": charts.sensitivity(len(runs) > 1),
        "convergence": charts.convergence(),
        "convergence_seconds": charts.convergence(seconds=True),
        "valleys": charts.valley_map(),
        "step_cost": charts.step_cost(),
        "sharpness": charts.sharpness(),
    }
    data["charts"] = {name: charts.spec(chart, optimizers=optimizers) for name, chart in made.items()}
    data["charts"] |= {name: charts.spec(chart, optimizers=solvers) for name, (chart, _) in overall.items()}
    return bool(overall)


def check_replaceable(out: Path, records: str, kind: str = "report") -> None:
    """GradbenchError if `out` is a file but no page of this kind; GradbenchWarning if a page of other records."""
    if not out.is_file() or out.stat().st_size == 0:
        return
    head = ""
    with contextlib.suppress(OSError), out.open("rb") as file:
        head = file.read(2000).decode(errors="replace")
    if f"<title>gradbench {kind}</title>" not in head:
        raise GradbenchError(f"{out}: exists and is not a {kind}; name another file, or remove it")
    before = re.search(r'<meta name="records" content="(.*?)">', head)
    if before and html.unescape(before[1]) != records:
        warnings.warn(f"{out}: replaces the {kind} of {html.unescape(before[1])}", GradbenchWarning, stacklevel=3)


def write_figures(runs: Sequence[Run], folder: str | Path, fmt: str = "svg", by: str | None = None) -> list[Path]:
    """Write every view as a file (svg, png or pdf) in `folder`, without a browser; returns the paths. Sensitivity and
    convergence are of the gap, or of the metric `by` where a problem records it.

    Raises PlanError for a metric that no problem records, GradbenchError for an unknown format, no finished trial, or a
    folder that cannot be written.
    """
    import vl_convert

    check_figure_format(fmt)
    by = by and chosen_metric(runs, by)
    folder = user_path(folder)
    _check_folder(folder, folder)
    paths = []
    for name, spec in figure_specs(runs, by).items():
        LOG.info("drawing %s", name)
        if fmt == "svg":
            content = vl_convert.vegalite_to_svg(spec).encode()
        elif fmt == "png":
            content = vl_convert.vegalite_to_png(spec, scale=2)
        else:
            content = vl_convert.vegalite_to_pdf(spec)
        paths.append(folder / f"{name}.{fmt}")
        write_file(paths[-1], content)
    return paths


def page_json(data: Any) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def check_writable(path: Path) -> None:
    """Make the folder of `path`; GradbenchError unless a file can be written there. To be called before long work."""
    if os.path.exists(path) and not os.path.isfile(path):  # replacing /dev/stdout would take the device away
        raise GradbenchError(f"{path}: cannot be written: not a regular file")
    _check_folder(path.parent, path)


def _check_folder(folder: Path, given: Path) -> None:
    """GradbenchError, which names what was `given`, unless `folder` takes a file; it is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = f"{folder} is not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise GradbenchError(f"{given}: cannot be written: {why}") from error


def write_file(path: Path, content: bytes) -> None:
    """Write the whole file or nothing, after check_writable. Raises GradbenchError where `path` cannot be written."""
    try:
        with writing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise GradbenchError(f"{path}: cannot be written: {error.strerror}") from error
    except RunError as error:
        raise GradbenchError(str(error)) from error


def _header(runs: Sequence[Run], data: dict[str, Any]) -> str:
    lines = []
    for run, shown in zip(runs, data["runs"]):
        plan, place = run.plan, shown["environment"]
        counts = {"problem": plan.problems, "optimizer": plan.optimizers, "learning rate": plan.rates}
        counts["seed"] = range(plan.seeds)
        ran = " × ".join(f"{len(of)} {word}{'s' * (len(of) != 1)}" for word, of in counts.items())
        device = f"{place.get('device_count')} × {place.get('device_kind')}"
        state = "" if shown["state"] == "complete" else f" <strong>({html.escape(shown['state'])})</strong>"
        lines.append(
            f"<p>{html.escape(shown['name'])}: {ran}, {_length(run)}, {', '.join(plan.dtypes)}, on "
            f"{html.escape(device)}; {shown['trials']:,} trials{state} "
            f"<span class='soft'>{html.escape(run.id)}, {html.escape(str(shown['started']))}</span></p>"
        )
    return "".join(lines)


def _length(run: Run) -> str:
    """The steps of a trial and, with minibatches, the epochs that they make on each problem."""
    facts, plan = run.info.get("problems", {}), run.plan
    lengths = {problem: step_words(plan.steps, epoch_steps(plan, facts.get(problem, {}))) for problem in plan.problems}
    if len(set(lengths.values())) == 1:
        return lengths[plan.problems[0]]
    return html.escape("; ".join(f"{length} of {problem}" for problem, length in lengths.items()))


def _answers(runs: Sequence[Run]) -> str:
    made = []
    for run, problem, best, others, notes in answers(runs):
        title = html.escape(problem) + (f" <span class='soft'>{html.escape(run)}</span>" if len(runs) > 1 else "")
        rest = "".join(f"<li>{_prose(text)}</li>" for text in others)
        soft = "".join(f"<p class='soft'>{_prose(text)}</p>" for text in notes)
        made.append(f"<article><h3>{title}</h3><p class='best'>{_prose(best)}</p><ul>{rest}</ul>{soft}</article>")
    return "".join(made)


def _prose(text: str) -> str:
    """A sentence as HTML: units stay on the line of their numbers; a command to go on with begins a line and breaks
    only at its spaces, not within --lr."""
    said, go_on, command = text.partition(GO_ON)
    said = re.sub(r"(?<=\d) (?=%|(steps|[mµn]?s)\b)", "\N{NO-BREAK SPACE}", html.escape(said + go_on.rstrip()))
    words = " ".join(f"<span>{html.escape(word)}</span>" for word in command.split(" "))
    return f"{said}<code>{words}</code>" if command else said


def _pairs(runs: Sequence[Run]) -> str:
    """Every pair at its best learning rate: how sure that is, how wide its good range, and the steps to each target."""
    headings = ("pair", "best learning rate", "95 %", "good range", "solo step", *(f"to 1e-{k}" for k in range(1, 7)))
    cells = []
    for run, name, pairs in zip(runs, labels(runs), summarise_all(runs)):
        for pair in pairs:
            interval = best_rate_interval(pair_trials(run, pair), to=pair.reference)
            what = " × ".join((pair.problem, pair.optimizer, *([name] if len(runs) > 1 else [])))
            best = pair.best and pair.best.learning_rate
            sure = " … ".join(dict.fromkeys(map(number, interval[1:]))) if interval else "–"
            good = "–" if pair.good_decades is None else f"{number(pair.good_decades)} decades"
            steps = np.median(steps_at_best(run, pair).reshape(6, -1), axis=1).tolist()
            reached = [f"{step:.0f}" if math.isfinite(step) else "–" for step in steps]
            cells.append((what, number(best), sure, good, seconds(pair.solo_step_s), *reached))
    return _table("every pair at its best learning rate", headings, cells)


def _table(label: str, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in a box that scrolls sideways where it is wider than the page."""
    head = "".join(f"<th scope='col'>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class='scroll' tabindex='0' role='region' aria-label='{label}'>{table}</div>"


def _cost(data: dict[str, Any]) -> str:
    rows = data["timings"]
    batches = {run["name"]: run["plan"].get("batch_size") for run in data["runs"]}
    if not rows:
        return "<p class='soft'>Nothing was timed: the plan's timing is none. Costs are in steps alone.</p>"
    lesson = (
        "solo is one trial alone, what a user's training step costs; batched is the sweep's, shared among its trials. "
        "value is the loss alone, value_and_grad with its gradient. Bars span the quartiles."
    )
    notes = "".join(f"<p class='soft'>{html.escape(note)}</p>" for note in _cheaper_than_value(rows, batches))
    chart = "<div class='panel'><div id='timing' class='chart'></div></div>"
    table = f"<details><summary>Timings as a table</summary>{_timings(rows)}</details>"
    return f"<p class='soft'>{lesson}</p>{notes}{chart}{table}"


def _cheaper_than_value(rows: Sequence[dict[str, Any]], batches: Mapping[str, int | None]) -> list[str]:
    """A note for each solo step that was measured faster than the loss alone; `batches`: each run's batch size."""
    alone = {(row["run"], row["problem"]): row for row in rows if row["mode"] == "value"}
    notes = []
    for row in rows:
        value = alone.get((row["run"], row["problem"]))
        if row["mode"] != "solo" or value is None or row["median"] >= value["median"]:
            continue
        if size := batches[row["run"]]:
            why = f"a step takes the loss of a batch of {size}, and alone it is timed on all the data"
        elif not (row["trusted"] and value["trusted"]):
            why = "one of the two was not measured reliably, as the table says"
        elif row["p75"] >= value["p25"]:
            why = "their quartiles overlap, so they are not told apart"
        else:
            why = "XLA compiles them as two programs, which were timed one after the other"
        what = f"{row['problem']}: a solo step of {row['optimizer']}, {seconds(row['median'])}"
        notes.append(f"{what}, is below the loss alone, {seconds(value['median'])}: {why}.")
    return notes


def _timings(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "<p class='soft'>Nothing was timed: the plan's timing is none.</p>"
    headings = ("what", "mode", "trials", "a trial's step", "quartiles", "trace", "lower", "compile", "first run")
    cells = []
    for row in rows:
        what = " × ".join(part for part in (row["problem"], row["optimizer"], row["run"]) if part)
        spread = f"{seconds(row['p25'])} – {seconds(row['p75'])}" + ("" if row["trusted"] else " (not trusted)")
        stages = [seconds(row[name]) for name in ("trace_s", "lower_s", "compile_s", "first_run_s")]
        stages[2] += " (cached)" if row["compile_cached"] else ""
        stages[2] += " (beside other work)" if row["compile_ahead"] else ""
        cells.append((what, row["mode"], row["trials"], seconds(row["median"]), spread, *stages))
    return _table("timings", headings, cells) + _gradient_cost(rows)


def _gradient_cost(rows: Sequence[dict[str, Any]]) -> str:
    """The cost of a gradient against its loss, which theory bounds by a small constant (Baur and Strassen 1983)."""
    times = {(row["run"], row["problem"], row["mode"]): row["median"] for row in rows}
    cells = [
        (f"{problem} × {run}", number(times[run, problem, "value_and_grad"] / value))
        for (run, problem, mode), value in times.items()
        if mode == "value" and (run, problem, "value_and_grad") in times
    ]
    return _table("cost of a gradient", ("what", "loss with gradient / loss alone"), cells) if cells else ""


def _checks(rows: Sequence[dict[str, str]]) -> str:
    if not rows:
        return ""
    lesson = (
        "Whether the gradient is right: its formula in float64, and its execution in each dtype and precision. "
        "A relative fault larger than the one given would have been caught. From gradbench check."
    )
    table = _table("gradient check", list(rows[0]), [list(row.values()) for row in rows])
    return f"<section><h2>Gradient check</h2><p class='soft'>{lesson}</p>{table}</section>"


def _environment(run: dict[str, Any]) -> str:
    place = run["environment"]
    facts = {key: value for key, value in place.items() if key not in ("versions", "flags") and value is not None}
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in place.get("versions", {}).items())
    facts["flags"] = " ".join(f"{name}={value}" for name, value in place.get("flags", {}).items()) or "none"
    rows = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>" for key, value in facts.items())
    return f"<h3>{html.escape(run['name'])}</h3><dl>{rows}</dl>"
