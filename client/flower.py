"""Adapter: a Flower `Message` -> plan and payload; reply and payload -> `Message`."""

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from common.errors import ProtocolError
from common.protocol import PAYLOAD_RECORD, PLAN_RECORD, SMALL_PAYLOAD_BYTES, Plan, Reply, parse_plan


def plan_of(message: Message) -> tuple[Plan, bytes | None]:
    """Return the checked plan in a message and its payload.

    Raises:
        ProtocolError: a message that the server's adapter did not make.
    """
    config = message.content.config_records.get(PLAN_RECORD)
    text = config.get("json") if config is not None else None
    if not isinstance(text, str):
        raise ProtocolError(f"message has records {sorted(message.content)}, expected '{PLAN_RECORD}'")
    arrays = message.content.array_records.get(PAYLOAD_RECORD)
    if arrays is None:
        small = config.get("payload") if config is not None else None
        if small is not None and not isinstance(small, bytes):
            raise ProtocolError(f"payload is {type(small).__name__}, expected bytes")
        return parse_plan(text), small
    if list(arrays) != ["bytes"]:
        raise ProtocolError(f"payload has arrays {sorted(arrays)}, expected one named 'bytes'")
    return parse_plan(text), arrays["bytes"].data


def message_of(reply: Reply, payload: bytes | None, *, reply_to: Message) -> Message:
    """Return the message that carries a reply and its payload."""
    if payload is not None and len(payload) <= SMALL_PAYLOAD_BYTES:
        config = ConfigRecord({"json": reply.model_dump_json(), "payload": payload})
        return Message(RecordDict({PLAN_RECORD: config}), reply_to=reply_to)
    records = RecordDict({PLAN_RECORD: ConfigRecord({"json": reply.model_dump_json()})})
    if payload is not None:
        array = Array(dtype="uint8", shape=(len(payload),), stype="consilium.bytes", data=payload)
        records[PAYLOAD_RECORD] = ArrayRecord({"bytes": array})
    return Message(records, reply_to=reply_to)
