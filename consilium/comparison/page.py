"""The page of a comparison: a sentence per site, the table of methods, curves, bars, weights, and who holds what."""

from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.axes import Axes

from consilium.comparison.evaluation import UNBOUNDED
from consilium.comparison.evidence import DRAWS
from consilium.comparison.summary import (
    ALONE,
    FEDAVG,
    OVER,
    USUAL_TOOLS,
    shares_text,
)
from consilium.comparison.tables import SURVIVES, Line, Report, counted, explained, lead, text_of
from consilium.findings import ESTIMAND, LEAST_PATIENTS, LEAST_SPLITS, Interval
from consilium.findings.html import (
    COLOURS,
    DASH,
    INK,
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

VERDICTS = {
    "helps": "Helps",
    "hurts": "Hurts",
    "unclear": "No clear effect",
    "too_few": "Too little to tell",
    "unknown": "Not defined",
    "stays": "Stays alone",
}
MOST_BARS, MOST_CURVES = 24, 12
"""Sites with a chart of their own; the rest are in the tables."""


def render(report: Report) -> str:
    """Return the page: no script, no request, light and dark."""
    sections = [
        _header(report),
        _headlines(report),
        _problems(report),
        _methods(report),
        _metrics(report),
        _per_site(report),
        _curves(report),
        _bars(report),
        _weights(report),
        _holdings(report),
        f'<h2>How this was made</h2><div class="card">{_how(report)}</div>',
        _settings(report),
    ]
    return whole_page(f"{report.study.name}, compared", "\n".join(filter(None, sections)))


def _header(report: Report) -> str:
    facts = [
        f"{len(report.study.sites)} sites",
        f"{len(report.lines)} rows",
        counted(report.seeds, "seed"),
        counted(report.splits, "split"),
        f"{report.cells} studies run",
        f"{report.seconds:,.0f} seconds",
    ]
    line = " \N{MIDDLE DOT} ".join(facts)
    return (
        f'<p class="soft">Comparison of methods</p>\n<h1>{escape(report.study.name)}</h1>\n<p class="soft">{line}</p>'
    )


def _headlines(report: Report) -> str:
    alone, joined = report.judged
    note = f"Joined is the row {_quoted(joined)}, alone is {_quoted(alone)}: test {_metric(report)}. "
    note += (
        f"The number is {ESTIMAND}{_of_training(report)}. A site with fewer than {LEAST_PATIENTS} test patients has no "
    )
    note += "sentence. A verdict counts all sites of this page (Holm); the intervals stand alone."
    return (
        f'<h2>Does joining help?</h2>\n<p class="lead">{escape(lead(report))}</p>\n{_sentences(report.headlines)}\n'
        f'<p class="soft">{escape(note)}</p>{_for_all(report)}'
    )


def _sentences(headlines: Mapping[str, tuple[str, str]]) -> str:
    items = "\n".join(
        f'<li class="{kind}"><b>{VERDICTS[kind]}</b>{escape(text.replace(" -> ", " → "))}</li>'
        for kind, text in headlines.values()
    )
    return f'<ul class="headlines">\n{items}\n</ul>'


def _quoted(name: str) -> str:
    return f"\N{LEFT DOUBLE QUOTATION MARK}{name}\N{RIGHT DOUBLE QUOTATION MARK}"


def _of_training(report: Report) -> str:
    if report.splits > 1:
        return ", and with the splits of training patients"
    return "" if report.seeds > 1 else "; with 1 seed how much training varies is not in the intervals"


def _for_all(report: Report) -> str:
    """Return the sentences where one choice is made for all sites, folded."""
    if not report.for_all:
        return ""
    alone, joined = report.judged_for_all
    note = "Here all sites are served what is best on the mean of their validation rows: joined is the row "
    note += f"{_quoted(joined)}, alone is {_quoted(alone)}."
    return (
        '<details class="card"><summary>With one choice for all sites</summary>'
        f'<p class="soft">{escape(note)}</p>{_sentences(report.for_all)}</details>'
    )


def _metric(report: Report) -> str:
    return report.metric.replace("_", " ") + explained(report)


def _problems(report: Report) -> str:
    if not report.problems:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in report.problems)
    return f'<h2>Warnings</h2>\n<div class="card warning"><ul>{items}</ul></div>'


