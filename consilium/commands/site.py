"""The commands `consilium site ...`: for a hospital or device, which joins with its own data."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.commands import backup, groups, site_policy, site_privacy, units
from consilium.commands.accepting import say_what_leaves, say_what_may_change, say_whose_keys
from consilium.commands.parameters import Data, DataKind, Folder, MetricsAt, Settings, examples
from consilium.commands.rows import print_rows
from consilium.commands.scripting import Document, Outcome, with_json
from consilium.common.errors import ConfigError

app = typer.Typer(help="For a hospital or device: run the site.", no_args_is_help=True)
app.add_typer(site_policy.app)
app.add_typer(site_privacy.app)
app.add_typer(units.of_site)
app.add_typer(backup.of_site)
app.add_typer(groups.of_site)


@app.command(
    "init",
    epilog=examples(
        "consilium site init --name berlin --server example.org:9092",
        "consilium site init --name berlin --server example.org:9092 --kind table",
    ),
)
@with_json
def init(
    name: Annotated[
        str, typer.Option(envvar="CONSILIUM_NAME", help="The site's name, as agreed with the coordinator.")
    ],
    server: Annotated[
        str, typer.Option(envvar="CONSILIUM_SERVER", help="host:port of the study's server, from the coordinator.")
    ],
    data: Data = None,
    kind: DataKind = "images",
    metrics: MetricsAt = None,
    folder: Folder = Path("site"),
) -> Document:
    """Make this site's folder: its key, a request to send, a site.toml to read through, and room for its state."""
    from consilium.client.operations.site_folder import SiteFolder, init_site

    key = init_site(SiteFolder(folder), name=name, server=server, kind=kind, data=data, metrics=metrics)
    typer.echo(f"made {folder} with a new key: {key}")
    typer.echo(
        f"next: send {folder / 'site.csr'} to the study's coordinator, who reads this fingerprint back to you over "
        f"the phone and sends a bundle; then run 'consilium site accept BUNDLE'. site.key itself never leaves {folder}."
    )
    return {"site": name, "folder": folder, "fingerprint": key, "request": folder / "site.csr"}


@app.command(
    "accept",
    epilog=examples("consilium site accept berlin-bundle.json", "consilium site accept berlin-bundle.json --exactly"),
)
@with_json
def accept(
    bundle: Annotated[Path, typer.Argument(help="The file that the coordinator sent.")],
    exactly: Annotated[
        bool,
        typer.Option("--exactly", help="Take none of the study's ranges: it runs with these values and no others."),
    ] = False,
    folder: Folder = Path("site"),
) -> Document:
    """Take over the coordinator's bundle: this site's certificate, the server's address, and the study."""
    from consilium.client.operations.accepted_study import note_acceptance
    from consilium.client.operations.site_folder import SiteFolder, accept_bundle
    from consilium.common.host.keys import fingerprint, read_private_key
    from consilium.common.study.load import load_site

    place = SiteFolder(folder)
    accepted = accept_bundle(place, bundle, exactly=exactly)
    holds = "this site's certificate and the study" if accepted.study is not None else "this site's certificate"
    typer.echo(f"accepted: server {accepted.server}, {holds}")
    study = note_acceptance(place, accepted)
    if study is not None:
        say_what_leaves(study, place.study)
    if study is not None and study.offered:
        say_what_may_change(study, load_site(place.settings).max_runs)
    if study is None and accepted.study is not None:
        typer.echo(
            "the study cannot be read here yet, so nothing is shown of what may change in it later without asking: "
            "'consilium site check' says why, and shows it afterwards; to take none of it, accept with --exactly"
        )
    sums = study is not None and study.study.privacy.secure_aggregation
    peers = say_whose_keys(accepted.peers, accepted.site) if sums or accepted.peers else {}
    typer.echo(f"bundle check code  {accepted.check_code()}")
    own_key = read_private_key(load_site(place.settings).private_key).public_key()
    then = (
        "stop the site, run 'consilium site rotate-key --activate' and start it again"
        if accepted.fingerprint != fingerprint(own_key)
        else "run 'consilium site check'"
    )
    typer.echo(f"next: ask the coordinator over the phone whether the check code is the same; then {then}")
    return {
        "site": accepted.site,
        "server": accepted.server,
        "check_code": accepted.check_code(),
        "study": study.study.name if study is not None else None,
        "ranges": study.ranges.open() if study is not None else {},
        "peers": peers,
    }


@app.command("check", epilog=examples("consilium site check", "consilium site check site/site.toml --study study.toml"))
@with_json
def check(
    settings: Settings = Path("site/site.toml"),
    study: Annotated[Path | None, typer.Option(help="The study.toml; default: the accepted one.")] = None,
) -> Outcome:
    """Check everything that could keep this site from taking part, and say how to mend it."""
    from consilium.client.operations.doctor.examine import examine, exit_code

    findings = examine(settings, study=study)
    for finding in findings:
        fix = f" -> {finding.fix}" if finding.fix else ""
        typer.echo(f"{finding.status}  {finding.name:11} {finding.message}{fix}")
    code = exit_code(findings)
    failures = sum(finding.status == "FAIL" for finding in findings)
    typer.echo(f"{failures} to mend" if failures else "next: run 'consilium site start'")
    listed = [
        {"name": each.name, "status": each.status, "message": each.message, "fix": each.fix or None}
        for each in findings
    ]
    return Outcome({"findings": listed, "failures": failures, "exit_code": code}, code)


