"""The sites' own keys as the register has them, for other processes than the server's: they verify audit logs."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from consilium.server.wire.registry import FILE, read_entries

HOME_VARIABLE = "CONSILIUM_HOME"
"""Environment variable with the path of the server's home, for the processes of its runs."""


def approved_keys(home: Path) -> dict[str, ec.EllipticCurvePublicKey]:
    """Return the key of each site that is approved now, as the file has it; for other processes than the server's.

    Raises:
        StateError: the file is damaged.
    """
    lines = {entry.name: entry.key for entry in read_entries(home / FILE).values() if not entry.revoked}
    return dict(zip(lines, keys_of_lines(lines.values()), strict=True))


def keys_of_lines(lines: Iterable[str]) -> Iterator[ec.EllipticCurvePublicKey]:
    """Yield the keys that the register has as lines in OpenSSH form."""
    for line in lines:
        key = serialization.load_ssh_public_key(line.encode())
        assert isinstance(key, ec.EllipticCurvePublicKey)  # `approve` took it
        yield key


def known_keys(home: Path) -> dict[str, frozenset[str]]:
    """Return all keys that each site was ever approved with, the revoked ones too, in OpenSSH form.

    Raises:
        StateError: the file is damaged.
    """
    keys: dict[str, frozenset[str]] = {}
    for entry in read_entries(home / FILE).values():
        keys[entry.name] = keys.get(entry.name, frozenset()) | {entry.key}
    return keys
