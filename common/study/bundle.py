"""The bundle that a coordinator hands to an approved site: one JSON file without secrets.

It carries the server's address, the authorities that the site is to trust, the site's own certificate with the name
and the key's fingerprint it was made for, the public key that orders are signed with, the study, and for one with
secure aggregation the keys of all its sites. The checksum shows damage; against a forger, both sides compare the check
code over the phone.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from consilium.common.errors import ConfigError
from consilium.common.study.groups import GroupName
from consilium.common.study.names import HostPort, SiteName
from consilium.common.study.record import Record
from consilium.common.study.sentences import describe

FORMAT = 2
MAX_BYTES = 4_000_000
"""Size of the largest bundle; a study of 10,000 sites has some 700 kB."""


class ServerVersions(Record):
    """Versions at the server; a site with another one of either cannot take part."""

    consilium: str
    flwr: str


class Sealed(Record):
    """A bundle with its checksum."""

    def checksum(self) -> str:
        """Return the SHA-256 over everything in the bundle."""
        return hashlib.sha256(_canonical(self.model_dump(mode="json"))).hexdigest()

    def check_code(self) -> str:
        """Return the first 80 bits of the checksum, in groups to be read out: `1a2b 3c4d 5e6f 7a8b 9c0d`."""
        digits = self.checksum()[:20]
        return " ".join(digits[start : start + 4] for start in range(0, 20, 4))

    def to_json(self) -> bytes:
        """Return the file's content."""
        values = {**self.model_dump(mode="json"), "sha256": self.checksum()}
        return json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n"


class Bundle(Sealed):
    """One site's way into a study."""

    format: Literal[2] = 2
    site: SiteName
    fingerprint: str
    server: HostPort
    ca_certificate: str = Field(pattern="-----BEGIN CERTIFICATE-----")
    certificate: str = Field(pattern="-----BEGIN CERTIFICATE-----")
    study_key: str = Field(pattern="-----BEGIN PUBLIC KEY-----")
    study: str | None = None
    peers: dict[SiteName, str] | None = Field(default=None, max_length=10_000, exclude_if=lambda peers: peers is None)
    versions: ServerVersions


class GroupBundle(Sealed):
    """The way into a study for every device of a group, which also needs the group's token.

    Args:
        certificate: of the key that follows from the token; it lets a device enrol and do nothing else.
    """

    format: Literal[2] = 2
    group: GroupName
    server: HostPort
    ca_certificate: str = Field(pattern="-----BEGIN CERTIFICATE-----")
    certificate: str = Field(pattern="-----BEGIN CERTIFICATE-----")
    study_key: str = Field(pattern="-----BEGIN PUBLIC KEY-----")
    study_name: SiteName
    study: str
    versions: ServerVersions

    def of_device(self, site: str, *, fingerprint: str, certificate: bytes, authorities: bytes) -> Bundle:
        """Return the bundle of a device that was enrolled under a name.

        Raises:
            ValidationError: what the server sent cannot stand in one.
        """
        return Bundle(
            site=site,
            fingerprint=fingerprint,
            server=self.server,
            ca_certificate=authorities.decode("ascii", errors="replace"),
            certificate=certificate.decode("ascii", errors="replace"),
            study_key=self.study_key,
            study=self.study,
            versions=self.versions,
        )


S = TypeVar("S", bound=Sealed)


def read_bundle(path: Path) -> Bundle:
    """Read and check a bundle.

    Raises:
        ConfigError: the file is missing, damaged, or of a format that this version does not know.
    """
    values = _read_values(path)
    if "group" in values:
        raise ConfigError(
            f"bundle '{path}' is for the devices of a group: 'consilium site enrol' takes it, with the group's token"
        )
    return _checked(Bundle, values, path)


def read_group_bundle(path: Path) -> GroupBundle:
    """Read and check the bundle of a group.

    Raises:
        ConfigError: the file is missing, damaged, or of a format that this version does not know.
    """
    values = _read_values(path)
    if "site" in values:
        raise ConfigError(
            f"bundle '{path}' is for one site, which takes it over by 'consilium site accept'; a group's is what "
            "'consilium server group-token' wrote"
        )
    return _checked(GroupBundle, values, path)


def _read_values(path: Path) -> dict[str, Any]:
    """Return what a bundle's file holds, without its checksum, which is right.

    Raises:
        ConfigError: it is missing, damaged, or of a format that this version does not know.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"'{path}' has more than {MAX_BYTES} bytes, so it is not a bundle")
        values: Any = json.loads(content)
    except OSError as error:
        raise ConfigError(f"cannot read bundle '{path}': {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"'{path}' is not a bundle, or it is damaged: {error}; ask for it again") from error
    if not isinstance(values, dict) or "sha256" not in values:
        raise ConfigError(f"'{path}' is not a bundle: expected the file that 'consilium server approve' wrote")
    if values.get("format") != FORMAT:
        told_format = repr(values.get("format"))[:40]
        raise ConfigError(
            f"bundle '{path}' has format {told_format}, this version of consilium reads {FORMAT}; "
            "install the version that the coordinator uses"
        )
    told = values.pop("sha256")
    seen = hashlib.sha256(_canonical(values)).hexdigest()
    if seen != told:
        raise ConfigError(f"bundle '{path}' is damaged: its checksum is {seen}, it says {told}; ask for it again")
    return values


def _checked(kind: type[S], values: dict[str, Any], path: Path) -> S:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, str(path))) from error


def _canonical(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
