"""Charts: rows in, one SVG text out, made by Altair and vl-convert. Nothing here knows what the numbers mean.

Colours are CSS variables of the page that holds the SVG (`--ink`, `--muted`, `--grid`, `--paper`, `--c1` .. `--c3`), so one picture
reads well on light and on dark paper. Every axis carries a title with its unit; the picture itself carries a sentence for those who
cannot see it. Altair is imported where it is used: it takes a second that no other command should pay.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]

WIDTH = 600  # pixels of the whole picture
# Vega needs real colours; each stands for the CSS variable that replaces it in the finished SVG.
_VARIABLES = {
    "#100101": "var(--ink)",
    "#100202": "var(--muted)",
    "#100303": "var(--grid)",
    "#100404": "var(--paper)",
    "#100501": "var(--c1)",
    "#100502": "var(--c2)",
    "#100503": "var(--c3)",
}
_INK, _MUTED, _GRID, _PAPER, *SERIES = _VARIABLES
# On light paper, for a picture that no page holds.
_LIGHT = dict(
    zip(_VARIABLES.values(), ("#1c1d22", "#5c5e68", "#e3e3e0", "#fcfcfa", "#2563c9", "#b04a10", "#187350"), strict=True)
)
_FONT = "system-ui, sans-serif"


def lines(
    rows: Rows,
    *,
    x: str,
    y: str,
    x_title: str,
    y_title: str,
    about: str,
    series: str | None = None,
    rule: float | None = None,
    rule_label: str = "",
    log: bool = False,
    whole: bool = True,
    bands: Sequence[tuple[float, float]] = (),
    width: int = WIDTH,
    height: int = 150,
) -> str:
    """Points joined by a line, one line for each value of `series`; a dashed `rule` across at one value of y; shaded `bands`
    from one x to another. `whole`: x is counted."""
    import altair as alt

    data = alt.Data(values=list(rows))
    scale = alt.Scale(type="log") if log else alt.Scale(zero=False, nice=True)
    axis = alt.Axis(tickMinStep=1, format="d", labelFlush=True) if whole else alt.Axis(labelFlush=True)
    encoding: dict[str, Any] = {
        "x": alt.X(f"{x}:Q", title=x_title, axis=axis, scale=alt.Scale(zero=False, nice=False, padding=8)),
        "y": alt.Y(f"{y}:Q", title=y_title, scale=scale, axis=alt.Axis(tickCount=5, grid=not log)),
    }
    colour = SERIES[0]
    if series is not None:
        encoding["color"] = _legend(rows, series)
    mark = alt.Chart(data).mark_line(
        point=alt.OverlayMarkDef(size=34, filled=True, color=colour), strokeWidth=2, color=colour
    )
    layers = []
    if bands:
        shaded = alt.Chart(alt.Data(values=[{x: start, "until": end} for start, end in bands]))
        layers.append(shaded.mark_rect(color=SERIES[1], opacity=0.25).encode(x=encoding["x"], x2="until:Q"))
    layers.append(mark.encode(**encoding))
    if rule is not None:
        at = alt.Data(values=[{y: rule, "label": rule_label}])
        layers.append(alt.Chart(at).mark_rule(strokeDash=[5, 4], color=_INK, strokeWidth=1.2).encode(y=alt.Y(f"{y}:Q")))
        text = alt.Chart(at).mark_text(align="right", baseline="bottom", dx=-4, dy=-3, color=_INK, font=_FONT)
        layers.append(text.encode(x=alt.value("width"), y=alt.Y(f"{y}:Q"), text=alt.Text("label:N")))
    return _svg(alt.layer(*layers), about, width, height)


def spans(
    rows: Rows,
    *,
    x_title: str,
    about: str,
    rule: float | None = None,
    series: str | None = None,
    domain: tuple[float, float] | None = None,
    width: int = WIDTH,
) -> str:
    """One line per row {label, mean, low, high}: a point with its interval; a dashed `rule` at one value (chance, no difference)."""
    import altair as alt

    data = alt.Data(values=list(rows))
    order = [str(row["label"]) for row in rows]
    place = alt.Y("label:N", sort=order, title=None, axis=_names(alt, order, width))
    scale = alt.Scale(domain=list(domain)) if domain else alt.Scale(zero=False, padding=12)
    layers = []
    if rule is not None:
        at = alt.Data(values=[{"at": rule}])
        layers.append(alt.Chart(at).mark_rule(strokeDash=[5, 4], color=_MUTED).encode(x=alt.X("at:Q")))
    colour = {"color": _legend(rows, series)} if series is not None else {}
    whisker = alt.Chart(data).mark_rule(strokeWidth=2.5, color=SERIES[0])
    layers.append(whisker.encode(x=alt.X("low:Q", title=x_title, scale=scale), x2="high:Q", y=place, **colour))
    point = alt.Chart(data).mark_point(filled=True, size=80, opacity=1, color=SERIES[0])
    layers.append(point.encode(x=alt.X("mean:Q", scale=scale), y=place, **colour))
    return _svg(alt.layer(*layers), about, width, 26 * max(1, len(rows)))


def bars(rows: Rows, *, x_title: str, about: str, width: int = WIDTH) -> str:
    """One horizontal bar per row {label, value}, its value written at its end."""
    import altair as alt

    data = alt.Data(values=list(rows))
    order = [str(row["label"]) for row in rows]
    top = max((float(row["value"]) for row in rows), default=0.0) or 1.0
    chart = alt.Chart(data).encode(
        x=alt.X("value:Q", title=x_title, scale=alt.Scale(domain=[0, top * 1.12], nice=False)),
        y=alt.Y("label:N", sort=order, title=None, axis=_names(alt, order, width)),
    )
    text = chart.mark_text(align="left", dx=4, color=_INK, font=_FONT).encode(text=alt.Text("value:Q", format=".1f"))
    layers = [chart.mark_bar(color=SERIES[0], height=13, cornerRadiusEnd=3), text]
    return _svg(alt.layer(*layers), about, width, 22 * max(1, len(rows)))


def calibration(rows: Rows, *, x_title: str, y_title: str, about: str, width: int = WIDTH) -> str:
    """Rows {predicted, observed, n}: what was promised against what came, a point's area by `n`; on the dashed diagonal both agree."""
    import altair as alt

    side = alt.Scale(domain=[0, 1], nice=False)
    diagonal = alt.Chart(alt.Data(values=[{"x": 0, "y": 0}, {"x": 1, "y": 1}]))
    points = alt.Chart(alt.Data(values=list(rows))).encode(
        x=alt.X("predicted:Q", title=x_title, scale=side, axis=alt.Axis(tickCount=5)),
        y=alt.Y("observed:Q", title=y_title, scale=side, axis=alt.Axis(tickCount=5)),
        size=alt.Size("n:Q", scale=alt.Scale(zero=True, range=[20, 400]), legend=None),
    )
    text = points.mark_text(align="left", dx=11, dy=-8, color=_MUTED, font=_FONT, fontSize=11)
    layers = [
        diagonal.mark_line(strokeDash=[5, 4], color=_MUTED, strokeWidth=1.2).encode(x="x:Q", y="y:Q"),
        points.mark_point(filled=True, color=SERIES[0], opacity=0.9),
        text.encode(text=alt.Text("n:Q"), size=alt.value(11)),
    ]
    return _svg(alt.layer(*layers), about, width, min(300, round(width * 0.6)))


