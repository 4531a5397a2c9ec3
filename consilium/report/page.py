"""The page of one run's report, and the report's files."""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from matplotlib.axes import Axes

from common.host.files import write_atomically
from consilium.findings import ACCURACIES, ESTIMAND, LEAST_PATIENTS, MEASURES
from consilium.findings.html import (
    COLOURS,
    DASH,
    INK,
    Json,
    chart,
    figure,
    html_head,
    last_known,
    legend,
    limits_of,
    line_chart,
    scroll,
    settings_rows,
    whole_page,
)
from consilium.report.report import (
    CURVES,
    TITLES,
    cell_of,
    effect,
    measured_rounds,
    metric_of,
    rounds_csv,
    score_of,
    signals_of,
    sites_of,
    summary_rows,
    titles_of,
)

_RUN_STYLES = ("personal", "local", "global")


def write_report(folder: Path, report: Json) -> None:
    """Write `report.json`, `rounds.csv` and `report.html` into `folder`, each atomically.

    Raises:
        StateError: the folder cannot be written.
        ValueError: the report holds a number that is not finite.
    """
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(folder / "report.json", f"{text}\n".encode())
    write_atomically(folder / "rounds.csv", rounds_csv(report).encode())
    write_atomically(folder / "report.html", render_html(report).encode())


def _bars(report: Json, site: str, values: Json) -> str:
    """Chart a site's test accuracy: one bar per model, its interval as a line."""
    names = [name for name in ACCURACIES if values["metrics"][name] is not None]
    titles = titles_of(report)

    def draw(axes: Axes) -> None:
        for row, name in enumerate(names):
            value, bounds = values["metrics"][name], values["intervals"][name]
            axes.barh(row, value, height=0.62, color=COLOURS[f"var(--{name})"])
            axes.plot(bounds, [row, row], color=COLOURS["var(--card)"], linewidth=3.4, solid_capstyle="butt")
            axes.plot(bounds, [row, row], color=INK, linewidth=1.3, marker="|", markersize=6)
            axes.text(1.03, row, f"{value:.2f}", va="center", transform=axes.get_yaxis_transform())
        axes.set_yticks(range(len(names)), [titles[name] for name in names])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.grid(axis="x")
        axes.set_axisbelow(True)

    numbers = ", ".join(f"{titles[name]} {' '.join(cell_of(values, name))}" for name in names)
    return chart(f"Test {score_of(report)} at {site}: {numbers}", draw)


_CONSTANTS = {
    "majority class": "Always answering the site's most frequent class: what a model must beat.",
    "training mean": "Always answering the mean of the site's training labels: what a model must beat.",
}
_TERMS = """<div><dt>Local only</dt><dd>A model trained at this site alone, without joining.</dd></div>
<div><dt>Global</dt><dd>The one shared model of all sites. A dash: this method has none.</dd></div>
<div><dt>Personal</dt><dd>The model this site serves after joining.</dd></div>
<div><dt>Personal - local</dt><dd>What joining changes at this site, on the same test examples.</dd></div>
<div><dt>Worst site</dt><dd>The lowest value of each column; columns may name different sites.</dd></div>
"""

_METHOD = f"""<p>Personal - local is {ESTIMAND}. A run is one training of both models, so here it is about the two
models at hand, and how much training varies is not in it: <code>consilium compare --seeds</code> shows that.</p>
<p>Every site read its test split once, after the last round, and returned only counts: how many examples, and how many
each model got right; where patients have several examples, sums over patients too. A share has Jeffreys' interval
(Brown, Cai and DasGupta, 2001). The difference looks at the patients that one model gets right and the other does not:
it is called clear only if both the exact test of these (McNemar, mid-p) and the score interval of Tango (1998) say so;
where patients have several examples, t intervals over patients take the place of Tango's. Below {LEAST_PATIENTS} test
patients (of equal size) there is no interval of a difference, and nothing is said.</p>
<p>An interval stands alone: of 20 sites without any effect, about one is expected to look clear by chance. The
sentences and the first line count all sites of this page (Holm, 1979): that any of them is wrong has a chance of 5 %.
Over sites, patients are independent and the sites are these: another federation is not in the interval. The worst site
has none.</p>
<p>How often these intervals are right was measured: <code>benchmarks/results/coverage.csv</code> of the source.</p>"""

