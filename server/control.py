"""The coordinator's side of a running server: approve sites, submit a run, ask for its status.

Flower's Control API over HTTPS on the loopback interface. The bundle that is submitted holds no code:
its `pyproject.toml` names the apps that are installed at the server and at the sites.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes

from common.config import StudyConfig
from common.errors import ConfigError, ConnectionRefused
from common.identity import fingerprint, read_public_key
from common.program import BUNDLE_FILES
from server.superlink import ServerHome


@dataclass(frozen=True)
class ApprovedSite:
    """A key that the server knows, under a site's name.

    Args:
        status: `registered` (never connected), `online`, `offline`, or `unregistered` (revoked).
        since: when the key was approved.
        revoked: when it was revoked; empty while it is not.
    """

    name: str
    status: str
    fingerprint: str
    since: str
    revoked: str
    node_id: int


class Control:
    """A connection to a running server's Control API; use as a context manager."""

    def __init__(self, home: ServerHome) -> None:
        address = home.address()
        self._address = address.control
        self._client: Any = ControlHttpClient.from_server_address(
            server_address=address.control,
            insecure=False,
            root_certificates=home.ca.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-cli")],
        )

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def approve(self, public_key: Path, *, name: str) -> None:
        """Let the site with this public key take part, under a name.

        Raises:
            ConfigError: the file is not an EC public key, or the key or name is already known.
            ConnectionRefused: the server does not answer.
        """
        self._check_new(public_key, name, known=self.approvals())
        self._register(public_key, name)

    def rotate(self, public_key: Path, *, name: str) -> None:
        """Approve a site's new public key and revoke the old one.

        Raises:
            ConfigError: the file is not an EC public key, the key is already known, or the site is not.
            ConnectionRefused: the server does not answer.
        """
        known = self.approvals()
        old = [site for site in known if site.name == name and not site.revoked]
        if not old:
            raise ConfigError(f"site '{name}' is not approved, so there is no key to replace; approve it instead")
        self._check_new(public_key, name, known=[site for site in known if site not in old or _same(site, public_key)])
        self._register(public_key, name)  # first: a key that is refused must not leave the site without one
        self._unregister(old)

    def revoke(self, name: str) -> None:
        """Refuse a site's key from now on; it can never be approved again.

        Raises:
            ConfigError: no such site.
            ConnectionRefused: the server does not answer.
        """
        approved = [site for site in self.approvals() if site.name == name and not site.revoked]
        if not approved:
            raise ConfigError(f"site '{name}' is not approved; 'consilium server sites' lists who is")
        self._unregister(approved)

    def sites(self) -> dict[str, str]:
        """Return the approved sites: name -> status (`online`, `offline`, `registered`)."""
        return {site.name: site.status for site in self.approvals() if not site.revoked}

    def approvals(self) -> list[ApprovedSite]:
        """Return every key the server ever approved, the revoked ones too, in the order of approval."""
        with self._sentences():
            nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
        return sorted((_approved_site(node) for node in nodes), key=lambda site: site.since)

    def _check_new(self, public_key: Path, name: str, *, known: list[ApprovedSite]) -> None:
        """Refuse what Flower would take: it lets two keys have one name, and says little of a known key."""
        seen = fingerprint(read_public_key(public_key))
        for site in known:
            if site.fingerprint == seen and site.revoked:
                raise ConfigError(
                    f"the server refused: the key '{public_key}' ({seen}) of site '{site.name}' was revoked and cannot "
                    "be approved again; the site makes a new one with 'consilium site rotate-key'"
                )
            if site.fingerprint == seen:
                raise ConfigError(
                    f"the server refused: the key '{public_key}' ({seen}) is already approved as site '{site.name}'"
                )
            if site.name == name and not site.revoked:
                raise ConfigError(
                    f"the server refused: site '{name}' is already approved with another key ({site.fingerprint}); "
                    "'consilium server rotate' replaces it"
                )

    def _register(self, public_key: Path, name: str) -> None:
        key = public_key_to_bytes(read_public_key(public_key))
        with self._sentences():
            self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))

    def _unregister(self, sites: list[ApprovedSite]) -> None:
        with self._sentences():
            for site in sites:
                self._client.UnregisterNode(UnregisterNodeRequest(node_id=site.node_id))

    def connections(self) -> dict[str, tuple[bool, float | None]]:
        """Return of each approved site: name -> (is it connected?, Unix time when it last was; None if never)."""
        with self._sentences():
            answer = self._client.ListNodes(ListNodesRequest())
        now = datetime.fromisoformat(answer.now).timestamp()
        seen: dict[str, tuple[bool, float | None]] = {}
        for node in answer.nodes_info:
            if node.status != "unregistered":
                online = node.status == "online"
                last = now if online else node.online_until or None
                before = seen.get(node.name, (False, None))  # while its key is replaced, a site has two
                seen[node.name] = (online or before[0], max(last or 0.0, before[1] or 0.0) or None)
        return seen

    def submit(self, study: StudyConfig, *, folder: Path) -> int:
        """Start a run of `study` that writes into `folder` on the server's machine; return Flower's run id."""
        content, _ = build_fab_from_files(dict(BUNDLE_FILES))

        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        settings: dict[str, bool | float | int | str] = {
            "study": study.model_dump_json(),
            "folder": str(folder.resolve()),
        }
        request = StartRunRequest(
            fab=fab_to_proto(fab), override_config=user_config_to_proto(settings), federation="", app_spec=""
        )
        with self._sentences():
            return int(self._client.StartRun(request).run_id)

    def status(self, run_id: int) -> tuple[str, str]:
        """Return a run's status (`pending`, `starting`, `running`, `finished`) and details."""
        with self._sentences():
            run = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id]
            return run.status.status, run.status.details

    def stop(self, run_id: int) -> None:
        """Stop a run."""
        with self._sentences():
            self._client.StopRun(StopRunRequest(run_id=run_id))

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            raise ConfigError(f"the server refused: {_detail(error.response)}") from error
        except httpx.HTTPError as error:
            raise ConnectionRefused(f"the server's control address {self._address} does not answer: {error}") from error


def _detail(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return f"HTTP {response.status_code}"
    if isinstance(body, dict):
        return str(body.get("message") or body.get("detail") or body)
    return str(body)


def _approved_site(node: Any) -> ApprovedSite:
    return ApprovedSite(
        name=node.name,
        status=node.status,
        fingerprint=fingerprint(bytes_to_public_key(node.public_key)),
        since=node.registered_at,
        revoked=node.unregistered_at,
        node_id=node.node_id,
    )


def _same(site: ApprovedSite, public_key: Path) -> bool:
    return site.fingerprint == fingerprint(read_public_key(public_key))
