"""The board's charts, in Altair. There are more optimizers than colours that can be told apart: the chosen one is drawn
in front, in colour, and the others behind it in grey."""

from __future__ import annotations

from typing import Any

from gradbench.reporting.charts import COLOURS, alt

CHOSEN = COLOURS[1]
NAMES = alt.Tooltip("name:N", title="optimizer")


def _lines(data: str, x: Any, y: Any, step: bool = False) -> Any:
    """Lines by optimizer, the chosen one (field `front`) in front with its name."""
    chart = alt.Chart(alt.NamedData(name=data)).encode(x=x, y=y, detail="name:N")
    kind: dict[str, Any] = {"interpolate": "step-after"} if step else {"point": {"size": 14}}
    behind = chart.transform_filter("!datum.front").mark_line(color="#8888", strokeWidth=1.2, **kind)
    front = chart.transform_filter("datum.front").mark_line(color=CHOSEN, strokeWidth=3, **kind)
    # An invisible wider line catches the pointer.
    hit = chart.mark_line(strokeWidth=9, opacity=0, cursor="pointer").encode(tooltip=[NAMES])
    return behind, front, hit


def profile() -> Any:
    """Share of problems against the factor of the best's steps. Data: profile (name, ratio, share, front)."""
    x = alt.X("ratio:Q", scale=alt.Scale(type="log", nice=False), title="within this factor of the best's steps")
    y = alt.Y("share:Q", scale=alt.Scale(domain=[0, 1]), title="share of problems", axis=alt.Axis(format="%"))
    return alt.layer(*_lines("profile", x, y, step=True)).properties(height=260)


def tuning() -> Any:
    """Expected result against trials of tuning. Data: tuning (name, trials, value, low, high, front)."""
    x = alt.X(
        "trials:Q",
        scale=alt.Scale(type="log", nice=False),
        title="trials of tuning",
        axis=alt.Axis(format="d", tickCount=6),
    )
    y = alt.Y("value:Q", scale=alt.Scale(type="log", zero=False), title="steps to target", axis=alt.Axis(tickCount=5))
    band = alt.Chart(alt.NamedData(name="tuning")).transform_filter("datum.front && isValid(datum.low)")
    band = band.mark_area(color=CHOSEN, opacity=0.2).encode(x=x, y="low:Q", y2="high:Q")
    return alt.layer(band, *_lines("tuning", x, y)).properties(height=260)


def time() -> Any:
    """What a step costs, by optimizer and kind of device. Data: time (name, device, value, front), value in `unit`."""
    chart = alt.Chart(alt.NamedData(name="time"))
    x = alt.X("value:Q", scale=alt.Scale(type="log", zero=False), title="time of a step")
    y = alt.Y("name:N", sort=alt.EncodingSortField("value", op="min"), title=None, axis=alt.Axis(labelLimit=130))
    device = alt.Color(
        "device:N", scale=alt.Scale(range=COLOURS), legend=alt.Legend(orient="top", columns=1), title=None
    )
    size = {"condition": {"test": "datum.front", "value": 160}, "value": 50}
    tooltip = [NAMES, alt.Tooltip("device:N"), alt.Tooltip("said:N", title="a step")]
    made = chart.mark_point(filled=True, opacity=1, cursor="pointer").encode(x=x, y=y, color=device, tooltip=tooltip)
    made.encoding.size = size
    return made.properties(height={"step": 16})


def sweep() -> Any:
    """One optimizer's sweep of one problem, in steps to the target or in gaps at the end.

    Data: sweep (rate, value, said), good (low, high), best (rate)."""
    x = alt.X(
        "rate:Q",
        scale=alt.Scale(type="log", nice=False, padding=6),
        title=None,
        axis=alt.Axis(tickCount=4, format="~e", grid=False),
    )
    y = alt.Y(
        "value:Q",
        scale=alt.Scale(type="log", zero=False),
        title=None,
        axis=alt.Axis(tickCount=4, format="~s", grid=False),
    )
    points = alt.Chart(alt.NamedData(name="sweep"))
    tooltip = [alt.Tooltip("rate:Q", format=".3g", title="learning rate"), alt.Tooltip("said:N", title="median")]
    good = alt.Chart(alt.NamedData(name="good")).mark_rect(opacity=0.16, color=CHOSEN).encode(x="low:Q", x2="high:Q")
    best = alt.Chart(alt.NamedData(name="best")).mark_rule(color=CHOSEN, strokeWidth=2).encode(x="rate:Q")
    reached = points.transform_filter("isValid(datum.value)").mark_point(
        filled=True, opacity=1, size=22, color=COLOURS[0]
    )
    never = points.transform_filter("!isValid(datum.value)").mark_point(
        shape="cross", size=22, color="#8889", filled=True
    )
    layers = good, best, reached.encode(x=x, y=y, tooltip=tooltip), never.encode(x=x, y=alt.value(4), tooltip=tooltip)
    return alt.layer(*layers).properties(height=110)