@app.command("parts", epilog=examples("consilium site parts", "consilium site parts site/site.toml"))
@with_json
def parts(settings: Settings = Path("site/site.toml")) -> Document:
    """Print the installed packages that offer parts of studies, as entries for site.toml: it names those to be run."""
    from consilium.client.operations.own_packages import entries
    from consilium.common.study.load import load_site

    found = list(entries(load_site(settings) if settings.is_file() else None))
    if not found:
        typer.echo("# no installed package offers a part (entry points consilium.methods, .models, ...)")
    for entry in found:
        typer.echo(f"{entry}\n")
    return {"entries": found}


@app.command("rotate-key", epilog=examples("consilium site rotate-key", "consilium site rotate-key --activate"))
@with_json
def rotate_key(
    activate: Annotated[bool, typer.Option("--activate", help="Use the new key; it must be approved.")] = False,
    folder: Folder = Path("site"),
) -> Document:
    """Make a new key next to the old one; with --activate, use it once the coordinator has approved it."""
    from consilium.client.operations.site_folder import SiteFolder, activate_new_key, make_new_key

    if activate:
        key = activate_new_key(SiteFolder(folder))
        typer.echo(f"this site's key is now {key}; start the site again")
        return {"fingerprint": key, "active": True, "request": None}
    key = make_new_key(SiteFolder(folder))
    typer.echo(f"made a new key: {key}")
    typer.echo(
        f"next: send {folder / 'site.key.new.csr'} to the coordinator, who reads this fingerprint back to you over the "
        "phone, rotates, and sends a bundle; then run 'consilium site accept BUNDLE', stop the site, run "
        "'consilium site rotate-key --activate' and start it again"
    )
    return {"fingerprint": key, "active": False, "request": folder / "site.key.new.csr"}


@app.command(
    "start", epilog=examples("consilium site start", "consilium site start site/site.toml --metrics 127.0.0.1:9095")
)
def start(
    settings: Settings = Path("site/site.toml"),
    metrics: Annotated[
        str | None,
        typer.Option(help="host:port of this site's pages for monitoring; default: the settings' metrics_address."),
    ] = None,
) -> None:
    """Run this site until it is stopped with Ctrl-C; it answers its server's studies, and waits where that is gone."""
    from consilium.client.node import start_site

    start_site(settings, metrics=metrics)


@app.command(
    "approve-app",
    epilog=examples(
        "consilium site approve-app my-app",
        "consilium site approve-app --list",
        "consilium site approve-app --remove 3f9a1c04",
    ),
)
@with_json
def approve_app(
    code: Annotated[
        str | None,
        typer.Argument(metavar="APP", help="The app's folder, or the digest of one whose code the coordinator sends."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the approved apps.")] = False,
    remove: Annotated[
        str | None,
        typer.Option(help="Withdraw the approval of the app whose digest begins with this (at least 8 digits)."),
    ] = None,
    folder: Folder = Path("site"),
) -> Document:
    """Let a Flower app run at this site, with all that the site's program may do; read its code first."""
    from consilium.client.operations.site_folder import SETTINGS
    from consilium.common.study.load import NO_SITE

    if not (folder / SETTINGS).is_file():
        raise ConfigError(f"'{folder}' is no site's folder: it has no {SETTINGS}; {NO_SITE}")
    if [code is not None, list_, remove is not None].count(True) != 1:
        raise ConfigError("name the app's folder or digest, or use --list or --remove DIGEST")
    if code is not None:
        return _approve(folder, code)
    if remove is not None:
        return _remove(folder, remove)
    return _list(folder)


def _approve(folder: Path, code: str) -> Document:
    from consilium.client.flower.approved import approve
    from consilium.common.flower.app import is_digest, read_app
    from consilium.common.host.files import with_home

    if is_digest(code):
        approval = approve(folder, code)
        typer.echo(f"approved: the app with the digest {approval.digest}; its code comes from the coordinator")
    else:
        app = read_app(Path(with_home(code)))
        for name, content in app.files.items():
            typer.echo(f"  {len(content):9} bytes  {name}")
        approval = approve(folder, app)
        typer.echo(f"approved: {approval.name} with these {len(app.files)} files, digest {approval.digest}")
    typer.echo(
        "its code may now do at this site all that the site's program may, and read its data: have it read by somebody "
        "who can judge it. Next: compare the digest with the coordinator's. The site need not be started again; "
        f"'consilium site approve-app --remove {approval.digest[:12]}' takes it back"
    )
    return {"approved": {"digest": approval.digest, "name": approval.name or None, "since": approval.since}}


def _remove(folder: Path, prefix: str) -> Document:
    from consilium.client.flower.approved import withdraw
    from consilium.client.operations.site_folder import SETTINGS
    from consilium.common.study.load import load_site

    digest = withdraw(folder, prefix, state_dir=load_site(folder / SETTINGS).state_dir)
    typer.echo(f"no longer approved: {digest}")
    return {"removed": digest}


def _list(folder: Path) -> Document:
    from consilium.client.flower.approved import approvals

    approved = approvals(folder)
    if not approved:
        typer.echo("no app is approved at this site")
    else:
        print_rows(
            ["digest", "app", "since"], [[one.digest, one.name or "(digest only)", str(one.since)] for one in approved]
        )
    return {"apps": [{"digest": each.digest, "name": each.name or None, "since": each.since} for each in approved]}
