"""Turn a finished study's `result.json` into a report: JSON, CSV, one offline HTML page, one table.

`build_report` computes, the others only show what it computed. Names of sites, classes and settings come
from outside: the page escapes every one, and none reaches a chart's text. The page loads nothing.
"""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.config import describe
from common.errors import ProtocolError
from common.files import write_atomically
from common.protocol import TestCounts
from consilium.statistics import ACCURACIES, DRAWS, MEASURES, Measures, estimate

Json = Mapping[str, Any]

TITLES = {
    "majority": "majority class",
    "local": "local only",
    "global": "global",
    "personal": "personal",
    "personal_minus_local": "personal - local",
}
CURVES = ("global", "personal", "local")
ROUND_METRICS = (*(f"{model}.{number}" for model in CURVES for number in ("loss", "accuracy")), "train.loss")
ROUND_COLUMNS = (
    *("round", "site", "asked", "answered", "accepted", "rejected", "weight", "num_examples"),
    *("site_seconds", "round_seconds", "bytes_up", "bytes_down", "weighting_notes"),
    *(name.replace(".", "_") for name in ROUND_METRICS),
)
DASH = "\N{EN DASH}"


# --- the numbers -----------------------------------------------------------------------------------


def build_report(result: Json, comparisons: Sequence[Json] = ()) -> dict[str, Any]:
    """Return the result with accuracies, intervals, a summary over the sites and one sentence per site.

    Args:
        result: what the server wrote as `result.json`.
        comparisons: other runs of the study, each `{"label": str, "result": ...}`.

    Raises:
        ProtocolError: a site's test counts cannot be.
    """
    sites, summary = _numbers(result)
    rest = {key: value for key, value in result.items() if key not in ("sites", "rounds")}
    return {
        **rest,
        "headlines": [_headline(site, values) for site, values in sites.items()],
        "summary": summary,
        "sites": sites,
        "comparisons": [_comparison(str(other["label"]), other["result"]) for other in comparisons],
        "curves": _mean_curves(result),
        "rounds": list(result.get("rounds", [])),
    }


def _numbers(result: Json) -> tuple[dict[str, Any], dict[str, Any]]:
    found: Mapping[str, Json] = result["sites"]
    counts = {site: _counts(site, values["test"]) for site, values in found.items() if values.get("test")}
    statistics = estimate(counts, seed=int(result["seed"]))
    sites = {}
    for site in _in_study_order(result, found):
        values = dict(found[site])
        sites[site] = values | _as_json(statistics.sites.get(site, dict.fromkeys(MEASURES)))
    summary = {
        "num_sites": len(counts),
        "mean": _as_json(statistics.mean),
        "weighted_mean": _as_json(statistics.weighted_mean),
        "worst": _as_json(statistics.worst),
    }
    return sites, summary


def _counts(site: str, test: Json) -> TestCounts:
    try:
        return TestCounts.model_validate(test)
    except ValidationError as error:
        raise ProtocolError(describe(error, f"test counts of site '{site}'")) from error


def _in_study_order(result: Json, names: Iterable[str]) -> list[str]:
    order = {site: index for index, site in enumerate(result.get("study", {}).get("sites", ()))}
    return sorted(names, key=lambda site: (order.get(site, len(order)), site))


def _as_json(measures: Measures) -> dict[str, Any]:
    def value(name: str) -> float | None:
        found = measures[name]
        return None if found is None else found.value

    def interval(name: str) -> list[float] | None:
        found = measures[name]
        return None if found is None else [found.low, found.high]

    return {
        "metrics": {name: value(name) for name in ACCURACIES},
        "personal_minus_local": value("personal_minus_local"),
        "intervals": {name: interval(name) for name in MEASURES},
    }


def _comparison(label: str, result: Json) -> dict[str, Any]:
    sites, summary = _numbers(result)
    return {"label": label, "sites": sites, "summary": summary, "curves": _mean_curves(result)}


def _mean_curves(result: Json) -> dict[str, list[float | None]]:
    rounds = result.get("rounds", [])
    curves: dict[str, list[float | None]] = {"round": [each["round"] for each in rounds]}
    for name in ROUND_METRICS:
        curves[name] = [_mean(_metric(each, site, name) for site in each.get("sites", {})) for each in rounds]
    return curves


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _metric(round_: Json, site: str, name: str) -> float | None:
    value = round_.get("sites", {}).get(site, {}).get("metrics", {}).get(name)
    return None if value is None else float(value)