_VERDICTS = {
    "helps": "Helps",
    "hurts": "Hurts",
    "unclear": "No clear effect",
    "too_few": "Too little to tell",
    "unknown": "Nothing to compare",
}


def render_html(report: Json) -> str:
    """Return the report as one page that opens offline: no script, no request, light and dark."""
    sections = [
        _page_header(report),
        _page_headlines(report),
        _page_warnings(report),
        _page_results(report),
        _page_comparisons(report),
        _page_sites(report),
        _page_weights(report),
        _page_rounds(report),
        f'<h2>How the intervals were made</h2><div class="card">{_METHOD}</div>',
        _page_settings(report),
    ]
    name = report.get("study", {}).get("name", "study")
    return whole_page(str(name), "\n".join(filter(None, sections)))


def _page_header(report: Json) -> str:
    rounds, study = report["rounds"], report.get("study", {})
    megabytes = sum(each.get("bytes_up", 0) + each.get("bytes_down", 0) for each in rounds) / 1e6
    facts = [
        re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*(Z|\+00:00)$", r"\1 \2 UTC", str(report.get("started", ""))),
        f"{len(sites_of(report))} sites",
        f"{len(rounds)} rounds",
        f"{report.get('seconds', 0):,.0f} seconds",
        f"{megabytes:,.1f} MB exchanged",
        f"method {study.get('method', {}).get('kind', DASH)}",
        f"run {report.get('run', DASH)}",
    ]
    line = " \N{MIDDLE DOT} ".join(escape(fact) for fact in facts if fact)
    return (
        f'<p class="soft">Federated study report</p>\n<h1>{escape(str(study.get("name", "study")))}</h1>\n'
        f'<p class="soft">{line}</p>'
    )


def _page_headlines(report: Json) -> str:
    found = [effect(values) for values in report["sites"].values()]
    lead = (
        f"Of {len(found)} sites, joining clearly helps {found.count('helps')} and clearly hurts {found.count('hurts')}."
    )
    few = found.count("too_few")
    lead += f" {few} {'has' if few == 1 else 'have'} fewer than {LEAST_PATIENTS} test patients." if few else ""
    items = [
        f'<li class="{kind}"><b>{_VERDICTS[kind]}</b>{escape(sentence.replace(" -> ", " → "))}</li>'
        for kind, sentence in zip(found, report["headlines"], strict=True)
    ]
    body = "\n".join(items)
    return f'<h2>Does joining help?</h2>\n<p class="lead">{lead}</p>\n<ul class="headlines">\n{body}\n</ul>'


def _page_warnings(report: Json) -> str:
    items = "".join(f"<li>{escape(str(text))}</li>" for text in report.get("warnings", ()))
    return f'<h2>Warnings</h2>\n<div class="card warning"><ul>{items}</ul></div>' if items else ""


def _page_results(report: Json) -> str:
    sites = [_html_row(site, _examples(values), values) for site, values in report["sites"].items()]
    over = [_html_row(label, examples, values) for label, examples, values in summary_rows(report)]
    head = html_head(("site", "examples", *titles_of(report).values()))
    table = (
        f"<caption>Test {escape(score_of(report))} at each site, with its 95 % interval</caption>"
        f'{head}<tbody>{"".join(sites)}</tbody><tbody class="over">{"".join(over)}</tbody>'
    )
    return f"<h2>Results</h2>\n{scroll('Results per site', table)}\n{_terms(report)}"


def _terms(report: Json) -> str:
    constant = titles_of(report)["majority"]
    first = f"<div><dt>{constant.capitalize()}</dt><dd>{_CONSTANTS[constant]}</dd></div>"
    return f'<dl class="terms notes">\n{first}\n{_TERMS}</dl>'


def _examples(values: Json) -> str:
    num_test = (values.get("test") or {}).get("num_test")
    total = values.get("num_examples")
    small = "" if num_test is None else f"<small>{num_test:,} to test</small>"
    return f"{DASH if total is None else f'{total:,}'}{small}"


