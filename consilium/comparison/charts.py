"""Charts of a comparison: validation curves, a bar per row at each site, weights over the rounds."""

from markupsafe import Markup
from matplotlib.axes import Axes

from consilium.comparison.evaluation import UNBOUNDED
from consilium.comparison.report import Report
from consilium.comparison.rows import ALONE, FEDAVG
from consilium.findings.charts import COLOURS, chart, last_known, limits_of, line_chart
from consilium.findings.decimals import point

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