def effect(values: Json) -> str:
    """Return what joining does at a site: `helps`, `hurts`, `unclear` (interval holds 0), or `unknown`."""
    interval = values["intervals"]["personal_minus_local"]
    if interval is None:
        return "unknown"
    return "helps" if interval[0] > 0 else "hurts" if interval[1] < 0 else "unclear"


_OPENINGS = {
    "helps": "Joining helps {site}",
    "hurts": "Joining hurts {site}",
    "unclear": "Joining does not show a clear effect at {site}",
}


def _headline(site: str, values: Json) -> str:
    found = effect(values)
    if found == "unknown":
        return f"There is no test result from {site}."
    interval, difference = values["intervals"]["personal_minus_local"], values["personal_minus_local"]
    digits = 2
    # A bound that excludes 0 must not be printed as 0.00.
    while found != "unclear" and digits < 6 and 0 in (round(interval[0], digits), round(interval[1], digits)):
        digits += 1
    local, personal = values["metrics"]["local"], values["metrics"]["personal"]
    low, high = (_number(bound, digits) for bound in interval)
    return (
        f"{_OPENINGS[found].format(site=site)}: {local:.2f} -> {personal:.2f} "
        f"({_number(difference, digits, sign=True)}, 95 % interval {low} to {high})."
    )


def _number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    rounded = round(value, digits) + 0.0  # no "-0.00"
    return f"{rounded:+.{digits}f}" if sign and rounded else f"{rounded:.{digits}f}"


def _cell(values: Json, name: str) -> tuple[str, str]:
    """Return a measure and its interval as text; two empty strings for None."""
    interval = values["intervals"][name]
    if interval is None:
        return "", ""
    point = values[name] if name == "personal_minus_local" else values["metrics"][name]
    return _number(point, sign=name == "personal_minus_local"), f"[{_number(interval[0])}, {_number(interval[1])}]"


def _rows(report: Json) -> list[tuple[str, str, Json]]:
    """Return the table's rows below the sites: label, examples, values."""
    summary = report["summary"]
    mean = "mean" if summary["num_sites"] == len(report["sites"]) else f"mean of {summary['num_sites']}"
    return [
        (mean, "", summary["mean"]),
        ("weighted mean", "", summary["weighted_mean"]),
        ("worst site", "", summary["worst"]),
    ]


# --- the files -------------------------------------------------------------------------------------


def write_report(folder: Path, report: Json) -> None:
    """Write `report.json`, `rounds.csv` and `report.html` into `folder`, each atomically.

    Raises:
        StateError: the folder cannot be written.
        ValueError: the report holds a number that is not finite.
    """
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(folder / "report.json", f"{text}\n".encode())
    write_atomically(folder / "rounds.csv", _rounds_csv(report).encode())
    write_atomically(folder / "report.html", render_html(report).encode())


def _rounds_csv(report: Json) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    signals = _signals_of(report)
    writer.writerow((*ROUND_COLUMNS, *signals))
    for each in report["rounds"]:
        for site in _sites_of(report):
            told = each.get("sites", {}).get(site, {}).get("signals", {})
            writer.writerow([*_round_row(each, site), *(told.get(name) for name in signals)])
    return file.getvalue()


def _signals_of(report: Json) -> list[str]:
    """Return the names of all signals behind the weights, e.g. `size.examples`, in sorted order."""
    facts = (values for each in report["rounds"] for values in each.get("sites", {}).values())
    return sorted({name for values in facts for name in values.get("signals", {})})


def _sites_of(report: Json) -> list[str]:
    return _in_study_order(report, {*report["sites"], *report.get("study", {}).get("sites", ())})


def _round_row(round_: Json, site: str) -> list[Any]:
    values: Json = round_.get("sites", {}).get(site, {})
    took_part = [str(site in round_.get(name, ())).lower() for name in ("asked", "answered", "accepted")]
    return [
        *(round_["round"], site, *took_part, round_.get("rejected", {}).get(site)),
        *(values.get(name) for name in ("weight", "num_examples", "seconds")),
        *(round_.get(name) for name in ("seconds", "bytes_up", "bytes_down")),
        "; ".join(round_.get("notes", ())),
        *(_metric(round_, site, name) for name in ROUND_METRICS),
    ]


# --- the terminal ----------------------------------------------------------------------------------


