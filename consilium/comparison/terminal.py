"""The table and the sentences of a comparison in a terminal."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consilium.comparison.prices import price_sentence
from consilium.comparison.report import Report
from consilium.comparison.rows import Row
from consilium.comparison.words import SURVIVES, explained, lead
from consilium.findings import LEAST_SPLITS, Interval
from consilium.findings.decimals import DASH, bounds, counted, point


def print_report(report: Report, console: Console) -> None:
    """Print the table of methods and the sentence of every site."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("method", overflow="fold")
    private = any(line.row.epsilon is not None for line in report.lines)
    if private:
        table.add_column("epsilon", justify="right", no_wrap=True)
    for title in ("mean of sites", "weighted", "worst site", "minus local only"):
        table.add_column(title, justify="right", no_wrap=True)
    for line in report.lines:
        over, places = line.numbers.over, report.places
        cells = [_both(over["mean"], places), point(over["weighted mean"], places), point(over["worst site"], places)]
        mark = SURVIVES if line.survives else ""
        minus = line.against_local
        cells.append(_both(minus.over["mean"], places, sign=True) + mark if minus else DASH)
        if private:
            cells.insert(0, DASH if line.row.epsilon is None else f"{line.row.epsilon:g}")
        table.add_row(Text(_with_note(line.row), style="dim" if line.row.baseline else ""), *cells)
    console.print(table)
    console.print(
        Text(
            f"test {report.metric.replace('_', ' ')}{explained(report)}; {counted(report.seeds, 'seed')}, "
            f"{counted(report.splits, 'split')}; 95 % intervals {_over_what(report)}; {SURVIVES.strip()} a method that "
            "is clear also once all methods are counted (Holm)",
            style="dim",
        )
    )
    console.print()
    console.print(Text(lead(report)), soft_wrap=True)
    for _, text in report.headlines.values():
        console.print(Text(text), soft_wrap=True)
    for price in report.prices:
        console.print()
        console.print(Text(f"What privacy costs each site ({price.method}):"), soft_wrap=True)
        for site in report.study.sites:
            console.print(Text(price_sentence(price, site, report.places)), soft_wrap=True)
    for problem in report.problems:
        console.print(Text(problem, style="yellow"), soft_wrap=True)


def _both(one: Interval | None, places: int, *, sign: bool = False) -> str:
    return f"{point(one, places, sign=sign)} {bounds(one, places, sign=sign)}".strip()


def _with_note(row: Row) -> str:
    """Return a row's name with what a reader must know of it: a note, or among how many it was chosen."""
    note = row.note or (f"of {row.among}" if row.among else "")
    return f"{row.name} ({note})" if note else row.name


def _over_what(report: Report) -> str:
    if report.splits > 1:
        return "over splits" if report.splits >= LEAST_SPLITS else f"need 1 split, or {LEAST_SPLITS} and more"
    return "over test patients and seeds" if report.seeds > 1 else "over test patients, not over training: 1 seed"
