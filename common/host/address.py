"""Addresses as people write them: `host:port`, with brackets around the colons of IPv6 (`[::1]:9092`)."""

import ipaddress
import re
import socket
from dataclasses import dataclass

from consilium.common.errors import ConfigError, clean

MAX_PORT = 65_535
_WRITTEN = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<plain>[^\s:/\[\]]+)):(?P<port>[+-]?\d{1,20})", re.ASCII
)
_WILDCARDS = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Address:
    """A host and a port.

    Args:
        host: a name or an address, without brackets.
    """

    host: str
    port: int

    def __str__(self) -> str:
        """Return `host:port`, as it is written in settings."""
        return f"{bracketed(self.host)}:{self.port}"


def bracketed(host: str) -> str:
    """Return a host as it stands before a port: an address of IPv6 gets brackets."""
    return f"[{host}]" if ":" in host else host


def parse_address(text: str, *, what: str, free_port: bool = False) -> Address:
    """Return the host and port of `host:port` or `[IPv6 address]:port`.

    Args:
        what: the option or setting, for the sentence.
        free_port: port 0 is allowed; it stands for a free one.

    Raises:
        ConfigError: it is no such address, or there is no such port.
    """
    parts = _WRITTEN.fullmatch(text)
    if parts is None:
        raise ConfigError(f"{what}: must be host:port, e.g. 127.0.0.1:9095 or [::1]:9095, got '{clean(text, 200)}'")
    host, port = parts["six"] or parts["plain"], int(parts["port"])
    if not parts["port"].isdecimal() or port > MAX_PORT or (port == 0 and not free_port):
        raise ConfigError(f"{what}: the port must be a number from 1 to {MAX_PORT}, got '{clean(text, 200)}'")
    if parts["six"] and not is_ip(host):
        raise ConfigError(f"{what}: between the brackets must stand an IPv6 address, got '{clean(text, 200)}'")
    return Address(host, port)


def is_ip(host: str) -> bool:
    """Return whether a host, without brackets, is an address of IPv4 or IPv6 and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_wildcard(host: str) -> bool:
    """Return whether a host, without brackets, stands for all addresses of this machine."""
    return is_ip(host) and str(ipaddress.ip_address(host)) in _WILDCARDS


def same_host(one: str, other: str) -> bool:
    """Return whether two hosts, without brackets, are written alike: `::1` is `0:0:0:0:0:0:0:1`."""
    if is_ip(one) and is_ip(other):
        return ipaddress.ip_address(one) == ipaddress.ip_address(other)
    return one.lower() == other.lower()


def check_apart(one: tuple[str, Address], other: tuple[str, Address]) -> None:
    """Check that one machine can listen on both addresses.

    Args:
        one, other: the option's name, and its address.

    Raises:
        ConfigError: both are the same port of the same interface.
    """
    (first, here), (second, there) = one, other
    if here.port != there.port or here.port == 0:
        return
    if is_wildcard(here.host) or is_wildcard(there.host) or _interfaces(here.host) & _interfaces(there.host):
        raise ConfigError(f"{first} and {second} both have port {here.port}; give each a port of its own")


def _interfaces(host: str) -> set[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return {host.lower()}