def print_table(report: Json, console: Console) -> None:
    """Print the table and the sentence of every site; plain text where there is no terminal.

    Below 120 columns an interval goes under its number, and the majority class has none; 80 are enough.
    """
    wide = console.width >= 120
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1 if wide else 0))
    table.add_column("site", overflow="fold")
    for title in ("examples", *TITLES.values()):
        header = title.replace(" class", "\nclass").replace(" local", "\nlocal")
        table.add_column(title if wide else header, justify="right", no_wrap=True)
    for site, values in report["sites"].items():
        table.add_row(Text(site), *_texts(str(values.get("num_examples", DASH)), values, wide=wide))
    table.add_section()
    for label, examples, values in _rows(report):
        table.add_row(Text(label, style="bold"), *_texts(examples, values, wide=wide))
    console.print(table)
    console.print()
    console.print(Text("accuracy on each site's own test split, with its 95 % interval", style="dim"))
    console.print()
    for headline in report["headlines"]:
        console.print(Text(headline), soft_wrap=True)


def _texts(examples: str, values: Json, *, wide: bool) -> list[Text]:
    texts = [Text(examples)]
    for name in MEASURES:
        point, interval = _cell(values, name)
        if name == "majority" and not wide:
            interval = ""
        texts.append(Text(f"{point}{' ' if wide else chr(10)}{interval}".strip() or DASH))
    return texts


# --- the charts ------------------------------------------------------------------------------------

# Drawn in these colours, then replaced by the page's own, which differ in light and dark. The three
# models also differ in line style: colour is never the only sign.
_COLOURS = {
    "currentColor": "#010101",
    "var(--line)": "#010102",
    "var(--majority)": "#010103",
    "var(--local)": "#010104",
    "var(--global)": "#010105",
    "var(--personal)": "#010106",
    "var(--card)": "#010107",
}
_INK, _LINE = _COLOURS["currentColor"], _COLOURS["var(--line)"]
_DASHES: dict[str, tuple[float, ...]] = {"personal": (), "local": (5, 2), "global": (1.5, 1.5)}
_RUN_STYLES = ("personal", "local", "global")
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "consilium",
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
}


def _chart(label: str, draw: Callable[[Axes], None]) -> str:
    """Draw one chart and return it as inline SVG in the page's colours and fonts, described by `label`."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(3.7, 2.1), facecolor="none", layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :]
    size = re.search(r'viewBox="[^"]+"', svg)
    svg = f'<svg {size.group() if size else ""} role="img" aria-label="{escape(label)}">' + svg[svg.index(">") + 1 :]
    used = set(re.findall(r"#([\w.-]+)[\")]", svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: match.group() if match.group(1) in used else "", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", svg.replace("xlink:href", "href"))
    for name, colour in _COLOURS.items():
        svg = svg.replace(colour, name)
    return re.sub(r"\n\s*", "\n", svg).strip()


def _bars(site: str, values: Json) -> str:
    """Chart a site's test accuracy: one bar per model, its interval as a line."""
    names = [name for name in ACCURACIES if values["metrics"][name] is not None]

    def draw(axes: Axes) -> None:
        for row, name in enumerate(names):
            value, (low, high) = values["metrics"][name], values["intervals"][name]
            axes.barh(row, value, height=0.62, color=_COLOURS[f"var(--{name})"])
            axes.plot([low, high], [row, row], color=_COLOURS["var(--card)"], linewidth=3.4, solid_capstyle="butt")
            axes.plot([low, high], [row, row], color=_INK, linewidth=1.3, marker="|", markersize=6)
            axes.text(1.03, row, f"{value:.2f}", va="center", transform=axes.get_yaxis_transform())
        axes.set_yticks(range(len(names)), [TITLES[name] for name in names])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.grid(axis="x")
        axes.set_axisbelow(True)

    numbers = ", ".join(f"{TITLES[name]} {' '.join(_cell(values, name))}" for name in names)
    return _chart(f"Test accuracy at {site}: {numbers}", draw)


def _lines(
    label: str,
    rounds: Sequence[int],
    series: Sequence[tuple[str, Sequence[float | None]]],
    limits: tuple[float, float],
) -> str:
    """Chart one line per series over the rounds; a series is the name of its style and its values."""

    def draw(axes: Axes) -> None:
        for style, values in series:
            points = [math.nan if value is None else value for value in values]
            (line,) = axes.plot(rounds, points, color=_COLOURS[f"var(--{style})"], linewidth=1.8)
            if _DASHES[style]:
                line.set_dashes(_DASHES[style])
            # A value between two gaps has no line; a marker shows it.
            line.set_marker("o")
            line.set_markersize(3.5 if len(rounds) <= 15 else 0.8)
        axes.set_ylim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.grid(axis="y")
        axes.set_xlabel("round")

    return _chart(label, draw)