def alone(svg: str) -> str:
    """A picture of this module as a file of its own: on light paper, its colours written out."""
    for variable, colour in _LIGHT.items():
        svg = svg.replace(variable, colour)
    return svg.replace("<svg ", f'<svg style="background: {_LIGHT["var(--paper)"]}" ', 1)


# --- inside ------------------------------------------------------------------------------------------------------------


def _names(alt: Any, labels: Sequence[str], width: int) -> Any:
    """An axis of words, wide enough for the reader's font, which the renderer does not know."""
    limit = round(width * 0.42)
    wide = min(limit, round(7.2 * max((len(label) for label in labels), default=0)))
    return alt.Axis(labelLimit=limit, ticks=False, minExtent=wide, labelPadding=6)


def _legend(rows: Rows, series: str) -> Any:
    import altair as alt

    names = list(dict.fromkeys(str(row[series]) for row in rows))
    scale = alt.Scale(domain=names, range=[SERIES[at % len(SERIES)] for at in range(len(names))])
    return alt.Color(f"{series}:N", scale=scale, title=None, legend=alt.Legend(orient="top", symbolStrokeWidth=3))


def _svg(chart: Any, about: str, width: int, height: int) -> str:
    import altair as alt
    import vl_convert

    narrow = width < 480
    config: dict[str, Any] = {
        "aria": False,
        "background": "transparent",
        "font": _FONT,
        "padding": {"left": 8, "right": 6, "top": 4, "bottom": 2},
        "view": {"stroke": None},
        "text": {"fontSize": 12},
        "axis": {
            "domainColor": _MUTED,
            "tickColor": _GRID,
            "gridColor": _GRID,
            "labelColor": _INK,
            "titleColor": _MUTED,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titleLimit": width - 60,
            "labelOverlap": True,
        },
        "axisY": {"titleAngle": 0, "titleAlign": "left", "titleY": -10, "titleX": 0, "domain": False},
        "axisX": {"tickCount": 4 if narrow else 8, "titleAnchor": "end"},
        "legend": {"labelColor": _INK, "labelFontSize": 12, "labelLimit": width // 2, "offset": 24},
    }
    fitted = chart.properties(
        width=width,
        height=height,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    ).configure(**config)
    # Not chart.save(): checking every specification against the schema takes as long as drawing it.
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    text = str(vl_convert.vegalite_to_svg(fitted.to_dict(validate=False), vl_version=version))
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    # Pictures share one page: their clip paths must not share names.
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'(id="|url\(#)(clip|gradient)', rf"\g<1>{mark}-\g<2>", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(about, quote=True)}" ', 1)
