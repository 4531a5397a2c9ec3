"""A device joins its group by the group's token: it makes a key of its own, and the server gives it a name.

The token is read from a file, from standard input or from the environment, never from the command line, which others on
the machine can read; it is not written anywhere. A call that was cut off is repeated with the same key, and so is one
after the certificate has ended: the device keeps its name.
"""

import logging
import os
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from consilium.client.operations.site_folder import (
    KEY,
    SiteFolder,
    accept_bundle,
    make_folders,
    settings_text,
)
from consilium.client.wire.certificate import is_due
from consilium.client.wire.place import Place
from consilium.common.errors import ConfigError, ConnectionRefused
from consilium.common.host.certificates import check_site_certificate, read_authorities, read_certificate
from consilium.common.host.files import only_one, write_atomically
from consilium.common.host.group_token import MOST_CHARACTERS, GroupToken, parse_token
from consilium.common.host.keys import fingerprint, make_site_key, read_private_key
from consilium.common.host.parents import TOKEN_VARIABLE
from consilium.common.host.signing_requests import make_signing_request, signing_request
from consilium.common.study.bundle import Bundle, GroupBundle, read_bundle, read_group_bundle
from consilium.common.study.device_names import group_of
from consilium.common.study.load import load_site

if TYPE_CHECKING:
    from consilium.client.wire.enrol import Enrolled

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0
"""How long a device asks again whose server says that too many enrol at this moment."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 60.0
"""Before it asks again: doubled each time, and half as much more or less by chance."""


@dataclass(frozen=True)
class DeviceData:
    """What a new device's `site.toml` says of its data.

    Args:
        path: where it lies; by default `data` inside the folder.
        metrics: `host:port` on which the device offers its metrics; by default it offers none.
    """

    kind: str
    path: Path | None = None
    metrics: str | None = None


def read_token(file: Path | None) -> GroupToken:
    """Return the token in a file, `-` for standard input; without one, that in the environment, which forgets it.

    Raises:
        ConfigError: there is none.
    """
    if file is None:
        text = os.environ.pop(TOKEN_VARIABLE, "")
        if not text:
            raise ConfigError(
                f"--token-file: give the file with the group's token, - for standard input, or set {TOKEN_VARIABLE}"
            )
        return parse_token(text)
    try:
        if str(file) == "-":
            return parse_token(sys.stdin.read(MOST_CHARACTERS + 1))
        with file.open(encoding="utf-8", errors="replace") as lines:
            return parse_token(lines.read(MOST_CHARACTERS + 1))
    except OSError as error:
        raise ConfigError(f"--token-file: cannot read '{file}': {error.strerror or error}") from error


def enrolled_before(folder: SiteFolder, path: Path) -> Bundle | None:
    """Return a device's accepted bundle where it needs nothing of the server; None where it is to enrol.

    It needs something without a certificate, with one that is over or due, and if the group's bundle names another
    server, authority or study.

    Args:
        path: the group's bundle.

    Raises:
        ConfigError: it is damaged.
    """
    bundle = read_group_bundle(path)
    if not (folder.settings.exists() and folder.bundle.exists()):
        return None
    try:
        config, accepted = load_site(folder.settings), read_bundle(folder.bundle)
        content, authorities = config.certificate.read_bytes(), config.ca_certificate.read_bytes()
        key = read_private_key(config.private_key).public_key()
        check_site_certificate(content, key=key, name=config.name, authorities=authorities)
        known = set(read_authorities(authorities)) & set(read_authorities(bundle.ca_certificate.encode()))
        if not known or is_due(read_certificate(content)):
            return None
    except (ConfigError, OSError):
        return None
    mine = (config.name, group_of(config.name), config.server, accepted.study_key, accepted.study)
    return accepted if mine == (accepted.site, bundle.group, bundle.server, bundle.study_key, bundle.study) else None


def enrol_device(folder: SiteFolder, path: Path, token: GroupToken, data: DeviceData) -> Bundle:
    """Enrol a device in its group, and make its folder; return its bundle, which is accepted.

    A folder of a device of this group is given a new certificate, and keeps its settings.

    Args:
        path: the group's bundle.

    Raises:
        ConfigError: bundle, token and folder do not belong together, or what the server sent is wrong.
        ConnectionRefused: the server cannot be reached, or refuses the device.
        StateError: the folder cannot be written.
    """
    bundle = read_group_bundle(path)
    key = token.key()
    _check_token(bundle, token, fingerprint(key.public_key()), path)
    if not folder.settings.exists():  # what is wrong with it is said before the server gives a name
        settings_text(name=bundle.group, server=bundle.server, kind=data.kind, data=data.path, metrics=data.metrics)
    make_folders(folder)
    with only_one(folder.path / ".enrolling", otherwise=f"'{folder.path}' is being enrolled by another process"):
        own, before = _own_key(folder, bundle)
        authorities = folder.path / "ca.pem"
        if before is None:
            write_atomically(authorities, bundle.ca_certificate.encode())
        place = Place(
            before or bundle.group, bundle.server, authorities, path, own, folder.path, folder.settings, folder.path
        )
        private = read_private_key(own)
        enrolled = _asked(bundle, key, signing_request(private, name=bundle.group), place)
        _check_name(enrolled.site, bundle, before)
        try:
            device = bundle.of_device(
                enrolled.site,
                fingerprint=fingerprint(private.public_key()),
                certificate=enrolled.certificate,
                authorities=enrolled.authorities,
            )
        except ValidationError as error:
            raise ConfigError(f"the server at {bundle.server} sent no certificate that could be one") from error
        check_site_certificate(
            enrolled.certificate, key=private.public_key(), name=device.site, authorities=enrolled.authorities
        )
        _take_over(folder, device, data, is_new=before is None)
    return device


def _asked(bundle: GroupBundle, key: ec.EllipticCurvePrivateKey, request: bytes, place: Place) -> "Enrolled":
    """Ask the server to enrol a device, and while it is busy again, for a bounded time.

    Raises:
        ConnectionRefused: the server cannot be reached, refuses the device, or is still busy.
    """
    from consilium.client.wire.enrol import Busy, enrol  # here, because it loads gRPC

    end, pause = time.monotonic() + PATIENCE_SECONDS, FIRST_PAUSE_SECONDS
    while True:
        try:
            return enrol(bundle, key, request, place)
        except Busy as busy:
            seconds = pause * secrets.SystemRandom().uniform(0.5, 1.5)  # so that devices do not come back together
            if time.monotonic() + seconds > end:
                raise
            log.info("%s seconds=%.0f", busy, seconds)
        time.sleep(seconds)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _check_token(bundle: GroupBundle, token: GroupToken, key: str, path: Path) -> None:
    """Check that a token is the one that a bundle was made with."""
    if (token.study, token.group) != (bundle.study_name, bundle.group):
        raise ConfigError(
            f"the token is of group '{token.group}' of study '{token.study}', but bundle '{path}' is of group "
            f"'{bundle.group}' of study '{bundle.study_name}'"
        )
    if read_certificate(bundle.certificate.encode(), who=f"bundle '{path}'").fingerprint != key:
        raise ConfigError(
            f"this is not the token of bundle '{path}': it is wrong, or one of them is older than the other; ask the "
            "study's coordinator for the newest token and bundle"
        )


def _own_key(folder: SiteFolder, bundle: GroupBundle) -> tuple[Path, str | None]:
    """Return the device's own key, made where there is none, and its name where it has one."""
    if folder.settings.exists():
        config = load_site(folder.settings)
        if group_of(config.name) != bundle.group:
            raise ConfigError(
                f"'{folder.path}' is the folder of site '{config.name}', which is no device of group '{bundle.group}': "
                "choose another --folder"
            )
        return config.private_key, config.name
    own = folder.path / KEY
    if not own.exists():
        make_site_key(own, comment=bundle.group)
    return own, None


def _check_name(name: str, bundle: GroupBundle, before: str | None) -> None:
    if group_of(name) != bundle.group:
        raise ConnectionRefused(
            f"the server at {bundle.server} calls this device {name!r}, expected a name of group '{bundle.group}'"
        )
    if before is not None and name != before:
        raise ConnectionRefused(
            f"the server at {bundle.server} does not know this device as '{before}' any more, and calls it '{name}': "
            "enrol it with another --folder, so that it begins anew"
        )


def _take_over(folder: SiteFolder, device: Bundle, data: DeviceData, *, is_new: bool) -> None:
    """Write the device's settings where there are none, and take over its bundle."""
    if is_new:
        make_signing_request(folder.path / KEY, name=device.site)
        text = settings_text(
            name=device.site, server=device.server, kind=data.kind, data=data.path, metrics=data.metrics
        )
        write_atomically(folder.settings, text.encode())
    write_atomically(folder.bundle, device.to_json())
    accept_bundle(folder, folder.bundle)