def _limits(values: Iterable[float | None], *, accuracy: bool) -> tuple[float, float]:
    """Return the same vertical limits for every chart that holds some of `values`."""
    known = [value for value in values if value is not None] or [0.0, 1.0]
    margin = 0.08 * ((max(known) - min(known)) or 0.1)
    return max(0.0, min(known) - margin), min(1.0, max(known) + margin) + 0.005 if accuracy else max(known) + margin


# --- the page --------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --page: #f5f6f7; --card: #ffffff; --ink: #1b2127; --soft: #59636e; --line: #d5dae0;
  --majority: #8b939c; --local: #c4650a; --global: #0072b2; --personal: #00795a;
  --helps: #00664b; --hurts: #a3260f; --unclear: #59636e; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12161a; --card: #1a2026; --ink: #e7eaed; --soft: #a3adb7; --line: #38424c;
    --majority: #7f8993; --local: #f0a03c; --global: #5ab4ea; --personal: #35c79c;
    --helps: #4fd0a8; --hurts: #ff9580; --unclear: #a3adb7; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5; overflow-wrap: break-word;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; font-size: 16px; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.25rem; margin: 44px 0 12px; }
h3 { font-size: 1.05rem; margin: 0; }
p { margin: 8px 0; max-width: 75ch; }
.soft, figcaption, .notes { color: var(--soft); font-size: .9rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 16px; margin: 12px 0; }
.lead { font-size: 1.1rem; font-weight: 600; }
.headlines { list-style: none; margin: 12px 0; padding: 0; }
.headlines li { background: var(--card); border: 1px solid var(--line); border-left: 5px solid var(--unclear);
  border-radius: 6px; padding: 10px 14px; margin: 8px 0; font-variant-numeric: tabular-nums; }
.headlines .helps { border-left-color: var(--helps); }
.headlines .hurts { border-left-color: var(--hurts); }
.headlines b { display: block; font-size: .8rem; letter-spacing: .02em; color: var(--unclear); }
.headlines .helps b { color: var(--helps); }
.headlines .hurts b { color: var(--hurts); }
.scroll { overflow-x: auto; padding: 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 12px 14px 4px; color: var(--soft); font-size: .9rem; }
th, td { padding: 9px 14px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th:first-child, td.text, th.text { text-align: left; }
td.text { white-space: normal; min-width: 9em; overflow-wrap: anywhere; }
thead th { border-top: 0; color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; white-space: normal; min-width: 7em; max-width: 18em; }
tbody th, thead th:first-child { position: sticky; left: 0; background: var(--card); }
td small { display: block; color: var(--soft); font-size: .82rem; }
.over td, .over tr > th { background: color-mix(in srgb, var(--line) 28%, var(--card)); }
.over tr:first-child > *, tbody + tbody tr:first-child > * { border-top: 2px solid var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(290px, 100%), 1fr)); gap: 20px;
  margin-top: 12px; }
figure { margin: 0; min-width: 0; }
figcaption { margin-bottom: 4px; }
figure svg { display: block; width: 100%; max-width: 460px; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 6px 0 0; padding: 0; list-style: none;
  font-size: .88rem; }
.legend svg { width: 30px; height: 10px; vertical-align: middle; margin-right: 6px; }
.warning { border-left: 5px solid var(--local); }
.warning ul { margin: 0; padding-left: 20px; }
.terms { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 4px 24px;
  margin: 12px 0; }