def _methods(report: Report) -> str:
    titles = ["method", *OVER, "minus local only", "minus FedAvg", "best round on validation"]
    titles.append("to reach the target" if report.target is not None else "")
    groups: list[list[Line]] = [[line for line in report.lines if line.row.baseline]]
    groups.append([line for line in report.lines if not line.row.baseline])
    bodies = [
        f"<tbody{' class=over' if number == 0 else ''}>{''.join(_method(report, line) for line in lines)}</tbody>"
        for number, lines in enumerate(groups)
        if lines
    ]
    caption = f"Test {_metric(report)} over the sites, last round, with 95 % intervals; baselines first; "
    caption += f"{SURVIVES.strip()} clear also once all methods are counted (Holm)"
    if report.target is not None:
        caption += f"; target: mean validation {report.study.task.score} {report.target:.3f}"
    table = f"<caption>{escape(caption)}</caption>{html_head(filter(None, titles))}{''.join(bodies)}"
    return f"<h2>The methods</h2>\n{scroll('Methods', table)}"


def _method(report: Report, line: Line) -> str:
    cells = [_cell(report, line.numbers.over[name]) for name in OVER]
    for difference, mark in ((line.against_local, SURVIVES if line.survives else ""), (line.against_fedavg, "")):
        found = difference.over["mean"] if difference else None
        cells.append(_cell(report, found, sign=True, mark=mark) if difference else f"<td>{DASH}</td>")
    cells.append(_cell(report, line.best))
    if report.target is not None:
        cells.append(f"<td>{_cost(line)}</td>")
    said = [line.row.note] if line.row.note else []
    if line.row.among:
        said.append(f"{shares_text(line.row.shares)}; of {line.row.among} candidates")
    small = "".join(f"<small>{escape(text)}</small>" for text in said)
    return f'<tr><th scope="row">{escape(line.row.name)}{small}</th>{"".join(cells)}</tr>\n'


def _cost(line: Line) -> str:
    if line.target is None:
        return DASH
    megabytes, seconds = line.target["bytes"] / 1e6, line.target["seconds"]
    rounds = f"{line.target['rounds']:.0f}"
    return f"{rounds} round{'' if rounds == '1' else 's'}<small>{megabytes:,.2f} MB, {seconds:,.1f} s</small>"


def _cell(report: Report, one: Interval | None, *, sign: bool = False, mark: str = "") -> str:
    value, bounds = text_of(one, places=report.places, sign=sign)
    return f"<td>{value}{mark}<small>{bounds}</small></td>"


def _metrics(report: Report) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(line.row.name)}</th>'
        + "".join(f"<td>{_number(name, value)}</td>" for name, value in line.others.items())
        + "</tr>\n"
        for line in report.lines
    )
    caption = "Means over sites, seeds and splits; a dash: not defined at some site"
    titles = ["method", *(name.replace("_", " ") for name in report.lines[0].others)]
    table = f"<caption>{caption}</caption>{html_head(titles)}<tbody>{rows}</tbody>"
    inner = f'<div class="scroll" role="region" tabindex="0" aria-label="Every metric"><table>{table}</table></div>'
    return f'<details class="card"><summary>Every metric</summary>{inner}</details>'


def _number(name: str, value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}" if name in UNBOUNDED else f"{value:.3f}"


def _per_site(report: Report) -> str:
    sites = report.study.sites
    rows = ""
    for line in report.lines:
        cells = "".join(_cell(report, line.numbers.sites[site]) for site in sites)
        rows += f'<tr><th scope="row">{escape(line.row.name)}</th>{cells}</tr>\n'
    caption = f"Test {_metric(report)} at every site, last round, with 95 % intervals"
    table = f"<caption>{escape(caption)}</caption>{html_head(('method', *sites))}<tbody>{rows}</tbody>"
    return f"<h2>Site by site</h2>\n{scroll('Per site', table)}"


def _curves(report: Report) -> str:
    alone, joined = (report.line(name) for name in report.judged_for_all)
    fedavg = report.line(FEDAVG)
    shown = [("personal", joined), ("global", fedavg), ("local", alone)]
    figures = []
    for kind in ("accuracy", "loss"):
        series = [
            (style, line.curve[kind])
            for style, line in shown
            if line is not None and any(value is not None for value in line.curve[kind])
        ]
        if not series:
            continue
        rounds = max((line.curve["round"] for _, line in shown if line is not None), key=len)
        limits = limits_of((value for _, values in series for value in values), accuracy=kind == "accuracy")
        what = f"Mean validation {report.study.task.score if kind == 'accuracy' else kind} over the sites"
        label = f"{what}: " + ", ".join(f"{style} last {last_known(values)}" for style, values in series)
        figures.append(figure(what, line_chart(label, rounds, series, limits)))
    if not figures:
        return '<h2>Curves</h2><p class="soft">This study keeps no validation rows, so there are no curves.</p>'
    named = legend((style, line.row.name) for style, line in shown if line is not None)
    return f'<h2>Curves</h2><div class="card">{named}<div class="charts">{"".join(figures)}</div></div>'


_STYLES = dict.fromkeys(ALONE, "local") | {FEDAVG: "global"}


