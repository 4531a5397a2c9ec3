"""The commands for apps written for Flower: `consilium flower run`, and `consilium site approve-app`."""

from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError

flower_app = typer.Typer(help="Apps written for Flower, as they are, at sites that have approved them.")


@flower_app.callback()
def _root() -> None:
    pass  # so that `run` stays a command of its own


@flower_app.command()
def run(
    app: Annotated[Path, typer.Argument(help="The app's folder, with its pyproject.toml.")],
    home: Annotated[Path, typer.Option("--home", help="The server's own folder.")] = Path("server-home"),
    sites: Annotated[
        str | None, typer.Option(help="Names of sites with commas between; default: all that attend.")
    ] = None,
    run_config: Annotated[
        str, typer.Option("--run-config", help="Settings of the app in this run: 'rounds=5 name=\"x\"'.")
    ] = "",
    most_mb: Annotated[
        int | None,
        typer.Option(min=1, help="Largest reply of a site in MB; default: 16, or four times what was sent."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Start the run and leave; it goes on at the server.")
    ] = False,
    runs: Annotated[Path, typer.Option("--runs", help="Where runs are written, one folder each.")] = Path("runs"),
) -> None:
    """Run a Flower app on a running server and its sites; Ctrl-C leaves it running."""
    from consilium.running.flower_app import AppOptions, submit_app
    from server.operations.home import ServerHome

    options = AppOptions(app, runs, sites=sites, run_config=run_config, most_mb=most_mb)
    begun = submit_app(options, ServerHome(home))
    typer.echo(f"app {begun.app.name}, digest {begun.app.digest}")
    typer.echo(f"run folder: {begun.folder}")
    typer.echo(
        "each site runs it once its administrator has read the code and approved it: consilium site approve-app "
        f"APP_DIR (or {begun.app.digest})"
    )
    if begun.absent:
        typer.echo(f"not connected now, and not asked until they are: {', '.join(begun.absent)}")
    if detach:
        typer.echo(f"run {begun.folder.name} has begun; follow it with: consilium follow {begun.folder}")
        return
    follow(begun.folder, home)


def follow(folder: Path, home: Path) -> None:
    """Follow the run of an app to its end; Ctrl-C leaves it running, and says so."""
    try:
        follow_to_end(folder, home)
    except KeyboardInterrupt:
        say_goes_on(folder)
        raise


def follow_to_end(folder: Path, home: Path) -> None:
    """Follow the run of an app to its end."""
    from consilium.running.flower_app import LOG, follow_app
    from server.operations.home import ServerHome

    follow_app(folder, ServerHome(home), typer.echo)
    typer.echo(f"what the app said: {folder / LOG}; what it wrote: {folder / 'files'}")


def say_goes_on(folder: Path) -> None:
    """Say that a run goes on without the command that followed it."""
    typer.echo(
        f"run {folder.name} goes on at the server; follow it again with 'consilium follow {folder}', "
        f"end it with 'consilium stop {folder.name}'"
    )


def approve_app(
    app: Annotated[
        str | None, typer.Argument(help="The app's folder, or the digest of one whose code the coordinator sends.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the approved apps.")] = False,
    remove: Annotated[
        str | None, typer.Option(help="Approve no longer the app whose digest begins so (at least 8 digits).")
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="The site's own folder.")] = Path("site"),
) -> None:
    """Let a Flower app run at this site, with all that the site's program may do; read its code first."""
    from client.operations.site_folder import SETTINGS

    if not (folder / SETTINGS).is_file():
        raise ConfigError(f"'{folder}' is no site's folder: it has no {SETTINGS}")
    if [app is not None, list_, remove is not None].count(True) != 1:
        raise ConfigError("name the app's folder or digest, or use --list or --remove DIGEST")
    if app is not None:
        _approve(folder, app)
    elif remove is not None:
        _remove(folder, remove)
    else:
        _list(folder)


def _approve(folder: Path, app: str) -> None:
    from client.flower.approved import approve
    from common.flower.app import is_digest, read_app

    if is_digest(app):
        found = approve(folder, app)
        typer.echo(f"approved: the app with the digest {found.digest}; its code comes from the coordinator")
    else:
        read = read_app(Path(app))
        for name, content in read.files.items():
            typer.echo(f"  {len(content):9} bytes  {name}")
        found = approve(folder, read)
        typer.echo(f"approved: {found.name} with these {len(read.files)} files, digest {found.digest}")
    typer.echo(
        "its code may now do at this site all that the site's program may, and read its data: have it read by somebody "
        "who can tell. Next: compare the digest with the coordinator's. The site need not be started again; "
        f"'consilium site approve-app --remove {found.digest[:12]}' takes it back"
    )


def _remove(folder: Path, prefix: str) -> None:
    from client.flower.approved import withdraw
    from client.operations.site_folder import SETTINGS
    from common.study.load import load_site

    digest = withdraw(folder, prefix, state_dir=load_site(folder / SETTINGS).state_dir)
    typer.echo(f"no longer approved: {digest}")


def _list(folder: Path) -> None:
    from client.flower.approved import approvals

    for approval in approvals(folder):
        typer.echo(f"{approval.digest}\t{approval.name or '(digest only)'}\t{approval.since}")
