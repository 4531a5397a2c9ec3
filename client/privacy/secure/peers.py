"""The keys of a study's sites, in `peers.json` beside `site.toml`: people have checked them, and no server adds one.

`consilium site accept` writes the file from the bundle, and shows whose keys they are.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from consilium.common.errors import ConfigError
from consilium.common.host.files import write_atomically
from consilium.common.host.keys import UNREADABLE, accepted_key
from consilium.common.study.names import check_site_name

MAX_BYTES = 1_000_000


def write_peers(path: Path, keys: Mapping[str, str]) -> None:
    """Write the keys of a study's sites, each as a line in OpenSSH form.

    Raises:
        StateError: the folder cannot be written.
    """
    write_atomically(path, json.dumps(dict(sorted(keys.items())), indent=1).encode() + b"\n")


def read_peers(path: Path, *, site: str) -> dict[str, ec.EllipticCurvePublicKey]:
    """Return the public keys of a study's sites, by their names.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(MAX_BYTES))
    except FileNotFoundError:
        raise ConfigError(
            f"site '{site}': this study sums updates so that the server sees none, which takes the other sites' keys, "
            f"and '{path.name}' is not there: ask the coordinator for a bundle with the keys of all sites, accept it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"site '{site}': cannot read '{path}': {error}; accept the bundle again") from error
    if not isinstance(values, dict):
        raise ConfigError(f"site '{site}': '{path}' holds no keys of sites by name; accept the bundle again")
    return {name: peer_key(name, line, who=str(path)) for name, line in values.items()}


def peer_key(name: str, line: object, *, who: str) -> ec.EllipticCurvePublicKey:
    """Return a site's key from its line in OpenSSH form.

    Raises:
        ConfigError: the name is none, or the line holds something else.
    """
    check_site_name(name, what=f"{who}: a site's name")
    try:
        key = load_ssh_public_key(str(line).encode())
    except UNREADABLE as error:
        raise ConfigError(f"{who}: the key of site '{name}' is not a public key in OpenSSH form: {error}") from error
    return accepted_key(key, who=f"{who}: site '{name}'")
