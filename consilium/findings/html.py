"""Parts of an offline page: its frame and style, tables, legends, and charts as inline SVG in the page's own colours.

Whatever comes from outside is escaped, and none of it reaches a chart's text. A page loads nothing.
"""

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Json = Mapping[str, Any]
DASH = "\N{EN DASH}"


def number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """Return a rounded number as text; with `sign`, a plus before one above 0."""
    rounded = round(value, digits) + 0.0  # no "-0.00"
    return f"{rounded:+.{digits}f}" if sign and rounded else f"{rounded:.{digits}f}"


# Drawn in these colours, then replaced by the page's own, which differ in light and dark. The three
# models also differ in line style: colour is never the only sign.
COLOURS = {
    "currentColor": "#010101",
    "var(--line)": "#010102",
    "var(--majority)": "#010103",
    "var(--local)": "#010104",
    "var(--global)": "#010105",
    "var(--personal)": "#010106",
    "var(--card)": "#010107",
}
INK, LINE = COLOURS["currentColor"], COLOURS["var(--line)"]
DASHES: dict[str, tuple[float, ...]] = {"personal": (), "local": (5, 2), "global": (1.5, 1.5)}
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "consilium",
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
}


def chart(label: str, draw: Callable[[Axes], None], *, height: float = 2.1) -> str:
    """Draw one chart and return it as inline SVG in the page's colours and fonts, described by `label`.

    Args:
        height: in inches, of a chart 3.7 inches wide.
    """
    with matplotlib.rc_context(_SETTINGS):
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
        svg = svg.replace(colour, name)
    return re.sub(r"\n\s*", "\n", svg).strip()


def line_chart(
    label: str,
    rounds: Sequence[int],
    series: Sequence[tuple[str, Sequence[float | None]]],
    limits: tuple[float, float],
) -> str:
    """Chart one line per series over the rounds; a series is the name of its style and its values."""

    def draw(axes: Axes) -> None:
        for style, values in series:
            points = [math.nan if value is None else value for value in values]
            (line,) = axes.plot(rounds, points, color=COLOURS[f"var(--{style})"], linewidth=1.8)
            if DASHES[style]:
                line.set_dashes(DASHES[style])
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


_STYLE = """
:root { color-scheme: light dark; --page: #f5f6f7; --card: #ffffff; --ink: #1b2127; --soft: #59636e; --line: #d5dae0;
  --majority: #8b939c; --local: #c4650a; --global: #0072b2; --personal: #00795a;
  --helps: #00664b; --hurts: #a3260f; --unclear: #59636e; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12161a; --card: #1a2026; --ink: #e7eaed; --soft: #a3adb7; --line: #38424c;
    --majority: #7f8993; --local: #f0a03c; --global: #5ab4ea; --personal: #35c79c;
    --helps: #4fd0a8; --hurts: #ff9580; --unclear: #a3adb7; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5; overflow-wrap: break-word;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; font-size: 16px; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
a { color: inherit; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.25rem; margin: 44px 0 12px; }
h3 { font-size: 1.05rem; margin: 0; }
p { margin: 8px 0; max-width: 75ch; }
.soft, figcaption, .notes { color: var(--soft); font-size: .9rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 16px; margin: 12px 0; }
.lead { font-size: 1.1rem; font-weight: 600; }
.headlines { list-style: none; margin: 12px 0; padding: 0; }
.headlines li { background: var(--card); border: 1px solid var(--line); border-left: 5px solid var(--unclear);
  border-radius: 6px; padding: 10px 14px; margin: 8px 0; font-variant-numeric: tabular-nums; }
.headlines .helps { border-left-color: var(--helps); }
.headlines .hurts { border-left-color: var(--hurts); }
.headlines b { display: block; font-size: .8rem; letter-spacing: .02em; color: var(--unclear); }
.headlines .helps b { color: var(--helps); }
.headlines .hurts b { color: var(--hurts); }
.scroll { overflow-x: auto; padding: 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 12px 14px 4px; color: var(--soft); font-size: .9rem; }
th, td { padding: 9px 14px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th:first-child, td.text, th.text { text-align: left; }
td.text { white-space: normal; min-width: 9em; overflow-wrap: anywhere; }
thead th { border-top: 0; color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; white-space: normal; min-width: 11em; max-width: 18em; }
tbody th, thead th:first-child { position: sticky; left: 0; background: var(--card); }
td small, th small { display: block; font-weight: 400; color: var(--soft); font-size: .82rem; }
.over td, .over tr > th { background: color-mix(in srgb, var(--line) 28%, var(--card)); }
.over tr:first-child > *, tbody + tbody tr:first-child > * { border-top: 2px solid var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(290px, 100%), 1fr)); gap: 20px;
  margin-top: 12px; }
figure { margin: 0; min-width: 0; }
figcaption { margin-bottom: 4px; }
figure svg { display: block; width: 100%; max-width: 460px; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 6px 0 0; padding: 0; list-style: none;
  font-size: .88rem; }
.legend svg { width: 30px; height: 10px; vertical-align: middle; margin-right: 6px; }
.warning { border-left: 5px solid var(--local); }
.warning ul { margin: 0; padding-left: 20px; }
.terms { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 4px 24px;
  margin: 12px 0; }
.terms dt { font-weight: 600; } .terms dd { margin: 0; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 600px) {
  tbody th { min-width: 7em; }
  main { padding: 20px 14px 48px; }
  h1 { font-size: 1.5rem; }
  th, td { padding: 8px 10px; }
}
@media print { body { background: none; } .card, .headlines li { break-inside: avoid; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title} - consilium report</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def whole_page(title: str, body: str) -> str:
    """Return a page that opens offline: no script, no request, light and dark; `body` is HTML."""
    return _PAGE.format(title=escape(title), style=_STYLE, body=body)


def html_head(titles: Iterable[str], *, text: Sequence[str] = ()) -> str:
    """Return the head of a table; columns in `text` are aligned to the left."""
    cells = (f'<th scope="col"{" class=text" if title in text else ""}>{escape(title)}</th>' for title in titles)
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def scroll(label: str, table: str) -> str:
    """Return a table (its rows as HTML) that can be scrolled sideways, described by `label`."""
    return (
        f'<div class="card scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table>{table}</table></div>'
    )


def figure(caption: str, svg: str) -> str:
    """Return an inline SVG with its caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Return a legend; an entry is a line style and its label."""
    items = "".join(
        f'<li><svg viewBox="0 0 30 10" aria-hidden="true"><line x1="0" y1="5" x2="30" y2="5" stroke="var(--{style})" '
        f'stroke-width="2.4" stroke-dasharray="{" ".join(str(2 * dash) for dash in DASHES[style]) or "none"}"/></svg>'
        f"{escape(label)}</li>"
        for style, label in entries
    )
    return f'<ul class="legend">{items}</ul>'


def last_known(values: Sequence[float | None]) -> str:
    """Return the last value that is known, as text."""
    return next((f"{value:.2f}" for value in reversed(values) if value is not None), "none")


def settings_rows(values: Json) -> str:
    """Return nested settings as rows of a table: dotted name, value."""
    rows = (
        f'<tr><th scope="row">{escape(name)}</th><td class="text">{escape(text)}</td></tr>'
        for name, text in _flatten(values, "")
    )
    return "\n".join(rows)


def _flatten(value: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        prefix = f"{name}." if name else ""
        return [pair for key, inner in value.items() for pair in _flatten(inner, f"{prefix}{key}")]
    if isinstance(value, list | tuple):
        return [(name, ", ".join(str(inner) for inner in value))]
    return [(name, DASH if value is None else str(value))]
