"""Adapter: the content of a Flower `Message` <-> JSON text and payload."""

from flwr.app import ConfigRecord, Message, RecordDict

from consilium.common.flower.message import PLAN_RECORD, pack, unpack
from consilium.common.protocol.parse import parse_plan
from consilium.common.protocol.plans import Plan


def content_of(text: str, payload: bytes | None) -> RecordDict:
    """Return the content of the message that replies."""
    return RecordDict({PLAN_RECORD: ConfigRecord(dict(pack(text, payload)))})


def plan_of(message: Message) -> tuple[Plan, bytes | None]:
    """Return the checked plan in a message and its payload.

    Raises:
        ProtocolError: a message that the server's adapter did not make.
    """
    text, payload = unpack(message.content.config_records)
    return parse_plan(text), payload
