"""The commands `consilium server unit` and `consilium site unit`: systemd keeps the program running."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilium.commands.parameters import Home, Settings, examples
from consilium.commands.scripting import Document, with_json

if TYPE_CHECKING:
    from consilium.common.host.systemd import Unit

of_server, of_site = typer.Typer(), typer.Typer()

Out = Annotated[Path | None, typer.Option(help="Write the unit into this file; default: print it.")]
User = Annotated[
    bool, typer.Option("--user", help="For systemd of your own login, without root; it can confine the program less.")
]


@of_server.command(
    "unit",
    epilog=examples(
        "consilium server unit --runs runs",
        "consilium server unit --runs runs --out consilium-server.service",
    ),
)
@with_json
def unit_of_server(
    home: Home = Path("server-home"),
    address: Annotated[str, typer.Option(help="host:port on which sites connect.")] = "0.0.0.0:9092",
    host: Annotated[
        list[str] | None,
        typer.Option(help="A name or address by which sites reach the server; goes into its certificate. Repeatable."),
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="host:port of the pages for monitoring (/metrics, /healthz, /readyz); '' for none.")
    ] = "127.0.0.1:9094",
    runs: Annotated[
        list[Path] | None,
        typer.Option(help="A folder that 'consilium run' has runs in; the server may write nowhere else. Repeatable."),
    ] = None,
    user: User = False,
    out: Out = None,
) -> Document:
    """Print a systemd unit: the server starts with the machine, and again whenever it ends."""
    from consilium.common.host.address import check_apart, parse_address
    from consilium.common.host.systemd import Unit, outermost, owner_of

    sites = parse_address(address, what="--address")
    if metrics:
        check_apart(("--address", sites), ("--metrics", parse_address(metrics, what="--metrics")))
    folders = outermost([home, *(runs or [Path("runs")])])
    for folder in folders:
        owner_of(folder)
    names = [word for name in host or [] for word in ("--host", name)]
    options = ("--home", str(home.resolve()), "--address", address, *names, "--metrics", metrics)
    return _hand_out(
        Unit(
            name="consilium-server",
            description="consilium: server of federated studies",
            command=(*_program(), "server", "start", *options),
            writable=folders,
            owner=None if user else owner_of(home),
            low_port=sites.port < 1024,
        ),
        out,
    )


@of_site.command(
    "unit",
    epilog=examples(
        "consilium site unit",
        "consilium site unit site/site.toml --out consilium-site.service",
        "consilium site unit --user",
    ),
)
@with_json
def unit_of_site(settings: Settings = Path("site/site.toml"), user: User = False, out: Out = None) -> Document:
    """Print a systemd unit: the site starts with the machine, and again whenever it ends, but for a revoked key."""
    from consilium.common.errors import ConnectionRefused
    from consilium.common.host.systemd import Unit, outermost, owner_of
    from consilium.common.study.load import load_site

    config = load_site(settings)
    written = [config.certificate, config.ca_certificate, config.private_key]
    folders = outermost([settings.parent, config.state_dir, *(file.parent for file in written)])
    for folder in folders:
        owner_of(folder)
    data, state = config.data.path.resolve(), config.state_dir.resolve()
    # A file may be replaced by its owner, and the old one would stay in sight.
    within = data.is_dir() and any(folder in data.parents for folder in folders)
    return _hand_out(
        Unit(
            name=f"consilium-site-{config.name}",
            description=f"consilium: site {config.name}",
            command=(*_program(), "site", "start", str(settings.resolve())),
            writable=folders,
            read_only=(data,) if within and data not in (state, *state.parents) else (),
            final=(ConnectionRefused.exit_code,),
            owner=None if user else owner_of(settings.parent),
            devices=config.device != "cpu",
        ),
        out,
    )


def _program() -> tuple[str, ...]:
    """Return the command line of this installation, whatever the path of the terminal is."""
    return (str(Path(sys.executable).absolute()), "-P", "-m", "consilium")


def _hand_out(unit: "Unit", out: Path | None) -> Document:
    from consilium.common.host.files import write_atomically
    from consilium.common.host.systemd import unit_text

    text = unit_text(unit)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_atomically(out, text.encode())
        typer.echo(f"written: {out}; its first lines say how to install it")
    return {"name": f"{unit.name}.service", "unit": text, "file": out}
