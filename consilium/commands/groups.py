"""The commands for groups of devices: `consilium server group-token`, `groups`, `revoke-group`, and `site enrol`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilium.commands.accepting import say_what_leaves, say_what_may_change
from consilium.commands.parameters import Data, DataKind, Folder, Home, MetricsAt, Study, examples
from consilium.commands.rows import print_rows
from consilium.commands.scripting import Document, with_json

if TYPE_CHECKING:
    from consilium.common.study.bundle import Bundle

of_site, of_server = typer.Typer(), typer.Typer()

GroupName = Annotated[str, typer.Option("--group", help="The group's name, as in the study.toml.")]


@of_server.command(
    "group-token",
    epilog=examples(
        "consilium server group-token study.toml --group phones --devices 5000",
        "consilium server group-token study.toml --group a --devices 500 --rotate",
    ),
)
@with_json
def group_token(
    study: Study,
    group: GroupName,
    devices: Annotated[int, typer.Option(help="Most devices that may ever enrol, revoked ones counted.")],
    days: Annotated[int, typer.Option(help="How many days devices may enrol by this token; 90 at most.")] = 30,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Replace the group's token; devices that are enrolled stay.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="The bundle to write; default: GROUP-bundle.json.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Where the token is written, once; default: GROUP-token.txt.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="host:port as devices reach the server; default: as it was started."),
    ] = None,
    home: Home = Path("server-home"),
) -> Document:
    """Make the token by which devices enrol in a group, and the bundle that goes along; the server keeps no token."""
    from consilium.server.operations.group_tokens import make_group_token
    from consilium.server.operations.home import ServerHome
    from consilium.server.wire.submission import Control

    place = ServerHome(home)
    files = (out or Path(f"{group}-bundle.json"), token_file or Path(f"{group}-token.txt"))
    with Control(place) as control:
        made = make_group_token(
            place, control, study, group, files=files, devices=devices, days=days, rotate=rotate, address=address
        )
    until = made.ends[:16].replace("T", " ")
    if rotate:
        typer.echo(f"the token of group '{group}' before is of no use any more; devices that are enrolled stay")
    typer.echo(f"up to {devices} devices may enrol in group '{group}' until {until} UTC")
    typer.echo(f"bundle             {files[0]}")
    typer.echo(f"bundle check code  {made.bundle.check_code()}")
    typer.echo(f"token              {files[1]}, for your eyes only; the server has no copy")
    typer.echo(
        "next: give both to the devices, the token as you would a password; each runs 'consilium site enrol "
        f"{files[0].name} --token-file {files[1].name}'. Whoever has both may enrol up to the limit"
    )
    return {
        "group": group,
        "study": made.bundle.study_name,
        "devices": devices,
        "ends": made.ends,
        "bundle": files[0],
        "check_code": made.bundle.check_code(),
        "token_file": files[1],
    }


@of_server.command("revoke-group", epilog=examples("consilium server revoke-group phones"))
@with_json
def revoke_group(
    name: Annotated[str, typer.Argument(help="The group's name.")], home: Home = Path("server-home")
) -> Document:
    """Let no further device enrol by a group's token; devices that are enrolled stay ('revoke' ends one)."""
    from consilium.server.operations.home import ServerHome
    from consilium.server.wire.submission import Control

    with Control(ServerHome(home)) as control:
        control.revoke_group(name)
    typer.echo(f"the token of group '{name}' is revoked; its devices stay: 'consilium server revoke NAME' ends one")
    return {"group": name, "token": "revoked"}


@of_server.command("groups", epilog=examples("consilium server groups"))
@with_json
def groups(home: Home = Path("server-home")) -> Document:
    """List the groups of devices: study, how many have enrolled of how many, how many are connected, the token."""
    from consilium.common.study.device_names import group_of
    from consilium.server.operations.home import ServerHome
    from consilium.server.wire.submission import Control

    with Control(ServerHome(home)) as control:
        states, sites = control.groups(), control.sites()
    online = [group_of(name) for name, state in sites.items() if state == "online"]
    rows = [
        [
            *(one.group, one.study, f"{one.enrolled} of {one.devices}", str(one.revoked), str(online.count(one.group))),
            *(one.token, one.ends[:16].replace("T", " ")),
        ]
        for one in states
    ]
    print_rows(["group", "study", "enrolled", "revoked", "connected", "token", "until (UTC)"], rows)
    if not rows:
        typer.echo("there is no group yet; 'consilium server group-token STUDY.toml --group NAME' makes one")
    return {
        "groups": [
            {
                "group": one.group,
                "study": one.study,
                "devices": one.devices,
                "enrolled": one.enrolled,
                "revoked": one.revoked,
                "connected": online.count(one.group),
                "token": one.token,
                "ends": one.ends,
            }
            for one in states
        ]
    }


@of_site.command(
    "enrol",
    epilog=examples(
        "consilium site enrol phones-bundle.json --token-file phones-token.txt",
        "consilium site enrol phones-bundle.json --token-file - --kind table",
    ),
)
@with_json
def enrol(
    bundle: Annotated[Path, typer.Argument(help="The group's bundle, from the coordinator.")],
    token_file: Annotated[
        Path | None,
        typer.Option(help="The file with the group's token, - for standard input; default: CONSILIUM_GROUP_TOKEN."),
    ] = None,
    data: Data = None,
    kind: DataKind = "images",
    metrics: MetricsAt = None,
    folder: Folder = Path("site"),
) -> Document:
    """Join a study as a device of a group, by the group's token; the server names it, and nobody approves by hand."""
    from consilium.client.operations.accepted_study import note_acceptance
    from consilium.client.operations.enrolment import DeviceData, enrol_device, enrolled_before, read_token
    from consilium.client.operations.site_folder import SiteFolder
    from consilium.common.study.bundle import read_group_bundle
    from consilium.common.study.load import load_site

    place = SiteFolder(folder)
    if (before := enrolled_before(place, bundle)) is not None:
        typer.echo(
            f"nothing to do: this device is site '{before.site}' of the server {before.server} already, and its "
            "certificate is good for a while"
        )
        return _enrolled(before, folder, read_group_bundle(bundle).study_name)
    accepted = enrol_device(place, bundle, read_token(token_file), DeviceData(kind, data, metrics))
    typer.echo(f"enrolled: this device is site '{accepted.site}' of the server {accepted.server}")
    study = note_acceptance(place, accepted)
    if study is not None:
        say_what_leaves(study, place.study)
        if study.offered:
            say_what_may_change(study, load_site(place.settings).max_runs)
    typer.echo(
        f"next: read {place.settings} through, delete the token from this device, and run 'consilium site check "
        f"{place.settings}', then 'consilium site start {place.settings}'"
    )
    return _enrolled(accepted, folder, study.study.name if study is not None else None)


def _enrolled(accepted: "Bundle", folder: Path, study: str | None) -> Document:
    return {
        "site": accepted.site,
        "server": accepted.server,
        "folder": folder,
        "fingerprint": accepted.fingerprint,
        "study": study,
    }
