"""The page of one run's report: charts and tables for its template, `report.html.j2`."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from consilium.common.errors import listed
from consilium.common.results import RoundRecord
from consilium.findings import ACCURACIES, DIFFERENCE, ESTIMAND, LEAST_PATIENTS, MEASURES, Measures
from consilium.findings.charts import COLOURS, chart, last_known, limits_of, line_chart
from consilium.findings.decimals import DASH, bounds, counted, number, point
from consilium.findings.pages import flattened, render
from consilium.privacy.visibility import visibility
from consilium.report.curves import CURVES, mean_curves, measured_rounds, metric_of, signals_of
from consilium.report.groups import MOST_ROWS, group_weights
from consilium.report.privacy import COLUMNS, WITHHELD, lead, privacy_rows, promise, promise_of_sites
from consilium.report.report import TITLES, Report, Run

_RUN_STYLES = ("personal", "local", "global")
MOST_NOTES, MOST_ROUNDS = 20, 12
"""How many notes, and how many rounds of one reason, are listed at most."""


def render_page(report: Report, pictures: Mapping[str, Sequence[str]] = MappingProxyType({})) -> str:
    """Return the report as one page that opens offline: no script, no request, light and dark.

    Args:
        pictures: of each site that lets some leave, test pictures with outlines, as addresses with the content itself.
    """
    run = report.run
    return render(
        "consilium.report",
        "report.html.j2",
        {
            "name": run.result.study.name,
            "facts": _facts(run),
            "lead": _lead(run),
            "headlines": [(run.verdict(site), text) for site, text in report.headlines.items()],
            "warnings": report.warnings,
            "run": run,
            "runs": [run, *report.others] if report.others else [],
            "measures": [(name, name == DIFFERENCE) for name in MEASURES],
            "run_legend": list(zip(_RUN_STYLES, (each.label for each in (run, *report.others)), strict=False)),
            "run_figures": _run_figures([run, *report.others]) if report.others else [],
            "site_cards": _site_cards(run),
            "pictures": pictures,
            "weights": [*_weights(run), *padded_weights(run)],
            "signals": signals_of(run.rounds),
            "notes": _notes(run.rounds),
            "took_part": [(site, *_took_part(run.rounds, site)) for site in run.rows],
            "settings": _settings(run),
            "promise": promise(run.result),
            "promise_of_sites": promise_of_sites(run.result),
            "privacy_columns": COLUMNS,
            "privacy_rows": privacy_rows(run.result, run.rows),
            "withheld": WITHHELD,
            "visible": visibility(run.result.study),
            "estimand": ESTIMAND,
            "least_patients": LEAST_PATIENTS,
            "most_rows": MOST_ROWS,
        },
    )


def _facts(run: Run) -> list[str]:
    result = run.result
    megabytes = sum(record.bytes_up + record.bytes_down for record in run.rounds) / 1e6
    return [
        re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*(Z|\+00:00)$", r"\1 \2 UTC", result.started),
        *([] if run.groups and not run.rows else [counted(len(run.rows), "site")]),
        *(f"{row.devices:,} devices of group {row.name}" for row in run.groups),
        counted(len(run.rounds), "round"),
        *([] if result.stopped is None else [result.stopped.text]),
        *([] if result.final_round is None else [f"the model of round {result.final_round} is the final one"]),
        f"{result.seconds:,.0f} seconds",
        f"{megabytes:,.1f} MB exchanged",
        f"method {result.study.method.kind}",
        f"run {result.run}",
    ]


def _lead(run: Run) -> str:
    if run.private is not None:
        return lead(list(run.sites), run.result)
    kinds = [run.verdict(site) for site in run.sites]
    groups = [
        f"Of {row.tested:,} devices of group {row.name}, joining is better at {row.better:,} and worse at "
        f"{row.worse:,}, by their own few test examples."
        for row in run.groups
    ]
    if groups and not kinds:
        return " ".join(groups)
    first = f"Of {counted(len(kinds), 'site')}, joining clearly helps {kinds.count('helps')} and clearly hurts "
    first += f"{kinds.count('hurts')}."
    if few := kinds.count("too_few"):
        first += f" {few} {'has' if few == 1 else 'have'} fewer than {LEAST_PATIENTS} test patients."
    return " ".join([first, *groups])


# --- charts ----------------------------------------------------------------------------------------


def _bars(run: Run, site: str, measures: Measures) -> Markup:
    """Chart a site's test accuracy: one bar per model, its interval as a line."""
    models = {name: one for name in ACCURACIES if (one := measures[name]) is not None}
    titles = run.titles

    def draw(axes: Axes) -> None:
        for row, (name, one) in enumerate(models.items()):
            axes.barh(row, one.value, height=0.62, color=COLOURS[name])
            if one.bounds is not None:
                axes.plot(one.bounds, [row, row], color=COLOURS["card"], linewidth=3.4, solid_capstyle="butt")
                axes.plot(one.bounds, [row, row], color=COLOURS["ink"], linewidth=1.3, marker="|", markersize=6)
            axes.text(1.03, row, number(one.value), va="center", transform=axes.get_yaxis_transform())
        axes.set_yticks(range(len(models)), [titles[name] for name in models])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.grid(axis="x")
        axes.set_axisbelow(True)

    numbers = ", ".join(f"{titles[name]} {point(one)} {bounds(one)}".strip() for name, one in models.items())
    return chart(f"Test {run.score} at {site}: {numbers}", draw)


