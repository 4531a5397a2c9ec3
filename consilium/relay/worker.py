"""The process of a relay that computes: takes the server's orders, asks the leaves in orders of its own, adds up.

It alone holds the key that signs orders to the leaves; the process that talks to both sides does not.
"""

import argparse
import logging
import os
import signal
import socket
import time
from collections.abc import Collection
from multiprocessing.connection import Connection
from pathlib import Path

from consilium.client.process.shared_memory import Box
from consilium.client.process.supervisor import ANSWER, ERROR, READY
from consilium.client.process.worker_ends import SharedEnd
from consilium.client.wire.orders import Orders
from consilium.common.codecs import Payload
from consilium.common.errors import ConfigError, ConsiliumError, ProtocolError, clean, listed
from consilium.common.host.logs import start_log
from consilium.common.host.parents import follow_parent
from consilium.common.host.study_key import read_study_key, read_study_public
from consilium.common.protocol.parse import parse_plan
from consilium.common.protocol.plans import RelayPlan
from consilium.common.protocol.replies import FailureReply, Reply
from consilium.common.study.acceptance import compare, ranges_of
from consilium.common.study.load import load_study
from consilium.common.study.study import StudyConfig
from consilium.common.wire.envelope import Order
from consilium.relay.folder import STUDY, RelaySettings, load_relay
from consilium.server.operations.home import ServerHome
from consilium.server.relays.relay import Relay
from consilium.server.study.exchange import Exchange
from consilium.server.study.run_folder import RunFolder
from consilium.server.study.witness import WitnessedExchange
from consilium.server.wire.exchange import WireExchange
from consilium.server.wire.outbox import Numbers, Outbox, Signer
from consilium.server.wire.registry import FILE, read_entries
from consilium.server.wire.run_link import RunLink
from consilium.server.wire.site_keys import approved_keys

log = logging.getLogger(__name__)

LEAVES_VARIABLE = "CONSILIUM_LEAVES"
"""Environment variable with the socket through which this process reaches the leaves."""
RELAYED, NUMBERS = "relayed", "orders"
"""Folder of a relay's home that has a folder for each run, and a file in that: how far its orders are numbered."""
MOST_RUNS = 10_000


class Desk:
    """Answers the server's orders.

    Args:
        settings: the path of the `relay.toml`, beside which the accepted study lies.
        link: reaches the leaves.
        payloads: the folder of payloads on their way to the leaves, shared with the process that talks to them.
    """

    def __init__(self, settings: Path, link: RunLink, payloads: Path) -> None:
        self._config: RelaySettings = load_relay(settings)
        self._study = settings.resolve().parent / STUDY
        self._link, self._payloads = link, payloads
        self._home = ServerHome(self._config.home)
        key, state = read_study_public(self._config.study_key), self._home.path / "relay"
        state.mkdir(mode=0o700, exist_ok=True)
        self._orders = Orders(state, site=self._config.name, key=key, max_runs=MOST_RUNS)
        self._exchanges: dict[str, Exchange] = {}
        self._relay = Relay(self._config.name, self._exchange, self._folder, self._enrolled, os.getpid())

    def answer(self, signed: bytes, payload: Payload | None) -> tuple[str, bytes | None]:
        """Answer an order: the reply's JSON and its payload."""
        began, run = time.monotonic(), "unknown"
        content: bytes | None = None
        reply: Reply
        try:
            order = self._orders.open(signed, payload)
            run = order.run
            try:
                reply, content = self._relay.answer(self._plan_in(order), payload)
            finally:  # what failed is not tried again under the same number either
                self._orders.answered(order)
        except ConsiliumError as error:
            content = None
            log.error("order not carried out run=%s error=%s message=%s", run, type(error).__name__, error)
            reply = FailureReply(
                run=run,
                site=self._config.name,
                pid=os.getpid(),
                seconds=time.monotonic() - began,
                error=type(error).__name__,
                message=str(error),
            )
        return reply.model_dump_json(), content

    def _plan_in(self, order: Order) -> RelayPlan:
        """Return the plan in an order, if it is one for a relay, and of the study that was accepted.

        Raises:
            ProtocolError: it is none.
            ConfigError: its study differs from the accepted one.
        """
        name = self._config.name
        if order.kind != "plan":
            raise ProtocolError(f"'{name}' is a relay, which carries studies and no Flower apps")
        plan = parse_plan(order.text)
        if not isinstance(plan, RelayPlan):
            raise ProtocolError(
                f"'{name}' is a relay and no site: list its sites under it in the study's relays, and not '{name}' in "
                "sites; relays of relays do not work"
            )
        if (plan.run, plan.site) != (order.run, order.site):
            raise ProtocolError(f"the plan is for run '{plan.run}' at relay '{plan.site}', its order is for another")
        if plan.handshake is not None:
            self._check_accepted(plan.handshake)
        return plan

    def _check_accepted(self, asked: StudyConfig) -> None:
        accepted, leaf = load_study(self._study), asked.sites[0]
        ranges = ranges_of(accepted, source=str(self._study))
        view = accepted.seen_by(leaf) if leaf in accepted.sites else accepted
        outside = [one.words(ranges) for one in compare(view, asked, ranges) if not one.inside]
        if outside:
            raise ConfigError(
                f"the server asks for another study than the one that relay '{self._config.name}' accepted; they "
                f"differ in {listed(outside, 8, 'settings')}; if that is as agreed, the coordinator approves the relay "
                "again with the new --study, and it accepts the new bundle"
            )

    def _exchange(self, run: str) -> Exchange:
        if run not in self._exchanges:
            folder = self._folder(run)
            folder.path.mkdir(parents=True, exist_ok=True)
            signer = Signer(run, read_study_key(self._home.study_key), Numbers(folder.path / NUMBERS))
            exchange = WireExchange(self._link, Outbox(self._payloads, signer))
            self._exchanges[run] = WitnessedExchange(exchange, folder, lambda: approved_keys(self._home.path))
        return self._exchanges[run]

    def _folder(self, run: str) -> RunFolder:
        return RunFolder(self._home.path / RELAYED / run)

    def _enrolled(self) -> Collection[str]:
        approved = {entry.name for entry in read_entries(self._home.path / FILE).values() if not entry.revoked}
        return approved & set(load_study(self._study).relays.get(self._config.name, ()))


def answer_all(desk: Desk, end: SharedEnd) -> None:
    """Answer the orders that come until there are no more."""
    while True:
        try:
            order, payload = end.receive()
        except EOFError:
            return
        try:
            text, content = desk.answer(order, payload)
            kind, reply = ANSWER, text.encode()
        except Exception as error:  # whatever it was, the next order is answered
            log.exception("order not answered")
            kind, reply, content = ERROR, clean(f"unexpected {type(error).__name__}").encode(), None
        payload = None
        end.send(kind, reply, content)


def main() -> None:
    """Entry point of `python -m consilium.relay.worker SETTINGS SOCKET INBOX OUTBOX`; ends with its parent."""
    parser = argparse.ArgumentParser(prog="python -m consilium.relay.worker")
    parser.add_argument("settings", type=Path)
    parser.add_argument("socket", type=int, help="the number of an open socket")
    parser.add_argument("boxes", type=int, nargs=2, help="the numbers of two open files")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow_parent()
    start_log()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    leaves = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    leaves.connect(os.environ[LEAVES_VARIABLE])
    link = RunLink(leaves)
    desk = Desk(arguments.settings, link, Path(link.job()))
    os.write(arguments.socket, READY)
    answer_all(desk, SharedEnd(Connection(arguments.socket), *map(Box, arguments.boxes)))


if __name__ == "__main__":
    main()
