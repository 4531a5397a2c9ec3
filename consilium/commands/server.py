"""The commands `consilium server ...`: for the coordinator, who runs the server and approves sites."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilium.commands import backup, groups, units
from consilium.commands.parameters import Home, examples
from consilium.commands.rows import print_rows
from consilium.commands.scripting import Document, with_json

if TYPE_CHECKING:
    from consilium.common.study.bundle import Bundle

app = typer.Typer(help="For the coordinator: run the server, approve sites.", no_args_is_help=True)
app.add_typer(units.of_server)
app.add_typer(backup.of_server)
app.add_typer(groups.of_server)

Address = Annotated[
    str | None, typer.Option("--address", help="host:port as the site reaches the server; default: as it was started.")
]
SiteName = Annotated[str, typer.Option("--name", help="The site's name, as in its site.toml and the study.toml.")]
Out = Annotated[Path | None, typer.Option(help="The bundle to write; default: NAME-bundle.json.")]


@app.command(
    "start",
    epilog=examples("consilium server start", "consilium server start --address 0.0.0.0:9092 --host study.example.org"),
)
def start(
    home: Home = Path("server-home"),
    address: Annotated[str, typer.Option(help="host:port on which sites connect.")] = "0.0.0.0:9092",
    host: Annotated[
        list[str] | None,
        typer.Option(help="A name or address by which sites reach the server; goes into its certificate. Repeatable."),
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="host:port of the pages for monitoring (/metrics, /healthz, /readyz); '' for none.")
    ] = "127.0.0.1:9094",
) -> None:
    """Run the server; runs that were going on when it last ended continue. Stop it with Ctrl-C."""
    from consilium.server.operations.home import ServerHome
    from consilium.server.operations.start import start_server

    names = list(dict.fromkeys([*(host or []), "localhost", "127.0.0.1", "::1"]))
    start_server(ServerHome(home), address=address, hosts=names, metrics=metrics)


@app.command(
    "approve",
    epilog=examples("consilium server approve site.csr --name berlin --study study.toml"),
)
@with_json
def approve(
    request: Annotated[Path, typer.Argument(help="The site's signing request (site.csr).")],
    name: SiteName,
    study: Annotated[Path | None, typer.Option(help="A study.toml, so that the site can check its data first.")] = None,
    out: Out = None,
    address: Address = None,
    home: Home = Path("server-home"),
) -> Document:
    """Let a site take part: sign a certificate for its key and name, and write the bundle to send back."""
    from consilium.server.operations.bundles import check_handout, make_bundle
    from consilium.server.operations.home import ServerHome
    from consilium.server.wire.submission import Control

    place = ServerHome(home)
    check_handout(place, name=name, address=address, study=study)
    with Control(place) as control:
        certificate = control.approve(request, name=name)
    return _hand_out(make_bundle(place, certificate, name=name, address=address, study=study), out, study)


@app.command("rotate", epilog=examples("consilium server rotate site.key.new.csr --name berlin"))
@with_json
def rotate(
    request: Annotated[Path, typer.Argument(help="The signing request of the site's new key (site.key.new.csr).")],
    name: SiteName,
    out: Out = None,
    address: Address = None,
    home: Home = Path("server-home"),
) -> Document:
    """Replace a site's key: approve the new one, revoke the old one."""
    from consilium.server.operations.bundles import check_handout, make_bundle
    from consilium.server.operations.home import ServerHome
    from consilium.server.wire.submission import Control

    place = ServerHome(home)
    check_handout(place, name=name, address=address)
    with Control(place) as control:
        certificate = control.rotate(request, name=name)
    typer.echo(f"the old key of site '{name}' is revoked")
    return _hand_out(make_bundle(place, certificate, name=name, address=address), out)


def _hand_out(bundle: "Bundle", out: Path | None, study: Path | None = None) -> Document:
    from consilium.common.host.files import write_atomically
    from consilium.common.study.acceptance import in_words, ranges_of
    from consilium.common.study.load import load_study

    path = out or Path(f"{bundle.site}-bundle.json")
    write_atomically(path, bundle.to_json())
    typer.echo(f"site '{bundle.site}' is approved to join {bundle.server}")
    typer.echo(f"key fingerprint    {bundle.fingerprint}")
    typer.echo(f"bundle             {path}")
    typer.echo(f"bundle check code  {bundle.check_code()}")
    config = load_study(study) if study is not None else None
    if config is not None and config.privacy.secure_aggregation:
        _say_whose_keys(bundle, len(config.sites))
    ranges = ranges_of(config, source=str(study)) if config is not None else None
    if config is not None and ranges is not None and ranges.by_path:
        typer.echo("if the site takes its ranges, this study may later be run with other values, without a new bundle:")
        for line in in_words(config, ranges):
            typer.echo(f"  {line}")
    typer.echo(
        "next: compare both with the site over the phone (revoke the key if the fingerprint differs), "
        "then send the bundle; it holds no secret"
    )
    return {
        "site": bundle.site,
        "server": bundle.server,
        "fingerprint": bundle.fingerprint,
        "bundle": path,
        "check_code": bundle.check_code(),
        "study": config.name if config is not None else None,
        "ranges": ranges.open() if ranges is not None else {},
        "peers": len(bundle.peers or {}),
    }


