"""The coordinator's socket: approve sites, submit runs, ask for their state; for the server's own user only.

A Unix socket of mode 0600 in the server's home, one request (a line of JSON) and one answer per connection. In
addition to the mode, the server asks the kernel for the user at the other end.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from consilium.common.errors import ConfigError, ConnectionRefused, ConsiliumError, StateError, error_named
from consilium.common.study.study import StudyConfig
from consilium.server.operations.home import ServerHome
from consilium.server.wire.groups import GroupState
from consilium.server.wire.registry import Approval
from consilium.server.wire.runs import RunEntry

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 64 * 2**20
REQUEST_SECONDS = 10.0
ANSWER_SECONDS = 60.0
_STRANGERS_BYTES, _STRANGERS_SECONDS = 65_536, 1.0
_CREDENTIALS = struct.Struct("3i")

Handler = Callable[[dict[str, Any]], Awaitable[Any]]


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield a name of a socket that is short enough for the system: through the folder's descriptor, on Linux."""
    if len(os.fsencode(path)) < 100 or not Path("/proc/self/fd").is_dir():
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


async def listen(path: Path, handlers: Mapping[str, Handler]) -> asyncio.Server:
    """Answer requests on the socket at `path`.

    Raises:
        StateError: the socket cannot be made, or another server answers on it.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError, TimeoutError):
            answer = await _answer(reader, writer, handlers)
            writer.write(json.dumps(answer).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), REQUEST_SECONDS)
        writer.close()

    try:
        with _short(path) as name:
            if _is_answered(name):
                raise StateError(f"another server runs in '{path.parent}'; stop it, or choose another --home")
            Path(name).unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                plain.bind(name)
            finally:
                os.umask(before)
        return await asyncio.start_unix_server(serve, sock=plain, limit=MAX_REQUEST_BYTES)
    except OSError as error:
        raise StateError(f"cannot make the socket '{path}': {error.strerror or error}") from error


def _is_answered(name: str) -> bool:
    """Return whether a process listens on a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(name)
        except TimeoutError:
            return True
        except OSError:
            return False
    return True


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handlers: Mapping[str, Handler]
) -> dict[str, Any]:
    if (user := _user_of(writer.get_extra_info("socket"))) not in (os.getuid(), 0):
        log.warning("a request of another user was refused uid=%d", user)
        with contextlib.suppress(TimeoutError, OSError):  # or it would not get to read the answer
            await asyncio.wait_for(reader.read(_STRANGERS_BYTES), _STRANGERS_SECONDS)
        return {"error": "ConnectionRefused", "message": f"this server belongs to another user (uid {os.getuid()})"}
    line = await asyncio.wait_for(reader.readline(), REQUEST_SECONDS)
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    handler = handlers.get(str(request.get("do"))) if isinstance(request, dict) else None
    if handler is None:
        return {"error": "ConfigError", "message": "the server does not know this request: is it of another release?"}
    try:
        return {"answer": await handler(request)}
    except ConsiliumError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception as error:
        log.exception("request failed do=%s", request.get("do"))
        return {"error": "ConsiliumError", "message": f"unexpected {type(error).__name__}; the server's log says more"}