def _html_row(label: str, examples: str | None, values: Json) -> str:
    cells = [] if examples is None else [f"<td>{examples}</td>"]
    for name in MEASURES:
        point, interval = cell_of(values, name)
        cells.append(f"<td>{point}<small>{interval}</small></td>" if point else f"<td>{DASH}</td>")
    return f'<tr><th scope="row">{escape(label)}</th>{"".join(cells)}</tr>\n'


def _page_comparisons(report: Json) -> str:
    if not report["comparisons"]:
        return ""
    pretrained = report.get("study", {}).get("model", {}).get("pretrained")
    own = {**report, "label": f"this study ({'pretrained' if pretrained else 'random start'})"}
    runs: list[Json] = [own, *report["comparisons"]]
    bodies = "".join(f"<tbody>{_run_rows(run)}</tbody>" for run in runs)
    table = f"<caption>Over the sites, per run</caption>{html_head(('run', *titles_of(report).values()))}{bodies}"
    return f"<h2>Compared with other runs</h2>\n{scroll('Comparison of runs', table)}\n{_comparison_charts(runs)}"


def _run_rows(run: Json) -> str:
    return "".join(_html_row(f"{run['label']}: {label}", None, values) for label, _, values in summary_rows(run))


def _comparison_charts(runs: Sequence[Json]) -> str:
    shown = runs[: len(_RUN_STYLES)]
    names = [f"{model}.accuracy" for model in ("personal", "global")]
    limits = limits_of((value for run in shown for name in names for value in run["curves"][name]), accuracy=True)
    figures = []
    for name in names:
        if all(value is None for run in shown for value in run["curves"][name]):
            continue
        rounds = max((run["curves"]["round"] for run in shown), key=len)
        series = [
            (style, [*run["curves"][name], *[None] * (len(rounds) - len(run["curves"][name]))])
            for style, run in zip(_RUN_STYLES, shown, strict=False)
        ]
        caption = f"Mean validation {score_of(runs[0])} over the sites, {name.split('.')[0]} model"
        labels = ", ".join(f"{run['label']}: last {last_known(run['curves'][name])}" for run in shown)
        figures.append(figure(caption, line_chart(f"{caption}. {labels}", rounds, series, limits)))
    if not figures:
        return ""
    labels = legend((style, run["label"]) for style, run in zip(_RUN_STYLES, shown, strict=False))
    return f'<div class="card">{labels}<div class="charts">{"".join(figures)}</div></div>'


def _page_sites(report: Json) -> str:
    numbers = {
        kind: limits_of(
            (
                metric_of(each, site, f"{model}.{kind}")
                for each in report["rounds"]
                for site in report["sites"]
                for model in CURVES
            ),
            accuracy=kind == "accuracy",
        )
        for kind in ("accuracy", "loss")
    }
    cards = "\n".join(_site_card(report, site, values, numbers) for site, values in report["sites"].items())
    note = (
        "Curves are on each site's validation split, with the same scale at every site. Global: the model as it "
        "arrived in that round, before training; personal and local: after training in that round. Horizontal lines "
        "on the bars are 95 % intervals."
    )
    return f'<h2>Site by site</h2>\n<p class="soft">{note}</p>\n{cards}'


def _site_card(report: Json, site: str, values: Json, limits: Mapping[str, tuple[float, float]]) -> str:
    measured = measured_rounds(report)
    rounds = [each["round"] for each in measured]
    figures = []
    if values["metrics"]["personal"] is not None:
        figures.append(figure(f"Test {score_of(report)}", _bars(report, site, values)))
    drawn: list[str] = []
    for kind in ("accuracy", "loss"):
        curves = {model: [metric_of(each, site, f"{model}.{kind}") for each in measured] for model in CURVES}
        series = [(model, curve) for model, curve in curves.items() if any(value is not None for value in curve)]
        if series:
            drawn = [*drawn, *(model for model, _ in series if model not in drawn)]
            last = ", ".join(f"{TITLES[model]} last {last_known(curve)}" for model, curve in series)
            caption = f"Validation {score_of(report) if kind == 'accuracy' else kind} per round"
            figures.append(figure(caption, line_chart(f"{caption} at {site}: {last}", rounds, series, limits[kind])))
    labels = legend((model, TITLES[model]) for model in drawn)
    if not drawn:
        labels = '<p class="soft">This site reported no validation numbers: there are no curves.</p>'
    return (
        f'<section class="card"><h3>{escape(site)}</h3>{labels}<div class="charts">{"".join(figures)}</div></section>'
    )


