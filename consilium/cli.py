"""The `consilium` command line: what a coordinator, a hospital's administrator and a newcomer type."""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import click
import typer
from rich.console import Console

import common
from common.errors import ConfigError, ConsiliumError

app = typer.Typer(
    name="consilium",
    help="Learn together without sharing data: personalised federated, transfer and meta-learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
server_app = typer.Typer(help="For the coordinator: run the server, approve sites.", no_args_is_help=True)
site_app = typer.Typer(help="For a hospital or device: run the site.", no_args_is_help=True)
app.add_typer(server_app, name="server")
app.add_typer(site_app, name="site")

Home = Annotated[Path, typer.Option("--home", help="The server's own folder: certificates, database, secrets.")]
Runs = Annotated[Path, typer.Option("--runs", help="Where runs are written, one folder each.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(common.__version__)
        raise typer.Exit


def _console() -> Console:
    """Return a console; output that goes to a file gets lines wide enough for the table."""
    return Console() if sys.stdout.isatty() else Console(width=130)


@app.command()
def demo(
    data: Annotated[
        Literal["digits", "heart-disease", "images"],
        typer.Option(help="digits are embedded; the others need --data-dir."),
    ] = "digits",
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data, for heart-disease and images.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of training; default: what suits the data.")] = None,
    method: Annotated[
        Literal["local", "fedavg", "fine_tune", "fedper"] | None,
        typer.Option(help="Personalisation method; default: fine_tune."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="A model's name, e.g. small_cnn, squeezenet1_0, mlp.")] = None,
    pretrained: Annotated[Path | None, typer.Option(help="A weights file (.safetensors, .pt, .th).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 42,
    compare: Annotated[bool, typer.Option(help="Also run personal heads and random initial weights.")] = True,
    runs: Runs = Path("runs"),
    verbose: Annotated[bool, typer.Option(help="Flower's own log in the hospitals' log files.")] = False,
) -> None:
    """Run a server and several hospitals on this machine and show whether joining helped each."""
    from consilium.demo import run_demo
    from consilium.report import print_table
    from consilium.scenario import DemoOptions

    console = _console()
    options = DemoOptions(
        data=data,
        data_dir=data_dir,
        runs=runs,
        rounds=rounds,
        method=method,
        model=model,
        pretrained=pretrained,
        seed=seed,
        compare=compare,
        verbose=verbose,
    )
    report = run_demo(options, console)
    print_table(report, console)
    console.print(f"report: {runs / report['run'] / 'report.html'}", highlight=False, soft_wrap=True)


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="The study.toml.")],
    home: Home = Path("server-home"),
    runs: Runs = Path("runs"),
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder from its checkpoint.")] = None,
) -> None:
    """Run a study on a running server and show whether joining helped each site."""
    from common.config import load_study
    from common.files import check_writable
    from consilium.report import print_table
    from consilium.run import new_run_folder, run_study, save_report
    from consilium.view import View
    from server.superlink import ServerHome

    console = _console()
    config = load_study(study)
    if resume is not None and not (resume / "checkpoint.safetensors").is_file():
        raise ConfigError(f"--resume: '{resume}' has no checkpoint.safetensors, so there is nothing to continue")
    check_writable(runs, what="the folder for runs")
    folder = resume.resolve() if resume is not None else new_run_folder(runs, config.name)
    result = run_study(config, ServerHome(home), folder, View(console, title=config.name))
    print_table(save_report(folder, result), console)
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


@app.command(hidden=True)
def compose(
    step: Annotated[Literal["prepare", "approve", "run"], typer.Argument(help="Which container's step.")],
    runs: Runs = Path("/runs"),
) -> None:
    """Do one step of the containers of 'docker compose up'."""
    from consilium import compose as steps

    console = _console()
    if step == "prepare":
        steps.prepare(console)
    elif step == "approve":
        steps.approve(console)
    else:
        from consilium.report import print_table

        print_table(steps.run(console, runs), console)


@server_app.command("start")
def server_start(
    home: Home = Path("server-home"),
    address: Annotated[str, typer.Option(help="host:port on which sites connect.")] = "0.0.0.0:9092",
    control_port: Annotated[int, typer.Option(min=1, max=65535, help="Coordinator's port, loopback only.")] = 9093,
    host: Annotated[
        list[str] | None,
        typer.Option(help="A name or address by which sites reach the server; goes into its certificate. Repeatable."),
    ] = None,
) -> None:
    """Run the server: SuperLink with TLS and node authentication. Stop it with Ctrl-C."""
    from server.superlink import ServerHome, start_server

    names = list(dict.fromkeys([*(host or []), "localhost", "127.0.0.1"]))
    start_server(ServerHome(home), fleet=address, control_port=control_port, hosts=names)


@server_app.command("approve")
def server_approve(
    public_key: Annotated[Path, typer.Argument(help="The site's public key file (site.key.pub).")],
    name: Annotated[str, typer.Option(help="The site's name, as in its site.toml and the study.toml.")],
    home: Home = Path("server-home"),
) -> None:
    """Let a site take part: register its public key under its name."""
    from server.control import Control
    from server.superlink import ServerHome

    with Control(ServerHome(home)) as control:
        control.approve(public_key, name=name)
    typer.echo(f"site '{name}' is approved")


@server_app.command("sites")
def server_sites(home: Home = Path("server-home")) -> None:
    """List the approved sites and whether they are online."""
    from server.control import Control
    from server.superlink import ServerHome

    with Control(ServerHome(home)) as control:
        for name, status in sorted(control.sites().items()):
            typer.echo(f"{name}\t{status}")


@site_app.command("key")
def site_key(
    path: Annotated[Path, typer.Argument(help="Where to write the private key; the public key goes beside it.")],
    name: Annotated[str, typer.Option(help="The site's name, kept as the key's comment.")],
) -> None:
    """Make this site's key pair; send the .pub file to the study's coordinator, and nothing else."""
    from common.identity import make_site_key

    if path.exists():
        raise ConfigError(f"'{path}' exists already and is not overwritten")
    typer.echo(f"send this file to the study's coordinator: {make_site_key(path, comment=name)}")


@site_app.command("start")
def site_start(
    settings: Annotated[Path, typer.Argument(help="The site.toml.")],
    verbose: Annotated[bool, typer.Option(help="Show Flower's own log too.")] = False,
) -> None:
    """Run this site until it is stopped with Ctrl-C; it answers the studies of its server."""
    from client.node import start_site

    start_site(settings, verbose=verbose)


def main() -> NoReturn:
    """Run the command line; a ConsiliumError becomes a sentence on stderr and its exit code."""
    from common.processes import follow_parent

    # Before anything of flwr is imported: it reads these once.
    os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("httpx", "flwr", "alembic", "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    follow_parent()
    if sys.argv[1:2] in (["demo"], ["run"]):
        # Also where a shell in the background has told its children to ignore Ctrl-C.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ConsiliumError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        print("stopped", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)
