"""The settings that a site's connection needs: names and files, as plain values that need no other package."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from consilium.common.host.address import parse_address


@dataclass(frozen=True)
class Place:
    """A site's settings for the process that talks to the server.

    Args:
        server: `host:port`.
        authorities, certificate, key: files of the certificates that it trusts, of its own, and of its private key.
        study_key: the file of the key that signs orders.
        settings: its `site.toml`.
        log: its event log.
        worker: a command that starts the worker, as its words; none: a child of this process.
        metrics: `host:port` of its pages for monitoring; empty for none.
    """

    name: str
    server: str
    authorities: Path
    certificate: Path
    key: Path
    study_key: Path
    settings: Path
    log: Path
    threads: int = 1
    memory_mb: int | None = None
    worker: tuple[str, ...] = ()
    metrics: str = ""

    def to_json(self) -> str:
        """Return the settings as text, for the command line of that process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "Place":
        """Return the settings that `to_json` wrote."""
        values = json.loads(text)
        names = ("authorities", "certificate", "key", "study_key", "settings", "log")
        paths = {name: Path(values[name]) for name in names}
        return cls(**{**values, **paths, "worker": tuple(values["worker"])})

    @property
    def host(self) -> str:
        """The server's name or address, without brackets."""
        return parse_address(self.server, what="server").host

    @property
    def port(self) -> int:
        """The server's port."""
        return parse_address(self.server, what="server").port
