"""The command `consilium flower run`: an app written for Flower, at sites that have approved it."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.commands.parameters import Home, examples, with_options
from consilium.commands.run import follow_folder, say_how_to_follow
from consilium.commands.scripting import Document, with_json
from consilium.running.options import AppOptions

app = typer.Typer(help="Apps written for Flower, unchanged, at sites that have approved them.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    pass  # so that `run` stays a command of its own


@app.command(
    epilog=examples(
        "consilium flower run my-app", "consilium flower run my-app --sites berlin,lyon --run-config 'rounds=5'"
    )
)
@with_json
@with_options(AppOptions)
def run(
    options: AppOptions,
    home: Home = Path("server-home"),
    detach: Annotated[
        bool, typer.Option("--detach", help="Start the run and return; it continues at the server.")
    ] = False,
) -> Document:
    """Run a Flower app on a running server and its sites; Ctrl-C leaves it running."""
    from consilium.running.flower_app import submit_app
    from consilium.server.operations.home import ServerHome

    begun = submit_app(options, ServerHome(home))
    typer.echo(f"app {begun.app.name}, digest {begun.app.digest}")
    typer.echo(f"run folder: {begun.folder}")
    typer.echo(
        "each site runs it once its administrator has read the code and approved it: consilium site approve-app "
        f"APP_DIR (or {begun.app.digest})"
    )
    if begun.absent:
        typer.echo(f"not connected now, and not asked until they are: {', '.join(begun.absent)}")
    done = say_how_to_follow(begun.folder) if detach else follow_folder(begun.folder, home, title=begun.app.name)
    return {**done, "app": begun.app.name, "digest": begun.app.digest, "absent": begun.absent}