def _page_weights(report: Json) -> str:
    """Return how much each site counted: its share over the rounds, and what it was made from in the last one."""
    signals = signals_of(report)
    rows: list[str] = []
    notes: list[str] = []
    for site in sites_of(report):
        facts = [each["sites"][site] for each in report["rounds"] if "weight" in each.get("sites", {}).get(site, {})]
        shares = [float(values["weight"]) for values in facts]
        shown = (shares[0], min(shares), max(shares), shares[-1]) if shares else ()
        texts = [f"{100 * share:.1f} %" for share in shown]
        told = facts[-1].get("signals", {}) if facts else {}
        texts += [f"{told[name]:.4g}" if name in told else DASH for name in signals]
        cells = "".join(f"<td>{text}</td>" for text in texts or [DASH] * (4 + len(signals)))
        rows.append(f'<tr><th scope="row">{escape(site)}</th>{cells}</tr>\n')
    for each in report["rounds"]:
        notes.extend(f"<li>Round {each['round']}: {escape(str(note))}</li>" for note in each.get("notes", ()))
    head = html_head(("site", "first round", "lowest", "highest", "last round", *signals))
    caption = "Share of each site's update in the new global weights, and what the last one was made from"
    told_notes = notes[:20] + ([f"<li>and {len(notes) - 20} more</li>"] if len(notes) > 20 else [])
    warning = f'<div class="card warning"><ul>{"".join(told_notes)}</ul></div>' if told_notes else ""
    body = f"<caption>{caption}</caption>{head}<tbody>{''.join(rows)}</tbody>"
    return f"<h2>How much each site counted</h2>\n{scroll('Weights per site', body)}\n{warning}"


def _page_rounds(report: Json) -> str:
    """Return who took part: per site the rounds asked and accepted, and every refusal with its reason."""
    rows = []
    for site in sites_of(report):
        asked = [each for each in report["rounds"] if site in each.get("asked", ())]
        accepted = [each for each in asked if site in each.get("accepted", ())]
        silent = [each["round"] for each in asked if site not in each.get("answered", ())]
        reasons: dict[str, list[int]] = {}
        for each in report["rounds"]:
            if site in each.get("rejected", {}):
                reasons.setdefault(str(each["rejected"][site]), []).append(each["round"])
        rejected = "; ".join(f"{reason}: {_rounds_text(rounds)}" for reason, rounds in sorted(reasons.items()))
        rows.append(
            f'<tr><th scope="row">{escape(site)}</th><td>{len(asked)}</td><td>{len(accepted)}</td>'
            f'<td class="text">{escape(rejected) or DASH}</td>'
            f'<td class="text">{_rounds_text(silent) or DASH}</td></tr>\n'
        )
    titles = ("site", "rounds asked", "updates accepted", "updates rejected", "no answer")
    table = f"{html_head(titles, text=titles[3:])}<tbody>{''.join(rows)}</tbody>"
    return f"<h2>Who took part</h2>\n{scroll('Rounds per site', table)}"


def _rounds_text(rounds: Sequence[int]) -> str:
    if not rounds:
        return ""
    shown = ", ".join(str(number) for number in rounds[:12])
    more = f" and {len(rounds) - 12} more" if len(rounds) > 12 else ""
    return f"round{'s' if len(rounds) > 1 else ''} {shown}{more}"


def _page_settings(report: Json) -> str:
    run = {key: report[key] for key in ("run", "seed", "transport", "tls", "started", "seconds") if key in report}
    data = {
        site: {
            key: values[key]
            for key in ("num_train", "num_validation", "num_test", "classes", "class_counts")
            if key in values
        }
        for site, values in report["sites"].items()
    }
    tables = {"Study": report.get("study", {}), "Run": run, "Data": data, "Versions": report.get("versions", {})}
    blocks = [
        f'<details class="card"><summary>{title}</summary><div class="scroll" role="region" tabindex="0" '
        f'aria-label="{title}"><table><tbody>{settings_rows(values)}</tbody></table></div></details>'
        for title, values in tables.items()
    ]
    return "<h2>Settings</h2>\n" + "\n".join(blocks)
