"""The commands `consilium data ...`: fetch public data, divide a pool among sites."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

data_app = typer.Typer(help="Public data, and pools divided into sites, to try a study out.", no_args_is_help=True)

NAMES = "heart-disease, digits, cifar10, pneumoniamnist, mnist, fashion-mnist"


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

    from consilium.data.fetch import fetch

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(file: str, done: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bars.add_task(file, total=total)
            bars.update(tasks[file], completed=done, total=total)

        sentence = fetch(name, to, source=source, progress=tell)
    typer.echo(sentence)


@data_app.command()
def split(
    pool: Annotated[Path, typer.Argument(help="An .npz file with x and y (or MedMNIST's), or a .csv/.parquet table.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write the federation into.")],
    by: Annotated[
        Literal["dirichlet", "classes", "quantity", "feature", "iid", "interleaved", "column"],
        typer.Option(
            "--by",
            help="What differs between sites: labels, labels, sizes, devices, nothing (chance, in turn), or a column.",
        ),
    ],
    sites: Annotated[int | None, typer.Option(max=1000, help="How many sites; not with --by column.")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="dirichlet, quantity: small differs much, large little. Default: 0.5.")
    ] = None,
    labels_per_site: Annotated[int | None, typer.Option(help="classes: labels at each site. Default: 2.")] = None,
    column: Annotated[str | None, typer.Option(help="column: the column of a table that says which site.")] = None,
    label: Annotated[str | None, typer.Option(help="Tables: the column with the class or number to learn.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="The label is a number; an answer that is off by this or less is right.")
    ] = None,
    min_examples: Annotated[int | None, typer.Option(help="Least number of examples of a site. Default: 20.")] = None,
    group: Annotated[
        str | None, typer.Option(help="The column or array that says whose a row is: a patient's rows are at one site.")
    ] = None,
    official_test: Annotated[
        bool, typer.Option("--official-test", help="The pool's own test images are every site's test set.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 42,
) -> None:
    """Divide a pool among sites: data folders, a study.toml to start from, a record, a picture of who holds what."""
    from consilium.data.federation import SplitOptions, split_pool

    options = SplitOptions(
        by=by,
        sites=sites,
        alpha=alpha,
        labels_per_site=labels_per_site,
        column=column,
        label=label,
        tolerance=tolerance,
        min_examples=min_examples,
        seed=seed,
        group=group,
        official_test=official_test,
    )
    for sentence in split_pool(pool, out, options):
        typer.echo(f"note: {sentence}")
    typer.echo(f"written: {out / 'study.toml'}, {out / 'federation.toml'}, {out / 'federation.svg'}, <site>/data")
