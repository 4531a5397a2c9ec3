"""The commands `consilium site backup | restore` and `consilium server backup | restore`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilium.commands.parameters import Folder, Home, Runs, examples
from consilium.commands.scripting import Document, with_json

if TYPE_CHECKING:
    from consilium.common.host.backup import Written

PASSPHRASE = "CONSILIUM_PASSPHRASE"
"""Environment variable with the passphrase of a backup."""

of_site, of_server = typer.Typer(), typer.Typer()

File = Annotated[
    Path, typer.Argument(help=f"The backup; under a passphrase where {PASSPHRASE} is set.", metavar="FILE")
]


@of_site.command("backup", epilog=examples("consilium site backup berlin.backup"))
@with_json
def backup_a_site(file: File, folder: Folder = Path("site")) -> Document:
    """Write a site's key, settings and state into one file, without its data; the site must be stopped."""
    from consilium.client.operations.backup import backup_site
    from consilium.common.host.sealing import passphrase_in

    passphrase = passphrase_in(PASSPHRASE)
    return _written(file, backup_site(file, folder, passphrase=passphrase), is_sealed=passphrase is not None)


@of_site.command(
    "restore",
    epilog=examples("consilium site restore berlin.backup", "consilium site restore berlin.backup --nothing-since"),
)
@with_json
def restore_a_site(
    file: File,
    folder: Folder = Path("site"),
    nothing_since: Annotated[
        bool,
        typer.Option(
            "--nothing-since", help="The site has answered nothing since; needed where it has a privacy ledger."
        ),
    ] = False,
) -> Document:
    """Put a site back from its backup, into a folder that is empty or not there."""
    from consilium.client.operations.backup import restore_site
    from consilium.common.host.sealing import passphrase_in

    written = restore_site(file, folder, is_current=nothing_since, passphrase=passphrase_in(PASSPHRASE))
    check = f"'consilium site check {folder / 'site.toml'}'"
    return _restored(file, written, f"put the data where site.toml says, and run {check}")


@of_server.command("backup", epilog=examples("consilium server backup study.backup"))
@with_json
def backup_a_server(file: File, home: Home = Path("server-home"), runs: Runs = Path("runs")) -> Document:
    """Write a server's keys, register and runs into one file; the server must be stopped, its runs go on later."""
    from consilium.common.host.sealing import passphrase_in
    from consilium.server.operations.backup import backup_server
    from consilium.server.operations.home import ServerHome

    passphrase = passphrase_in(PASSPHRASE)
    written = backup_server(file, ServerHome(home), runs, passphrase=passphrase)
    return _written(file, written, is_sealed=passphrase is not None)


@of_server.command("restore", epilog=examples("consilium server restore study.backup"))
@with_json
def restore_a_server(file: File, home: Home = Path("server-home"), runs: Runs = Path("runs")) -> Document:
    """Put a server back from its backup, into folders that are empty or not there."""
    from consilium.common.host.sealing import passphrase_in
    from consilium.server.operations.backup import restore_server

    written = restore_server(file, home, runs, passphrase=passphrase_in(PASSPHRASE))
    return _restored(file, written, "run 'consilium server start': runs that were going on continue")


def _written(file: Path, written: "Written", *, is_sealed: bool) -> Document:
    from consilium.common.errors import clean
    from consilium.common.host.disk import in_units

    for link in written.links:
        typer.echo(f"left out, as it is a link: {clean(str(link))}")
    typer.echo(f"written: {file} with {len(written.manifest.files)} files, {in_units(written.bytes)}")
    if is_sealed:
        typer.echo("it holds private keys, under the passphrase: keep the two apart")
    else:
        typer.echo(
            "it holds private keys in the clear: keep it as safe as the folder itself, or write it again with a "
            f"passphrase in {PASSPHRASE}"
        )
    return {"file": file, "files": len(written.manifest.files), "bytes": written.bytes, "sealed": is_sealed}


def _restored(file: Path, written: "Written", then: str) -> Document:
    typer.echo(f"restored: {len(written.manifest.files)} files of {written.manifest.created} from {file}")
    typer.echo(f"next: {then}")
    return {"file": file, "files": len(written.manifest.files), "created": written.manifest.created}
