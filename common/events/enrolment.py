"""The events of a server's log of enrolments, `enrolments.jsonl`: whose tokens there were, and who enrolled by them."""

from consilium.common.events.log import Vocabulary
from consilium.common.events.run import RunEvent


class TokenMade(RunEvent):
    """The coordinator made a token of a group; the one before it is of no use any more."""

    name = "token_made"
    for_the_record = True
    group: str
    fingerprint: str
    """Of the key that follows from the token."""
    devices: int
    """Most devices that the group may have."""
    ends: str


class TokenRevoked(RunEvent):
    """The coordinator revoked the token of a group."""

    name = "token_revoked"
    for_the_record = True
    group: str
    fingerprint: str


class DeviceEnrolled(RunEvent):
    """A device showed that it has its group's token, and was given a name; or asked again, noted once an hour."""

    name = "enrolled"
    for_the_record = True
    group: str
    site: str
    fingerprint: str
    """Of the device's own key."""
    token: str
    """Fingerprint of the key that follows from the token."""
    again: bool = False


class EnrolmentRefused(RunEvent):
    """Devices of a group were refused; of one token and kind a line a minute at most, and later an hour."""

    name = "enrolment_refused"
    for_the_record = True
    group: str
    token: str
    reason: str
    times: int
    """How often since the last such line."""


ENROLMENT_EVENTS: Vocabulary[RunEvent] = Vocabulary(TokenMade, TokenRevoked, DeviceEnrolled, EnrolmentRefused)
