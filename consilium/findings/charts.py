"""Charts as SVG in one style: inline in a page's own colours, light and dark, or files of their own."""

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LIGHT = {
    "ink": "#1b2127",
    "line": "#d5dae0",
    "card": "#ffffff",
    "majority": "#8b939c",
    "local": "#c4650a",
    "global": "#0072b2",
    "personal": "#00795a",
}
"""Colours by name, as `style.css` has them in the light; a picture that is a file of its own has no others."""
COLOURS: Mapping[str, str] = {name: f"#0101{place:02}" for place, name in enumerate(LIGHT, start=1)}
"""Stand-ins that inline charts are drawn in; each is replaced by the page's own colour, other in light and in dark."""
DASHES: Mapping[str, tuple[float, ...]] = {"personal": (), "local": (5, 2), "global": (1.5, 1.5)}
"""Line styles of the three models: colour is never the only sign."""


def style(colours: Mapping[str, str], *, size: float = 9) -> dict[Any, Any]:
    """Return matplotlib's settings of every chart: the same bytes for the same numbers, text as text."""
    ink, line = colours["ink"], colours["line"]
    return {
        "svg.hashsalt": "consilium",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": size,
        "text.color": ink,
        "axes.edgecolor": line,
        "axes.labelcolor": ink,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "grid.color": line,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
    }


def chart(label: str, draw: Callable[[Axes], None], *, height: float = 2.1) -> Markup:
    """Draw one chart and return it as inline SVG in the page's colours and fonts, described by `label`.

    Nothing from outside reaches the chart's own text; the label is escaped.

    Args:
        height: in inches, of a chart 3.7 inches wide.
    """
    with matplotlib.rc_context(style(COLOURS)):
        figure = Figure(figsize=(3.7, height), facecolor="none", layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :]
    size = re.search(r'viewBox="[^"]+"', svg)
    svg = f'<svg {size.group() if size else ""} role="img" aria-label="{escape(label)}">' + svg[svg.index(">") + 1 :]
    used = set(re.findall(r"#([\w.-]+)[\")]", svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: match.group() if match.group(1) in used else "", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", svg.replace("xlink:href", "href"))
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, "currentColor" if name == "ink" else f"var(--{name})")
    return Markup(re.sub(r"\n\s*", "\n", svg).strip())


def line_chart(
    label: str,
    rounds: Sequence[int],
    series: Sequence[tuple[str, Sequence[float | None]]],
    limits: tuple[float, float],
) -> Markup:
    """Chart one line per series over the rounds; a series is the name of its style and its values."""

    def draw(axes: Axes) -> None:
        for name, values in series:
            points = [math.nan if value is None else value for value in values]
            (line,) = axes.plot(rounds, points, color=COLOURS[name], linewidth=1.8)
            if DASHES[name]:
                line.set_dashes(DASHES[name])
            # A value between two gaps has no line; a marker shows it.
            line.set_marker("o")
            line.set_markersize(3.5 if len(rounds) <= 15 else 0.8)
        axes.set_ylim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.grid(axis="y")
        axes.set_xlabel("round")

    return chart(label, draw)


def limits_of(values: Iterable[float | None], *, accuracy: bool) -> tuple[float, float]:
    """Return the same vertical limits for every chart that holds some of `values`."""
    known = [value for value in values if value is not None] or [0.0, 1.0]
    margin = 0.08 * ((max(known) - min(known)) or 0.1)
    return max(0.0, min(known) - margin), min(1.0, max(known) + margin) + 0.005 if accuracy else max(known) + margin


def last_known(values: Sequence[float | None]) -> str:
    """Return the last value that is known, as text."""
    return next((f"{value:.2f}" for value in reversed(values) if value is not None), "none")
