"""One question to the server, for commands: does it know this site, and what is its time?"""

import asyncio
import shlex
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from cryptography import x509
from google.protobuf.message import DecodeError

from consilium.client.wire.channel import OPTIONS, credentials_of, explained, tls_context
from consilium.client.wire.place import Place
from consilium.common import __version__
from consilium.common.errors import ConnectionRefused, clean
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.limits import CONNECT_SECONDS, SERVICE, WIRE_VERSION

if TYPE_CHECKING:
    from consilium.common.study.site import SiteConfig


@dataclass(frozen=True)
class Greeting:
    """What a server says to a site that it knows.

    Args:
        site: the name under which the key was approved.
        server_time: Unix seconds by the server's clock.
        authorities: certificates (PEM) that sites are to trust.
    """

    site: str
    server_time: float
    consilium: str
    authorities: bytes


def place_of(config: "SiteConfig", settings: Path = Path("site.toml"), *, metrics: str = "") -> Place:
    """Return a site's settings as the connection needs them.

    Args:
        settings: the path of the `site.toml` that they were read from.
        metrics: `host:port` of the pages for monitoring; empty for none.
    """
    return Place(
        name=config.name,
        server=config.server,
        authorities=config.ca_certificate,
        certificate=config.certificate,
        key=config.private_key,
        study_key=config.study_key,
        settings=settings.resolve(),
        log=config.state_dir / "events.jsonl",
        threads=config.threads,
        memory_mb=config.memory_limit_mb,
        worker=tuple(shlex.split(config.worker or "")),
        metrics=metrics,
    )


def greet(
    config: "SiteConfig", *, key: Path | None = None, certificate: Path | None = None, timeout_seconds: float = 30.0
) -> Greeting:
    """Ask the server whether it knows this site; the site is not counted as connected.

    Args:
        key, certificate: others than the site's own, for a key that is to replace it.

    Raises:
        ConnectionRefused: the server cannot be reached or trusted, or does not know the key; the text says which.
        ConfigError: a file cannot be read.
    """
    config = config.model_copy(
        update={"private_key": key or config.private_key, "certificate": certificate or config.certificate}
    )

    place = place_of(config)
    hello = pb.FromSite(hello=pb.Hello(protocol=WIRE_VERSION, consilium=__version__, probe=True))
    with grpc.secure_channel(place.server, credentials_of(place), options=OPTIONS) as channel:
        asking: Any = channel.stream_stream(f"/{SERVICE}/Attend")
        try:
            content = next(asking(iter([hello.SerializeToString()]), timeout=timeout_seconds), b"")
            first = pb.FromServer.FromString(content)
        except grpc.RpcError as error:
            raise ConnectionRefused(str(asyncio.run(explained(place, error)))) from error
        except DecodeError as error:
            raise ConnectionRefused(f"the server at {config.server} sends something that is not a message") from error
    if not first.HasField("welcome"):
        raise ConnectionRefused(clean(first.farewell.text) or f"the server at {config.server} says nothing")
    welcome = first.welcome
    return Greeting(clean(welcome.site, 80), welcome.time, clean(welcome.consilium, 80), welcome.authorities)


def server_certificate(config: "SiteConfig") -> x509.Certificate:
    """Shake hands with the server over TLS and return its certificate, which the site's authorities have signed.

    Raises:
        ssl.SSLError: the certificate is not trusted, or what answers does not speak TLS.
        OSError: no connection.
    """
    place = place_of(config)
    with (
        socket.create_connection((place.host, place.port), timeout=CONNECT_SECONDS) as plain,
        tls_context(place).wrap_socket(plain, server_hostname=place.host) as secured,
    ):
        content = secured.getpeercert(binary_form=True)
    if content is None:
        raise ssl.SSLError("the server shows no certificate")
    return x509.load_der_x509_certificate(content)
