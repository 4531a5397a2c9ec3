"""The list of runs, one run, and several side by side, as tables in a terminal."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consilium.common.errors import clean, listed
from consilium.history.comparing import Row, SideBySide
from consilium.history.entry import Entry
from consilium.history.folder import Listing
from consilium.history.scores import scores_of

COLUMNS = ("run", "study", "started", "method", "strategy", "rounds", "status", "sites", "score", "joining")


def print_listing(listing: Listing, console: Console) -> None:
    """Print a line for every entry."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in COLUMNS:
        table.add_column(title, justify="right" if title in ("rounds", "sites") else "left", overflow="fold")
    for cells in listing_rows(listing):
        table.add_row(*map(Text, cells))
    console.print(table)


def print_problems(listing: Listing, console: Console) -> None:
    """Print a line for whatever could not be read."""
    for entry in listing.entries:
        for problem in entry.problems:
            console.print(Text(f"{entry.id}: {problem}", style="dim"), soft_wrap=True)
    if listing.left_out:
        console.print(Text(f"{listing.left_out} older folders are left out", style="dim"), soft_wrap=True)


def listing_rows(listing: Listing) -> list[Sequence[str]]:
    """Return the cells of every entry's line."""
    return [_cells(entry) for entry in listing.entries]


def _cells(entry: Entry) -> Sequence[str]:
    rounds = "" if entry.rounds_asked is None else f"{entry.rounds_done or 0}/{entry.rounds_asked}"
    status = entry.status if entry.kind in ("run", "unknown") else f"{entry.kind}, {entry.status}"
    return (
        *(entry.id, entry.study, _when(entry), entry.method, entry.strategy, rounds, status),
        *(str(len(entry.sites)) if entry.sites else "", score_text(entry), effects_text(entry)),
    )


def _when(entry: Entry) -> str:
    return "" if entry.started is None else entry.started.astimezone().strftime("%Y-%m-%d %H:%M")


def score_text(entry: Entry) -> str:
    """Return a score with what it is of: a number alone would look the same on test and validation rows."""
    if entry.score is None:
        return ""
    of = "" if entry.score.metric == "accuracy" else f"{entry.score.metric}, "
    return f"{entry.score.value:.3f} ({of}{entry.score.model}, {entry.score.rows})"


def effects_text(entry: Entry) -> str:
    """Return at how many sites joining helps, hurts and so on."""
    return ", ".join(f"{word.replace('_', ' ')} {number}" for word, number in entry.effects.items())


def print_entry(entry: Entry, console: Console) -> None:
    """Print all that is known of one run or comparison."""
    facts = {
        "folder": str(entry.folder),
        "kind": entry.kind,
        "status": f"{entry.status}{': ' if entry.detail else ''}{entry.detail}",
        "study": entry.study,
        "started": _when(entry),
        "method": entry.method,
        "strategy": entry.strategy,
        "rounds": "" if entry.rounds_asked is None else f"{entry.rounds_done or 0} of {entry.rounds_asked}",
        "sites": listed(entry.sites, 20, "sites"),
        "score": score_text(entry),
        "joining": effects_text(entry),
        "report": "" if entry.page is None else str(entry.page),
    }
    for name, value in facts.items():
        if value:
            console.print(Text(f"{name:10}{clean(value)}"), soft_wrap=True)
    for warning in () if entry.result is None else entry.result.warnings:
        console.print(Text(f"warning   {clean(warning)}"), soft_wrap=True)
    for problem in entry.problems:
        console.print(Text(f"problem   {problem}"), soft_wrap=True)
    if entry.result is not None:
        scores = scores_of(entry.result)
        rows: list[Row] = [
            (site, (facts.num_train, facts.num_test, *(scores.get(model, {}).get(site) for model in scores)))
            for site, facts in entry.result.sites.items()
        ]
        console.print()
        console.print(_table("site", ("training rows", "test rows", *scores), rows))


def print_side_by_side(both: SideBySide, console: Console) -> None:
    """Print what differs, the results, and what may be compared."""
    for title, rows in (
        ("settings that differ", both.settings),
        ("results", both.results),
        ("sites, right answers of what they serve", both.sites),
    ):
        if rows:
            console.print(_table(title, both.ids, rows))
            console.print()
        elif title.startswith("settings"):
            console.print(Text("no setting differs"), soft_wrap=True)
    for note in both.notes:
        console.print(Text(note), soft_wrap=True)


def _table(title: str, columns: Sequence[str], rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(title, overflow="fold")
    for column in columns:
        table.add_column(Text(column), justify="right", overflow="fold")
    for name, values in rows:
        table.add_row(Text(name), *(Text(_shown(value)) for value in values))
    return table


def _shown(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.4g}"
        case _:
            return clean(str(value), 100)
