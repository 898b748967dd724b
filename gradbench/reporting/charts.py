"""The charts, in Altair. Data has names and comes apart from the chart: the page swaps it, a figure inlines it.

Colours tell optimizers apart (Okabe and Ito's palette, which colour-blind people can read, without its black); shapes
tell verdicts apart, so nothing rests on colour alone.
"""

from __future__ import annotations

from typing import Any

import altair

alt: Any = altair  # its decorated methods have types that no checker can follow

COLOURS = ["#3a8fd1", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8a7fdb", "#7f7f7f"]
VERDICTS = ["converged", "slow", "stalled", "overshoots", "diverged"]
SHAPES = ["circle", "triangle-down", "square", "diamond", "cross"]
POWERS = [0, *(10.0**k for k in range(-7, 8))]  # ticks of an axis that begins at 0 and is logarithmic further on


def spec(chart: Any, datasets: dict[str, list[dict[str, Any]]] | None = None) -> dict[str, Any]:
    """The chart as Vega-Lite, with `datasets` filled in where given."""
    made = chart.to_dict(validate=False)  # the tests draw every chart; checking each costs a second per page
    return made | {"datasets": datasets} if datasets is not None else made


def _colour() -> Any:
    return alt.Color(
        "optimizer:N",
        scale=alt.Scale(range=COLOURS),
        title="optimizer",
        legend=alt.Legend(orient="top", symbolOpacity=1),
    )


def _dash() -> Any:
    return alt.StrokeDash("run:N", title="run", legend=alt.Legend(orient="top"))


def _shape() -> Any:
    scale = alt.Scale(domain=VERDICTS, range=SHAPES)
    return alt.Shape("verdict:N", scale=scale, title="verdict", legend=alt.Legend(orient="bottom", columns=3))


# An axis of seconds: each label with a prefix of its own. Vega's own format would give all the same, and 0m for 1e-6.
SECONDS = "datum.value === 0 ? '0' : format(datum.value, '~s')"


def _log_axis(words: str | None = None) -> Any:
    """Labels at 1, 2 and 5 times the powers of ten as far as there is room, as 0.01 and 1e-7; other lines faint."""
    digit = "round(1000 * pow(10, log(datum.value) / LN10 - floor(log(datum.value) / LN10 + 1e-6)))"
    plain = "datum.value >= 1e-3 && datum.value < 1e4"
    words = words or f"{plain} ? format(datum.value, '~g') : replace(format(datum.value, '~e'), '+', '')"
    faint = {"condition": {"test": f"{digit} === 1000", "value": 1}, "value": 0.3}
    label = f"indexof([1000, 2000, 5000], {digit}) < 0 ? '' : {words}"
    return alt.Axis(labelExpr=label, labelOverlap="greedy", labelSeparation=6, tickCount=5, gridOpacity=faint)


def _powers_axis(seconds: bool) -> Any:
    """An axis that begins at 0 and is logarithmic further on."""
    words = {"labelExpr": SECONDS} if seconds else {"format": "~s"}
    return alt.Axis(values=POWERS, labelOverlap="greedy", **words)


def _rate_axis() -> Any:
    axis = _log_axis()
    return alt.X(
        "learning_rate:Q", scale=alt.Scale(type="log", nice=False, padding=8), title="learning rate", axis=axis
    )


def sensitivity(several_runs: bool = False, height: int = 300) -> Any:
    """Final gap against learning rate: median line, spread of the seeds, verdict by shape, stable limit as a rule.

    Data: rates (run, optimizer, learning_rate, verdict, verdicts, gap, low, high, final, steps, best), limits (run,
    optimizer, limit), chosen (a rate). Diverged learning rates stand along the top.
    """
    x = _rate_axis()
    y = alt.Y("gap:Q", scale=alt.Scale(type="log"), title="final loss gap / first", axis=_log_axis())
    rates = alt.Chart(alt.NamedData(name="rates"))
    tooltip = [
        alt.Tooltip("optimizer:N"),
        alt.Tooltip("learning_rate:Q", format=".4g", title="learning rate"),
        alt.Tooltip("verdicts:N", title="verdict"),
        alt.Tooltip("final:Q", format=".3g", title="final gap (median)"),
        alt.Tooltip("steps:Q", format=".4g", title="steps to target"),
        alt.Tooltip("run:N"),
    ]
    lines = rates.encode(x=x, color=_colour())
    spread = lines.transform_filter("isValid(datum.high) && isValid(datum.low)")
    lines = lines.encode(strokeDash=_dash()) if several_runs else lines
    detail = {"detail": "run:N"}
    marks = rates.encode(x=x, color=_colour(), shape=_shape(), tooltip=tooltip)
    limits = alt.Chart(alt.NamedData(name="limits")).encode(x=alt.X("limit:Q"), color=_colour())
    layers = [
        spread.mark_area(opacity=0.18).encode(y="low:Q", y2="high:Q", **detail),
        limits.mark_rule(strokeDash=[2, 3], strokeWidth=2).encode(tooltip=["optimizer:N", "limit:Q"]),
        # On the far side of the limit, below the crosses: most of what lies there has diverged.
        limits.mark_text(angle=270, dx=-16, dy=4, align="right", baseline="top").encode(text="label:N", y=alt.value(0)),
        lines.mark_line(strokeWidth=2).encode(y=y, **detail),
        marks.transform_filter("isValid(datum.gap)")
        .mark_point(size=70, filled=True, opacity=1, cursor="pointer")
        .encode(y=y),
        marks.transform_filter("!isValid(datum.gap)")
        .mark_point(size=70, filled=True, opacity=1, cursor="pointer")
        .encode(y=alt.value(5)),
        rates.transform_filter("datum.best").mark_point(size=260, strokeWidth=2).encode(x=x, y=y, color=_colour()),
        alt.Chart(alt.NamedData(name="chosen")).mark_rule(strokeWidth=7, opacity=0.25).encode(x="learning_rate:Q"),
    ]
    return alt.layer(*layers).properties(height=height, width=560)


def convergence(seconds: bool = False, height: int = 300) -> Any:
    """Gap against step for every learning rate of one pair, the chosen one in front; a cross ends a diverged one.

    Data: curves (trial, learning_rate, x, gap), front (the chosen rate's trials), ends (x, gap of diverged trials),
    theory (x, gap at the predicted rate, through the chosen curve's end).
    """
    title = "seconds (steps × solo step time)" if seconds else "step"
    x = alt.X(
        "x:Q",
        title=title,
        scale=alt.Scale(type="symlog", constant=1e-6 if seconds else 1),
        axis=_powers_axis(seconds),
    )
    y = alt.Y("gap:Q", scale=alt.Scale(type="log"), title="loss gap / first", axis=_log_axis())
    scale = alt.Scale(type="log", scheme="viridis")
    colour = alt.Color(
        "learning_rate:Q",
        scale=scale,
        title="learning rate",
        legend=alt.Legend(orient="top", format="~g", type="gradient", gradientLength=220, labelOverlap="greedy"),
    )
    back = alt.Chart(alt.NamedData(name="curves")).encode(x=x, y=y, color=colour, detail="trial:N")
    tooltip = [
        alt.Tooltip("learning_rate:Q", format=".4g"),
        "seed:N",
        "verdict:N",
        "x:Q",
        alt.Tooltip("gap:Q", format=".3g"),
    ]
    front = alt.Chart(alt.NamedData(name="front")).encode(x=x, y=y, detail="trial:N", tooltip=tooltip)
    ends = alt.Chart(alt.NamedData(name="ends")).encode(x=x, y=y, tooltip=tooltip)
    theory = alt.Chart(alt.NamedData(name="theory")).encode(x=x, y=y)
    return alt.layer(
        back.mark_line(strokeWidth=1.2, opacity=0.6),
        ends.mark_point(shape="cross", filled=True, color="#888", size=60, opacity=1),
        front.mark_line(strokeWidth=3.5, color="#e69f00"),
        theory.mark_line(strokeWidth=2, strokeDash=[5, 4], color="#d55e00"),
    ).properties(height=height, width=560)


def step_cost() -> Any:
    """Seconds of one trial's step, solo and batched, and of a loss and its gradient alone: median and quartiles.

    Data: timings (run, problem, optimizer, mode, what, median, p25, p75).
    """
    shown = alt.Chart(alt.NamedData(name="timings")).encode(y=alt.Y("what:N", title=None, sort=None))
    x = alt.X(
        "median:Q",
        scale=alt.Scale(type="log"),
        title="seconds of one trial's step",
        axis=_log_axis(SECONDS),
    )
    modes = ["value", "value_and_grad", "solo", "batched"]
    shape = alt.Shape(
        "mode:N",
        scale=alt.Scale(domain=modes, range=["square", "diamond", "circle", "triangle-up"]),
        legend=alt.Legend(orient="top", columns=1),
    )
    colour = alt.Color(
        "mode:N",
        scale=alt.Scale(domain=modes, range=[COLOURS[7], COLOURS[3], COLOURS[0], COLOURS[1]]),
        legend=alt.Legend(orient="top", columns=1),
    )
    dots = shown.mark_point(filled=True, size=80, opacity=1).encode(
        x=x, shape=shape, color=colour, tooltip=["run:N", "mode:N", "median:Q", "trials:Q", "trusted:N"]
    )
    return alt.layer(shown.mark_rule(strokeWidth=2).encode(x="p25:Q", x2="p75:Q", color=colour), dots).properties(
        width=560, height={"step": 20}
    )


def sharpness() -> Any:
    """The Hessian's top eigenvalue along a path against the edge of stability (Cohen et al. 2021).

    Data: sharpness, the rows of theory.sharpness_along.
    """
    rows = alt.Chart(alt.NamedData(name="sharpness")).transform_filter("datum.sharpness > 0")
    legend = alt.Legend(orient="top", symbolType="stroke", symbolStrokeWidth=3, format=".3~g")
    colour = alt.Color("learning_rate:O", scale=alt.Scale(range=COLOURS), title="learning rate", legend=legend)
    x = alt.X("step:Q", axis=alt.Axis(format="~s", tickCount=6, labelOverlap=True))
    y = alt.Y("sharpness:Q", scale=alt.Scale(type="log"), axis=_log_axis(), title="top Hessian eigenvalue")
    tooltip = [
        alt.Tooltip(f"{name}:Q", format=".4g") for name in ("learning_rate", "step", "sharpness", "error", "edge")
    ]
    line = rows.mark_line(point={"size": 50}, strokeWidth=2.5).encode(x=x, y=y, color=colour, tooltip=tooltip)
    edge = (
        rows.transform_filter("isValid(datum.edge)")
        .mark_line(strokeDash=[4, 3], strokeWidth=2)
        .encode(x=x, y=alt.Y("edge:Q"), color=colour)
    )
    return alt.layer(line, edge).properties(width=560, height=260)


def valley_map() -> Any:
    """Which valley each trial ended in, by letter. Data: ends (learning_rate, seed, valley), chosen (a rate)."""
    x = _rate_axis()
    ends = alt.Chart(alt.NamedData(name="ends")).transform_calculate(
        letter="datum.valley === 'diverged' ? '×' : datum.valley"
    )
    colour = {
        "condition": {"test": "datum.valley === 'diverged'", "value": "#888"},
        "field": "letter",
        "type": "nominal",
        "scale": {"range": COLOURS},
        "legend": None,
    }
    tooltip = ["learning_rate:Q", "seed:O", "valley:N"]
    letters = ends.mark_text(fontSize=13, fontWeight="bold", cursor="pointer").encode(
        x=x, y=alt.Y("seed:O", title="seed"), text="letter:N", color=colour, tooltip=tooltip
    )
    chosen = alt.Chart(alt.NamedData(name="chosen")).mark_rule(strokeWidth=14, opacity=0.25)
    return alt.layer(chosen.encode(x="learning_rate:Q"), letters).properties(width=560, height={"step": 20})


def overall(runs: Any) -> dict[str, tuple[Any, list[dict[str, Any]]]]:
    """Dataset name -> (chart, rows): performance profiles and targets reached, in steps and in seconds of one trial
    alone; without those that have no rows, as nobody reaches a target."""
    from gradbench.analysis import profiles

    made = {
        "profile": (profile("the fewest steps"), profiles.profile_rows(runs)),
        "profile_seconds": (profile("the least solo time", "profile_seconds"), profiles.profile_rows(runs, True)),
        "ecdf": (ecdf(), profiles.ecdf_rows(runs)),
        "ecdf_seconds": (ecdf(True), profiles.ecdf_rows(runs, True)),
    }
    return {name: (chart, rows) for name, (chart, rows) in made.items() if rows}


def profile(of: str, name: str = "profile") -> Any:
    """Dolan and Moré's performance profiles. Data: `name` (solver, ratio, share)."""
    scale = alt.Scale(type="log", nice=False)
    x = alt.X("ratio:Q", scale=scale, title=f"within this factor of {of}", axis=_log_axis())
    return _steps_up(name, x, "share of problems solved")


def ecdf(seconds: bool = False) -> Any:
    """The share of targets reached within a number of steps. Data: ecdf or ecdf_seconds (solver, cost, share)."""
    x = alt.X(
        "cost:Q",
        scale=alt.Scale(type="symlog", constant=1e-6 if seconds else 1, nice=False),
        title="seconds (steps × solo step time)" if seconds else "steps",
        axis=_powers_axis(seconds),
    )
    return _steps_up("ecdf_seconds" if seconds else "ecdf", x, "share of targets reached")


def _steps_up(name: str, x: Any, title: str) -> Any:
    colour = alt.Color("solver:N", scale=alt.Scale(range=COLOURS), title="optimizer", legend=alt.Legend(orient="top"))
    dash = alt.StrokeDash("solver:N", title="optimizer")
    chart = alt.Chart(alt.NamedData(name=name)).mark_line(interpolate="step-after", strokeWidth=2.5)
    y = alt.Y("share:Q", scale=alt.Scale(domain=[0, 1]), title=title, axis=alt.Axis(format="%"))
    return chart.encode(x=x, y=y, color=colour, strokeDash=dash).properties(width=560, height=240)
