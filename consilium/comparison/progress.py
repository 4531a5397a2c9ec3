"""Runs cells with a progress bar."""

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from consilium.comparison.cells import Cell
from consilium.comparison.options import CompareOptions
from consilium.comparison.results import CellResult
from consilium.comparison.runner import Results, run_cells
from consilium.comparison.site_files import SiteFiles

CELLS = "cells"
RunCells = Callable[[Sequence[Cell], Mapping[str, SiteFiles], CompareOptions, Console], Results]
"""Runs cells as `run_with_progress` does, however it shows that."""


def run_with_progress(
    cells: Sequence[Cell], files: Mapping[str, SiteFiles], options: CompareOptions, console: Console
) -> Results:
    """Run cells with a progress bar; where the output is no terminal, say a line per tenth."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("studies", total=len(cells))
        done, reasons = 0, set[str]()

        def on_cell(cell: Cell, result: CellResult, again: bool) -> None:
            nonlocal done
            done += 1
            progress.advance(task)
            if result.error is not None and result.error not in reasons:  # often one reason for all
                reasons.add(result.error)
                console.print(f"[red]{cell.label}, seed {cell.seed}, split {cell.split}:[/red] {result.error}")
            if not console.is_terminal and (done == len(cells) or done % max(1, len(cells) // 10) == 0):
                console.print(f"{done} of {len(cells)} studies done", highlight=False)

        return run_cells(cells, files, options.folder / CELLS, jobs=options.processes, ray=options.ray, on_cell=on_cell)
