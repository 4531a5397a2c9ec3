"""Flower's Grid for the ServerApp of a deployed study: the connected sites, and the exchange that carries plans."""

from collections.abc import Iterable
from typing import Any, NoReturn

from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from consilium.server.wire.exchange import WireExchange


class WireGrid(Grid):
    """The Grid of a deployed study.

    Its ServerApp asks sites through `exchange`, which signs plans as they are. Flower messages are for third-party
    apps, whose Grid is `consilium.server.flower.grid.FlowerGrid`.
    """

    def __init__(self, exchange: WireExchange) -> None:
        self.exchange = exchange
        self._numbers: dict[str, int] = {}
        self._run: Any = None

    def set_run(self, run: Any) -> None:
        """Remember the run (Flower's interface)."""
        self._run = run

    @property
    def run(self) -> Any:
        """Return the run that was set (Flower's interface)."""
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        """Return the numbers of the sites that are connected."""
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the sites that are connected; a site keeps its number for as long as the run lasts."""
        sites = sorted(self.exchange.connected())
        return [NodeInfo(node_id=self._numbers.setdefault(site, len(self._numbers) + 1), name=site) for site in sites]

    def create_message(self, *_: Any, **__: Any) -> NoReturn:
        """Not offered."""
        raise NotImplementedError("a study's plans go through `exchange`")

    def push_messages(self, messages: Any) -> NoReturn:
        """Not offered."""
        raise NotImplementedError("a study's plans go through `exchange`")

    def pull_messages(self, message_ids: Any) -> NoReturn:
        """Not offered."""
        raise NotImplementedError("a study's plans go through `exchange`")

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> NoReturn:
        """Not offered."""
        raise NotImplementedError("a study's plans go through `exchange`")
