"""The tokens of groups as the register has them, in a file that is kept twice."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from consilium.common.errors import ConfigError, StateError
from consilium.common.host.twice import read_twice
from consilium.common.study.device_names import MOST_DEVICES
from consilium.common.study.groups import GroupName
from consilium.common.study.names import SiteName
from consilium.common.study.record import Record
from consilium.common.study.sentences import describe

log = logging.getLogger(__name__)

FILE = "groups.json"
"""File of the server's home; it is kept twice."""


class NotEnrolled(ConfigError):
    """A device is refused.

    Args:
        kind: one of a few words; the message may hold what the device has sent.
    """

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class Token(Record):
    """One token of a group, as the file has it.

    Args:
        fingerprint: of the key that follows from it.
        devices: how many the group may have, those that were revoked among them.
        ends: until when devices may enrol by it, ISO 8601 in UTC.
        revoked: when it was revoked or replaced; empty while it is valid.
        authority: serial number of the authority that signed its certificate.
    """

    group: GroupName
    study: SiteName
    fingerprint: str
    devices: int = Field(ge=1, le=MOST_DEVICES)
    since: str
    ends: str
    revoked: str = ""
    authority: str


class TokenFile(Record):
    """What the file holds."""

    format: Literal[1] = 1
    tokens: tuple[Token, ...]


def state_of(token: Token) -> str:
    """Return `valid`, `ended` or `revoked`."""
    if token.revoked:
        return "revoked"
    return "ended" if datetime.fromisoformat(token.ends) <= datetime.now(UTC) else "valid"


def refusal_of(token: Token) -> str | None:
    """Return why nobody enrols by a token any more; None while it is valid."""
    match state_of(token):
        case "revoked":
            return f"the token of group '{token.group}' was revoked; ask the study's coordinator for the new one"
        case "ended":
            return (
                f"the token of group '{token.group}' was valid until {token.ends[:16].replace('T', ' ')} UTC; ask the "
                "study's coordinator for a new one"
            )
    return None


def read_tokens(file: Path) -> dict[str, Token]:
    """Return the tokens by the fingerprint of their key, from the copy where the file is damaged.

    Raises:
        StateError: both are damaged.
    """
    content, problem = read_twice(file)
    if problem:
        log.warning("the register of groups was damaged: %s", problem)
    if content is None:
        return {}
    try:
        tokens = TokenFile.model_validate_json(content).tokens
    except ValidationError as error:
        raise StateError(
            f"the register of groups is damaged: {describe(error, str(file))}; restore it and its copy from a backup; "
            "without one, move both away and make tokens of groups with other names: devices then enrol anew"
        ) from error
    return {token.fingerprint: token for token in tokens}
