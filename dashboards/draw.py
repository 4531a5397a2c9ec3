"""Draw the dashboards' panels without Grafana, from the same queries: one PNG per dashboard.

`python -m dashboards.draw http://localhost:9090 --study heart --site berlin --out pictures --minutes 30`
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dashboards.queries import NAMES, fill, history, panels_of, read_dashboard, series

NOTE = "drawn from the dashboard's queries, not a Grafana screenshot"
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999")
ROW_INCHES = 0.36
DAY = 86400


@dataclass(frozen=True)
class View:
    """Where and when to look."""

    base_url: str
    values: Mapping[str, str]
    start: float
    end: float


def draw_dashboard(name: str, view: View, path: Path) -> None:
    """Draw one dashboard on its grid."""
    board = read_dashboard(name)
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    figure = plt.figure(figsize=(20, height * ROW_INCHES + 0.9), dpi=80)
    about = "   ".join(f"{key} = {value}" for key, value in view.values.items())
    figure.suptitle(f"{board['title']}   ({about})\n{NOTE}", fontsize=13, y=1 - 0.1 / figure.get_figheight(), va="top")
    top = 1 - 0.8 / figure.get_figheight()
    for row in (panel for panel in board["panels"] if panel["type"] == "row"):
        figure.text(0.01, top * (1 - (row["gridPos"]["y"] + 0.8) / height), row["title"], fontsize=12, weight="bold")
    for panel in panels_of(board):
        place = panel["gridPos"]
        left, wide = place["x"] / 24, place["w"] / 24
        bottom, high = top * (1 - (place["y"] + place["h"]) / height), top * place["h"] / height
        names = 0.065 if panel["type"] in ("bargauge", "state-timeline") else 0.04
        axes = figure.add_axes((left + names, bottom + 0.25 * high, wide - names - 0.015, 0.55 * high))
        axes.set_title(panel["title"], fontsize=10, loc="left")
        _draw(axes, panel, view)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _draw(axes: Axes, panel: Mapping[str, Any], view: View) -> None:
    queries = [(fill(target["expr"], view.values), target["legendFormat"]) for target in panel["targets"]]
    if panel["type"] in ("timeseries", "state-timeline"):
        step = max(1.0, (view.end - view.start) / 600)
        found = [
            (_named(legend, one["metric"], view), one["values"])
            for expr, legend in queries
            for one in history(view.base_url, expr, start=view.start, end=view.end, step=step)
        ]
        (_curves if panel["type"] == "timeseries" else _bands)(axes, panel, found)
    elif panel["type"] == "table":
        _table(axes, panel, [series(view.base_url, expr) for expr, _ in queries])
    else:
        now = [
            (_named(legend, one["metric"], view), float(one["value"][1]))
            for expr, legend in queries
            for one in series(view.base_url, expr)
        ]
        (_bars if panel["type"] == "bargauge" else _numbers)(axes, panel, now)


def _named(legend: str, labels: Mapping[str, str], view: View) -> str:
    if legend == "__auto":
        return " ".join(value for label, value in labels.items() if label != "__name__")
    for label, value in labels.items():
        legend = legend.replace("{{" + label + "}}", value)
    return fill(legend, view.values)


def _empty(axes: Axes, panel: Mapping[str, Any]) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, panel["fieldConfig"]["defaults"]["noValue"], ha="center", va="center", color="#777777")


def _colours(panel: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    own = {
        override["matcher"]["options"]: prop["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
        for prop in override["properties"]
        if prop["id"] == "color"
    }
    return {name: own.get(name, PALETTE[index % len(PALETTE)]) for index, name in enumerate(names)}


def _threshold_colour(steps: Sequence[Mapping[str, Any]], value: float) -> str:
    passed = [step for step in steps if step["value"] is None or value >= step["value"]]
    return str(passed[-1]["color"])


def _curves(axes: Axes, panel: Mapping[str, Any], found: Sequence[tuple[str, Any]]) -> None:
    if not found:
        return _empty(axes, panel)
    defaults = panel["fieldConfig"]["defaults"]
    colours = _colours(panel, [name for name, _ in found])
    custom = defaults["custom"]
    stacked, below = custom.get("stacking", {}).get("mode") == "normal", dict[float, float]()
    for name, values in found:
        times = [float(when) / DAY for when, _ in values]
        numbers = [float(value) for _, value in values]
        label = f"{name}  {_text(numbers[-1], defaults['unit'])}"
        if stacked:
            floor = [below.get(when, 0.0) for when in times]
            numbers = [low + number for low, number in zip(floor, numbers, strict=True)]
            below |= dict(zip(times, numbers, strict=True))
            axes.fill_between(times, floor, numbers, color=colours[name], alpha=0.4, step="post", linewidth=0)
        axes.plot(times, numbers, label=label, color=colours[name], drawstyle="steps-post", linewidth=1.6)
    axes.margins(y=0.08)
    if "thresholdsStyle" in custom:
        for step in defaults["thresholds"]["steps"][1:]:
            axes.axhline(step["value"], color=step["color"], linestyle="--", linewidth=1)
    low, high = axes.get_ylim()
    low, high = min(low, custom.get("axisSoftMin", low)), max(high, custom.get("axisSoftMax", high))
    axes.set_ylim(defaults.get("min", low), defaults.get("max", high))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _text(value, defaults["unit"])))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=4, loc="upper left", bbox_to_anchor=(0, -0.12), frameon=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: _clock(number)))
    return None


def _clock(number: float) -> str:
    return datetime.fromtimestamp(number * DAY).astimezone().strftime("%H:%M:%S")


def _bands(axes: Axes, panel: Mapping[str, Any], found: Sequence[tuple[str, Any]]) -> None:
    if not found:
        return _empty(axes, panel)
    mapping = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    used = {}
    for row, (_, values) in enumerate(found):
        for (when, value), following in zip(values, [*values[1:], values[-1]], strict=True):
            result = mapping.get(value, {"text": value, "color": "#999999"})
            used[result["text"]] = result["color"]
            wide = (float(following[0]) - float(when)) / DAY
            axes.barh(row, wide, left=float(when) / DAY, color=result["color"], height=0.7)
    axes.set_yticks(range(len(found)), [name for name, _ in found])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: _clock(number)))
    axes.tick_params(labelsize=8)
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in used.values()]
    axes.legend(handles, used, fontsize=7, ncols=6, loc="upper left", bbox_to_anchor=(0, -0.15), frameon=False)
    return None


def _numbers(axes: Axes, panel: Mapping[str, Any], now: Sequence[tuple[str, float]]) -> None:
    if not now:
        return _empty(axes, panel)
    axes.axis("off")
    defaults = panel["fieldConfig"]["defaults"]
    mode = panel["options"]["textMode"]
    for index, (name, value) in enumerate(now):
        shown = name if mode == "name" else _text(value, defaults["unit"], defaults.get("decimals"))
        colour = (
            _colours(panel, [name])[name]
            if mode == "name"
            else _threshold_colour(defaults["thresholds"]["steps"], value)
        )
        where = (index + 0.5) / len(now)
        axes.text(where, 0.5, shown, ha="center", va="center", fontsize=20, color=colour)
        if mode == "value_and_name":
            axes.text(where, 0.0, name, ha="center", va="center", fontsize=9)
    return None


def _bars(axes: Axes, panel: Mapping[str, Any], now: Sequence[tuple[str, float]]) -> None:
    if not now:
        return _empty(axes, panel)
    defaults = panel["fieldConfig"]["defaults"]
    steps = defaults["thresholds"]["steps"]
    for row, (_, value) in enumerate(now):
        axes.barh(row, value, color=_threshold_colour(steps, value), height=0.6)
        axes.annotate(
            _text(value, defaults["unit"], defaults.get("decimals")),
            (value, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(now)), [name for name, _ in now], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(defaults.get("min"), defaults.get("max"))
    axes.set_xticks([])
    axes.margins(x=0.25)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    return None


def _table(axes: Axes, panel: Mapping[str, Any], results: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    if not any(results):
        return _empty(axes, panel)
    axes.axis("off")
    options = panel["transformations"][-1]["options"]
    fields = sorted(options["indexByName"], key=options["indexByName"].__getitem__)
    renamed = {field: options["renameByName"][field] for field in fields}
    units = {
        override["matcher"]["options"]: prop["value"]
        for override in panel["fieldConfig"]["overrides"]
        for prop in override["properties"]
        if prop["id"] == "unit"
    }
    lines: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for letter, result in zip("ABCDEFGHIJ", results, strict=False):
        for one in result:
            line = lines.setdefault(tuple(sorted(one["metric"].items())), dict(one["metric"]))
            field = f"Value #{letter}"
            if field in renamed:
                line[field] = _text(float(one["value"][1]), units[renamed[field]])
    cells = [[line.get(field, "") for field in renamed] for line in lines.values()]
    drawn = axes.table(cells, colLabels=list(renamed.values()), loc="upper left", cellLoc="left")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    drawn.auto_set_column_width(list(range(len(renamed))))
    return None


def _text(value: float, unit: str, decimals: int | None = None) -> str:
    """Write a value as Grafana would, about."""
    if unit == "percentunit":
        return f"{100 * value:.{1 if decimals is None else decimals}f} %"
    if unit == "bool_yes_no":
        return "yes" if value else "no"
    if unit == "s":
        for size, name in ((DAY, "days"), (3600, "hours"), (60, "min")):
            if abs(value) >= 2 * size:
                return f"{value / size:.1f} {name}"
        return f"{value:.3g} s"
    if unit in ("bytes", "Bps"):
        end = "/s" if unit == "Bps" else ""
        for power, name in ((3, "GB"), (2, "MB"), (1, "kB")):
            if abs(value) >= 1000**power:
                return f"{value / 1000**power:.1f} {name}{end}"
        return f"{value:.0f} B{end}"
    return f"{value:.{decimals}f}" if decimals is not None else f"{value:.4g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw all dashboards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_url", help="of Prometheus")
    parser.add_argument("--study", required=True)
    parser.add_argument("--site", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--minutes", type=float, default=30, help="how far back")
    chosen = parser.parse_args(arguments)
    now = time.time()
    values = {"study": chosen.study, "site": chosen.site}
    view = View(chosen.base_url.rstrip("/"), values, now - 60 * chosen.minutes, now)
    for name in NAMES:
        draw_dashboard(name, view, chosen.out / f"{name}.png")


if __name__ == "__main__":
    main()
