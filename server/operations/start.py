"""The server's long-lived process: the wire that sites connect to, the coordinator's socket, and the runs.

Only the wire faces the network, and only callers with a certificate from this server's own authority get past its TLS
handshake.
"""

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import grpc

from consilium.common.errors import PortInUse
from consilium.common.events.enrolment import TokenMade, TokenRevoked
from consilium.common.events.log import EventLog
from consilium.common.host.address import check_apart, parse_address
from consilium.common.host.files import only_one, sweep
from consilium.common.host.memory import share_memory
from consilium.common.host.ports import check_port_free
from consilium.common.host.signing_requests import read_signing_request
from consilium.common.wire.limits import CONNECT_SECONDS, MAX_WIRE_BYTES, PING_OPTIONS, PING_SECONDS, REVOKED
from consilium.server.operations.home import ServerAddress, ServerHome
from consilium.server.operations.pages import exporting
from consilium.server.wire import enrolment
from consilium.server.wire.enrolment import Enrolment
from consilium.server.wire.groups import Groups
from consilium.server.wire.registry import Registry
from consilium.server.wire.runs import Runs, run_environment
from consilium.server.wire.service import Wire
from consilium.server.wire.submission import as_values, listen

log = logging.getLogger(__name__)

WINDOW_BYTES = 2**21
"""How much of an upload may be on its way before it is read; gRPC's own limit would be 16 MB per connection."""
_GRPC = {
    "grpc.max_concurrent_streams": 8,
    "grpc.max_receive_message_length": MAX_WIRE_BYTES,
    "grpc.max_metadata_size": 8192,
    "grpc.so_reuseport": 0,
    **PING_OPTIONS,
    "grpc.http2.min_ping_interval_without_data_ms": int(500 * PING_SECONDS),
    "grpc.http2.max_ping_strikes": 3,
    "grpc.http2.bdp_probe": 0,
    "grpc.http2.lookahead_bytes": WINDOW_BYTES,
    "grpc.max_connection_idle_ms": 60_000,
    "grpc.server_handshake_timeout_ms": int(1000 * CONNECT_SECONDS),
}
"""Limits of every connection, in force before any of our code runs."""


