"""An adaptation as a table and sentences in a terminal."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consilium.adaptation.result import Adaptation
from consilium.findings.decimals import bounds


def print_adaptation(result: Adaptation, console: Console) -> None:
    """Print what was done, the table, and a sentence per stop of few steps; 80 columns are enough for the table."""
    model = result.weights
    for line in (
        f"site '{result.site}', study '{result.study}', method {result.method}: "
        f"{result.num_train} training and {result.num_test} test examples",
        f"model    of run '{model['run']}', round {model['round']}, sha256 {model['sha256'][:16]}...",
        f"steps    plain SGD, learning rate {result.learning_rate:g} ({result.learning_rate_from}), "
        f"batches of {result.batch_size}, seed {result.seed}; the same order of examples for every start",
        *(f"note     {note}" for note in result.notes),
    ):
        console.print(Text(line), soft_wrap=True)
    console.print()
    console.print(_table(result, wide=console.width >= 100))
    counts = "right answers on the site's test examples; " if isinstance(result.majority, int) else ""
    console.print()
    for line in (
        f"{counts}{result.score}, with its 95 % interval, each standing alone",
        "the test split is only measured: no step, rate or start was chosen on it",
    ):
        console.print(Text(line, style="dim"), soft_wrap=True)
    console.print()
    for headline in result.headlines:
        console.print(Text(headline), soft_wrap=True)


def _table(result: Adaptation, *, wide: bool) -> Table:
    measured = result.measured
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2))
    for title in ("steps", *measured.starts):
        table.add_column(title, justify="right", no_wrap=True)
    for index, stop in enumerate(measured.stops):
        cells = []
        for row in measured.starts.values():
            one = row[index]
            score = f"{one.accuracy:.2f} {bounds(one.interval)}"
            count = "" if one.right is None else f"{one.right} of {result.num_test}{'  ' if wide else chr(10)}"
            cells.append(f"{count}{score}")
        table.add_row(Text(str(stop)), *map(Text, cells))
    return table
