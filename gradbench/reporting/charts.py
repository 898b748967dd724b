"""The charts, in Altair. Datasets are named and come apart from the chart: the page swaps them, a figure inlines them.

A colour has one meaning on a page: COLOURS are optimizers (Okabe and Ito's palette, which colour-blind people can read,
without its black), each with the same one everywhere (`spec`), and RATES are learning rates, from low to high. What is
chosen is black, or white on a dark page. Shapes tell verdicts and timing modes, so nothing depends on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class _Altair:
    """Altair, imported where the first chart is made: a fifth of a second, meanwhile XLA compiles for landscapes."""

    def __getattr__(self, name: str) -> Any:
        import altair

        return getattr(altair, name)


alt: Any = _Altair()  # untyped: ty cannot follow the types of its decorated methods

COLOURS = ["#3a8fd1", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8a7fdb", "#7f7f7f"]
# viridis (van der Walt and Smith 2015) from 0.1 to 0.9, visible on white and on black
RATES = ["#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26"]
INK = "currentColor"  # the text's colour: black in a file
SHAPES = {  # of verdicts
    "converged": "circle",
    "slow": "triangle-down",
    "stalled": "square",
    "overshoots": "diamond",
    "diverged": "cross",
}
POWERS = [0, *(10.0**k for k in range(-7, 8))]  # ticks of an axis that begins at 0 and is logarithmic further on


def spec(
    chart: Any, datasets: dict[str, list[dict[str, Any]]] | None = None, optimizers: Sequence[str] = ()
) -> dict[str, Any]:
    """The chart as Vega-Lite, with `datasets` filled in where given, and a colour of its own for each of `optimizers`,
    also where the chart shows only some of them."""
    made = chart.to_dict(validate=False)  # the tests draw every chart; checking each costs a second per page
    for encoding in encodings(made):
        for channel, scale in (("color", {"range": COLOURS}), ("strokeDash", {})):
            if optimizers and encoding.get(channel, {}).get("field") in ("optimizer", "solver"):
                encoding[channel]["scale"] = scale | {"domain": list(optimizers)}
    return made | {"datasets": datasets} if datasets is not None else made


def encodings(made: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The encoding of a chart as Vega-Lite, and those of its layers."""
    yield made.get("encoding", {})
    for layer in made.get("layer", []):
        yield from encodings(layer)


def rate_colour(rate: float, low: float, high: float) -> str:
    """A rate's colour: RATES interpolated on a log scale from `low` to `high`, as in the charts."""
    place = (len(RATES) - 1) * (math.log(rate / low) / math.log(high / low) if high > low else 0.0)
    at = min(max(int(place), 0), len(RATES) - 2)
    ends = [[int(RATES[i][k : k + 2], 16) for k in (1, 3, 5)] for i in (at, at + 1)]
    return "#" + "".join(f"{round(a + (place - at) * (b - a)):02x}" for a, b in zip(*ends))


def said(chart: Any, name: str, title: str, digits: str = ".4g") -> tuple[Any, Any]:
    """(the chart, the tooltip of a number that may be missing): a dash then, where Vega would write null."""
    words = f"isValid(datum.{name}) ? format(datum.{name}, '{digits}') : '–'"
    return chart.transform_calculate(**{f"{name}_shown": words}), alt.Tooltip(f"{name}_shown:N", title=title)


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
    scale = alt.Scale(domain=list(SHAPES), range=list(SHAPES.values()))
    return alt.Shape("verdict:N", scale=scale, title="verdict", legend=alt.Legend(orient="bottom", columns=3))


# An axis of seconds: each label with its own SI prefix. Vega would use one for all, and write 0m for 1e-6.
SECONDS = "datum.value === 0 ? '0' : format(datum.value, '~s')"


def _log_axis(words: str | None = None) -> Any:
    """Labels at 1, 2 and 5 times powers of ten where there is room, such as 0.01 and 1e-7; other lines are faint."""
    digit = "round(1000 * pow(10, log(datum.value) / LN10 - floor(log(datum.value) / LN10 + 1e-6)))"
    plain = "datum.value >= 1e-3 && datum.value < 1e4"
    words = words or f"{plain} ? format(datum.value, '~g') : replace(format(datum.value, '~e'), '+', '')"
    faint = {"condition": {"test": f"{digit} === 1000", "value": 1}, "value": 0.3}
    label = f"indexof([1000, 2000, 5000], {digit}) < 0 ? '' : {words}"
    return alt.Axis(labelExpr=label, labelOverlap="greedy", labelSeparation=6, tickCount=5, gridOpacity=faint)