def start_server(
    home: ServerHome,
    *,
    address: str,
    hosts: Sequence[str],
    metrics: str | None = None,
    beside: Callable[[Wire], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """Run a server until it is stopped (SIGINT or SIGTERM).

    Args:
        address: `host:port` on which sites connect.
        hosts: names and addresses in the server's certificate.
        metrics: `host:port` of the pages for monitoring; none without it.
        beside: what runs beside it for as long, and ends it by an error.

    Raises:
        PortInUse: the port is taken.
        ConfigError: an address is not `host:port`, or both have the same port.
        StateError: the home cannot be used, or another server runs in it.
    """
    sites = parse_address(address, what="--address")
    if metrics:
        check_apart(("--address", sites), ("--metrics", parse_address(metrics, what="--metrics")))
    check_port_free(sites, what="the address for the sites (--address)")
    home.prepare(hosts)
    _raise_file_limit()
    share_memory()
    with only_one(home.path / ".lock", otherwise=f"another server runs in '{home.path}'; stop that one first"):
        sweep(home.path)
        asyncio.run(_Server(home, address).run(metrics, beside))


def _raise_file_limit() -> None:
    """Raise this process's limit of open files, since every connected site takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _first_of(*each: Coroutine[Any, Any, object]) -> None:
    """Wait until one of these ends, and end the others; raises what it raised."""
    tasks = [asyncio.ensure_future(one) for one in each]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Server:
    """The parts of the server's process."""

    def __init__(self, home: ServerHome, address: str) -> None:
        self._home, self._address = home, address
        self._registry = Registry(home.path)
        self._authorities = home.ca.read_bytes()
        self._groups = Groups(home.path, self._registry)
        self._enrolments = EventLog(home.path / enrolment.FILE)
        enrolling = Enrolment(self._groups, self._enrolments, lambda: self._authorities)
        self._wire = Wire(self._registry, enrolling, authorities=lambda: self._authorities)
        self._certificates_changed = self._ready = False

    async def run(self, metrics: str | None, beside: Callable[[Wire], Coroutine[Any, Any, None]] | None = None) -> None:
        """Serve until a signal comes, or what runs beside it fails."""
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        self._runs = Runs(
            self._wire,
            file=self._home.path / "runs.json",
            payloads=self._home.objects,
            journal=self._home.journal,
            environment=run_environment(self._home.journal, self._home.path),
            spare=beside is None,
        )
        with ExitStack() as stack:
            if metrics:
                stack.enter_context(exporting(self._home, metrics, state=self))
            server = await self._listen()
            self._runs.resume()  # before the socket answers: a run that is submitted then must not be resumed
            control = await listen(self._home.control, self._handlers())
            sweeping = loop.create_task(self._wire.sweep())
            self._home.listening(ServerAddress(sites=self._address, pid=os.getpid()))
            self._ready = True
            log.info("server started address=%s metrics=%s; stop it with Ctrl-C", self._address, metrics or "none")
            try:
                await _first_of(stopped.wait(), *([beside(self._wire)] if beside else []))
            finally:
                self._home.stopped()
                control.close()
                self._home.control.unlink(missing_ok=True)
                sweeping.cancel()
                await self._runs.close()
                await self._wire.stop()
                await server.stop(grace=1)
                self._registry.close()

    async def _listen(self) -> Any:
        server = grpc.aio.server(options=list(_GRPC.items()))
        server.add_generic_rpc_handlers((self._wire.handlers(),))
        credentials = grpc.dynamic_ssl_server_credentials(
            self._certificates(),
            self._new_certificates,  # type: ignore[arg-type]  # None, for nothing new, is what grpc documents
            require_client_authentication=True,
        )
        try:
            bound = server.add_secure_port(self._address, credentials)
        except RuntimeError as error:
            raise PortInUse(f"the address for the sites (--address): cannot listen on {self._address}") from error
        if not bound:
            raise PortInUse(f"the address for the sites (--address): cannot listen on {self._address}")
        await server.start()
        return server

    def _certificates(self) -> grpc.ServerCertificateConfiguration:
        """Return the certificates for the next TLS handshakes: the server's own, and the authorities of sites."""
        chain = (self._home.key.read_bytes(), self._home.certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([chain], root_certificates=self._authorities)

    def _new_certificates(self) -> grpc.ServerCertificateConfiguration | None:
        if not self._certificates_changed:
            return None
        self._certificates_changed = False
        return self._certificates()

    # --- what the pages show --------------------------------------------------------------------

    def connections(self) -> dict[str, tuple[bool, float | None, float]]:
        """Return of each approved site: is it connected, when it last was, when its certificate ends."""
        online = frozenset(self._wire.streams.names())
        return {
            site.name: (
                site.name in online,
                time.time() if site.name in online else site.last_seen,
                datetime.fromisoformat(site.ends).timestamp(),
            )
            for site in self._registry.approvals()
            if not site.revoked
        }

    def is_ready(self) -> bool:
        """Return whether sites can connect."""
        return self._ready

    def uploads(self) -> tuple[int, int]:
        """Return how many payloads are on their way, and how many wait for their turn."""
        return self._wire.turns.active, self._wire.turns.waiting

    # --- what the coordinator asks --------------------------------------------------------------

    def _handlers(self) -> dict[str, Any]:
        names = (
            *("approve", "rotate", "revoke", "approvals", "sites", "new_ca", "retire_ca", "submit", "runs", "stop"),
            *("open_group", "revoke_group", "groups"),
        )
        return {name: getattr(self, f"_do_{name}") for name in names}

    async def _do_open_group(self, request: dict[str, Any]) -> list[str]:
        wanted, devices = read_signing_request(str(request["request"]).encode()), int(request["devices"])
        certificate, ends = self._groups.open(
            wanted,
            study=str(request["study"]),
            devices=devices,
            days=int(request["days"]),
            rotate=bool(request["rotate"]),
        )
        self._enrolments.log(
            TokenMade(
                study=str(request["study"]),
                group=wanted.name,
                fingerprint=wanted.fingerprint,
                devices=devices,
                ends=ends,
            )
        )
        return [certificate.decode(), ends]

    async def _do_revoke_group(self, request: dict[str, Any]) -> None:
        token = self._groups.revoke(str(request["name"]))
        self._enrolments.log(TokenRevoked(study=token.study, group=token.group, fingerprint=token.fingerprint))

    async def _do_groups(self, _: dict[str, Any]) -> list[dict[str, Any]]:
        return as_values(self._groups.states())

    async def _do_approve(self, request: dict[str, Any]) -> str:
        wanted = read_signing_request(str(request["request"]).encode())
        self._groups.check_site(str(request["name"]))
        return self._registry.approve(wanted, name=str(request["name"])).decode()

    async def _do_rotate(self, request: dict[str, Any]) -> str:
        wanted = read_signing_request(str(request["request"]).encode())
        certificate, revoked = self._registry.rotate(wanted, name=str(request["name"]))
        self._wire.dismiss([revoked], reason=REVOKED, text="this site's key was replaced by a new one")
        return certificate.decode()

    async def _do_revoke(self, request: dict[str, Any]) -> None:
        revoked = self._registry.revoke(str(request["name"]))
        self._wire.dismiss(revoked, reason=REVOKED, text="the coordinator has revoked this site's key")
        self._wire.give_up(str(request["name"]), why="was revoked")

    async def _do_approvals(self, _: dict[str, Any]) -> list[dict[str, Any]]:
        return as_values(self._registry.approvals())

    async def _do_sites(self, _: dict[str, Any]) -> dict[str, str]:
        known = self.connections().items()
        return {name: "online" if on else "offline" if last else "registered" for name, (on, last, _) in known}

    async def _do_new_ca(self, _: dict[str, Any]) -> None:
        self._registry.add_authority()
        self._reload_authorities()

    async def _do_retire_ca(self, request: dict[str, Any]) -> list[str]:
        if not (force := bool(request.get("force"))):
            self._groups.check_authorities()
        behind = self._registry.retire_authorities(force=force)
        self._reload_authorities()
        return behind

    def _reload_authorities(self) -> None:
        self._authorities = self._home.ca.read_bytes()
        self._certificates_changed = True
        self._wire.spread_authorities()

    async def _do_submit(self, request: dict[str, Any]) -> str:
        if text := request["job"].get("study"):  # a Flower app has none
            study = json.loads(text)
            groups = [(str(group["name"]), int(group["cohort"])) for group in study.get("groups", ())]
            self._groups.check_study(groups, study=str(study["name"]))
        return self._runs.submit(request["job"], title=str(request["title"]))

    async def _do_runs(self, _: dict[str, Any]) -> list[dict[str, Any]]:
        return as_values(self._runs.entries())

    async def _do_stop(self, request: dict[str, Any]) -> None:
        await self._runs.stop(str(request["name"]))