def _run_figures(runs: list[Run]) -> list[tuple[str, Markup]]:
    """Return the charts of several runs: mean validation accuracy of the personal and of the global model."""
    shown = {style: mean_curves(run.rounds) for style, run in zip(_RUN_STYLES, runs, strict=False)}
    names = [f"{model}.accuracy" for model in ("personal", "global")]
    limits = limits_of((value for curves in shown.values() for name in names for value in curves[name]), accuracy=True)
    figures = []
    for name in names:
        if all(value is None for curves in shown.values() for value in curves[name]):
            continue
        rounds = max((curves["round"] for curves in shown.values()), key=len)
        series = [
            (style, [*curves[name], *[None] * (len(rounds) - len(curves[name]))]) for style, curves in shown.items()
        ]
        caption = f"Mean validation {runs[0].score} over the sites, {name.split('.')[0]} model"
        labels = ", ".join(
            f"{run.label}: last {last_known(curves[name])}" for run, curves in zip(runs, shown.values(), strict=False)
        )
        drawn = line_chart(f"{caption}. {labels}", [int(one or 0) for one in rounds], series, limits)
        figures.append((caption, drawn))
    return figures


def _site_cards(run: Run) -> list[dict[str, Any]]:
    """Return per site its name, the legend of its curves, and its charts; every site has the same scale."""
    measured = measured_rounds(run.rounds)
    limits = {
        kind: limits_of(
            (metric_of(each, site, f"{model}.{kind}") for each in run.rounds for site in run.sites for model in CURVES),
            accuracy=kind == "accuracy",
        )
        for kind in ("accuracy", "loss")
    }
    cards = []
    for site in run.sites:
        measures, figures, drawn = run.measures(site), [], dict[str, str]()
        if measures["personal"] is not None:
            figures.append((f"Test {run.score}", _bars(run, site, measures)))
        for kind in ("accuracy", "loss"):
            curves = {model: [metric_of(each, site, f"{model}.{kind}") for each in measured] for model in CURVES}
            known = {model: curve for model, curve in curves.items() if any(value is not None for value in curve)}
            if known:
                drawn |= {model: TITLES[model] for model in known}
                caption = f"Validation {run.score if kind == 'accuracy' else kind} per round"
                last = ", ".join(f"{TITLES[model]} last {last_known(curve)}" for model, curve in known.items())
                rounds = [record.round for record in measured]
                svg = line_chart(f"{caption} at {site}: {last}", rounds, list(known.items()), limits[kind])
                figures.append((caption, svg))
        cards.append({"site": site, "legend": list(drawn.items()), "figures": figures})
    return cards


# --- tables ----------------------------------------------------------------------------------------


def _weights(run: Run) -> list[tuple[str, list[str]]]:
    """Return how much each site counted: its share over the rounds, and what it was made from in the last one."""
    signals = signals_of(run.rounds)
    rows = []
    for site in run.rows:
        own = [record.sites[site] for record in run.rounds if site in record.sites]
        shares = [each.weight for each in own if each.weight is not None]
        texts = [DASH] * (4 + len(signals))
        if shares:
            last = next(each for each in reversed(own) if each.weight is not None).signals
            texts = [f"{100 * share:.1f} %" for share in (shares[0], min(shares), max(shares), shares[-1])]
            texts += [f"{last[name]:.4g}" if name in last else DASH for name in signals]
        rows.append((site, texts))
    return rows


def padded_weights(run: Run) -> list[tuple[str, list[str]]]:
    """Return the rows of groups in the table of weights; what a weight was made from is of single devices."""
    dashes = [DASH] * len(signals_of(run.rounds))
    return [(name, [*texts, *dashes]) for name, texts in group_weights(run.result, run.rounds)]


def _notes(rounds: tuple[RoundRecord, ...]) -> list[str]:
    notes = [f"Round {record.round}: {note}" for record in rounds for note in record.notes]
    return notes[:MOST_NOTES] + ([f"and {len(notes) - MOST_NOTES} more"] if len(notes) > MOST_NOTES else [])


def _took_part(rounds: tuple[RoundRecord, ...], site: str) -> tuple[int, int, str, str]:
    """Return in how many rounds a site was asked and accepted, every refusal with its reason, and its silent rounds."""
    asked = [record for record in rounds if site in record.asked]
    reasons: dict[str, list[int]] = {}
    for record in rounds:
        if site in record.rejected:
            reasons.setdefault(record.rejected[site], []).append(record.round)
    rejected = "; ".join(f"{reason}: {_rounds_text(numbers)}" for reason, numbers in sorted(reasons.items()))
    silent = _rounds_text([record.round for record in asked if site not in record.answered])
    return len(asked), sum(site in record.accepted for record in asked), rejected or DASH, silent or DASH


def _rounds_text(rounds: list[int]) -> str:
    if not rounds:
        return ""
    return f"round{'s' if len(rounds) > 1 else ''} {listed(rounds, MOST_ROUNDS)}"


def _settings(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    result = run.result
    facts = {"num_train", "num_validation", "num_test", "classes", "class_counts"}
    tables: Mapping[str, Any] = {
        "Study": result.study.model_dump(mode="json"),
        "Run": result.model_dump(mode="json", include={"run", "seed", "transport", "tls", "started", "seconds"}),
        "Data": {site: of.model_dump(mode="json", include=facts) for site, of in run.sites.items()},
        "Versions": result.versions.model_dump(mode="json"),
    }
    return [(title, list(flattened(values))) for title, values in tables.items()]
