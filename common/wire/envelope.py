"""Orders, by which a run asks something of one site, signed with the study's key.

The key's public part is pinned at every site, so that a site obeys this study's coordinator and nobody who merely has
a connection: neither another site nor an intruder on the server's machine who does not have the key.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import DecodeError

from consilium.common.errors import ProtocolError
from consilium.common.wire import wire_pb2 as pb

Kind = Literal["plan", "flower"]

_DOMAIN = b"consilium order 1\0"
"""Prefix of the signed bytes, so that a signature is valid for nothing else."""
MAX_ORDER_BYTES = 1_200_000


@dataclass(frozen=True)
class Order:
    """A request to one site, to be obeyed once.

    Args:
        number: greater than that of every earlier order of the run.
        site: the only one that may obey.
        text: JSON: a plan, or the description of a Flower message.
        payload_digest: SHA-256 of the payload; empty where there is none.
    """

    number: int
    run: str
    site: str
    kind: Kind
    text: str
    payload_digest: bytes = b""
    payload_size: int = 0


def payload_digest(payload: bytes | memoryview | None) -> bytes:
    """Return the SHA-256 of a payload, as its order has it; empty for none."""
    return b"" if payload is None else hashlib.sha256(payload).digest()


def sign_order(order: Order, key: Ed25519PrivateKey) -> bytes:
    """Return a serialised SignedOrder."""
    content = pb.Order(
        number=order.number,
        run=order.run,
        site=order.site,
        kind=order.kind,
        text=order.text.encode(),
        payload_digest=order.payload_digest,
        payload_size=order.payload_size,
    ).SerializeToString(deterministic=True)
    return pb.SignedOrder(order=content, signature=key.sign(_DOMAIN + content)).SerializeToString()


def open_order(signed: bytes, key: Ed25519PublicKey) -> Order:
    """Return the order in a SignedOrder.

    Raises:
        ProtocolError: it is too long, no order, or not signed with the study's key.
    """
    if len(signed) > MAX_ORDER_BYTES:
        raise ProtocolError(f"order has {len(signed)} bytes, expected at most {MAX_ORDER_BYTES}")
    try:
        envelope = pb.SignedOrder.FromString(signed)
        key.verify(envelope.signature, _DOMAIN + envelope.order)
        order = pb.Order.FromString(envelope.order)
        text = order.text.decode()
    except InvalidSignature:
        raise ProtocolError("this order is not signed with the study's key, which the bundle pins") from None
    except (DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"the message from the server is no order: {error}") from error
    if order.kind not in ("plan", "flower"):
        raise ProtocolError("order is of a kind that this release does not know")
    return Order(
        number=order.number,
        run=order.run,
        site=order.site,
        kind="plan" if order.kind == "plan" else "flower",
        text=text,
        payload_digest=order.payload_digest,
        payload_size=order.payload_size,
    )
