"""Plans and replies from JSON that crossed a trust boundary, checked."""

from typing import TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from consilium.common.errors import ProtocolError
from consilium.common.protocol.plans import CODEC_VERSION, PROTOCOL_VERSION, Plan
from consilium.common.protocol.replies import Reply
from consilium.common.study.limits import MAX_TEXT_BYTES
from consilium.common.study.sentences import describe

T = TypeVar("T")

_PLAN: TypeAdapter[Plan] = TypeAdapter(Plan)

_REPLY: TypeAdapter[Reply] = TypeAdapter(Reply)


def parse_plan(text: str) -> Plan:
    """Check a plan's JSON as the site receives it.

    Raises:
        ProtocolError: too long, not JSON, an unknown kind, or a field that is wrong.
    """
    return parse_json(_PLAN, text, who="plan from the server")


def parse_reply(text: str, *, site: str) -> Reply:
    """Check a reply's JSON as the server receives it from `site`.

    Raises:
        ProtocolError: too long, not JSON, an unknown kind, or a field that is wrong.
    """
    return parse_json(_REPLY, text, who=f"reply from site '{site}'")


def parse_json(adapter: TypeAdapter[T], text: str, *, who: str) -> T:
    """Check JSON that came over the wire.

    Raises:
        ProtocolError: too long, not JSON, of another version, or a field that is wrong; in one line.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise ProtocolError(f"{who} has {len(text)} characters, expected at most {MAX_TEXT_BYTES}")
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        # On one line, so that the other side cannot write whole lines into a log.
        raise ProtocolError(_other_version(text, who) or describe(error, who).replace("\n", "; ")) from error


class _Spoken(BaseModel):
    protocol: int = Field(ge=0, lt=10**6)
    codecs: int = Field(default=0, ge=0, lt=10**6)


def _other_version(text: str, who: str) -> str | None:
    """Return the sentence for a message of another version, the cause of all else that is wrong with it; else None."""
    try:
        spoken = _Spoken.model_validate_json(text)
    except ValidationError:
        return None
    if (spoken.protocol, spoken.codecs) == (PROTOCOL_VERSION, CODEC_VERSION):
        return None
    return (
        f"it is of protocol version {spoken.protocol} and codec version {spoken.codecs}, here they are "
        f"{PROTOCOL_VERSION} and {CODEC_VERSION}: install the same release of consilium at the server and at all "
        f"sites ({who})"
    )