def _user_of(connection: socket.socket) -> int:
    """Return the uid of the process at the other end, from the kernel; our own where the system has no such call."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.getuid()  # the socket's mode keeps others out
    content = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(content)[1])


class Control:
    """Requests to a running server; use as a context manager."""

    def __init__(self, home: ServerHome) -> None:
        home.address()  # a sentence where no server runs
        self._path = home.control

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is kept open between requests."""

    def approve(self, request: Path, *, name: str) -> bytes:
        """Let the site with this signing request take part, under a name; return its certificate (PEM).

        Raises:
            ConfigError: the file is no such request, or the key or name is already known.
            ConnectionRefused: the server does not answer.
        """
        return str(self._ask("approve", request=_read(request), name=name)).encode()

    def rotate(self, request: Path, *, name: str) -> bytes:
        """Approve a site's new key and revoke the old one; return the new certificate (PEM).

        Raises:
            ConfigError: the file is no such request, the key is already known, or the site is not.
        """
        return str(self._ask("rotate", request=_read(request), name=name)).encode()

    def revoke(self, name: str) -> None:
        """Refuse a site's key from now on; it can never be approved again.

        Raises:
            ConfigError: no such site.
        """
        self._ask("revoke", name=name)

    def open_group(
        self, request: bytes, *, study: str, devices: int, days: int, rotate: bool = False
    ) -> tuple[bytes, str]:
        """Let devices enrol in a group by the token whose key signed a request (PEM).

        Args:
            request: for the name of the group.
            devices: how many the group may have.
            days: how long the token is valid.
            rotate: replace the group's token.

        Returns:
            The certificate (PEM) of the token's key, and until when devices may enrol, ISO 8601 in UTC.

        Raises:
            ConfigError: the group is another study's, or has a token already, or the limits cannot be.
        """
        limits = {"devices": devices, "days": days, "rotate": rotate}
        certificate, ends = self._ask("open_group", request=request.decode("ascii"), study=study, **limits)
        return str(certificate).encode(), str(ends)

    def revoke_group(self, name: str) -> None:
        """Let no further device enrol by a group's token; those that are enrolled stay.

        Raises:
            ConfigError: the group has no valid token.
        """
        self._ask("revoke_group", name=name)

    def groups(self) -> list[GroupState]:
        """Return every group that ever had a token, in the order of names."""
        return [GroupState(**values) for values in self._ask("groups")]

    def approvals(self) -> list[Approval]:
        """Return every key the server ever approved, the revoked ones too, in the order of approval."""
        return [Approval(**values) for values in self._ask("approvals")]

    def sites(self) -> dict[str, str]:
        """Return the approved sites: name -> `registered` (never connected), `online` or `offline`."""
        return dict(self._ask("sites"))

    def new_ca(self) -> None:
        """Make a new certificate authority; the one in use stays trusted."""
        self._ask("new_ca")

    def retire_ca(self, *, force: bool = False) -> None:
        """Stop trusting the older authorities.

        Raises:
            ConfigError: sites that have no certificate of the new one yet, by name.
        """
        self._ask("retire_ca", force=force)

    def submit(self, study: StudyConfig, *, folder: Path, update: bool = False) -> str:
        """Start a run of `study` that writes into `folder` on the server's machine; return the run's name.

        Args:
            update: the run has ended, and only asks the sites without a row in its result.
        """
        job = {"kind": "study", "study": study.model_dump_json(), "folder": str(folder.resolve()), "update": update}
        return str(self._ask("submit", job=job, title=study.name))

    def submit_app(self, job: Mapping[str, Any], *, title: str) -> str:
        """Start a run of a Flower app; return the run's name."""
        return str(self._ask("submit", job={"kind": "flower", **job}, title=title))

    def runs(self) -> list[RunEntry]:
        """Return all known runs, the newest last."""
        return [RunEntry(**values) for values in self._ask("runs")]

    def stop(self, name: str) -> None:
        """End a run for good.

        Raises:
            ConfigError: no such run is going on.
        """
        self._ask("stop", name=name)

    def _ask(self, do: str, **fields: Any) -> Any:
        line = json.dumps({"do": do, **fields}).encode() + b"\n"
        try:
            with _short(self._path) as name, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(ANSWER_SECONDS)
                connection.connect(name)
                connection.sendall(line)
                connection.shutdown(socket.SHUT_WR)
                with connection.makefile("rb") as file:
                    answer = json.loads(file.readline())
        except (OSError, ValueError) as error:
            raise ConnectionRefused(
                f"the server does not answer on '{self._path}': {error}; is it running, and as this user?"
            ) from error
        if "error" in answer:
            raise error_named(answer["error"], answer["message"])
        return answer["answer"]


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()[:65_536]
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror or error}") from error
    if not content.isascii() or b"-----BEGIN CERTIFICATE REQUEST-----" not in content:
        raise ConfigError(f"'{path}' is not a signing request: 'consilium site init' makes one (site.csr)")
    return content.decode("ascii")


def as_values(entries: list[Any]) -> list[dict[str, Any]]:
    """Return dataclasses as values that JSON can hold."""
    return [asdict(entry) for entry in entries]
