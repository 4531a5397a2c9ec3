"""Draws who holds what: for each site how many examples, and of which classes."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_NUMBERS = 120
"""How many numbers can be written next to the bubbles and still be read."""


def federation_svg(counts: Mapping[str, Mapping[str, int]]) -> bytes:
    """Return the picture as SVG; the same bytes for the same counts.

    Args:
        counts: examples of each class at each site; every site names the same classes.
    """
    import matplotlib

    from consilium.findings.charts import LIGHT, style

    file = io.BytesIO()
    with matplotlib.rc_context(style(LIGHT, size=8)):
        figure = _figure(counts)
        figure.savefig(file, format="svg", dpi=110, metadata={"Date": None})
    return file.getvalue()


def _figure(counts: Mapping[str, Mapping[str, int]]) -> "Figure":
    from matplotlib.figure import Figure

    from consilium.findings.charts import LIGHT

    sites, classes = list(counts), list(next(iter(counts.values())))
    held = np.array([list(of.values()) for of in counts.values()], dtype=np.float64)
    # Inches: room for each site and class, within what a page can show.
    across, down = np.clip(0.24 * len(sites), 3.6, 14.0), np.clip(0.24 * len(classes), 0.8, 12.0)
    bars = 1.1
    figure = Figure(figsize=(across + 1.4, down + bars + 1.5), facecolor="white", layout="constrained")
    top, field = figure.subplots(2, 1, sharex=True, height_ratios=[bars, down])
    top.bar(range(len(sites)), held.sum(axis=1), width=0.7, color=LIGHT["global"])
    top.set_ylabel("examples")
    top.tick_params(axis="x", length=0, labelbottom=False)
    top.set_title(f"{len(sites)} sites, {len(classes)} classes, {int(held.sum())} examples", loc="left", fontsize=9)
    site, label = np.nonzero(held)
    cell = 72 * min(across / len(sites), down / len(classes), 0.4)
    area = (0.92 * cell) ** 2 * held[site, label] / held.max()
    field.scatter(site, label, s=area, color=LIGHT["global"], linewidths=0)
    if held.size <= _MOST_NUMBERS and across / len(sites) >= 0.55:
        for x, y in zip(site, label, strict=True):
            field.annotate(f"{int(held[x, y])}", (x, y), (cell / 2 + 1, 0), textcoords="offset points", va="center")
    field.set_xlim(-0.6, len(sites) - 0.4)
    field.set_ylim(len(classes) - 0.4, -0.6)
    step = -(-len(sites) // 70)
    upright = max(map(len, sites)) * 0.075 < across / len(sites)
    field.set_xticks(
        range(0, len(sites), step), [_plain(name) for name in sites[::step]], rotation=0 if upright else 90
    )
    step = -(-len(classes) // 60)
    field.set_yticks(range(0, len(classes), step), [_plain(name) for name in classes[::step]])
    field.grid()
    field.set_axisbelow(True)
    field.set_xlabel(f"area of a dot: examples of a class at a site, the largest is {int(held.max())}", loc="left")
    return figure


def _plain(name: str) -> str:
    """Return a name of which nothing is read as a formula, cut to what fits."""
    short = name if len(name) <= 24 else f"{name[:23]}…"
    return short.replace("$", r"\$")
