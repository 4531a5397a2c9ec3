"""The files of an adaptation: its numbers, and a picture of accuracy over steps."""

import io
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from consilium.adaptation.result import Adaptation
from consilium.adaptation.starts import FEDERATED, PRETRAINED, RANDOM
from consilium.common.host.files import write_atomically
from consilium.findings.charts import LIGHT, style

_COLOURS = {FEDERATED: LIGHT["global"], PRETRAINED: LIGHT["personal"], RANDOM: LIGHT["local"]}
_DASHES: dict[str, Any] = {FEDERATED: "-", PRETRAINED: (0, (1.5, 1.5)), RANDOM: (0, (5, 2))}


def write_adaptation(folder: Path, result: Adaptation) -> None:
    """Write `adapt.json` and the picture `adapt.svg` into `folder`, each atomically.

    Raises:
        StateError: the folder cannot be written.
    """
    text = json.dumps(result.as_json(), indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(folder / "adapt.json", f"{text}\n".encode())
    file = io.BytesIO()
    with matplotlib.rc_context(style(LIGHT, size=10)):
        draw(result).savefig(file, format="svg", metadata={"Date": None})
    write_atomically(folder / "adapt.svg", file.getvalue())


def draw(result: Adaptation) -> Figure:
    """Draw accuracy over steps: one line per start, its 95 % intervals as a band; the constant answer as a level."""
    stops = result.measured.stops
    with matplotlib.rc_context(style(LIGHT, size=10)):
        figure = Figure(figsize=(6.4, 3.8), facecolor="white", layout="constrained")
        axes = figure.subplots()
        axes.axhline(result.level, color=LIGHT["majority"], linewidth=1, label=result.constant)
        for name, row in reversed(list(result.measured.starts.items())):  # the federated line on top
            colour, accuracy = _COLOURS[name], [one.accuracy for one in row]
            low, high = zip(*(one.interval.bounds or (one.accuracy, one.accuracy) for one in row), strict=True)
            axes.fill_between(stops, low, high, color=colour, alpha=0.13, linewidth=0)
            axes.plot(stops, accuracy, color=colour, linestyle=_DASHES[name], marker="o", markersize=4, label=name)
            if len(stops) == 1:
                axes.vlines(stops, low, high, color=colour)  # a band of no width is invisible
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        crowded = {stops[-2]} if len(stops) > 2 and stops[-1] < 1.5 * stops[-2] else set()
        shown = [stop for stop in stops if stop not in crowded]
        axes.set_xticks(shown, [str(stop) for stop in shown])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_xlabel("local steps")
        axes.set_ylabel(f"{result.score} on {result.num_test} test examples")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=len(labels))
    return figure
