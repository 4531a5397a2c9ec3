"""The commands `consilium data ...`: fetch public data, divide a pool among sites."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilium.commands.parameters import examples, with_options
from consilium.commands.scripting import Document, with_json
from consilium.data.options import SplitOptions

if TYPE_CHECKING:
    from consilium.data.progress import Progress

app = typer.Typer(help="Public data, and pools divided into sites, to try a study out.", no_args_is_help=True)

NAMES = "heart-disease, digits, cifar10, pneumoniamnist, mnist, fashion-mnist"


@app.command(
    epilog=examples(
        "consilium data fetch heart-disease --to heart", "consilium data fetch cifar10 --to cifar10 --from downloads"
    )
)
@with_json
def fetch(
    name: Annotated[str, typer.Argument(help=f"One of {NAMES}.")],
    to: Annotated[Path, typer.Option("--to", help="The folder to write into.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="Take the files from this folder, not from the network.")
    ] = None,
) -> Document:
    """Fetch public data from its official home, checked: images as DIR/pool.npz, heart disease as four sites."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    from consilium.data.fetch import fetch as fetch_data

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, TaskID] = {}

        def show(file: str, done: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bars.add_task(file, total=total)
            bars.update(tasks[file], completed=done, total=total)

        sentence = fetch_data(name, to, source=source, progress=show)
    typer.echo(sentence)
    return {"name": name, "folder": to, "about": sentence}


@contextmanager
def _bars() -> "Iterator[Progress]":
    """Give a function that shows how far a pool is, on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


@app.command(
    epilog=examples(
        "consilium data describe examples.csv --study study.toml",
        "consilium data describe f/site-01/data f/site-02/data --study f/study.toml",
    )
)
@with_json
def describe(
    data: Annotated[list[Path], typer.Argument(help="Example data, files or folders as a site has them.")],
    study: Annotated[Path, typer.Option(help="The study that the data are for, study.toml.")],
) -> Document:
    """Print the table task.summary of a study, by which sites see where their data are in other units."""
    from consilium.common.study.load import load_study
    from consilium.data.describe import describe_data, summary_text

    summary = describe_data(data, load_study(study))
    typer.echo(summary_text(summary), nl=False)
    return {"summary": summary.model_dump(mode="json", exclude_none=True)}


@app.command(
    epilog=examples(
        "consilium data split pool.npz --out federation --by dirichlet --sites 5",
        "consilium data split all.csv --out f --by column --column ward --label ill",
        "consilium data split scans --out f --by iid --sites 3 --group folder",
        "consilium data split text.csv --out f --by iid --sites 3 --text x --label y",
        "consilium data split plays.txt --out f --by contiguous --sites 3 --next word",
    )
)
@with_json
@with_options(SplitOptions)
def split(
    pool: Annotated[
        Path,
        typer.Argument(help="An .npz file with x and y (or MedMNIST's), a table, or a folder of pictures or of texts."),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write the federation into.")],
    options: SplitOptions,
) -> Document:
    """Divide a pool among sites: data folders, a study.toml to start from, a record, a picture of who holds what."""
    from consilium.common.host.extras import check_extra

    check_extra("the picture of who holds what", "report")
    from consilium.common.study.load import load_study
    from consilium.data.split import split_pool

    with _bars() as shown:
        notes = split_pool(pool, out, options, progress=shown)
    for sentence in notes:
        typer.echo(f"note: {sentence}")
    typer.echo(f"written: {out / 'study.toml'}, {out / 'federation.toml'}, {out / 'federation.svg'}, <site>/data")
    return {
        "folder": out,
        "study": out / "study.toml",
        "record": out / "federation.toml",
        "sites": list(load_study(out / "study.toml").sites),
        "notes": notes,
    }


@app.command(
    epilog=examples(
        "consilium data users homes --out homes --users 100000",
        "consilium data users handwriting --out writers --users 2000 --rows 20",
        "consilium data users play.txt --out speakers",
        "consilium data users rows.npz --out users",
    )
)
@with_json
def users(
    what: Annotated[
        str,
        typer.Argument(
            help="handwriting, characters or homes, which are made up; an .npz file with x, y and user; a play as .txt."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write users/ and study.toml into.")],
    number: Annotated[int, typer.Option("--users", min=1, help="How many users are made up.")] = 1000,
    rows: Annotated[int, typer.Option(min=5, help="Rows of each; of a play the most of a speaker.")] = 25,
    seed: Annotated[int, typer.Option(min=0, help="What is made up follows from it.")] = 0,
) -> Document:
    """Make users for 'consilium simulate', or sort the rows of a file by user, with a study to start from."""
    from consilium.devices.made.make import make_users

    made = make_users(what, out, users=number, rows=rows, seed=seed)
    typer.echo(f"written: {made['users']:,} users with {made['rows']:,} rows in {made['data']}, and {made['study']}")
    return made
