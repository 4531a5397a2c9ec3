"""Lists with a header: in columns on a terminal, with tabs between the cells elsewhere."""

import sys
from collections.abc import Sequence

import typer


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a header and rows, each with as many cells."""
    lines = [header, *rows]
    if not sys.stdout.isatty():
        for line in lines:
            typer.echo("\t".join(line))
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
