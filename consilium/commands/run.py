"""The commands for runs on a server: `consilium run`, `follow`, `runs` and `stop`."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.commands.parameters import Home, Runs, Study, console, examples
from consilium.common.errors import ConfigError

app = typer.Typer()


@app.command(
    epilog=examples(
        "consilium run study.toml",
        "consilium run study.toml --detach",
        "consilium run study.toml --resume runs/20260101-120000-hearts",
    )
)
def run(
    study: Study,
    home: Home = Path("server-home"),
    runs: Runs = Path("runs"),
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder from its checkpoint.")] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Start the run and return; it continues at the server.")
    ] = False,
) -> None:
    """Run a study on a running server and show whether joining helped each site; Ctrl-C leaves it running."""
    from consilium.common.host.files import check_writable
    from consilium.common.protocol.plans import study_digest
    from consilium.common.study.load import load_study
    from consilium.running.run import new_run_folder, submit_study
    from consilium.server.operations.home import ServerHome
    from consilium.server.study.checkpoint import load_checkpoint

    config = load_study(study)
    if resume is not None and not (resume / "checkpoint.safetensors").is_file():
        raise ConfigError(f"--resume: '{resume}' has no checkpoint.safetensors, so there is nothing to continue")
    if resume is not None:
        load_checkpoint(resume / "checkpoint.safetensors", study_digest=study_digest(config))
    check_writable(runs, what="the folder for runs")
    folder = resume.resolve() if resume is not None else new_run_folder(runs, config.name)
    earlier = submit_study(config, ServerHome(home), folder)
    if detach:
        say_how_to_follow(folder)
    else:
        follow_folder(folder, home, title=config.name, earlier=earlier)


@app.command(epilog=examples("consilium follow 20260101-120000-hearts", "consilium follow runs/20260101-120000-hearts"))
def follow(
    folder: Annotated[Path, typer.Argument(help="The run's folder, or its name.")], home: Home = Path("server-home")
) -> None:
    """Follow a run at the server from its beginning to its report; Ctrl-C leaves it running."""
    from consilium.server.operations.home import ServerHome
    from consilium.server.wire.submission import Control

    if not (folder / "events.jsonl").is_file():
        with Control(ServerHome(home)) as control:
            known = {entry.name: entry.folder for entry in control.runs()}
        if folder.name not in known:
            raise ConfigError(f"'{folder}' is no run's folder; 'consilium runs' lists them")
        folder = known[folder.name]
    follow_folder(folder, home, title=folder.name)


def follow_folder(folder: Path, home: Path, *, title: str, earlier: int = 0) -> None:
    """Follow the run in a folder to its end; on Ctrl-C say that it goes on.

    Args:
        earlier: how many events were there before, and are not shown.
    """
    try:  # the imports too: they take a second, and the run is going on by now
        from consilium.running.flower_app import is_app_run

        if is_app_run(folder):
            _follow_app(folder, home)
        else:
            _follow_study(folder, home, title=title, earlier=earlier)
    except KeyboardInterrupt:
        typer.echo(
            f"run {folder.name} goes on at the server; follow it again with 'consilium follow {folder}', "
            f"end it with 'consilium stop {folder.name}'"
        )
        raise


def _follow_app(folder: Path, home: Path) -> None:
    from consilium.running.flower_app import LOG, follow_app
    from consilium.server.operations.home import ServerHome

    follow_app(folder, ServerHome(home), typer.echo)
    typer.echo(f"what the app said: {folder / LOG}; what it wrote: {folder / 'files'}")


def _follow_study(folder: Path, home: Path, *, title: str, earlier: int) -> None:
    from consilium.report.terminal import print_report
    from consilium.running.live_view import View
    from consilium.running.run import follow_run, save_report
    from consilium.server.operations.home import ServerHome

    out = console()
    result = follow_run(ServerHome(home), folder, View(out, title=title), skip=earlier)
    print_report(save_report(folder, result), out)
    out.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def say_how_to_follow(folder: Path) -> None:
    """Say that a run has begun, and how to see what becomes of it."""
    typer.echo(f"run {folder.name} has begun; follow it with: consilium follow {folder}")


@app.command(epilog=examples("consilium runs"))
def runs(home: Home = Path("server-home")) -> None:
    """List the server's runs: name, state, since when, folder."""
    from datetime import datetime

    from consilium.server.operations.home import ServerHome
    from consilium.server.wire.submission import Control

    with Control(ServerHome(home)) as control:
        for entry in control.runs():
            since = datetime.fromtimestamp(entry.since).isoformat(sep=" ", timespec="seconds")
            detail = f"\t{entry.detail}" if entry.detail else ""
            typer.echo(f"{entry.name}\t{entry.state}\t{since}\t{entry.folder}{detail}")


@app.command(epilog=examples("consilium stop 20260101-120000-hearts"))
def stop(
    name: Annotated[str, typer.Argument(help="The run's name, as 'consilium runs' lists it.")],
    home: Home = Path("server-home"),
) -> None:
    """End a run at the server; a study's run can be continued later with 'consilium run --resume'."""
    from consilium.server.operations.home import ServerHome
    from consilium.server.wire.submission import Control

    name = Path(name).name  # a folder is as good
    with Control(ServerHome(home)) as control:
        control.stop(name)
    typer.echo(f"run {name} is stopped")
