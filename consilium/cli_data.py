"""The commands `consilium data ...`: fetch public data, divide a pool among sites."""

import sys
from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(help="Public data, and pools divided into sites, to try a study out.", no_args_is_help=True)

NAMES = "heart-disease, digits, cifar10, pneumoniamnist, fashion-mnist"


@data_app.command("fetch")
def fetch_(
    name: Annotated[str, typer.Argument(help=f"One of {NAMES}.")],
    to: Annotated[Path, typer.Option("--to", help="The folder to write into.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="Take the files from this folder, not from the network.")
    ] = None,
) -> None:
    """Fetch public data from its official home, checked: images as DIR/pool.npz, heart disease as four sites."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    from consilium.fetch import fetch

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(file: str, done: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bars.add_task(file, total=total)
            bars.update(tasks[file], completed=done, total=total)

        sentence = fetch(name, to, source=source, progress=tell)
    typer.echo(sentence)