.terms dt { font-weight: 600; } .terms dd { margin: 0; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 600px) { main { padding: 20px 14px 48px; } h1 { font-size: 1.5rem; } th, td { padding: 8px 10px; } }
@media print { body { background: none; } .card, .headlines li { break-inside: avoid; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title} - consilium report</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_TERMS = """<dl class="terms notes">
<div><dt>Majority class</dt><dd>Always answering the site's most frequent class: what a model must beat.</dd></div>
<div><dt>Local only</dt><dd>A model trained at this site alone, without joining.</dd></div>
<div><dt>Global</dt><dd>The one shared model of all sites. A dash: this method has none.</dd></div>
<div><dt>Personal</dt><dd>The model this site serves after joining.</dd></div>
<div><dt>Personal - local</dt><dd>What joining changes at this site, on the same test examples.</dd></div>
<div><dt>Worst site</dt><dd>The lowest value of each column; columns may name different sites.</dd></div>
</dl>"""

_METHOD = f"""<p>Every site read its test split once, after the last round, and returned only counts: how many examples,
and how many each model got right. Each 95 % interval comes from {DRAWS:,} seeded draws from the posterior of these
counts under the Jeffreys prior (Brown, Cai and DasGupta, 2001). Personal and local are drawn together from the paired
counts, so their difference ignores the examples that both get right. An effect is called clear only if the interval
of the difference excludes 0.</p>
<p>The intervals tell how much the numbers may move with <em>other test examples of the same kind</em>. They do not
cover another seed, another split or a change in the patients. Each interval stands alone: of 20 sites without any
effect, about one is expected to look clear by chance.</p>"""

_VERDICTS = {"helps": "Helps", "hurts": "Hurts", "unclear": "No clear effect", "unknown": "No test result"}


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
    return _PAGE.format(title=escape(str(name)), style=_STYLE, body="\n".join(filter(None, sections)))


def _page_header(report: Json) -> str:
    rounds, study = report["rounds"], report.get("study", {})
    megabytes = sum(each.get("bytes_up", 0) + each.get("bytes_down", 0) for each in rounds) / 1e6
    facts = [
        re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*(Z|\+00:00)$", r"\1 \2 UTC", str(report.get("started", ""))),
        f"{len(_sites_of(report))} sites",
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
    over = [_html_row(label, examples, values) for label, examples, values in _rows(report)]
    head = _html_head(("site", "examples", *TITLES.values()))
    table = (
        "<caption>Accuracy on each site's own test split, with its 95 % interval</caption>"
        f'{head}<tbody>{"".join(sites)}</tbody><tbody class="over">{"".join(over)}</tbody>'
    )
    return f"<h2>Results</h2>\n{_scroll('Results per site', table)}\n{_TERMS}"


def _examples(values: Json) -> str:
    num_test = (values.get("test") or {}).get("num_test")
    total = values.get("num_examples")
    small = "" if num_test is None else f"<small>{num_test:,} to test</small>"
    return f"{DASH if total is None else f'{total:,}'}{small}"


def _html_head(titles: Iterable[str], *, text: Sequence[str] = ()) -> str:
    cells = (f'<th scope="col"{" class=text" if title in text else ""}>{escape(title)}</th>' for title in titles)
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _html_row(label: str, examples: str | None, values: Json) -> str:
    cells = [] if examples is None else [f"<td>{examples}</td>"]
    for name in MEASURES:
        point, interval = _cell(values, name)
        cells.append(f"<td>{point}<small>{interval}</small></td>" if point else f"<td>{DASH}</td>")
    return f'<tr><th scope="row">{escape(label)}</th>{"".join(cells)}</tr>\n'


def _scroll(label: str, table: str) -> str:
    return (
        f'<div class="card scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table>{table}</table></div>'
    )


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    """Return a legend; an entry is a line style and its label."""
    items = "".join(
        f'<li><svg viewBox="0 0 30 10" aria-hidden="true"><line x1="0" y1="5" x2="30" y2="5" stroke="var(--{style})" '
        f'stroke-width="2.4" stroke-dasharray="{" ".join(str(2 * dash) for dash in _DASHES[style]) or "none"}"/></svg>'
        f"{escape(label)}</li>"
        for style, label in entries
    )
    return f'<ul class="legend">{items}</ul>'


def _page_comparisons(report: Json) -> str:
    if not report["comparisons"]:
        return ""
    pretrained = report.get("study", {}).get("model", {}).get("pretrained")
    own = {**report, "label": f"this study ({'pretrained' if pretrained else 'random start'})"}
    runs: list[Json] = [own, *report["comparisons"]]
    bodies = "".join(f"<tbody>{_run_rows(run)}</tbody>" for run in runs)
    table = f"<caption>Over the sites, per run</caption>{_html_head(('run', *TITLES.values()))}{bodies}"
    return f"<h2>Compared with other runs</h2>\n{_scroll('Comparison of runs', table)}\n{_comparison_charts(runs)}"


def _run_rows(run: Json) -> str:
    return "".join(_html_row(f"{run['label']}: {label}", None, values) for label, _, values in _rows(run))


def _comparison_charts(runs: Sequence[Json]) -> str:
    shown = runs[: len(_RUN_STYLES)]
    names = [f"{model}.accuracy" for model in ("personal", "global")]
    limits = _limits((value for run in shown for name in names for value in run["curves"][name]), accuracy=True)
    figures = []
    for name in names:
        if all(value is None for run in shown for value in run["curves"][name]):
            continue
        rounds = max((run["curves"]["round"] for run in shown), key=len)
        series = [
            (style, [*run["curves"][name], *[None] * (len(rounds) - len(run["curves"][name]))])
            for style, run in zip(_RUN_STYLES, shown, strict=False)
        ]
        caption = f"Mean validation accuracy over the sites, {name.split('.')[0]} model"
        labels = ", ".join(f"{run['label']}: last {_last(run['curves'][name])}" for run in shown)
        figures.append(_figure(caption, _lines(f"{caption}. {labels}", rounds, series, limits)))
    if not figures:
        return ""
    legend = _legend((style, run["label"]) for style, run in zip(_RUN_STYLES, shown, strict=False))
    return f'<div class="card">{legend}<div class="charts">{"".join(figures)}</div></div>'


def _last(values: Sequence[float | None]) -> str:
    return next((f"{value:.2f}" for value in reversed(values) if value is not None), "none")


def _page_sites(report: Json) -> str:
    numbers = {
        kind: _limits(
            (
                _metric(each, site, f"{model}.{kind}")
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
    rounds = [each["round"] for each in report["rounds"]]
    figures = []
    if effect(values) != "unknown":
        figures.append(_figure("Test accuracy", _bars(site, values)))
    drawn: list[str] = []
    for kind in ("accuracy", "loss"):
        curves = {model: [_metric(each, site, f"{model}.{kind}") for each in report["rounds"]] for model in CURVES}
        series = [(model, curve) for model, curve in curves.items() if any(value is not None for value in curve)]
        if series:
            drawn = [*drawn, *(model for model, _ in series if model not in drawn)]
            last = ", ".join(f"{TITLES[model]} last {_last(curve)}" for model, curve in series)
            caption = f"Validation {kind} per round"
            figures.append(_figure(caption, _lines(f"{caption} at {site}: {last}", rounds, series, limits[kind])))
    legend = _legend((model, TITLES[model]) for model in drawn)
    if not drawn:
        legend = '<p class="soft">This site reported no validation numbers: there are no curves.</p>'
    return (
        f'<section class="card"><h3>{escape(site)}</h3>{legend}<div class="charts">{"".join(figures)}</div></section>'
    )


def _page_weights(report: Json) -> str:
    """Return how much each site counted: its share over the rounds, and what it was made from in the last one."""
    signals = _signals_of(report)
    rows: list[str] = []
    notes: list[str] = []
    for site in _sites_of(report):
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
    head = _html_head(("site", "first round", "lowest", "highest", "last round", *signals))
    caption = "Share of each site's update in the new global weights, and what the last one was made from"
    told_notes = notes[:20] + ([f"<li>and {len(notes) - 20} more</li>"] if len(notes) > 20 else [])
    warning = f'<div class="card warning"><ul>{"".join(told_notes)}</ul></div>' if told_notes else ""
    body = f"<caption>{caption}</caption>{head}<tbody>{''.join(rows)}</tbody>"
    return f"<h2>How much each site counted</h2>\n{_scroll('Weights per site', body)}\n{warning}"


def _page_rounds(report: Json) -> str:
    """Return who took part: per site the rounds asked and accepted, and every refusal with its reason."""
    rows = []
    for site in _sites_of(report):
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
    table = f"{_html_head(titles, text=titles[3:])}<tbody>{''.join(rows)}</tbody>"
    return f"<h2>Who took part</h2>\n{_scroll('Rounds per site', table)}"


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
        f'aria-label="{title}"><table><tbody>{_settings_rows(values)}</tbody></table></div></details>'
        for title, values in tables.items()
    ]
    return "<h2>Settings</h2>\n" + "\n".join(blocks)


def _settings_rows(values: Json) -> str:
    rows = (
        f'<tr><th scope="row">{escape(name)}</th><td class="text">{escape(text)}</td></tr>'
        for name, text in _flatten(values, "")
    )
    return "\n".join(rows)


def _flatten(value: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        prefix = f"{name}." if name else ""
        return [pair for key, inner in value.items() for pair in _flatten(inner, f"{prefix}{key}")]
    if isinstance(value, list | tuple):
        return [(name, ", ".join(str(inner) for inner in value))]
    return [(name, DASH if value is None else str(value))]
