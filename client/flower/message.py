"""Adapter: the content of a Flower `Message` <-> JSON text and payload."""

from flwr.app import ConfigRecord, Message, RecordDict

from common.errors import ProtocolError
from common.protocol import PLAN_RECORD, Plan, parse_plan


def pack(text: str, payload: bytes | None) -> RecordDict:
    """Return the content of a message: the JSON text, and the payload beside it."""
    config = ConfigRecord({"json": text})
    if payload is not None:
        config["payload"] = payload
    return RecordDict({PLAN_RECORD: config})


def unpack(records: RecordDict) -> tuple[str, bytes | None]:
    """Return the JSON text and the payload of a message.

    Raises:
        ProtocolError: records other than `pack` makes.
    """
    config = records.config_records.get(PLAN_RECORD)
    text = config.get("json") if config is not None else None
    if config is None or not isinstance(text, str):
        raise ProtocolError(f"message has records {sorted(records)}, expected '{PLAN_RECORD}' with a JSON text")
    payload = config.get("payload")
    if payload is not None and not isinstance(payload, bytes):
        raise ProtocolError(f"payload is {type(payload).__name__}, expected bytes")
    return text, payload


def plan_of(message: Message) -> tuple[Plan, bytes | None]:
    """Return the checked plan in a message and its payload.

    Raises:
        ProtocolError: a message that the server's adapter did not make.
    """
    text, payload = unpack(message.content)
    return parse_plan(text), payload
