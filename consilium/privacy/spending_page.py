"""What a site has spent, as one page for the data protection officer, and as tables in a terminal."""

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consilium.findings.charts import COLOURS, chart
from consilium.findings.pages import render
from consilium.privacy.spending import Spending
from consilium.privacy.spending_rows import (
    CHARGE_TITLES,
    STUDY_TITLES,
    charge_cells,
    charges_in_short,
    drawn_with,
    lead,
    ledger_sentence,
    meaning,
    study_cells,
)


def print_spending(spending: Spending, console: Console) -> None:
    """Print what was spent: in one sentence, by study, and charge by charge, with charges that are alike as one."""
    console.print(Text(lead(spending), style="bold"), soft_wrap=True)
    if not spending.entries:
        return
    _print(console, STUDY_TITLES, study_cells(spending))
    _print(console, CHARGE_TITLES, charges_in_short(spending.entries))
    for line in drawn_with(spending.entries):
        console.print(Text(line), soft_wrap=True)
    console.print(Text(f"ledger {spending.ledger}: {ledger_sentence(spending)}"), soft_wrap=True)


def render_spending(spending: Spending) -> str:
    """Return the page: no script, no request, light and dark."""
    return render(
        "consilium.privacy",
        "spending.html.j2",
        {
            "site": spending.site,
            "lead": lead(spending),
            "meaning": meaning(spending),
            "chart": _over_time(spending) if spending.entries else None,
            "study_titles": STUDY_TITLES,
            "studies": study_cells(spending),
            "charge_titles": CHARGE_TITLES,
            "charges": charge_cells(spending.entries),
            "drawn": drawn_with(spending.entries),
            "limited": spending.budget is not None,
            "ledger": spending.ledger,
            "head": ledger_sentence(spending),
        },
    )


def _over_time(spending: Spending) -> Markup:
    """Chart epsilon of all charges together, charge by charge, under the site's own limit."""
    numbers, values = [0], [0.0]
    for count, epsilon in spending.over_time:
        numbers.append(count)
        values.append(epsilon)

    def draw(axes: Axes) -> None:
        axes.step(numbers, values, where="post", color=COLOURS["personal"], linewidth=1.8)
        axes.plot(numbers[-1:], values[-1:], "o", color=COLOURS["personal"], markersize=4)
        if spending.budget is not None:
            axes.axhline(spending.budget, color=COLOURS["local"], linewidth=1.4, dashes=(5, 2))
        axes.set_xlim(0, max(numbers) * 1.03)
        axes.set_ylim(0, max([*values, spending.budget or 0.0]) * 1.08)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.grid(axis="y")
        axes.set_xlabel("charges")

    return chart(f"epsilon rises to {values[-1]:.2f} over {numbers[-1]} charges", draw, height=2.4)


def _print(console: Console, titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for cells in rows:
        table.add_row(*map(Text, cells))
    console.print(table)
