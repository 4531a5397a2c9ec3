"""What a person is told who accepts a bundle at a hospital: what leaves, whose keys are trusted, what may change."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from consilium.client.operations.accepted_study import AcceptedStudy


def say_whose_keys(peers: "Mapping[str, str] | None", site: str) -> dict[str, str]:
    """Say whose updates this site's are summed with, and return the fingerprint of each; empty without keys."""
    from consilium.common.host.keys import fingerprint_of_line

    if peers is None:
        typer.echo(
            "this study sums updates so that the server sees none of them by itself, which takes the keys of all its "
            "sites; this bundle has none: ask for another one once all sites are approved"
        )
        return {}
    told = {name: fingerprint_of_line(line) for name, line in sorted(peers.items())}
    typer.echo("with these sites' updates, and no others, this site's are added up before the server can read the sum:")
    for name, key in told.items():
        typer.echo(f"  {name:20} {key}{' (this site)' if name == site else ''}")
    typer.echo(
        "each of these sites reads its fingerprint to you over the phone: a coordinator who made up two of three sites "
        "would read the third one's updates out of the sums"
    )
    return told


def say_what_leaves(study: "AcceptedStudy", path: Path) -> None:
    """Say in a few lines what the coordinator sees of this site in a study."""
    from consilium.privacy.what_leaves import in_short

    typer.echo("the coordinator sees of this site, in this study:")
    for line in in_short(study.study):
        typer.echo(f"  {line}")
    typer.echo(f"and counts, measurements and versions: 'consilium what-leaves {path}' shows all of it")


def say_what_may_change(study: "AcceptedStudy", max_runs: int) -> None:
    """Say what the coordinator may change in a study without asking."""
    if not study.words:
        typer.echo("the study came with ranges; this site takes none (accept_ranges in site.toml): it runs exactly so")
        return
    typer.echo("the coordinator may later run this study with other values without asking:")
    for line in study.words:
        typer.echo(f"  {line}")
    typer.echo(
        "everything else stays as it is; another method comes with the defaults of its settings. Each such run may "
        f"read the test split once more (max_runs = {max_runs} at most). To take none of this, accept with --exactly; "
        "to take less, set accept_ranges in site.toml"
    )