def _powers_axis(seconds: bool) -> Any:
    """An axis that begins at 0 and is logarithmic further on."""
    words = {"labelExpr": SECONDS} if seconds else {"format": "~s"}
    values = [power for power in POWERS if seconds or power == 0 or power >= 1]  # no step lies between 0 and 1
    return alt.Axis(values=values, labelOverlap="greedy", labelSeparation=6, **words)


def _rate_colour() -> Any:
    return alt.Color(
        "learning_rate:Q",
        scale=alt.Scale(type="log", range=RATES),
        title="learning rate",
        legend=alt.Legend(orient="top", format="~g", type="gradient", gradientLength=220, labelOverlap="greedy"),
    )


def _rate_axis() -> Any:
    axis = _log_axis()
    return alt.X(
        "learning_rate:Q", scale=alt.Scale(type="log", nice=False, padding=8), title="learning rate", axis=axis
    )


def _measured(by: str, measure: Mapping[str, Any], title: str, scale: Mapping[str, Any]) -> Any:
    """The y axis of a metric, whose values are in the field `gap`; the page's script makes the same."""
    kind = {"type": "log"} if measure["log"] else {"type": "linear", "zero": False}
    axis = _log_axis() if measure["log"] else alt.Axis(tickCount=6)
    title += ", more is better" if measure["more_is_better"] else ""
    return alt.Y("gap:Q", scale=alt.Scale(**kind, **scale), title=f"{by}{title}", axis=axis)


def sensitivity(
    several_runs: bool = False,
    height: int = 300,
    gap_to: str = "",
    by: str | None = None,
    measure: Mapping[str, Any] | None = None,
) -> Any:
    """Final gap against learning rate: median line, spread of the seeds, verdict by shape, stable limit as a rule, good
    range as a band.

    Data: rates (run, optimizer, learning_rate, verdict, verdicts, gap, low, high, final, steps, best), limits
    (optimizer, limit, label, level in pixels from the top), good (optimizer, low, high), chosen (a rate). Diverged
    learning rates stand along the top, of a metric where the worst values do. `gap_to` is what gaps are to, in words;
    `by` is a metric instead of the gap, drawn as its `measure` says (data.page_data).
    """
    x = _rate_axis()
    title = f"final gap to {gap_to} / first gap" if gap_to else "final loss gap / first"
    y = alt.Y("gap:Q", scale=alt.Scale(type="log"), title=title, axis=_log_axis())
    y = y if measure is None else _measured(by or "", measure, " at the end", {})
    worst = height - 5 if measure and measure["more_is_better"] else 5
    rates = alt.Chart(alt.NamedData(name="rates"))
    lines = rates.encode(x=x, color=_colour())
    spread = lines.transform_filter("isValid(datum.high) && isValid(datum.low)")
    lines = lines.encode(strokeDash=_dash()) if several_runs else lines
    detail = {"detail": "run:N"}
    marks, final = said(rates, "final", f"{by or 'final gap'} (median)", ".3g")
    marks, steps = said(marks, "steps", "steps to target")
    tooltip = [
        alt.Tooltip("optimizer:N"),
        alt.Tooltip("learning_rate:Q", format=".4g", title="learning rate"),
        alt.Tooltip("verdicts:N", title="verdict"),
        final,
        steps,
        alt.Tooltip("run:N"),
    ]
    marks = marks.encode(x=x, color=_colour(), shape=_shape(), tooltip=tooltip)
    limits = alt.Chart(alt.NamedData(name="limits")).encode(x=alt.X("limit:Q"), color=_colour())
    good = alt.Chart(alt.NamedData(name="good")).encode(x=alt.X("low:Q"), x2="high:Q", color=_colour())
    layers = [
        good.mark_rect(opacity=0.16).encode(tooltip=["optimizer:N", *_ends("low", "high")]),
        spread.mark_area(opacity=0.18).encode(y="low:Q", y2="high:Q", **detail),
        limits.mark_rule(strokeDash=[2, 3], strokeWidth=2).encode(tooltip=["optimizer:N", "limit:Q"]),
        # On the far side of the limit, below the crosses: most of what lies there has diverged.
        limits.mark_text(angle=270, dx=-16, dy=4, align="right", baseline="top").encode(
            text="label:N", y=alt.Y("level:Q", scale=None)
        ),
        lines.mark_line(strokeWidth=2).encode(y=y, **detail),
        marks.transform_filter("isValid(datum.gap)")
        .mark_point(size=70, filled=True, opacity=1, cursor="pointer")
        .encode(y=y),
        marks.transform_filter("!isValid(datum.gap)")
        .mark_point(size=70, filled=True, opacity=1, cursor="pointer")
        .encode(y=alt.value(worst)),
        rates.transform_filter("datum.best").mark_point(size=260, strokeWidth=2).encode(x=x, y=y, color=_colour()),
        alt.Chart(alt.NamedData(name="chosen"))
        .mark_rule(strokeWidth=7, opacity=0.25, color=INK)
        .encode(x="learning_rate:Q"),
    ]
    return alt.layer(*layers).properties(height=height, width=560)


