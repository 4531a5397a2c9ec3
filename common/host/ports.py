"""TCP ports of this machine."""

import secrets
import socket

from consilium.common.errors import ConfigError, PortInUse


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


def check_port_free(host: str, port: int, *, what: str) -> None:
    """Check that nothing listens on `host:port`.

    Raises:
        ConfigError: there is no such port.
        PortInUse: names the port and what it was for.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError as error:
            raise ConfigError(f"{what}: a port is a number from 1 to 65535, got {port}") from error
        except OSError as error:
            raise PortInUse(
                f"{what}: port {port} on {host} cannot be used ({error.strerror}); choose another, or stop what uses it"
            ) from error
