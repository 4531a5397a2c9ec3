"""The commands `consilium relay ...`: for a region or network, between a study's server and its own sites."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.commands.parameters import examples
from consilium.commands.scripting import Document, with_json

app = typer.Typer(help="Between the server and the sites of a region: run a relay.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--folder", help="The relay's own folder: key, settings, accepted study.")]


@app.command("init", epilog=examples("consilium relay init --name north --server example.org:9092"))
@with_json
def init(
    name: Annotated[str, typer.Option(help="The relay's name, as in the study's relays.")],
    server: Annotated[str, typer.Option(help="host:port of the study's server, from the coordinator.")],
    folder: Folder = Path("relay"),
) -> Document:
    """Make this relay's folder: its key, a request to send, and relay.toml."""
    from consilium.relay.folder import RelayFolder, init_relay

    key = init_relay(RelayFolder(folder), name=name, server=server)
    typer.echo(f"made {folder} with a new key: {key}")
    typer.echo(
        f"next: send {folder / 'relay.csr'} to the study's coordinator, who reads this fingerprint back to you over "
        "the phone and sends a bundle; then run 'consilium relay accept BUNDLE'"
    )
    return {"relay": name, "folder": folder, "fingerprint": key, "request": folder / "relay.csr"}


@app.command("accept", epilog=examples("consilium relay accept north-bundle.json"))
@with_json
def accept(
    bundle: Annotated[Path, typer.Argument(help="The file that the coordinator sent.")],
    folder: Folder = Path("relay"),
) -> Document:
    """Take over the coordinator's bundle: this relay's certificate, the server's address, and the study."""
    from consilium.relay.folder import RelayFolder, accept_relay_bundle

    accepted, study = accept_relay_bundle(RelayFolder(folder), bundle)
    leaves = study.relays[accepted.site]
    typer.echo(f"accepted: server {accepted.server}, study '{study.name}' with {len(leaves)} sites under this relay")
    typer.echo("this relay sees each of these sites' updates; the coordinator sees their mean, and what they measure")
    typer.echo(f"bundle check code  {accepted.check_code()}")
    typer.echo(
        "next: ask the coordinator over the phone whether the check code is the same, run 'consilium relay start', and "
        f"approve each of its sites: consilium server approve site.csr --name NAME --study {folder / 'study.toml'} "
        f"--home {folder / 'server-home'}"
    )
    return {
        "relay": accepted.site,
        "server": accepted.server,
        "check_code": accepted.check_code(),
        "study": study.name,
        "sites": list(leaves),
    }


@app.command(
    "start", epilog=examples("consilium relay start", "consilium relay start --address 0.0.0.0:9092 --host relay.org")
)
def start(
    folder: Folder = Path("relay"),
    address: Annotated[str, typer.Option(help="host:port on which its sites connect.")] = "0.0.0.0:9092",
    host: Annotated[
        list[str] | None,
        typer.Option(help="A name or address by which its sites reach it; goes into its certificate. Repeatable."),
    ] = None,
    metrics: Annotated[str, typer.Option(help="host:port of the pages for monitoring; '' for none.")] = "",
) -> None:
    """Run this relay until it is stopped with Ctrl-C: it answers the study's server with the mean of its sites."""
    from consilium.relay.folder import RelayFolder
    from consilium.relay.node import start_relay

    names = list(dict.fromkeys([*(host or []), "localhost", "127.0.0.1", "::1"]))
    start_relay(RelayFolder(folder), address=address, hosts=names, metrics=metrics)
