"""The register of sites: the approved keys with their sites' names, the ends of their certificates, the revoked keys.

One writer, the server's process. A connection is known by its certificate's key and by nothing that it says.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from consilium.common.errors import ConfigError, ProtocolError, StateError
from consilium.common.host.certificates import certificate_hosts, read_authorities
from consilium.common.host.keys import fingerprint_of_line, openssh
from consilium.common.host.signing_requests import SigningRequest, read_signing_request
from consilium.common.host.twice import read_twice, write_twice
from consilium.common.study.names import SiteName, check_site_name
from consilium.common.study.record import Record
from consilium.server.operations.authority import (
    add_authority,
    read_authority,
    retire_authorities,
    sign_site_certificate,
)

log = logging.getLogger(__name__)

FILE = "sites.json"
"""File of the server's home; it is kept twice."""


@dataclass(frozen=True)
class Approval:
    """A key that was approved under a site's name.

    Args:
        since: when, ISO 8601 in UTC.
        revoked: when it was revoked; empty while it is not.
        ends: until when its newest certificate lasts.
        last_seen: Unix time; None before the first connection.
        authority: serial number of the authority that signed the newest certificate.
    """

    name: str
    fingerprint: str
    since: str
    revoked: str
    ends: str
    last_seen: float | None
    authority: str


class _Entry(Record):
    """One key as the file has it; `key` is the public one in OpenSSH form."""

    name: SiteName
    key: str
    fingerprint: str
    since: str
    revoked: str = ""
    ends: str
    authority: str
    last_seen: float | None = None


class _File(Record):
    format: Literal[1] = 1
    sites: tuple[_Entry, ...]


