"""The register of groups: whose tokens are valid, for which study, for how many devices and until when.

Of a token it has the public part of the key that follows from it. The devices themselves are in the register of sites.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from consilium.common.errors import ConfigError
from consilium.common.host.signing_requests import SigningRequest
from consilium.common.host.twice import write_twice
from consilium.common.study.device_names import MOST_DEVICES, device_name, group_of, parse_device
from consilium.server.operations.authority import DAYS_SITE, read_authority, sign_site_certificate
from consilium.server.wire.group_tokens import FILE, NotEnrolled, Token, TokenFile, read_tokens, refusal_of, state_of
from consilium.server.wire.registry import Registry

MOST_DAYS = DAYS_SITE
"""How long a token is valid at most: as long as a certificate."""


@dataclass(frozen=True)
class GroupState:
    """A group as the coordinator sees it.

    Args:
        enrolled: how many devices it ever had.
        revoked: how many of these were revoked.
        token: `valid`, `ended` or `revoked`.
    """

    group: str
    study: str
    devices: int
    enrolled: int
    revoked: int
    token: str
    ends: str


@dataclass(frozen=True)
class Enrolled:
    """A device that was given a name, and its certificate (PEM).

    Args:
        fingerprint: of the device's key.
        again: whether the key had the name before.
    """

    site: str
    fingerprint: str
    certificate: bytes
    again: bool = False


class Groups:
    """The register in a server's home; a token counts once it is on the disk, and so does a device.

    Raises:
        StateError: the file is damaged.
    """

    def __init__(self, home: Path, registry: Registry) -> None:
        self._home, self._file, self._registry = home, home / FILE, registry
        self._tokens = read_tokens(self._file)
        self._last: defaultdict[str, int] = defaultdict(int)
        for site in registry.approvals():
            self._count(site.name)

    # --- look-up ---

    def token_of(self, fingerprint: str) -> Token | None:
        """Return the token from which a key follows, whether it is valid or not."""
        return self._tokens.get(fingerprint)

    def valid_token(self, group: str) -> Token | None:
        """Return a group's token that was not revoked; None without one."""
        return next((one for one in self._tokens.values() if one.group == group and not one.revoked), None)

    def states(self) -> list[GroupState]:
        """Return every group that ever had a token, by its newest one, in the order of names."""
        newest = {token.group: token for token in self._tokens.values()}
        gone: defaultdict[str, int] = defaultdict(int)
        for site in self._registry.approvals():
            if (group := group_of(site.name)) is not None and site.revoked:
                gone[group] += 1
        return [
            GroupState(name, token.study, token.devices, self._last[name], gone[name], state_of(token), token.ends)
            for name, token in sorted(newest.items())
        ]

    # --- decisions of the coordinator ---

    def open(self, request: SigningRequest, *, study: str, devices: int, days: int, rotate: bool) -> tuple[bytes, str]:
        """Let devices enrol by the token whose key signed a request; the group is the request's name.

        Args:
            rotate: replace the group's valid token.

        Returns:
            The certificate (PEM) for the token's key, and until when devices may enrol.

        Raises:
            ConfigError: the group is another study's, has a valid token already, or its names are those of sites.
            StateError: the register cannot be written; nothing has changed then.
        """
        group, now = request.name, datetime.now(UTC)
        self._check(request, study=study, devices=devices, days=days, rotate=rotate)
        certificate = sign_site_certificate(self._home, request.key, name=group)
        ends = min(now + timedelta(days=days), certificate.not_valid_after_utc)
        token = Token(
            group=group,
            study=study,
            fingerprint=request.fingerprint,
            devices=devices,
            since=now.isoformat(timespec="seconds"),
            ends=ends.isoformat(timespec="seconds"),
            authority=read_authority(self._home).serial,
        )
        self._commit({**self._without(group), token.fingerprint: token})
        return certificate.public_bytes(serialization.Encoding.PEM), token.ends

    def revoke(self, group: str) -> Token:
        """Let no further device enrol by a group's token, and return it; those that are enrolled stay.

        Raises:
            ConfigError: the group has no valid token.
            StateError: the register cannot be written; nothing has changed then.
        """
        if (token := self.valid_token(group)) is None:
            raise ConfigError(
                f"group '{group}' has no token that could be revoked; 'consilium server groups' lists all"
            )
        self._commit(self._without(group))
        return token

    def check_site(self, name: str) -> None:
        """Check that a site that is approved by hand has no name that a group gives.

        Raises:
            ConfigError: it has.
        """
        known = {token.group for token in self._tokens.values()}
        if name in known:
            raise ConfigError(f"--name: '{name}' is the name of a group of devices; a site needs another one")
        group, number = parse_device(name) or (None, 0)
        if group in known and number > self._last[group]:
            raise ConfigError(
                f"--name: '{name}' is a name of a device of group '{group}', which enrols by the group's token"
            )

    def check_study(self, groups: Sequence[tuple[str, int]], *, study: str) -> None:
        """Check that the groups of a study that is to be run can have devices.

        Args:
            groups: names and cohorts.

        Raises:
            ConfigError: a group has no token yet, is another study's, or its cohort is larger than the group may be.
        """
        newest = {token.group: token for token in self._tokens.values()}
        for name, cohort in groups:
            if (token := newest.get(name)) is None:
                raise ConfigError(
                    f"groups: no device can enrol in group '{name}' yet; 'consilium server group-token STUDY.toml "
                    f"--group {name}' makes the token that lets them"
                )
            if token.study != study:
                raise ConfigError(
                    f"groups: the devices of group '{name}' at this server enrolled for study '{token.study}', this is "
                    f"study '{study}': give the group another name"
                )
            if cohort > token.devices:
                raise ConfigError(_too_small(name, cohort, token.devices))

    def check_authorities(self) -> None:
        """Check that no valid token has a certificate of an authority that is about to be retired.

        Raises:
            ConfigError: names the groups whose devices could not enrol any more.
            StateError: the newest authority is damaged.
        """
        newest = read_authority(self._home).serial
        if behind := sorted(
            token.group for token in self._tokens.values() if state_of(token) == "valid" and token.authority != newest
        ):
            raise ConfigError(
                f"the tokens of {len(behind)} groups are of the old authority: {', '.join(behind[:20])}; make new ones "
                "with 'consilium server group-token --rotate', or revoke them; --force leaves them behind"
            )

    # --- devices ---

    def enrol(self, wanted: Sequence[tuple[Token, SigningRequest]]) -> list[Enrolled | NotEnrolled]:
        """Let devices take part under names of their groups, all at once; a key that is known keeps its name.

        Returns:
            For each device its name and certificate, or why it is refused.

        Raises:
            StateError: the register cannot be written; nobody is enrolled then.
        """
        new, results = dict[str, tuple[str, SigningRequest]](), list[str | NotEnrolled]()
        last = dict(self._last)
        for token, request in wanted:
            key, group = request.fingerprint, token.group
            name = self._registry.name_of(key) or (new[key][0] if key in new else None)
            now = self._tokens[token.fingerprint]  # it may have been revoked while its device waited
            try:
                if (why := refusal_of(now)) is not None:
                    raise NotEnrolled(kind=state_of(now), message=why)
                if key in self._tokens:
                    raise NotEnrolled(
                        kind="token", message="this key follows from a group's token; a device needs a key of its own"
                    )
                if name is None:
                    _check_new(self._registry, token, request, enrolled=last.get(group, 0))
                    last[group] = last.get(group, 0) + 1
                    name = device_name(group, last[group])
                    new[key] = (name, request)
                elif group_of(name) != group:
                    raise NotEnrolled(
                        kind="other",
                        message="this key is that of another site, so it cannot be a device's of this group",
                    )
                results.append(key)
            except NotEnrolled as error:
                results.append(error)
        certificates = self._registry.enrol(list(new.values())) if new else {}
        for name, _ in new.values():
            self._count(name)
        return [one if isinstance(one, NotEnrolled) else self._enrolled(one, certificates) for one in results]

    def _enrolled(self, key: str, certificates: dict[str, bytes]) -> Enrolled:
        certificate = certificates.get(key)
        name = self._registry.name_of(key)
        assert name is not None  # it was known, or has just been written
        return Enrolled(name, key, certificate or self._registry.reissue(key), certificate is None)

    # --- the file ---

    def _check(self, request: SigningRequest, *, study: str, devices: int, days: int, rotate: bool) -> None:
        group = request.name
        if not 1 <= days <= MOST_DAYS:
            raise ConfigError(f"--days: must be from 1 to {MOST_DAYS}, got {days}")
        if not 1 <= devices <= MOST_DEVICES:
            raise ConfigError(f"--devices: must be from 1 to {MOST_DEVICES}, got {devices}")
        others = [token for token in self._tokens.values() if token.group == group]
        if others and others[-1].study != study:
            raise ConfigError(
                f"the server refused: group '{group}' is of study '{others[-1].study}', this is study '{study}': give "
                "the group another name"
            )
        if not rotate and self.valid_token(group) is not None:
            raise ConfigError(
                f"the server refused: group '{group}' has a token already; --rotate replaces it, and devices that are "
                "enrolled stay"
            )
        if request.fingerprint in self._tokens or self._registry.name_of(request.fingerprint) is not None:
            raise ConfigError("the server refused: this key is known already")
        self._check_names(group, devices, is_new=not others)

    def _check_names(self, group: str, devices: int, *, is_new: bool) -> None:
        if devices < self._last[group] and not is_new:
            raise ConfigError(f"--devices: {self._last[group]} devices have enrolled already, got {devices}")
        if not is_new:
            return
        taken = [site.name for site in self._registry.approvals() if group in (site.name, group_of(site.name))]
        if taken:
            raise ConfigError(
                f"the server refused: site '{taken[0]}' is approved, whose name is the group's or one that it would "
                f"give: give group '{group}' another name"
            )

    def _without(self, group: str) -> dict[str, Token]:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return {
            key: token.model_copy(update={"revoked": now}) if token.group == group and not token.revoked else token
            for key, token in self._tokens.items()
        }

    def _commit(self, tokens: dict[str, Token]) -> None:
        write_twice(self._file, TokenFile(tokens=tuple(tokens.values())).model_dump_json(indent=1).encode())
        self._tokens = tokens

    def _count(self, name: str) -> None:
        if (device := parse_device(name)) is not None:
            self._last[device[0]] = max(self._last[device[0]], device[1])


def _check_new(registry: Registry, token: Token, request: SigningRequest, *, enrolled: int) -> None:
    """Check that a device with a new key may enrol.

    Raises:
        NotEnrolled: it may not; the text goes to the device.
    """
    if request.name != token.group:
        raise NotEnrolled(
            kind="name",
            message=f"the signing request is for '{request.name}', expected the name of the group, '{token.group}'",
        )
    if registry.is_revoked(request.fingerprint):
        raise NotEnrolled(kind="key", message="the key of this device was revoked; ask the study's coordinator why")
    if enrolled >= token.devices:
        raise NotEnrolled(
            kind="full",
            message=f"group '{token.group}' is full: {enrolled} devices have enrolled, of at most {token.devices}; "
            "ask the study's coordinator",
        )


def _too_small(name: str, cohort: int, devices: int) -> str:
    return (
        f"groups: {cohort} devices of group '{name}' are to be asked in a round, but at most {devices} may enrol; make "
        "its cohort smaller, or its token anew with more --devices"
    )
