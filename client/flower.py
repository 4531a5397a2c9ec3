"""Adapter: the content of a Flower `Message` <-> JSON text and payload."""

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from common.errors import ProtocolError
from common.protocol import PAYLOAD_RECORD, PLAN_RECORD, SMALL_PAYLOAD_BYTES, Plan, parse_plan


def unpack(records: RecordDict) -> tuple[str, bytes | None]:
    """Return the JSON text and the payload of a message.

    Raises:
        ProtocolError: a message that the server's adapter did not make.
    """
    config = records.config_records.get(PLAN_RECORD)
    text = config.get("json") if config is not None else None
    if not isinstance(text, str):
        raise ProtocolError(f"message has records {sorted(records)}, expected '{PLAN_RECORD}'")
    arrays = records.array_records.get(PAYLOAD_RECORD)
    if arrays is None:
        small = config.get("payload") if config is not None else None
        if small is not None and not isinstance(small, bytes):
            raise ProtocolError(f"payload is {type(small).__name__}, expected bytes")
        return text, small
    if list(arrays) != ["bytes"]:
        raise ProtocolError(f"payload has arrays {sorted(arrays)}, expected one named 'bytes'")
    return text, arrays["bytes"].data


def plan_of(message: Message) -> tuple[Plan, bytes | None]:
    """Return the checked plan in a message and its payload.

    Raises:
        ProtocolError: a message that the server's adapter did not make.
    """
    text, payload = unpack(message.content)
    return parse_plan(text), payload


def pack(text: str, payload: bytes | None) -> RecordDict:
    """Return the content of a message: a small payload beside the text, a large one as an array of bytes."""
    if payload is not None and len(payload) <= SMALL_PAYLOAD_BYTES:
        return RecordDict({PLAN_RECORD: ConfigRecord({"json": text, "payload": payload})})
    records = RecordDict({PLAN_RECORD: ConfigRecord({"json": text})})
    if payload is not None:
        array = Array(dtype="uint8", shape=(len(payload),), stype="consilium.bytes", data=payload)
        records[PAYLOAD_RECORD] = ArrayRecord({"bytes": array})
    return records