class Registry:
    """The register in a server's home; approvals and revocations are on the disk before they take effect.

    Renewed certificates and when a site was last seen are kept in memory until `save` or `close`.

    Raises:
        StateError: the file is damaged.
    """

    def __init__(self, home: Path) -> None:
        self._home, self._file = home, home / FILE
        self._entries: dict[str, _Entry] = {}
        self._names: dict[str, str] = {}
        self._changed = False
        self._take(read_entries(self._file))

    # --- look-up ---

    def name_of(self, fingerprint: str) -> str | None:
        """Return the site that was approved with this key; None for an unknown or revoked one."""
        entry = self._entries.get(fingerprint)
        return entry.name if entry is not None and not entry.revoked else None

    def is_revoked(self, fingerprint: str) -> bool:
        """Return whether this key was approved once and has been revoked."""
        entry = self._entries.get(fingerprint)
        return entry is not None and bool(entry.revoked)

    def approvals(self) -> list[Approval]:
        """Return every key that was ever approved, the revoked ones too, in the order of approval."""
        return [
            Approval(**entry.model_dump(include=set(Approval.__dataclass_fields__))) for entry in self._entries.values()
        ]

    # --- decisions of the coordinator ---

    def approve(self, request: SigningRequest, *, name: str) -> bytes:
        """Let a site take part and return its certificate (PEM); for the same key and name again, a new one.

        Raises:
            ConfigError: the request is for another name, the key was revoked or is another site's, or the site is
                approved with another key.
            StateError: the register cannot be written; nothing has changed then.
        """
        self._check_key(request, name)
        if self._names.get(name, request.fingerprint) != request.fingerprint:
            raise ConfigError(
                f"the server refused: site '{name}' is already approved with another key ({self._names[name]}); "
                "'consilium server rotate' replaces it"
            )
        if request.fingerprint in self._entries:
            return self.reissue(request.fingerprint)
        entry, certificate = self._new_entry(request.key, name, since=_now())
        self._commit({**self._entries, entry.fingerprint: entry})
        return certificate

    def enrol(self, devices: Sequence[tuple[str, SigningRequest]]) -> dict[str, bytes]:
        """Let devices take part under the names that the server gives them; return the certificates (PEM) by key.

        Args:
            devices: new names, each with the request of a new key.

        Raises:
            StateError: the register cannot be written, or the authority is damaged; nobody is enrolled then.
        """
        now = _now()
        made = [self._new_entry(request.key, name, since=now) for name, request in devices]
        self._commit({**self._entries, **{entry.fingerprint: entry for entry, _ in made}})
        return {entry.fingerprint: certificate for entry, certificate in made}

    def rotate(self, request: SigningRequest, *, name: str) -> tuple[bytes, str]:
        """Approve a site's new key and revoke its old one; return the new certificate and the old fingerprint.

        Raises:
            ConfigError: the site is not approved, the request is for another name, or the key is known already.
            StateError: the register cannot be written; nothing has changed then.
        """
        old = self._names.get(name)
        if old is None:
            raise ConfigError(f"site '{name}' is not approved, so there is no key to replace; approve it instead")
        self._check_key(request, name)
        if request.fingerprint in self._entries:
            raise ConfigError(
                f"the server refused: the key {request.fingerprint} is already approved as site '{name}'; a rotation "
                "needs a new one, from 'consilium site rotate-key'"
            )
        entry, certificate = self._new_entry(request.key, name, since=_now())
        self._commit({**self._revoked([old]), entry.fingerprint: entry})
        return certificate, old

    def revoke(self, name: str) -> list[str]:
        """Refuse a site's key from now on; it can never be approved again. Return the revoked fingerprints.

        Raises:
            ConfigError: no such site.
            StateError: the register cannot be written; nothing has changed then.
        """
        if name not in self._names:
            raise ConfigError(f"site '{name}' is not approved; 'consilium server sites' lists who is")
        fingerprints = [self._names[name]]
        self._commit(self._revoked(fingerprints))
        return fingerprints

    # --- certificates ---

    def renew(self, fingerprint: str, request_pem: bytes) -> bytes:
        """Return a new certificate (PEM) for the connection with this key, which asks for it.

        Raises:
            ProtocolError: the key is not approved, or the request is unusable or for another key or name.
            StateError: the authority is damaged.
        """
        name = self.name_of(fingerprint)
        if name is None:
            raise ProtocolError(f"a certificate for the key {fingerprint} was asked for, which is not approved")
        try:
            request = read_signing_request(request_pem)
        except ConfigError as error:
            raise ProtocolError(f"site '{name}' asked for a new certificate: {error}") from error
        if (request.fingerprint, request.name) != (fingerprint, name):
            raise ProtocolError(
                f"site '{name}' asked for a certificate for site '{request.name}' with the key {request.fingerprint}, "
                f"expected its own name and its key {fingerprint}"
            )
        return self.reissue(fingerprint)

    def reissue(self, fingerprint: str) -> bytes:
        """Return a new certificate (PEM) for an approved key, by the newest authority.

        Raises:
            ProtocolError: the key is not approved.
            StateError: the authority is damaged.
        """
        if self.name_of(fingerprint) is None:
            raise ProtocolError(f"there is no certificate for the key {fingerprint}, which is not approved")
        old = self._entries[fingerprint]
        key = serialization.load_ssh_public_key(old.key.encode())
        assert isinstance(key, ec.EllipticCurvePublicKey)  # `approve` took it
        entry, certificate = self._new_entry(key, old.name, since=old.since, last_seen=old.last_seen)
        self._keep(entry)
        return certificate

    def add_authority(self) -> None:
        """Put a new authority before the others; it signs from now on.

        Raises:
            StateError: the present one is damaged, or the folder is unwritable.
        """
        add_authority(self._home)

    def retire_authorities(self, *, force: bool = False) -> list[str]:
        """Drop all authorities but the newest, which signs the server's certificate; return the sites left behind.

        Raises:
            ConfigError: approved sites have no certificate of the newest one, and `force` is not set.
            StateError: the newest one is damaged, or the folder is unwritable.
        """
        if len(read_authorities((self._home / "ca.pem").read_bytes())) < 2:
            raise ConfigError(
                "there is one authority only, so none can be retired; 'consilium server new-ca' makes another"
            )
        newest = read_authority(self._home).serial
        behind = [name for name, key in self._names.items() if self._entries[key].authority != newest]
        if behind and not force:
            raise ConfigError(
                f"{len(behind)} sites have no certificate of the new authority yet: {', '.join(sorted(behind)[:20])}"
                f"{', ...' if len(behind) > 20 else ''}; each gets one as soon as it connects; "
                "--force leaves them behind: they will need a new bundle"
            )
        retire_authorities(self._home, hosts=certificate_hosts((self._home / "server.pem").read_bytes()))
        return behind

    # --- the file ---

    def seen(self, name: str, when: float) -> None:
        """Note that an approved site was connected at a time (Unix seconds)."""
        if name in self._names:
            self._keep(self._entries[self._names[name]].model_copy(update={"last_seen": when}))

    def save(self) -> None:
        """Write the register if it has changed since it was last written.

        Raises:
            StateError: the register cannot be written.
        """
        if self._changed:
            self._commit(self._entries)

    def close(self) -> None:
        """Write the register if it has changed.

        Raises:
            StateError: the register cannot be written.
        """
        self.save()

    def _check_key(self, request: SigningRequest, name: str) -> None:
        check_site_name(name, what="--name")
        if request.name != name:
            raise ConfigError(
                f"--name: the signing request is for site '{request.name}', expected '{name}'; the site's name "
                "stands in its site.toml"
            )
        known = self._entries.get(request.fingerprint)
        if known is not None and known.revoked:
            raise ConfigError(
                f"the server refused: the key {known.fingerprint} of site '{known.name}' was revoked and cannot "
                "be approved again; the site makes a new one with 'consilium site rotate-key'"
            )
        if known is not None and known.name != name:
            raise ConfigError(
                f"the server refused: the key {known.fingerprint} is already approved as site '{known.name}'"
            )

    def _new_entry(
        self, key: ec.EllipticCurvePublicKey, name: str, *, since: str, last_seen: float | None = None
    ) -> tuple[_Entry, bytes]:
        certificate = sign_site_certificate(self._home, key, name=name)
        line = openssh(key)
        entry = _Entry(
            name=name,
            key=line,
            fingerprint=fingerprint_of_line(line),
            since=since,
            ends=certificate.not_valid_after_utc.isoformat(),
            authority=read_authority(self._home).serial,
            last_seen=last_seen,
        )
        return entry, certificate.public_bytes(serialization.Encoding.PEM)

    def _revoked(self, fingerprints: list[str]) -> dict[str, _Entry]:
        now = _now()
        changed = {key: self._entries[key].model_copy(update={"revoked": now}) for key in fingerprints}
        return {**self._entries, **changed}

    def _keep(self, entry: _Entry) -> None:
        """Take over an entry that is written later, and may be lost in a crash."""
        self._entries[entry.fingerprint] = entry
        self._changed = True

    def _commit(self, entries: dict[str, _Entry]) -> None:
        """Write the register, and only then let its new entries take effect."""
        content = _File(sites=tuple(entries.values())).model_dump_json(indent=1)
        write_twice(self._file, content.encode())
        self._take(entries)

    def _take(self, entries: dict[str, _Entry]) -> None:
        self._entries = entries
        self._names = {entry.name: key for key, entry in entries.items() if not entry.revoked}
        self._changed = False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_entries(file: Path) -> dict[str, _Entry]:
    """Return the entries by fingerprint, from its copy where the file is damaged; none where there is none yet.

    Raises:
        StateError: both are damaged: the file cannot be read, or contradicts itself.
    """
    kept, problem = read_twice(file)
    if problem:
        log.warning("the register of sites was damaged: %s", problem)
    if kept is None:
        return {}
    try:
        content = _File.model_validate_json(kept)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _damaged(file, f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}") from error
    entries: dict[str, _Entry] = {}
    approved: set[str] = set()
    for entry in content.sites:
        if not _fits(entry):
            raise _damaged(file, f"the key of site '{entry.name}' has another fingerprint than is written there")
        if entry.fingerprint in entries or (entry.name in approved and not entry.revoked):
            raise _damaged(file, f"site '{entry.name}' is approved twice")
        entries[entry.fingerprint] = entry
        approved |= set() if entry.revoked else {entry.name}
    return entries


def _fits(entry: _Entry) -> bool:
    try:
        return fingerprint_of_line(entry.key) == entry.fingerprint
    except ValueError:
        return False


def _damaged(file: Path, what: str) -> StateError:
    return StateError(
        f"the register of sites '{file}' is damaged: {what}; restore it and its copy from a backup, or move both away "
        "and approve every site again"
    )
