"""What a terminal says of an export."""

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consilium.common.errors import clean, listed
from consilium.common.intervals.interval import Interval
from consilium.findings.decimals import DASH, bounds, change, number
from consilium.serving.export.result import Export, Measurement

_MOST_LABELS = 12


def print_export(export: Export, console: Console) -> None:
    """Print what was written, how it was checked, and what int8 and pruning save and cost."""
    _say(console, f"model    {export.model}")
    compared = export.check
    batches = " and ".join(map(str, compared.batches))
    _say(
        console,
        f"checked  {compared.what} ({compared.rows}), in batches of {batches}: file and model differ by at most "
        f"{compared.difference:.1g} (allowed: {compared.tolerance:g})",
    )
    for name, what in export.inputs.items():
        _say(console, f"input    {name}: {what}", style="dim")
    for name, what in export.outputs.items():
        _say(console, f"output   {name}: {what}", style="dim")
    console.print()
    table = _table("file", "bytes", "compressed")
    for name, facts in export.files.items():
        table.add_row(Text(name), f"{facts.bytes:,}", f"{facts.compressed:,}")
    console.print(table)
    _print_int8(export, console)
    _print_pruning(export, console)
    for note in export.notes:
        _say(console, f"note     {note}", style="yellow")


def _print_int8(export: Export, console: Console) -> None:
    small = export.int8
    if small is None or small.before is None or small.after is None or small.difference is None:
        return
    console.print()
    table = _table("weights", small.before.name, "95 % interval")
    for name, score in {"float32": small.before, "int8": small.after}.items():
        table.add_row(name, number(score.value, 3), _bounds(score))
    console.print(table)
    apart = Interval(small.difference.value, small.difference.low, small.difference.high)
    _say(
        console,
        f"int8     {small.share_of_size:.1%} of the size; {change(apart, 3)} on "
        f"{small.before.what} ({small.before.num}); ranges of numbers from {small.calibration}",
    )
    _print_changed(small.changed, console)


def _print_changed(changed: Mapping[str, float], console: Console) -> None:
    """Print of each label in how many rows another decision is made; those with the most first."""
    if not changed:
        return
    most = sorted(changed.items(), key=lambda item: (-item[1], item[0]))
    each = listed([f"{clean(label)} {share:.1%}" for label, share in most], _MOST_LABELS, "labels")
    _say(console, f"changed  decisions (a probability above 1/2) that are others than before, of all rows: {each}")


def _print_pruning(export: Export, console: Console) -> None:
    steps = export.pruning or ((export.pruned,) if export.pruned else ())
    if not steps:
        return
    console.print()
    title = steps[0].score.name if steps[0].score else "score"
    table = _table("struck out", "weights that are 0", title, "95 % interval", "arrays, compressed")
    for one in steps:
        score = (DASH, "") if one.score is None else (number(one.score.value, 3), _bounds(one.score))
        table.add_row(f"{one.share:.0%}", f"{one.zeros:,} of {one.weights:,}", *score, f"{one.compressed:,}")
    console.print(table)
    if export.pruned:
        _print_changed(export.pruned.changed, console)
    if export.pruned and export.pruning:
        _say(console, f"pruned   the files hold the model without {export.pruned.share:.0%} of its weights")


def _bounds(score: Measurement) -> str:
    return bounds(Interval(score.value, score.low, score.high), 3)


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2))
    table.add_column(first, overflow="fold")
    for title in others:
        table.add_column(title, justify="right")
    return table


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
