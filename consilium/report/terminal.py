"""A run's report in a terminal: the table of measures and the sentence of every site."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consilium.findings import DIFFERENCE, MEASURES, Measures
from consilium.findings.decimals import DASH, bounds, point
from consilium.report.report import Report

WIDE = 120
"""From this many columns on, a number and its interval fit on one line."""


def print_report(report: Report, console: Console) -> None:
    """Print the table and the sentence of every site; plain text where there is no terminal.

    Below 120 columns an interval goes under its number, and the majority class has none; 80 are enough.
    """
    run, wide = report.run, console.width >= WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1 if wide else 0))
    table.add_column("site", overflow="fold")
    for title in ("examples", *run.titles.values()):
        header = title.replace(" class", "\nclass").replace(" mean", "\nmean").replace(" local", "\nlocal")
        table.add_column(title if wide else header, justify="right", no_wrap=True)
    for site, facts in run.sites.items():
        table.add_row(Text(site), Text(str(facts.num_examples)), *_cells(run.measures(site), wide=wide))
    table.add_section()
    for label, measures in run.over_sites if run.sites else ():
        table.add_row(Text(label, style="bold"), Text(""), *_cells(measures, wide=wide))
    for row in run.groups:
        texts = row.texts
        table.add_section()
        cells = [Text(texts[name] if wide else texts[name].replace(" (", "\n(")) for name in MEASURES]
        table.add_row(Text(f"{row.name}: {row.tested} of {row.devices} devices"), Text(str(row.examples)), *cells)
    console.print(table)
    console.print()
    if run.groups:
        what = "of groups: the median over the devices, and the 10 % and 90 % quantiles"
        console.print(Text(what, style="dim"))
    console.print(Text(f"{run.score} on each site's own test split, with its 95 % interval", style="dim"))
    console.print()
    for headline in report.headlines.values():
        console.print(Text(headline), soft_wrap=True)


def _cells(measures: Measures, *, wide: bool) -> list[Text]:
    cells = []
    for name in MEASURES:
        one = measures[name]
        interval = "" if name == "majority" and not wide else bounds(one)
        cells.append(Text(f"{point(one, sign=name == DIFFERENCE)}{' ' if wide else chr(10)}{interval}".strip() or DASH))
    return cells
