"""Make a group's token and its bundle, in the coordinator's process: the server never sees the token."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import consilium.common
from consilium.common.errors import ConfigError, listed
from consilium.common.host.files import write_atomically
from consilium.common.host.group_token import new_token
from consilium.common.host.signing_requests import signing_request
from consilium.common.study.bundle import GroupBundle, ServerVersions
from consilium.common.study.load import load_study, study_source
from consilium.server.operations.bundles import reachable
from consilium.server.operations.home import ServerHome
from consilium.server.wire.submission import Control


@dataclass(frozen=True)
class MadeToken:
    """A bundle whose token was written, and until when devices may enrol by it, ISO 8601 in UTC."""

    bundle: GroupBundle
    ends: str


def make_group_token(
    home: ServerHome,
    control: Control,
    study: Path,
    group: str,
    *,
    files: tuple[Path, Path],
    devices: int,
    days: int,
    rotate: bool = False,
    address: str | None = None,
) -> MadeToken:
    """Make a group's token, let the server know the key that follows from it, and write bundle and token.

    Args:
        files: the bundle and the token; the latter for its owner alone to read.
        devices: how many may ever enrol.
        days: how long devices may enrol by it.
        rotate: replace the group's token.
        address: `host:port` as devices reach the server; by default the one that the server was started with.

    Raises:
        ConfigError: the study has no such group, or asks more devices than may enrol; a file exists, no address is
            known, or the server refuses.
        ConnectionRefused: no server runs in `home`.
        StateError: a file cannot be written; the token is of no use then, and `rotate` makes another.
    """
    config = load_study(study)
    found = next((one for one in config.groups if one.name == group), None)
    if found is None:
        names = listed([one.name for one in config.groups], 10) or "none"
        raise ConfigError(f"--group: study '{config.name}' has no group '{group}', its groups: {names} ({study})")
    if found.cohort > devices:
        raise ConfigError(
            f"--devices: {found.cohort} devices of group '{group}' are asked in a round, but only {devices} may enrol"
        )
    if files[1].exists():
        raise ConfigError(f"--token-file: '{files[1]}' exists already and is not overwritten: move it away first")
    server, token = reachable(home, address), new_token(config.name, group)
    request = signing_request(token.key(), name=group)
    certificate, ends = control.open_group(request, study=config.name, devices=devices, days=days, rotate=rotate)
    bundle = GroupBundle(
        group=group,
        server=server,
        ca_certificate=home.ca.read_text(encoding="ascii"),
        certificate=certificate.decode("ascii"),
        study_key=home.study_public.read_text(encoding="ascii"),
        study_name=config.name,
        study=study_source(study),
        versions=ServerVersions(consilium=consilium.common.__version__, flwr=version("flwr")),
    )
    write_atomically(files[1], f"{token.text}\n".encode(), mode=0o600)
    write_atomically(files[0], bundle.to_json())
    return MadeToken(bundle, ends)
