"""A device's one call to the server before it has a certificate of its own: enrol in a group, by the group's token."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError

from consilium.client.wire.channel import OPTIONS, why_unreachable
from consilium.client.wire.place import Place
from consilium.common import __version__
from consilium.common.errors import ConfigError, ConnectionRefused, clean
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.limits import SERVICE, WIRE_VERSION

if TYPE_CHECKING:
    from consilium.common.study.bundle import GroupBundle

SECONDS = 60.0
"""How long the server may take to answer."""


class Busy(ConnectionRefused):
    """The server does not enrol a device at this moment; it may a little later."""


@dataclass(frozen=True)
class Enrolled:
    """What the server gives to a device: its name, its certificate (PEM), and the authorities to trust (PEM)."""

    site: str
    certificate: bytes
    authorities: bytes


def enrol(bundle: "GroupBundle", key: ec.EllipticCurvePrivateKey, request: bytes, place: Place) -> Enrolled:
    """Ask the server to enrol a device.

    Args:
        key: the one that follows from the group's token.
        request: the signing request (PEM) of the device's own key.
        place: names what cannot be reached, in sentences; its file of authorities is there.

    Raises:
        Busy: the server asks to try again.
        ConnectionRefused: the server cannot be reached or trusted, or refuses the device; the text says why.
    """
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    credentials = grpc.ssl_channel_credentials(bundle.ca_certificate.encode(), private, bundle.certificate.encode())
    message = pb.EnrolRequest(protocol=WIRE_VERSION, consilium=__version__, request=request)
    with grpc.secure_channel(bundle.server, credentials, options=OPTIONS) as channel:
        asking: Any = channel.unary_unary(f"/{SERVICE}/Enrol")
        try:
            reply = pb.EnrolReply.FromString(asking(message.SerializeToString(), timeout=SECONDS))
        except grpc.RpcError as error:
            raise _explained(bundle, place, error) from error
        except DecodeError as error:
            raise ConnectionRefused(f"the server at {bundle.server} sends something that is not a message") from error
    if reply.problem:
        kind = Busy if "; try again" in reply.problem else ConnectionRefused
        raise kind(f"the server at {bundle.server} does not enrol this device: {clean(reply.problem, 400)}")
    return Enrolled(clean(reply.site, 80), reply.certificate, reply.authorities)


def _explained(bundle: "GroupBundle", place: Place, error: Any) -> ConnectionRefused:
    """Return a failed call as an error with a sentence."""
    group = bundle.group
    match error.code():
        case grpc.StatusCode.UNAVAILABLE:
            try:
                return ConnectionRefused(asyncio.run(why_unreachable(place, str(error.details()))))
            except ConfigError as wrong:
                return ConnectionRefused(str(wrong))
        case grpc.StatusCode.UNAUTHENTICATED:
            return ConnectionRefused(
                f"the server at {bundle.server} knows no such token of group '{group}'; ask the study's coordinator "
                "for the group's newest token and bundle"
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return ConnectionRefused(f"the server at {bundle.server} is of a release that enrols no devices")
    return ConnectionRefused(f"the server at {bundle.server} does not enrol this device: {clean(str(error.details()))}")
