"""TCP ports of this machine."""

import secrets
import socket

from consilium.common.errors import PortInUse
from consilium.common.host.address import Address


def free_port() -> int:
    """Return a TCP port on the loopback interface that nothing listens on just now.

    It is below those that systems give to outgoing connections, one of which could take it before it is used.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def check_port_free(address: Address, *, what: str) -> None:
    """Check that nothing listens on an address of this machine.

    Raises:
        PortInUse: names the port and what it was for.
    """
    try:
        entries = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, _, _, _, place = min(entries, key=lambda entry: entry[0] != socket.AF_INET)
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except (OSError, UnicodeError) as error:
        raise PortInUse(
            f"{what}: port {address.port} on {address.host} cannot be used "
            f"({getattr(error, 'strerror', None) or error}); choose another, or stop what uses it"
        ) from error