def _bars(report: Report) -> str:
    sites = report.study.sites[:MOST_BARS]
    figures = "".join(figure(site, _bar_chart(report, site)) for site in sites)
    left = len(report.study.sites) - len(sites)
    more = f'<p class="soft">{left} more sites are in the table above.</p>' if left else ""
    order = "".join(f"<li>{escape(line.row.name)}</li>" for line in report.lines)
    note = f"Test {escape(_metric(report))} of every row, numbered as here, with 95 % intervals."
    return (
        f'<h2>Bars</h2><div class="card"><p class="soft">{note}</p><ol class="soft">{order}</ol>'
        f'<div class="charts">{figures}</div>{more}</div>'
    )


def _bar_chart(report: Report, site: str) -> str:
    found = [(number, line, line.numbers.sites[site]) for number, line in enumerate(report.lines, start=1)]
    known = [(number, line, one) for number, line, one in found if one is not None]
    reach = [bound for _, _, one in known for bound in (one.value, one.low, one.high) if bound is not None]
    limits = (min(0.0, *reach), 1.05 * max(1e-6, *reach)) if report.metric in UNBOUNDED and reach else (0.0, 1.0)

    def draw(axes: Axes) -> None:
        for place, (_, line, one) in enumerate(known):
            style = _STYLES.get(line.row.name, "majority" if line.row.baseline else "personal")
            axes.barh(place, one.value, height=0.66, color=COLOURS[f"var(--{style})"])
            if one.low is not None and one.high is not None:
                axes.plot([one.low, one.high], [place, place], color=INK, linewidth=1.1)
        axes.set_yticks(range(len(known)), [str(number) for number, _, _ in known])
        axes.tick_params(axis="y", length=0, labelsize=7)
        axes.invert_yaxis()
        axes.set_xlim(*limits)
        axes.grid(axis="x")
        axes.set_axisbelow(True)

    values = ", ".join(f"{number}: {one.value:.{report.places}f}" for number, _, one in known)
    return chart(f"Test numbers at {site}: {values}", draw, height=max(1.6, 0.17 * len(known) + 0.7))


def _weights(report: Report) -> str:
    if not any(report.weights.values()):
        return ""
    rows = []
    for site, values in report.weights.items():
        shown = (values[0], min(values), max(values), values[-1]) if values else ()
        cells = "".join(f"<td>{100 * value:.1f} %</td>" for value in shown) or f"<td>{DASH}</td>" * 4
        rows.append(f'<tr><th scope="row">{escape(site)}</th>{cells}</tr>\n')
    head = html_head(("site", "first round", "lowest", "highest", "last round"))
    caption = f"Share of each site in the new global weights, row {report.judged_for_all[1]}, means over cells"
    table = f"<caption>{escape(caption)}</caption>{head}<tbody>{''.join(rows)}</tbody>"
    return f"<h2>How much each site counted</h2>\n{scroll('Weights per site', table)}\n{_weight_curves(report)}"


def _weight_curves(report: Report) -> str:
    moving = {site: values for site, values in report.weights.items() if values and max(values) - min(values) > 1e-6}
    if not moving or len(report.weights) > MOST_CURVES:
        return ""
    top = max(max(values) for values in moving.values())
    figures = []
    for site, values in report.weights.items():
        label = f"Weight of {site}: first {values[0]:.3f}, last {values[-1]:.3f}"
        drawn = line_chart(label, range(1, len(values) + 1), [("personal", values)], (0.0, 1.1 * top))
        figures.append(figure(site, drawn))
    return f'<div class="card"><div class="charts">{"".join(figures)}</div></div>'


def _holdings(report: Report) -> str:
    """Return who holds what: rows and patients, and a dot per site and class whose area is the number of examples."""
    classes = report.study.task.classes
    most = max((count for counts in report.counts.values() for count in counts.values()), default=0)
    names = [key for key in _HELD if any(key in facts for facts in report.holdings.values())]
    rows = ""
    for site in report.study.sites:
        held = "".join(f"<td>{_count(report.holdings[site].get(key))}</td>" for key in names)
        dots = _holding(report.counts[site], classes, most) if most else ""
        rows += f'<tr><th scope="row">{escape(site)}</th>{held}{dots}</tr>\n'
    head = html_head(("site", *(_HELD[key] for key in names), *((*classes, "all") if most else ())))
    caption = "Rows of each part in the first split, and examples of each class: the area of a dot is their number"
    table = f"<caption>{caption}</caption>{head}<tbody>{rows}</tbody>"
    return f"<h2>Who holds what</h2>\n{scroll('Examples per site and class', table)}"


_HELD = {
    "train": "training rows",
    "validation": "validation rows",
    "test": "test rows",
    "patients": "test patients",
    "num_groups": "patients",
    "num_copies": "copies",
}