def _say_whose_keys(bundle: "Bundle", sites: int) -> None:
    if bundle.peers is None:
        typer.echo(
            f"this study sums updates securely, which takes the keys of all its {sites} sites, and not all are "
            "approved yet: once they are, approve each site again with the same request and --study, and send these "
            "bundles"
        )
        return
    typer.echo(
        f"the bundle holds the keys of all {sites} sites; those whose bundle was made earlier need a new one: approve "
        "each again with the same request and --study"
    )


@app.command("revoke", epilog=examples("consilium server revoke berlin"))
@with_json
def revoke(name: Annotated[str, typer.Argument(help="The site's name.")], home: Home = Path("server-home")) -> Document:
    """Refuse a site's key from now on, also where it is connected; that key cannot be approved again."""
    from consilium.server.operations.home import ServerHome
    from consilium.server.wire.submission import Control

    with Control(ServerHome(home)) as control:
        control.revoke(name)
    typer.echo(f"the key of site '{name}' is revoked; where it was connected, it no longer is")
    return {"site": name, "status": "revoked"}


@app.command("sites", epilog=examples("consilium server sites", "consilium server sites --revoked"))
@with_json
def sites(
    home: Home = Path("server-home"),
    revoked: Annotated[bool, typer.Option("--revoked", help="List revoked keys too.")] = False,
) -> Document:
    """List the approved sites: name, status, key fingerprint, since when, until when the certificate lasts."""
    from consilium.server.operations.home import ServerHome
    from consilium.server.wire.submission import Control

    with Control(ServerHome(home)) as control:
        approvals, status = control.approvals(), control.sites()
    rows = []
    for site in sorted(approvals, key=lambda site: (site.name, site.since)):
        if not site.revoked:
            state = status.get(site.name, "registered")
            rows.append([site.name, state, site.fingerprint, f"{site.since[:19]}Z", site.ends[:10]])
        elif revoked:
            rows.append([site.name, "revoked", site.fingerprint, f"{site.revoked[:19]}Z", "-"])
    print_rows(["site", "status", "key fingerprint", "since", "certificate until"], rows)
    if not rows:
        typer.echo("no site is approved yet; 'consilium server approve site.csr --name NAME' lets one take part")
    return {
        "sites": [
            {
                "site": site.name,
                "status": "revoked" if site.revoked else status.get(site.name, "registered"),
                "fingerprint": site.fingerprint,
                "since": site.since,
                "ends": site.ends or None,
                "revoked": site.revoked or None,
            }
            for site in sorted(approvals, key=lambda site: (site.name, site.since))
            if revoked or not site.revoked
        ]
    }


@app.command("new-ca", epilog=examples("consilium server new-ca"))
@with_json
def new_ca(home: Home = Path("server-home")) -> Document:
    """Make a new authority that signs certificates from now on; the old one stays trusted until 'retire-ca'."""
    from consilium.server.operations.home import ServerHome
    from consilium.server.wire.submission import Control

    with Control(ServerHome(home)) as control:
        control.new_ca()
    typer.echo("a new authority signs certificates from now on; the old one is trusted as well")
    typer.echo(
        "connected sites take it over by themselves, others at their next connection; when all have, "
        "run 'consilium server retire-ca', which names those that have not"
    )
    return {"authority": "new", "old": "trusted"}


@app.command("retire-ca", epilog=examples("consilium server retire-ca", "consilium server retire-ca --force"))
@with_json
def retire_ca(
    force: Annotated[
        bool, typer.Option("--force", help="Leave sites behind that have no certificate of the new one yet.")
    ] = False,
    home: Home = Path("server-home"),
) -> Document:
    """Trust the newest authority only; sites that have no certificate of it yet keep this from happening."""
    from consilium.server.operations.home import ServerHome
    from consilium.server.wire.submission import Control

    with Control(ServerHome(home)) as control:
        control.retire_ca(force=force)
    typer.echo("the old authority is not trusted any more; the server has a certificate of the new one")
    return {"authority": "new", "old": "retired"}
