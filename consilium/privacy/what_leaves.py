"""What the coordinator can see in a study: in a terminal, in a few lines, and as a page that opens offline."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consilium.common.study.study import StudyConfig
from consilium.findings.pages import render
from consilium.privacy.deviating import what_deviating_servers_learn
from consilium.privacy.visibility import NOTHING, Row, Shapes, visibility

TITLES = ("what", "seen", "how exact", "when", "by whom")
GROUPS = {
    "weights": "Weights",
    "measurements": "Measurements",
    "counts": "Counts",
    "facts": "Facts on the site",
    "connection": "The connection",
}
"""What stands above the rows of a group."""


def print_visibility(study: StudyConfig, shapes: Shapes | None, console: Console) -> None:
    """Print the rows of a study, and what a server that deviates could learn."""
    rows = visibility(study, shapes=shapes)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in TITLES:
        table.add_column(title, overflow="fold")
    for group, title in GROUPS.items():
        table.add_section()
        table.add_row(Text(title, style="bold"))
        for row in (row for row in rows if row.group == group):
            table.add_row(*map(Text, cells(row)))
    console.print(table)
    for sentence in what_deviating_servers_learn(study):
        console.print(Text(sentence), soft_wrap=True)


def in_short(study: StudyConfig) -> list[str]:
    """Return a few lines for a person who is about to accept a study: its weights, and what could be made of them."""
    weights = [row for row in visibility(study) if row.group == "weights" and row.seen != NOTHING]
    lines = [f"{row.what}: {row.seen}, {row.exact}" for row in weights if "initial weights" not in row.what]
    return [*(lines or ["no weights"]), *what_deviating_servers_learn(study)[:1]]


def render_visibility(study: StudyConfig, shapes: Shapes | None) -> str:
    """Return the page of a study: no script, no request, light and dark."""
    rows = visibility(study, shapes=shapes)
    return render(
        "consilium.privacy",
        "visibility.html.j2",
        {
            "name": study.name,
            "titles": TITLES,
            "groups": [(title, _of(rows, group)) for group, title in GROUPS.items()],
            "deviating": what_deviating_servers_learn(study),
            "protects": _protects(study),
        },
    )


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as its cells."""
    return (row.what, row.seen, row.exact, row.when, row.to)


def _of(rows: Sequence[Row], group: str) -> list[tuple[str, ...]]:
    return [cells(row) for row in rows if row.group == group]


def _protects(study: StudyConfig) -> str:
    """Return in a sentence which protection a study has."""
    if study.privacy.is_none and study.relays:
        return (
            "The study has neither noise nor secure sums: a relay sees what each of its sites sends, and the "
            "coordinator sees the mean of their updates and the rest of it."
        )
    if study.privacy.is_none:
        return "The study has neither noise nor secure sums: the coordinator sees what each site sends."
    parts = []
    if study.privacy.examples is not None:
        parts.append("noise at each site, for each of its patients")
    if study.privacy.secure_aggregation:
        parts.append("sums over sites in place of single updates")
    if study.privacy.hides_sites:
        parts.append("noise of the sites in these sums, for each site as a whole")
    elif study.privacy.sites is not None:
        parts.append("noise at the coordinator, for each site as a whole")
    return f"The study protects by {' and '.join(parts)}."