def _count(number: int | None) -> str:
    return DASH if number is None else f"{number:,}"


def _holding(counts: Mapping[str, int], classes: Sequence[str], most: int) -> str:
    cells = ""
    for name in classes:
        count = counts.get(name, 0)
        radius = 11 * (count / most) ** 0.5
        dot = f'<circle cx="12" cy="12" r="{radius:.2f}" fill="var(--personal)"/>'
        cells += f'<td><svg viewBox="0 0 24 24" width="24" height="24" aria-hidden="true">{dot}</svg>'
        cells += f"<small>{count:,}</small></td>"
    return f"{cells}<td>{sum(counts.values()):,}</td>"


def _how(report: Report) -> str:
    if report.splits >= LEAST_SPLITS:
        intervals = f"""Intervals are over the {report.splits} random splits: a t interval whose variance is corrected
for the training rows that splits share (Nadeau and Bengio, 2003). Differences are taken split by split; every split has
its own initial weights."""
    elif report.splits > 1:
        intervals = f"""There are no intervals: the test rows of splits overlap, and {report.splits} splits are too few
to say how much their numbers vary. Ask for 1 split or for {LEAST_SPLITS} and more."""
    else:
        seeds = (
            f"""over the {report.seeds} seeds, so how much training varies is in them"""
            if report.seeds > 1
            else """not
over training: to tell how much that varies takes several seeds"""
        )
        intervals = f"""Intervals are over the test patients at each site, the same ones for every row, so differences
are paired ({DRAWS} bootstrap draws for metrics that are no mean over examples), and {seeds}. They say how much the
numbers may move with other test patients of the same kind, not with another split: for that, ask for {LEAST_SPLITS}
splits or more."""
    constant = "Majority class always answers the most frequent class of a site's training rows."
    if not report.study.task.classes:
        constant = "Mean of the training labels always answers that, at each site its own."
    usual = ""
    if report.line(USUAL_TOOLS) is not None:
        usual = f"""{escape(USUAL_TOOLS).capitalize()}: at each site a linear model (ridge or logistic regression) or
gradient boosting of trees, with the penalty or number of trees that is best in cross-validation over the patients of
its own training rows."""
    return f"""<p>Every row has the same data, splits, model, initial weights per seed, rounds and local steps a round.
All studies ran in one process each, on the code that is deployed. Every site's test rows were read once, after the
last round of each study{_given(report)}. A choice looked at the validation rows of its own split alone, never at test
rows.</p>
<p>Each its own choice: in every split and seed each site takes what was best on its own validation rows, among all
methods and staying alone. Alone, own choice: the same among what it can do alone, local-only training with the budget
of the study and of each method (fine-tuning is more training) at each learning rate that was tried, and the usual
tools. So what choosing costs on few validation rows is in both numbers. One choice for all: what was best on the mean
over the sites.</p>
<p>{intervals} Spread is the standard deviation over the sites. Best round on validation: every site keeps its model of
the round with the least validation loss.</p>
<p>{constant} Local only trains at each site alone, with the same number of steps per round. {usual} Pooled is one model
trained on the rows of all sites in one place, with as many steps as all sites together: what no federation may do; its
inputs are scaled alike at all sites. {_scale(report)} Methods that are defined for plain SGD have the learning
rate times 1 / (1 - momentum) unless their row says otherwise: the same effective step.</p>"""


def _given(report: Report) -> str:
    if report.study.task.test is not None:
        return "; they are one test set common to all sites (task.test), so no patient of it is counted twice in means"
    if report.study.split.parts is not None:
        return "; which these are, the sites say themselves (split.parts)"
    return ""


_SCALES = {
    "federation": "by one mean and standard deviation of all sites' training rows",
    "site": "at each site by its own training rows",
    "study": "by fixed numbers of the study",
}


def _scale(report: Report) -> str:
    return f"The others' are scaled {' or '.join(_SCALES[by] for by in report.scales)} (task.scale)."


def _settings(report: Report) -> str:
    tables = {"Command": report.settings, "Study": report.study.model_dump(mode="json")}
    blocks = [
        f'<details class="card"><summary>{title}</summary><div class="scroll" role="region" tabindex="0" '
        f'aria-label="{title}"><table><tbody>{settings_rows(values)}</tbody></table></div></details>'
        for title, values in tables.items()
    ]
    files = (
        '<p class="soft">Beside this page: <a href="results.csv">results.csv</a> has every test number, '
        '<a href="rounds.csv">rounds.csv</a> the validation numbers of every round, '
        '<a href="summary.json">summary.json</a> what is shown here.</p>'
    )
    return f"<h2>Settings and raw numbers</h2>\n{files}\n" + "\n".join(blocks)
