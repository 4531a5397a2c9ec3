"""Where a server listens, and what protects it there: nothing on this machine alone, else a token and TLS."""

import ipaddress
import re
import socket
import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from consilium.common.errors import ConfigError, PortInUse, clean
from consilium.common.host.address import Address, is_ip, is_wildcard, parse_address
from consilium.common.host.certificates import certificate_hosts
from consilium.common.host.keys import parsing, read_bounded

OWN = ("localhost", "127.0.0.1", "::1")
"""Names of this machine alone."""
MAKE_TOKEN = "(umask 077; openssl rand -hex 32 > token)"
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)
_TOKEN = re.compile(r"[!-~]{32,512}", re.ASCII)


@dataclass(frozen=True, eq=False)
class Listening:
    """An open address.

    Args:
        hosts: the names by which the server may be called.
        token: what a request must show; None: nothing.
        tls: None: plain HTTP.
    """

    socket: socket.socket
    url: str
    hosts: tuple[str, ...]
    token: str | None
    tls: ssl.SSLContext | None


def listen(
    address: str,
    *,
    token_file: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    hosts: Sequence[str] = (),
) -> Listening:
    """Open an address.

    Args:
        hosts: further names by which the server may be called, as by a proxy before it.

    Raises:
        ConfigError: it is no address, other machines reach it and it is not protected, or a file cannot be used.
        PortInUse: the port is taken, or the address is not one of this machine's.
    """
    wanted = parse_address(address, what="--address", free_port=True)
    family, place = _resolved(wanted)
    if (certificate is None) != (key is None):
        lacking = "--key" if key is None else "--certificate"
        raise ConfigError(f"{lacking} is missing: TLS needs both --certificate and --key")
    if not ipaddress.ip_address(str(place[0]).partition("%")[0]).is_loopback and None in (token_file, certificate):
        raise ConfigError(
            f"--address: other machines can reach {wanted}, so it needs --token-file, --certificate and --key; make a "
            f"token with: {MAKE_TOKEN}; or keep 127.0.0.1 and let the hospital's own proxy, with its log-in, forward "
            "to it"
        )
    _check_names(hosts)
    token = None if token_file is None else read_token(token_file)
    names, tls = [*OWN, *hosts], None
    if certificate is not None and key is not None:
        tls = _context(certificate, key)
        names += _names(certificate)
    names += [] if is_wildcard(wanted.host) else [wanted.host, str(place[0])]
    opened = _bound(wanted, family, place)
    shown = Address(wanted.host, opened.getsockname()[1])
    url = f"{'http' if tls is None else 'https'}://{shown}"
    return Listening(opened, url, tuple(dict.fromkeys(names)), token, tls)


def read_token(path: Path) -> str:
    """Return the token in a file that its owner alone can read.

    Raises:
        ConfigError: it cannot be read, others can read it, or it holds no token.
    """
    shown = clean(str(path))
    _check_own(path, "--token-file")
    text = read_bounded(path, what="--token-file").decode(errors="replace").strip()
    if not _TOKEN.fullmatch(text):
        raise ConfigError(
            f"--token-file: '{shown}' must hold one line of 32 to 512 letters, digits or signs; make it with: "
            f"{MAKE_TOKEN}"
        )
    return text


def _check_names(hosts: Sequence[str]) -> None:
    for host in hosts:
        if not (is_ip(host) or _NAME.fullmatch(host)):
            raise ConfigError(f"--host: must be a name or an address without a port, got '{clean(host, 100)}'")


def _check_own(path: Path, option: str) -> None:
    shown = clean(str(path))
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"{option}: cannot read '{shown}': {error.strerror or error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{option}: '{shown}' is no file")
    if status.st_mode & 0o077:
        raise ConfigError(
            f"{option}: '{shown}' has mode {stat.S_IMODE(status.st_mode):04o}, so others than its owner may read it; "
            f"run: chmod 600 {shown}"
        )


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    _check_own(key, "--key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as error:
        raise ConfigError(
            f"--certificate '{clean(str(certificate))}' and --key '{clean(str(key))}' are no certificate (PEM) and its "
            "key without a password, or not of each other"
        ) from error
    except OSError as error:
        where = clean(str(error.filename or certificate))
        raise ConfigError(f"--certificate: cannot read '{where}': {error.strerror or error}") from error
    return context


def _names(certificate: Path) -> list[str]:
    who = f"--certificate '{clean(str(certificate))}'"
    try:
        with parsing(who, "a certificate (PEM)"):
            return certificate_hosts(certificate.read_bytes())
    except x509.ExtensionNotFound as error:
        raise ConfigError(f"{who} names no host (subjectAltName), so no program would accept it") from error


def _resolved(wanted: Address) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    try:
        found = socket.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--address: '{clean(wanted.host)}' cannot be resolved: {reason}") from error
    # IPv4 first: "localhost" resolves to both, and a client of 127.0.0.1 must reach it.
    family, _, _, _, place = min(found, key=lambda item: item[0] != socket.AF_INET)
    return family, place


def _bound(wanted: Address, family: socket.AddressFamily, place: tuple[Any, ...]) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(place)
        opened.listen(128)
    except OSError as error:
        opened.close()
        raise PortInUse(
            f"--address: port {wanted.port} on {wanted.host} cannot be used ({error.strerror or error}); choose "
            "another, or stop what uses it"
        ) from error
    return opened