def _ends(*names: str) -> list[Any]:
    return [alt.Tooltip(f"{name}:Q", format=".4g", title=f"good range, {name}") for name in names]


def convergence(
    seconds: bool = False, height: int = 300, by: str | None = None, measure: Mapping[str, Any] | None = None
) -> Any:
    """Gap against step for every learning rate of one pair, the chosen one in front; a cross ends a diverged one.

    Data: curves (trial, learning_rate, x, gap), front (the chosen rate's trials), ends (x, gap of diverged trials),
    theory (x, gap at the predicted rate, through the chosen curve's end). `by` and `measure` as for sensitivity.
    """
    title = "seconds (steps × solo step time)" if seconds else "step"
    x = alt.X(
        "x:Q",
        title=title,
        scale=alt.Scale(type="symlog", constant=1e-6 if seconds else 1),
        axis=_powers_axis(seconds),
    )
    y = alt.Y("gap:Q", scale=alt.Scale(type="log"), title="loss gap / first", axis=_log_axis())
    if measure is not None:
        y = _measured(by or "", measure, "", {"domain": measure["range"], "clamp": True})
    colour = _rate_colour()
    back = alt.Chart(alt.NamedData(name="curves")).encode(x=x, y=y, color=colour, detail="trial:N")
    tooltip = [
        alt.Tooltip("learning_rate:Q", format=".4g"),
        "seed:N",
        "verdict:N",
        "x:Q",
        alt.Tooltip("gap:Q", format=".3g", title=by or "gap"),
    ]
    front = alt.Chart(alt.NamedData(name="front")).encode(x=x, y=y, detail="trial:N", tooltip=tooltip)
    ends = alt.Chart(alt.NamedData(name="ends")).encode(x=x, y=y, tooltip=tooltip)
    theory = alt.Chart(alt.NamedData(name="theory")).encode(x=x, y=y)
    return alt.layer(
        back.mark_line(strokeWidth=1.2, opacity=0.6),
        ends.mark_point(shape="cross", filled=True, color="#888", size=60, opacity=1),
        front.mark_line(strokeWidth=3.5, color=INK),
        theory.mark_line(strokeWidth=2, strokeDash=[5, 4], color=INK),
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
    # Shapes tell the modes apart; only a solo step, which a user pays, has the text's colour.
    colour = alt.condition("datum.mode === 'solo'", alt.value(INK), alt.value("#888"))
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
    colour = _rate_colour()
    x = alt.X("step:Q", axis=alt.Axis(format="~s", tickCount=6, labelOverlap=True))
    y = alt.Y("sharpness:Q", scale=alt.Scale(type="log"), axis=_log_axis(), title="top Hessian eigenvalue")
    named = ("learning_rate", "step", "sharpness", "error")
    line, edge = said(rows, "edge", "edge")
    tooltip = [*(alt.Tooltip(f"{name}:Q", format=".4g") for name in named), edge]
    line = line.mark_line(point={"size": 50}, strokeWidth=2.5).encode(x=x, y=y, color=colour, tooltip=tooltip)
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
    colour = alt.condition("datum.valley === 'diverged'", alt.value("#888"), alt.value(INK))
    tooltip = ["learning_rate:Q", "seed:O", "valley:N"]
    letters = ends.mark_text(fontSize=13, fontWeight="bold", cursor="pointer").encode(
        x=x, y=alt.Y("seed:O", title="seed"), text="letter:N", color=colour, tooltip=tooltip
    )
    chosen = alt.Chart(alt.NamedData(name="chosen")).mark_rule(strokeWidth=14, opacity=0.25, color=INK)
    return alt.layer(chosen.encode(x="learning_rate:Q"), letters).properties(width=560, height={"step": 20})


def overall(runs: Any) -> dict[str, tuple[Any, list[dict[str, Any]]]]:
    """Dataset name -> (chart, rows): performance profiles and targets reached, in steps and in seconds of one trial
    alone; without those that have no rows because nobody reaches a target."""
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
