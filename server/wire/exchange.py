"""A deployed study's connection to its sites: plans become signed orders, answers come as they arrive."""

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

    def converse(self) -> WireConversation:
        """Return a conversation in which plans stay open over several rounds."""
        return WireConversation(self._mail)
