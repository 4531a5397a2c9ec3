"""The page of a simulation: `report.html`."""

from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from consilium.common.host.files import write_atomically
from consilium.devices.result import QUANTILES, DeviceResult
from consilium.devices.simulate import PAGE
from consilium.devices.words import (
    GROUP_TITLES,
    MODEL_TITLES,
    PROFILE_TITLES,
    facts,
    group_rows,
    model_rows,
    profile_rows,
    titles,
)
from consilium.findings.charts import COLOURS, DASHES, chart, limits_of, line_chart
from consilium.findings.pages import flattened, render


def write_page(folder: Path, result: DeviceResult) -> Path:
    """Write `report.html` and return its path.

    Raises:
        StateError: the folder cannot be written.
    """
    write_atomically(folder / PAGE, page_of(result).encode())
    return folder / PAGE


def page_of(result: DeviceResult) -> str:
    """Return the simulation as one page that opens offline: no script, no request, light and dark."""
    models: list[str] = [name for name in ("global", "personal") if name in result.measured]
    return render(
        "consilium.devices",
        "devices.html.j2",
        {
            "name": result.study.name,
            "run": result.run,
            "private": result.privacy is not None,
            "promise": result.promise,
            "facts": facts(result),
            "score": result.study.task.score,
            "legend_of": [(name, name) for name in models],
            "figures_of": _figures(result, models),
            "model_titles": titles(MODEL_TITLES, result),
            "model_rows": model_rows(result),
            "group_titles": titles(GROUP_TITLES, result),
            "group_rows": group_rows(result),
            "profile_titles": PROFILE_TITLES,
            "profile_rows": profile_rows(result),
            "settings": [("Study", list(flattened(result.study.model_dump(mode="json", exclude_none=True))))],
        },
    )


def _figures(result: DeviceResult, models: list[str]) -> list[tuple[str, Markup]]:
    measured = [record for record in result.rounds if record.measured]
    found = list[tuple[str, Markup]]()
    if measured and models:
        rounds = [record.round for record in measured]
        series = [
            (name, [record.measured[name].score if name in record.measured else None for record in measured])
            for name in models
        ]
        limits = limits_of((value for _, values in series for value in values), accuracy=True)
        label = f"{result.study.task.score} over {len(rounds)} measured rounds"
        found.append((f"{result.study.task.score} by round", line_chart(label, rounds, series, limits)))
    if models:
        found.append((f"{result.study.task.score} over users, from the worst to the best", _quantiles(result, models)))
    return found


def _quantiles(result: DeviceResult, models: list[str]) -> Markup:
    """Chart the score below which so many of the users are."""

    def draw(axes: Axes) -> None:
        for name in models:
            values = result.measured[name].quantiles
            (line,) = axes.plot([100 * part for part in QUANTILES], values, color=COLOURS[name], linewidth=1.8)
            line.set_marker("o")
            line.set_markersize(3.5)
            if DASHES[name]:
                line.set_dashes(DASHES[name])
        axes.set_xlim(0, 100)
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.grid(axis="y")
        axes.set_xlabel("percent of users")

    return chart("score by quantile of users", draw)
