"""The picture of a pruned model: its score over the share of weights that is struck out."""

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from consilium.findings.charts import LIGHT, style
from consilium.serving.export.result import Pruned


def picture_of(curve: Sequence[Pruned]) -> bytes:
    """Return the curve as an SVG file: the score with its 95 % intervals as a band, of labelled rows."""
    scores = [one.score for one in curve if one.score is not None]
    shares, values = [one.share for one in curve], [one.value for one in scores]
    lows = [one.value if one.low is None else one.low for one in scores]
    highs = [one.value if one.high is None else one.high for one in scores]
    file = io.BytesIO()
    with matplotlib.rc_context(style(LIGHT, size=10)):
        figure = Figure(figsize=(6.4, 3.8), facecolor="white", layout="constrained")
        axes = figure.subplots()
        axes.fill_between(shares, lows, highs, color=LIGHT["personal"], alpha=0.13, linewidth=0)
        axes.plot(shares, values, color=LIGHT["personal"], marker="o", markersize=4)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylim(0, 1.02)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_xlabel("weights struck out, the smallest first")
        axes.set_ylabel(f"right, of {scores[0].num} rows")
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
