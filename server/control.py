"""The coordinator's side of a running server: approve sites, submit a run, ask for its status.

Flower's Control API over HTTPS on the loopback interface. The bundle that is submitted holds no code:
its `pyproject.toml` names the apps that are installed at the server and at the sites.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

import common
from common.config import StudyConfig
from common.errors import ConfigError, ConnectionRefused
from server.superlink import ServerHome

_BUNDLE = """\
[project]
name = "consilium"
version = "{version}"
description = "The apps installed at server and sites; this bundle holds no code."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "consilium"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
study = ""
folder = ""
transport = "grpc"
tls = true
"""


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
        with self._sentences():
            self._client.RegisterNode(RegisterNodeRequest(public_key=_read_key(public_key), name=name))

    def sites(self) -> dict[str, str]:
        """Return the approved sites: name -> status (`online`, `offline`, `registered`)."""
        with self._sentences():
            return {node.name: node.status for node in self._client.ListNodes(ListNodesRequest()).nodes_info}

    def submit(self, study: StudyConfig, *, folder: Path) -> int:
        """Start a run of `study` that writes into `folder` on the server's machine; return Flower's run id."""
        content, _ = build_fab_from_files({"pyproject.toml": _BUNDLE.format(version=common.__version__).encode()})

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


def _read_key(path: Path) -> bytes:
    try:
        key = load_ssh_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read public key '{path}': {error.strerror or error}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"'{path}' is not a public key in OpenSSH form: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(
            f"'{path}' is a {type(key).__name__}, expected an EC public key (consilium site init makes one)"
        )
    return public_key_to_bytes(key)
