"""The commands for runs that are in a folder or at a server: `consilium runs`, `runs show`, `compare`, `open`, ..."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from typer.core import TyperGroup

from consilium.commands.parameters import Home, Runs, console, examples
from consilium.commands.scripting import Document, with_json
from consilium.common.errors import ConfigError, clean

if TYPE_CHECKING:
    from consilium.server.wire.runs import RunEntry

_HELP = ("-h", "--help")


class _ListByDefault(TyperGroup):
    """A group that lists where no command of its is named: `consilium runs`, `consilium runs FOLDER`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `list` in front of arguments that begin with no command."""
        if not args or (args[0] not in self.commands and args[0] not in _HELP):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ListByDefault,
    help="List runs and comparisons, show one, lay several side by side; without a command of these: list.",
    epilog=examples("consilium runs", "consilium runs list results", "consilium runs --home server-home"),
)

Run = Annotated[str, typer.Argument(help="A run's name, its beginning or its end, or its folder.", metavar="RUN")]


@app.command("list", epilog=examples("consilium runs list results", "consilium runs list --home server-home"))
@with_json
def list_(
    folder: Annotated[Path, typer.Argument(help="The folder with the runs.")] = Path("runs"),
    home: Annotated[
        Path | None, typer.Option("--home", help="List the runs of the running server with this folder instead.")
    ] = None,
) -> Document:
    """List the runs and comparisons in a folder: study, method, rounds, status, score, whom joining helps."""
    if home is not None:
        return _list_server(home)
    from consilium.commands.rows import print_rows
    from consilium.history.folder import list_folder
    from consilium.history.terminal import COLUMNS, listing_rows, print_listing, print_problems

    listing, out = list_folder(folder), console()
    if out.is_terminal:
        print_listing(listing, out)
    else:
        print_rows(COLUMNS, listing_rows(listing))
    print_problems(listing, out)
    return {"runs": [entry.as_json() for entry in listing.entries], "left_out": listing.left_out}


def _list_server(home: Path) -> Document:
    from consilium.commands.rows import print_rows
    from consilium.server.operations.home import ServerHome
    from consilium.server.wire.submission import Control

    with Control(ServerHome(home)) as control:
        entries = control.runs()
    rows = [[entry.name, entry.state, _since(entry), str(entry.folder), entry.detail] for entry in entries]
    print_rows(["run", "state", "since", "folder", "detail"], rows)
    keys = ("run", "state", "since", "folder", "detail")
    return {"runs": [dict(zip(keys, row, strict=True)) for row in rows]}


def _since(entry: "RunEntry") -> str:
    from datetime import datetime

    return datetime.fromtimestamp(entry.since).isoformat(sep=" ", timespec="seconds")


@app.command("show", epilog=examples("consilium runs show 20260101-120000-hearts", "consilium runs show hearts"))
@with_json
def show(run: Run, runs: Runs = Path("runs")) -> Document:
    """Show one run or comparison: how it ended, its sites, scores and warnings."""
    from consilium.history.folder import find_entry
    from consilium.history.scores import scores_of
    from consilium.history.terminal import print_entry

    entry = find_entry(runs, run)
    print_entry(entry, console())
    return {**entry.as_json(), "scores": None if entry.result is None else scores_of(entry.result)}


@app.command("update", epilog=examples("consilium runs update hearts"))
@with_json
def update(run: Run, runs: Runs = Path("runs"), home: Home = Path("server-home")) -> Document:
    """Ask the sites that were away at the end of a run for their results, and write its report anew."""
    from consilium.commands.run import follow_folder
    from consilium.history.folder import find_entry
    from consilium.running.run import submit_study
    from consilium.server.operations.home import ServerHome
    from consilium.server.study.late import without_row

    entry = find_entry(runs, run)
    if entry.result is None:
        raise ConfigError(f"'{entry.id}' has no result: its status is {entry.status}")
    if not without_row(entry.result):
        raise ConfigError(f"'{entry.id}': all sites have their row, so there is nobody to ask")
    folder, study = entry.folder.resolve(), entry.result.study
    earlier = submit_study(study, ServerHome(home), folder, update=True)
    return follow_folder(folder, home, title=study.name, earlier=earlier, study=study)


@app.command("compare", epilog=examples("consilium runs compare 20260101-120000-hearts 20260102-090000-hearts"))
@with_json
def compare(
    names: Annotated[list[str], typer.Argument(help="Names or folders of two runs or more.", metavar="RUN...")],
    runs: Runs = Path("runs"),
) -> Document:
    """Lay finished runs side by side: settings that differ, results, and which of their data are the same."""
    from consilium.history.comparing import side_by_side
    from consilium.history.folder import find_entry
    from consilium.history.terminal import print_side_by_side

    both = side_by_side([find_entry(runs, name) for name in names])
    print_side_by_side(both, console())
    return both.as_json()


@app.command("open", epilog=examples("consilium runs open hearts"))
@with_json
def open_(run: Run, runs: Runs = Path("runs")) -> Document:
    """Print where a run's page lies, and open it where there is a browser and a person at a terminal."""
    from consilium.history.folder import find_entry
    from consilium.history.opening import open_page

    entry = find_entry(runs, run)
    if entry.page is None:
        raise ConfigError(f"'{entry.id}' has no page (report.html): its status is {entry.status}")
    page = entry.page.resolve()
    typer.echo(clean(str(page), 1000))
    return {"run": entry.id, "page": page, "opened": open_page(page)}


@app.command(
    "export",
    epilog=examples(
        "consilium runs export hearts --to tensorboard --out curves",
        "consilium runs export hearts --to mlflow:http://localhost:5000",
    ),
)
@with_json
def export(
    run: Run,
    to: Annotated[str, typer.Option("--to", help="'tensorboard', 'mlflow' or 'mlflow:URI'.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the event files or of MLflow's database; default: the run's, or next to it."),
    ] = None,
    runs: Runs = Path("runs"),
) -> Document:
    """Write a run's curves, settings and files into TensorBoard or MLflow; again, and no point is there twice."""
    from consilium.history.folder import find_entry
    from consilium.tracking.targets import in_folder, parse_target
    from consilium.tracking.tracker import export_run

    target = parse_target(to, option="--to")
    if out is not None:
        target = in_folder(target, out)
    place = export_run(find_entry(runs, run).folder, target)
    typer.echo(f"written: {place}")
    return {"run": run, "to": target.kind, "place": place}
