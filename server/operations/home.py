"""The folder of one server: certificates and keys, the register of sites, and where the running server listens."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from consilium.common.errors import ConnectionRefused, StateError
from consilium.common.host.files import write_atomically
from consilium.common.host.study_key import make_study_key
from consilium.server.operations.authority import make_server_identity


@dataclass(frozen=True)
class ServerAddress:
    """Where a server listens for sites (`host:port`), and its process."""

    sites: str
    pid: int


@dataclass(frozen=True)
class ServerHome:
    """The folder of one server."""

    path: Path

    def prepare(self, hosts: Sequence[str]) -> None:
        """Make the folder (owner only), the certificates and the study's key where they are missing.

        Args:
            hosts: names and addresses in the server's certificate.

        Raises:
            ConfigError: one of `hosts` cannot stand in a certificate, or `study.key` is something else.
            StateError: the folder is unwritable, or the authority in it is damaged.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise StateError(f"cannot make the server's folder '{self.path}': {error.strerror or error}") from error
        if not (self.certificate.exists() and self.key.exists()):
            make_server_identity(self.path, hosts=hosts)
        make_study_key(self.path)

    @property
    def ca(self) -> Path:
        """The certificates that sites trust, the newest first."""
        return self.path / "ca.pem"

    @property
    def certificate(self) -> Path:
        """The server's own certificate."""
        return self.path / "server.pem"

    @property
    def key(self) -> Path:
        """The key of the server's certificate."""
        return self.path / "server.key"

    @property
    def study_key(self) -> Path:
        """The key that signs orders."""
        return self.path / "study.key"

    @property
    def study_public(self) -> Path:
        """The key that sites check orders with."""
        return self.path / "study.pub"

    @property
    def journal(self) -> Path:
        """The event log of all runs, from which the metrics are computed."""
        return self.path / "journal.jsonl"

    @property
    def objects(self) -> Path:
        """The payloads that are under way between runs and sites."""
        return self.path / "objects"

    @property
    def control(self) -> Path:
        """The socket on which the coordinator's commands reach the running server."""
        return self.path / "control.sock"

    def listening(self, address: ServerAddress) -> None:
        """Note where the server listens now.

        Raises:
            StateError: the folder is unwritable.
        """
        write_atomically(self._address, json.dumps({"sites": address.sites, "pid": address.pid}).encode())

    def stopped(self) -> None:
        """Forget where the server listened."""
        self._address.unlink(missing_ok=True)

    def address(self) -> ServerAddress:
        """Return where the running server listens.

        Raises:
            ConnectionRefused: no server runs in this folder.
            StateError: the file that says so is damaged.
        """
        try:
            values = json.loads(self._address.read_text(encoding="utf-8"))
            return ServerAddress(sites=str(values["sites"]), pid=int(values["pid"]))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConnectionRefused(
                f"no server runs in '{self.path}'; start one with 'consilium server start'"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise StateError(
                f"'{self._address}' does not say where the server listens; start the server again"
            ) from error

    @property
    def _address(self) -> Path:
        return self.path / "server.json"
