"""A deployed study's connection to its sites: plans become signed orders, answers come as they arrive."""

import math
from collections.abc import Callable, Iterator, Mapping

from consilium.common.protocol.plans import Plan
from consilium.server.study.exchange import NOTHING, Answer, ask_once
from consilium.server.wire.conversation import Mail, WireConversation
from consilium.server.wire.outbox import Outbox
from consilium.server.wire.run_link import RunLink


class WireExchange:
    """One run's `Exchange` over the wire.

    Args:
        outbox: signs orders, and keeps large payloads in files that are shared with the server's process.
    """

    patient = True

    def __init__(self, link: RunLink, outbox: Outbox) -> None:
        self._link, self._outbox = link, outbox
        self._mail = Mail(link, outbox)

    def connected(self) -> frozenset[str]:
        """Return the names of the sites that are connected now."""
        return self._link.online()

    def ask(
        self,
        plans: Mapping[str, Plan],
        *,
        payload: bytes | None,
        timeout_seconds: float,
        instead: Mapping[str, bytes] = NOTHING,
        most_bytes: int = 0,
        absent_seconds: float | None = None,
        until: Callable[[], float] = lambda: math.inf,
    ) -> Iterator[Answer]:
        """Send every site its plan and yield one answer per site, as they arrive.

        Raises:
            StateError: a large payload cannot be written or read.
        """
        return ask_once(
            self.converse(),
            plans,
            payload=payload,
            timeout_seconds=timeout_seconds,
            instead=instead,
            most_bytes=most_bytes,
            absent_seconds=absent_seconds,
            until=until,
        )

    def converse(self) -> WireConversation:
        """Return a conversation in which plans stay open over several rounds."""
        return WireConversation(self._mail)
