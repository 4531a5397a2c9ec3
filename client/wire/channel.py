"""A connection to the server with this site's certificate, and sentences for everything that can go wrong with it."""

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography.hazmat.primitives import serialization
from google.protobuf.message import DecodeError

from consilium.client.wire.place import Place
from consilium.common import __version__
from consilium.common.errors import ConfigError, ConnectionRefused, clean
from consilium.common.host.keys import read_private_key
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.limits import (
    CONNECT_SECONDS,
    EXPIRED,
    HELLO_SECONDS,
    MAX_WIRE_BYTES,
    PING_OPTIONS,
    REPLACED,
    REVOKED,
    SERVICE,
    WIRE_VERSION,
)

OPTIONS = list(
    {
        "grpc.max_receive_message_length": MAX_WIRE_BYTES,
        "grpc.use_local_subchannel_pool": 1,
        "grpc.enable_retries": 0,
        **PING_OPTIONS,
        "grpc.keepalive_permit_without_calls": 0,
        "grpc.min_reconnect_backoff_ms": int(1000 * CONNECT_SECONDS),
    }.items()
)


class NotWelcome(Exception):
    """The server answered, and does not accept this site.

    Args:
        reason: short: `revoked`, `unknown`, `expired`, `version`, `replaced`, ...
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class Attended:
    """An open stream, and the server's first message."""

    channel: Any
    call: Any
    welcome: Any


def credentials_of(place: Place) -> grpc.ChannelCredentials:
    """Return this site's certificate and key, and the authorities that it trusts, in gRPC's form.

    Raises:
        ConfigError: a file cannot be read.
    """
    try:
        authorities, certificate = place.authorities.read_bytes(), place.certificate.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read '{error.filename}': {error.strerror}; accept the coordinator's bundle: "
            "consilium site accept BUNDLE"
        ) from error
    key = read_private_key(place.key).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return grpc.ssl_channel_credentials(authorities, key, certificate)


async def attend(place: Place, *, tasks: list[bytes]) -> Attended:
    """Connect, say who this is, and wait to be welcomed.

    Args:
        tasks: those that this site still works on or has a reply for.

    Raises:
        ConnectionRefused: the server cannot be reached or trusted; the text says why.
        NotWelcome: the server does not accept this site.
    """
    channel = grpc.aio.secure_channel(place.server, credentials_of(place), options=OPTIONS)
    try:
        call: Any = channel.stream_stream(f"/{SERVICE}/Attend")()
        hello = pb.Hello(protocol=WIRE_VERSION, consilium=__version__, tasks=tasks)
        async with asyncio.timeout(HELLO_SECONDS):
            await call.write(pb.FromSite(hello=hello).SerializeToString())
            content = await call.read()
        if content is grpc.aio.EOF:
            raise _refusal(place, await call.code(), await call.details())
        first = pb.FromServer.FromString(content)
        if first.HasField("farewell"):
            raise NotWelcome(first.farewell.reason, clean(first.farewell.text))
        return Attended(channel, call, first.welcome)
    except (TimeoutError, asyncio.InvalidStateError):
        await channel.close()
        raise ConnectionRefused(await why_unreachable(place)) from None
    except DecodeError:
        await channel.close()
        raise ConnectionRefused(f"the server at {place.server} sends something that is not a message") from None
    except grpc.aio.AioRpcError as error:
        await channel.close()
        raise await explained(place, error) from error
    except BaseException:
        await channel.close()
        raise


async def explained(place: Place, error: Any) -> ConnectionRefused | NotWelcome:
    """Return a failed call as an error with a sentence."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return ConnectionRefused(await why_unreachable(place, str(error.details())))
    return _refusal(place, error.code(), error.details())


def _refusal(place: Place, code: Any, details: str | None) -> ConnectionRefused | NotWelcome:
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return NotWelcome(str(details), refusal_sentence(place, str(details)))
    who = f"site '{place.name}' cannot attend at the server at {place.server}"
    return ConnectionRefused(f"{who}: {getattr(code, 'name', code)}: {clean(str(details))}")


def refusal_sentence(place: Place, reason: str) -> str:
    """Return in words why the right server does not accept this site."""
    match reason:
        case x if x == REVOKED:
            return (
                f"the server at {place.server} has revoked the key of site '{place.name}'; ask the study's coordinator "
                "why; if it is to take part again, make a new key: consilium site rotate-key"
            )
        case x if x == EXPIRED:
            return (
                f"the certificate of site '{place.name}' has ended; ask the study's coordinator for a new bundle "
                "('consilium server approve' with the same site.csr) and accept it"
            )
        case x if x == REPLACED:
            return f"another program has connected with the key of site '{place.name}': a key is for one running site"
    return (
        f"the server at {place.server} does not know the key of site '{place.name}': send site.csr to the study's "
        "coordinator and ask for it to be approved"
    )


async def why_unreachable(place: Place, details: str = "") -> str:
    """Return in words why no connection comes about: look at name, route, TLS and certificate one by one."""
    who = f"site '{place.name}'"
    firewall = "is it running, and does the firewall allow this outbound connection?"
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(place.host, place.port)
            writer.close()
    except TimeoutError:
        return f"{who} gets no answer from the server at {place.server} within {CONNECT_SECONDS:g} s; {firewall}"
    except OSError as error:
        return f"{who} cannot reach the server at {place.server}: {error.strerror or error}; {firewall}"
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(place.host, place.port, ssl=tls_context(place))
            writer.close()
    except ssl.SSLCertVerificationError as error:
        return (
            f"{who} does not trust the server at {place.server}: {tls_reason(error)}; "
            f"is '{place.authorities}' the certificate that the study's coordinator sent?"
        )
    except (OSError, TimeoutError) as error:
        return f"{who}: what answers at {place.server} does not speak TLS as the study's server does: {error}"
    return (
        f"the server at {place.server} closes the connection of {who}: it does not accept the certificate "
        f"'{place.certificate}' (of another study, ended, or of an authority that was replaced), or it is just "
        f"starting; 'consilium site check' says more{f' ({clean(details, 120)})' if details else ''}"
    )


def tls_context(place: Place) -> ssl.SSLContext:
    """Return a context that trusts the study's authorities and speaks HTTP/2.

    Raises:
        OSError: the file cannot be read, or holds no certificate.
    """
    context = ssl.create_default_context(cafile=str(place.authorities))
    context.set_alpn_protocols(["h2"])
    return context


def tls_reason(error: ssl.SSLError) -> str:
    """Return what OpenSSL says was wrong, in its own words."""
    return str(getattr(error, "verify_message", None) or error.reason or error)
