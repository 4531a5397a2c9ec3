"""The content of a Flower message that carries a plan or a reply: one record with the JSON text and the payload."""

from collections.abc import Mapping

from consilium.common.errors import ProtocolError

PLAN_RECORD = "consilium"


def pack(text: str, payload: bytes | None) -> dict[str, str | bytes]:
    """Return the values of the record `PLAN_RECORD`."""
    return {"json": text} if payload is None else {"json": text, "payload": payload}


def unpack(records: Mapping[str, Mapping[str, object]]) -> tuple[str, bytes | None]:
    """Return the JSON text and the payload in a message's records.

    Raises:
        ProtocolError: records other than `pack` makes.
    """
    values = records.get(PLAN_RECORD, {})
    text, payload = values.get("json"), values.get("payload")
    if not isinstance(text, str):
        raise ProtocolError(f"message has records {sorted(records)}, expected '{PLAN_RECORD}' with a JSON text")
    if payload is not None and not isinstance(payload, bytes):
        raise ProtocolError(f"payload is {type(payload).__name__}, expected bytes")
    return text, payload
