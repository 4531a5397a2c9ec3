"""Charts of a comparison: validation curves, a bar per row at each site, weights over the rounds."""

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from consilium.comparison.by_time import SiteCurve
from consilium.comparison.evaluation import UNBOUNDED
from consilium.comparison.prices import Price, price_sentence
from consilium.comparison.report import Report
from consilium.comparison.rows import ALONE, FEDAVG
from consilium.findings.charts import COLOURS, DASHES, chart, last_known, limits_of, line_chart
from consilium.findings.decimals import counted, point

MOST_BARS, MOST_CURVES = 24, 12
"""Sites with a chart of their own; the rest are in the tables."""
_STYLES = dict.fromkeys(ALONE, "local") | {FEDAVG: "global"}

Figure = tuple[str, Markup]
"""A caption and its chart."""


def curve_figures(report: Report) -> tuple[list[tuple[str, str]], list[Figure]]:
    """Return the legend and the charts of mean validation accuracy and loss: joined, FedAvg, alone."""
    alone, joined = (report.line(name) for name in report.judged_for_all)
    styles = {"personal": joined, "global": report.line(FEDAVG), "local": alone}
    lines = {style: line for style, line in styles.items() if line is not None}
    figures = []
    for kind in ("accuracy", "loss"):
        values = {
            style: line.curve.accuracy if kind == "accuracy" else line.curve.loss for style, line in lines.items()
        }
        series = [(style, curve) for style, curve in values.items() if any(value is not None for value in curve)]
        if not series:
            continue
        rounds = max((line.curve.rounds for line in lines.values()), key=len)
        limits = limits_of((value for _, curve in series for value in curve), accuracy=kind == "accuracy")
        what = f"Mean validation {report.study.task.score if kind == 'accuracy' else kind} over the sites"
        label = f"{what}: " + ", ".join(f"{style} last {last_known(curve)}" for style, curve in series)
        figures.append((what, line_chart(label, rounds, series, limits)))
    drawn = {style for style, line in lines.items() if line.curve.rounds}
    return [(style, line.row.name) for style, line in lines.items() if style in drawn], figures


def bar_chart(report: Report, site: str) -> Markup:
    """Chart the test numbers of every row at a site, numbered as in the table, with intervals."""
    rows = [(number, line.row, line.numbers.sites[site]) for number, line in enumerate(report.lines, start=1)]
    known = [(number, row, one) for number, row, one in rows if one is not None]
    reach = [bound for _, _, one in known for bound in (one.value, one.low, one.high) if bound is not None]
    limits = (min(0.0, *reach), 1.05 * max(1e-6, *reach)) if report.metric in UNBOUNDED and reach else (0.0, 1.0)

    def draw(axes: Axes) -> None:
        for place, (_, row, one) in enumerate(known):
            style = _STYLES.get(row.name, "majority" if row.baseline else "personal")
            axes.barh(place, one.value, height=0.66, color=COLOURS[style])
            if one.bounds is not None:
                axes.plot(one.bounds, [place, place], color=COLOURS["ink"], linewidth=1.1)
        axes.set_yticks(range(len(known)), [str(number) for number, _, _ in known])
        axes.tick_params(axis="y", length=0, labelsize=7)
        axes.invert_yaxis()
        axes.set_xlim(*limits)
        axes.grid(axis="x")
        axes.set_axisbelow(True)

    values = ", ".join(f"{number}: {point(one, report.places)}" for number, _, one in known)
    return chart(f"Test numbers at {site}: {values}", draw, height=max(1.6, 0.17 * len(known) + 0.7))


def price_figures(report: Report, price: Price) -> list[Figure]:
    """Return per site a chart of its test numbers against epsilon, with "alone" beside it; the same scale for all."""
    shown = report.study.sites[:MOST_BARS]
    everything = [of.sites[site] for site in shown for of in (price.alone, *(one.joined for one in price.each))]
    reach = [edge for one in everything if one is not None for edge in (one.value, *(one.bounds or ()))]
    limits = limits_of(reach, accuracy=report.metric not in UNBOUNDED)
    return [(site, _price_chart(report, price, site, limits)) for site in shown]


def _price_chart(report: Report, price: Price, site: str, limits: tuple[float, float]) -> Markup:
    """Chart the budgets on a logarithmic scale, the smallest on the left; no noise has a place of its own, right."""
    known = [one for one in reversed(price.each) if one.joined.sites[site] is not None]
    budgets = [one.epsilon for one in known if one.epsilon is not None]
    beyond = 2.2 * max(budgets, default=1.0)
    alone = price.alone.sites[site]

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        places = [beyond if one.epsilon is None else one.epsilon for one in known]
        values = [one.joined.sites[site] for one in known]
        line = [(at, one.value) for at, one in zip(places, values, strict=True) if one is not None and at != beyond]
        axes.plot(*zip(*line, strict=True), color=COLOURS["personal"], linewidth=1.8) if line else None
        for at, one in zip(places, values, strict=True):
            if one is not None:
                marker = "D" if at == beyond else "o"
                axes.plot([at], [one.value], color=COLOURS["personal"], marker=marker, markersize=5, linestyle="none")
                if one.bounds is not None:
                    axes.plot([at, at], one.bounds, color=COLOURS["personal"], linewidth=1.1)
        if alone is not None:
            axes.axhline(alone.value, color=COLOURS["local"], linewidth=1.8, dashes=DASHES["local"])
            if alone.bounds is not None:
                axes.axhspan(*alone.bounds, color=COLOURS["local"], alpha=0.12, linewidth=0)
        axes.set_ylim(*limits)
        axes.set_xticks([*budgets, beyond], [*(f"{epsilon:g}" for epsilon in budgets), "none"])
        axes.set_xticks([], minor=True)
        axes.set_xlim(min(budgets, default=1.0) / 1.6, beyond * 1.5)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.grid(axis="y")
        axes.set_xlabel("epsilon")

    return chart(price_sentence(price, site, report.places), draw)


def time_figures(report: Report) -> list[Figure]:
    """Return per site a chart of its share of patients without the event over time; the same scales for all."""
    drawn = [curve for curve in report.times if curve.times][:MOST_BARS]
    last = max((curve.times[-1] for curve in drawn), default=0.0)
    return [
        (f"{curve.site}: {counted(curve.patients, 'patient')}, {counted(curve.events, 'event')}", _steps(curve, last))
        for curve in drawn
    ]


def _steps(curve: SiteCurve, last: float) -> Markup:
    def draw(axes: Axes) -> None:
        times, shares = (0.0, *curve.times), (1.0, *curve.shares)
        axes.plot(times, shares, drawstyle="steps-post", color=COLOURS["personal"], linewidth=1.8)
        axes.set_ylim(0.0, 1.02)
        axes.set_xlim(0.0, last or 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.grid(axis="y")
        axes.set_xlabel("time")

    return chart(f"Without the event at {curve.site}: {curve.shares[-1]:.2f} at {curve.times[-1]:.4g}", draw)


def weight_figures(report: Report) -> list[Figure]:
    """Return a chart of every site's weight over the rounds; none where weights do not move, or sites are many."""
    moving = {site: values for site, values in report.weights.items() if values and max(values) - min(values) > 1e-6}
    if not moving or len(report.weights) > MOST_CURVES:
        return []
    top = max(max(values) for values in moving.values())
    figures = []
    for site, values in report.weights.items():
        label = f"Weight of {site}: first {values[0]:.3f}, last {values[-1]:.3f}"
        rounds = range(1, len(values) + 1)
        figures.append((site, line_chart(label, rounds, [("personal", values)], (0.0, 1.1 * top))))
    return figures
