"""The program of a relay: a server to its leaves, and beside it one connection to the study's server, as a site has."""

import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from consilium.client.process.attending import answer_orders
from consilium.client.process.supervisor import Worker
from consilium.client.wire.connection import Connection
from consilium.client.wire.place import Place
from consilium.relay.folder import RelayFolder, check_relay, place_of_relay
from consilium.relay.worker import LEAVES_VARIABLE
from consilium.server.operations.home import ServerHome
from consilium.server.operations.start import start_server
from consilium.server.wire.registry import FILE, read_entries
from consilium.server.wire.run_port import RunPort
from consilium.server.wire.service import Wire

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "consilium.relay.worker")
PAYLOADS = "relay"
"""Folder of the home's `objects` for payloads on their way between this relay and its leaves."""


def start_relay(folder: RelayFolder, *, address: str, hosts: Sequence[str], metrics: str | None = None) -> None:
    """Run a relay until it is stopped (SIGINT or SIGTERM).

    Args:
        address: `host:port` on which its leaves connect.
        hosts: names and addresses in the certificate that it shows them.
        metrics: `host:port` of the pages for monitoring; none without it.

    Raises:
        ConfigError: its settings, study or files are wrong, or an address is.
        PortInUse: the port is taken.
        StateError: the home cannot be used, or another relay runs in it.
    """
    config, study = check_relay(folder)
    home, leaves = ServerHome(config.home), study.relays[config.name]
    known = {entry.name for entry in read_entries(home.path / FILE).values() if not entry.revoked}
    if missing := [leaf for leaf in leaves if leaf not in known]:
        log.warning(
            "%d of the %d sites of this relay are not approved yet (%s): 'consilium server approve site.csr --name "
            "NAME --study %s --home %s' lets each take part",
            *(len(missing), len(leaves), ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")),
            *(folder.study, config.home),
        )
    beside = partial(attend, place_of_relay(config, folder.settings), home)
    start_server(home, address=address, hosts=hosts, metrics=metrics, beside=beside)


async def attend(place: Place, home: ServerHome, wire: Wire) -> None:
    """Attend at the study's server and answer its orders until cancelled.

    Raises:
        ConnectionRefused: this relay's key was revoked.
        RunFailed: the process that computes dies again and again.
    """
    async with _reaching_leaves(home, wire) as socket:
        os.environ[LEAVES_VARIABLE] = socket
        worker = Worker(str(place.settings), command=COMMAND)
        connection = Connection(place, worker)
        gone = "the relay's process that computes ends again and again; its log says why"
        await answer_orders(connection, worker, gone=gone)


@asynccontextmanager
async def _reaching_leaves(home: ServerHome, wire: Wire) -> AsyncIterator[str]:
    """Offer a socket, for this user alone, on which the process that computes reaches the leaves; yields its path."""
    payloads = home.objects / PAYLOADS
    payloads.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = RunPort(wire, payloads, reader, writer)
        port.start(str(payloads))
        await port.serve()

    with tempfile.TemporaryDirectory(prefix="consilium-") as folder:  # of mode 0700, and short enough for a socket
        path = str(Path(folder) / "leaves")
        server = await asyncio.start_unix_server(serve, path)
        try:
            yield path
        finally:
            server.close()
