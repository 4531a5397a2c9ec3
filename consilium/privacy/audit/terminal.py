"""The findings of an audit, as tables in a terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consilium.common.errors import clean
from consilium.privacy.audit.audit import Audit
from consilium.privacy.audit.rows import ROUND_TITLES, SITE_TITLES, chain_sentence, code_of, round_cells, site_cells

MOST_CHARACTERS = 10_000
"""Of one sentence."""


def print_audit(audit: Audit, console: Console) -> None:
    """Print what was found of a run: its log, a line for each round and each site, its files, and what is wrong."""
    console.print(_text(f"run {audit.run}: {chain_sentence(audit)}"), soft_wrap=True)
    if code := code_of(audit):
        console.print(_text(f"code at every site: {code}"), soft_wrap=True)
    _print(console, ROUND_TITLES, round_cells(audit))
    _print(console, SITE_TITLES, site_cells(audit))
    for sentence in audit.files:
        console.print(_text(sentence), soft_wrap=True)
    for sentence in audit.notes:
        console.print(_text(f"not checked: {sentence}", style="dim"), soft_wrap=True)
    for sentence in audit.problems:
        console.print(_text(f"wrong: {sentence}", style="bold red"), soft_wrap=True)
    if not audit.problems:
        console.print(Text("nothing is wrong with what could be checked", style="bold"))


def _text(sentence: str, style: str = "") -> Text:
    """Return text whose control characters are written out: the run's folder may be anybody's."""
    return Text(clean(sentence, MOST_CHARACTERS), style=style)


def _print(console: Console, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for cells in rows:
        table.add_row(*map(_text, cells))
    console.print(table)
