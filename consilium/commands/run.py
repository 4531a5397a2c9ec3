"""The commands for runs on a server: `consilium run`, `follow` and `stop`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilium.commands.documents import run_document, started_document
from consilium.commands.parameters import Home, Runs, Study, console, examples
from consilium.commands.scripting import Document, with_json
from consilium.commands.tracking import Track, targets_of
from consilium.common.errors import ConfigError

if TYPE_CHECKING:
    from consilium.common.study.study import StudyConfig
    from consilium.tracking.targets import Target

app = typer.Typer()


@app.command(
    epilog=examples(
        "consilium run study.toml",
        "consilium run study.toml --detach",
        "consilium run study.toml --track tensorboard",
        "consilium run study.toml --resume runs/20260101-120000-hearts",
    )
)
@with_json
def run(
    study: Study,
    home: Home = Path("server-home"),
    runs: Runs = Path("runs"),
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder from its checkpoint.")] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Start the run and return; it continues at the server.")
    ] = False,
    track: Track = [],  # noqa: B006 # never changed; typer wants a list
) -> Document:
    """Run a study on a running server and show whether joining helped each site; Ctrl-C leaves it running."""
    from consilium.common.host.extras import check_extra
    from consilium.common.host.files import check_writable
    from consilium.common.protocol.plans import study_digest
    from consilium.common.study.load import load_study
    from consilium.running.run import new_run_folder, submit_study
    from consilium.server.operations.home import ServerHome
    from consilium.server.study.checkpoint import load_newest
    from consilium.server.study.checkpoint_files import is_resumable

    if not detach:
        check_extra("the run's report", "report")
    targets = targets_of(track, detach=detach)
    config = load_study(study)
    if resume is not None and not is_resumable(resume / "checkpoint.safetensors"):
        raise ConfigError(f"--resume: '{resume}' has no checkpoint.safetensors, so there is nothing to continue")
    if resume is not None:
        load_newest(resume / "checkpoint.safetensors", study_digest=study_digest(config))
    check_writable(runs, what="the folder for runs")
    folder = resume.resolve() if resume is not None else new_run_folder(runs, config.name)
    earlier = submit_study(config, ServerHome(home), folder)
    if detach:
        return say_how_to_follow(folder)
    return follow_folder(folder, home, title=config.name, earlier=earlier, track=targets, study=config)


@app.command(epilog=examples("consilium follow 20260101-120000-hearts", "consilium follow runs/20260101-120000-hearts"))
@with_json
def follow(
    folder: Annotated[Path, typer.Argument(help="The run's folder, or its name.")],
    home: Home = Path("server-home"),
    track: Track = [],  # noqa: B006 # never changed; typer wants a list
) -> Document:
    """Follow a run at the server from its beginning to its report; Ctrl-C leaves it running."""
    from consilium.server.operations.home import ServerHome
    from consilium.server.wire.submission import Control

    targets = targets_of(track)
    if not (folder / "events.jsonl").is_file():
        with Control(ServerHome(home)) as control:
            known = {entry.name: entry.folder for entry in control.runs()}
        if folder.name not in known:
            raise ConfigError(f"'{folder}' is no run's folder; 'consilium runs' lists them")
        folder = known[folder.name]
    return follow_folder(folder, home, title=folder.name, track=targets)


def follow_folder(
    folder: Path,
    home: Path,
    *,
    title: str,
    earlier: int = 0,
    track: "Sequence[Target]" = (),
    study: "StudyConfig | None" = None,
) -> Document:
    """Follow the run in a folder to its end and return its document; on Ctrl-C say that it goes on.

    Args:
        earlier: how many events were there before, and are not shown.
        track: tools that its curves are written to; not those of a Flower app, which has none.
        study: its settings, where they are known already.
    """
    try:  # the imports too: they take a second, and the run is going on by now
        from consilium.running.flower_app import is_app_run
        from consilium.tracking.tracker import Tracking

        if is_app_run(folder):
            return _follow_app(folder, home)
        with Tracking(folder, track, say=lambda text: typer.echo(text, err=True), study=study):
            return _follow_study(folder, home, title=title, earlier=earlier)
    except KeyboardInterrupt:
        typer.echo(
            f"run {folder.name} goes on at the server; follow it again with 'consilium follow {folder}', "
            f"end it with 'consilium stop {folder.name}'"
        )
        raise


def _follow_app(folder: Path, home: Path) -> Document:
    from consilium.running.flower_app import LOG, follow_app
    from consilium.server.operations.home import ServerHome

    follow_app(folder, ServerHome(home), typer.echo)
    typer.echo(f"what the app said: {folder / LOG}; what it wrote: {folder / 'files'}")
    return {"state": "finished", "run": folder.name, "folder": folder, "log": folder / LOG, "files": folder / "files"}


def _follow_study(folder: Path, home: Path, *, title: str, earlier: int) -> Document:
    from consilium.common.host.extras import check_extra

    check_extra("the run's report", "report")
    from consilium.report.terminal import print_report
    from consilium.running.live_view import View
    from consilium.running.run import follow_run, save_report
    from consilium.server.operations.home import ServerHome

    out = console()
    result = follow_run(ServerHome(home), folder, View(out, title=title), skip=earlier)
    report = save_report(folder, result)
    print_report(report, out)
    out.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
    return run_document(folder, report)


def say_how_to_follow(folder: Path) -> Document:
    """Say that a run has begun, and how to see what becomes of it; return its document."""
    typer.echo(f"run {folder.name} has begun; follow it with: consilium follow {folder}")
    return started_document(folder)


@app.command(epilog=examples("consilium stop 20260101-120000-hearts"))
@with_json
def stop(
    name: Annotated[str, typer.Argument(help="The run's name, as 'consilium runs --home HOME' lists it.")],
    home: Home = Path("server-home"),
) -> Document:
    """End a run at the server; a study's run can be continued later with 'consilium run --resume'."""
    from consilium.server.operations.home import ServerHome
    from consilium.server.wire.submission import Control

    name = Path(name).name  # a folder is as good
    with Control(ServerHome(home)) as control:
        control.stop(name)
    typer.echo(f"run {name} is stopped")
    return {"state": "stopped", "run": name}
