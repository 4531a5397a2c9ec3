"""The page of a comparison: what its template, `comparison.html.j2`, shows."""

from typing import Any

from consilium.common.intervals.evidence import DRAWS
from consilium.comparison.by_time import LEAST_AT_RISK
from consilium.comparison.charts import (
    MOST_BARS,
    bar_chart,
    curve_figures,
    price_figures,
    time_figures,
    weight_figures,
)
from consilium.comparison.evaluation import UNBOUNDED
from consilium.comparison.lines import Line
from consilium.comparison.prices import Price, price_sentence
from consilium.comparison.report import Report
from consilium.comparison.rows import USUAL_TOOLS, shares_text
from consilium.comparison.summary import OVER
from consilium.comparison.words import SURVIVES, explained, lead
from consilium.findings import ESTIMAND, LEAST_PATIENTS, LEAST_SPLITS
from consilium.findings.decimals import DASH, counted
from consilium.findings.pages import flattened, render

HOLDINGS = {
    "train": "training rows",
    "validation": "validation rows",
    "test": "test rows",
    "patients": "test patients",
    "num_groups": "patients",
    "num_copies": "copies",
}
"""Columns of who holds what, where some site has such a number."""
SCALES = {
    "federation": "by one mean and standard deviation of all sites' training rows",
    "site": "at each site by its own training rows",
    "study": "by fixed numbers of the study",
}
LARGEST_DOT = 11
"""Radius of the dot of the largest number of examples."""


def render_page(report: Report) -> str:
    """Return the page: no script, no request, light and dark."""
    legend, curves = curve_figures(report)
    shown = report.study.sites[:MOST_BARS]
    return render(
        "consilium.comparison",
        "comparison.html.j2",
        {
            "report": report,
            "study": report.study,
            "facts": _facts(report),
            "lead": lead(report),
            "metric": report.metric.replace("_", " ") + explained(report),
            "over": OVER,
            "survives": SURVIVES,
            "notes": {line.row.name: _notes(line) for line in report.lines},
            "costs": {line.row.name: _cost(line) for line in report.lines},
            "others": {line.row.name: _others(line) for line in report.lines},
            "legend": legend,
            "curves": curves,
            "bars": [(site, bar_chart(report, site)) for site in shown],
            "without_bars": len(report.study.sites) - len(shown),
            "prices": [_price(report, price) for price in report.prices],
            "epsilons": any(line.row.epsilon is not None for line in report.lines),
            "weights": _weights(report),
            "weight_figures": weight_figures(report),
            "holdings": _holdings(report),
            "labels": _labels(report),
            "times": time_figures(report),
            "too_few": [curve.site for curve in report.times if not curve.times],
            "least_at_risk": LEAST_AT_RISK,
            "usual_tools": USUAL_TOOLS,
            "scaled": " or ".join(SCALES[by] for by in report.scales),
            "draws": DRAWS,
            "estimand": ESTIMAND,
            "least_patients": LEAST_PATIENTS,
            "least_splits": LEAST_SPLITS,
            "settings": [
                ("Command", list(flattened(report.settings))),
                ("Study", list(flattened(report.study.model_dump(mode="json")))),
            ],
        },
    )


def _facts(report: Report) -> list[str]:
    return [
        counted(len(report.study.sites), "site"),
        counted(len(report.lines), "row"),
        counted(report.seeds, "seed"),
        counted(report.splits, "split"),
        f"{report.cells} studies run",
        f"{report.seconds:,.0f} seconds",
    ]


def _notes(line: Line) -> list[str]:
    """Return what stands below a row's name: its note, and among how many it was chosen."""
    notes = [line.row.note] if line.row.note else []
    return [*notes, f"{shares_text(line.row.shares)}; of {line.row.among} candidates"] if line.row.among else notes


def _cost(line: Line) -> tuple[str, str]:
    """Return what reaching the target took: rounds, and megabytes and seconds."""
    if line.target is None:
        return DASH, ""
    rounds = f"{line.target['rounds']:.0f}"
    megabytes, seconds = line.target["bytes"] / 1e6, line.target["seconds"]
    return f"{rounds} round{'' if rounds == '1' else 's'}", f"{megabytes:,.2f} MB, {seconds:,.1f} s"


def _others(line: Line) -> list[str]:
    """Return every metric as text, four digits where it has units."""
    return [
        DASH if value is None else f"{value:.4g}" if name in UNBOUNDED else f"{value:.3f}"
        for name, value in line.others.items()
    ]


def _price(report: Report, price: Price) -> dict[str, Any]:
    """Return what a method's budgets cost: titles, per site the cells of its row and a sentence, and the charts."""
    rows = [
        (
            site,
            price.alone.sites[site],
            [
                (one.joined.sites[site], one.minus_alone.sites[site], one.verdicts[site] in ("helps", "hurts"))
                for one in price.each
            ],
        )
        for site in report.study.sites
    ]
    return {
        "method": price.method,
        "titles": ["site", "alone", *(f"joined, {one.promise.replace('eps', 'epsilon')}" for one in price.each)],
        "rows": rows,
        "sentences": [price_sentence(price, site, report.places) for site in report.study.sites],
        "figures": price_figures(report, price),
    }


def _weights(report: Report) -> list[tuple[str, list[str]]]:
    """Return per site its share in the first round, the lowest, the highest, and in the last round."""
    if not any(report.weights.values()):
        return []
    return [
        (
            site,
            [f"{100 * value:.1f} %" for value in (values[0], min(values), max(values), values[-1])]
            if values
            else [DASH] * 4,
        )
        for site, values in report.weights.items()
    ]


def _labels(report: Report) -> list[list[str]]:
    """Return the cells of each label's lines: of its mean first, then of each site."""
    shown, rows = {"", *report.study.sites[:MOST_BARS]}, []
    for line in (one for one in report.labels if one.site in shown):
        counts = ((line.there, line.known), (line.test_there, line.test_known))
        values = (line.alone, line.joined, line.alone_precision, line.joined_precision)
        rows.append(
            [
                line.label,
                line.site or f"mean of {counted(line.num_sites, 'site')}",
                *(f"{there:,} of {known:,}" for there, known in counts),
                *(DASH if value is None else f"{value:.3f}" for value in values),
            ]
        )
    return rows


def _holdings(report: Report) -> dict[str, Any]:
    """Return who holds what: titles, and per site the rows and a dot per class whose area is the number of examples."""
    classes = report.study.task.classes
    most = max((count for counts in report.counts.values() for count in counts.values()), default=0)
    names = [key for key in HOLDINGS if any(key in facts for facts in report.holdings.values())]
    rows = []
    for site in report.study.sites:
        counts = [report.counts[site].get(name, 0) for name in classes]
        dots = [(f"{LARGEST_DOT * (count / most) ** 0.5:.2f}", f"{count:,}") for count in counts] if most else []
        numbers = [report.holdings[site].get(key) for key in names]
        rows.append((site, [DASH if number is None else f"{number:,}" for number in numbers], dots, f"{sum(counts):,}"))
    titles = ["site", *(HOLDINGS[key] for key in names), *((*classes, "all") if most else ())]
    return {"titles": titles, "rows": rows}
