"""Keeps the heads of the sites' audit logs, which travel in their replies: a log changed since then is found out."""

import math
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

from consilium.common.events.run import HeadsNoted, RunWarning
from consilium.common.host.audit_heads import is_signed
from consilium.common.protocol.audit import AuditHead
from consilium.server.study.exchange import Answer, Conversation, Exchange, Mailing
from consilium.server.study.run_folder import RunFolder

Keys = Mapping[str, ec.EllipticCurvePublicKey]
"""The sites' own keys, as they were approved."""


@dataclass
class WitnessedExchange:
    """An exchange that writes the heads in its answers into the run's log, and warns of those that cannot be.

    Args:
        read_keys: reads the keys of the sites that are approved now.
    """

    exchange: Exchange
    folder: RunFolder
    read_keys: Callable[[], Keys]
    _keys: Keys = field(default_factory=dict)
    _last: dict[str, AuditHead] | None = None

    @property
    def patient(self) -> bool:
        """Whether a site that is away may come back."""
        return self.exchange.patient

    def connected(self) -> frozenset[str]:
        """Return the names of the sites that are online now."""
        return self.exchange.connected()

    def converse(self) -> "WitnessedConversation":
        """Return a conversation in which plans stay open over several rounds."""
        return WitnessedConversation(self.exchange.converse(), self)

    def noted(self, answers: Iterator[Answer]) -> Generator[Answer, None, None]:
        """Yield answers, and note their heads at the end."""
        heads: dict[str, AuditHead] = {}
        try:
            for answer in answers:
                if answer.reply is not None and answer.reply.audit is not None:
                    heads[answer.site] = answer.reply.audit
                yield answer
        finally:
            if heads:
                self._note(heads)

    def _note(self, heads: dict[str, AuditHead]) -> None:
        """Write the heads down, and a warning for each that is not signed, or that lies before one seen in this run."""
        last = self._last if self._last is not None else last_heads(self.folder)
        for site, head in sorted(heads.items()):
            problem = self._problem(site, head, last.get(site))
            if problem:
                self.folder.log(RunWarning(message=f"site '{site}': its audit log {problem}"))
        self.folder.note(HeadsNoted(heads=heads))
        self._last = last | heads

    def _problem(self, site: str, head: AuditHead, before: AuditHead | None) -> str:
        if not self._is_signed(site, head):
            return "has a head that is not signed with the site's approved key"
        if before is not None and head.count <= before.count:
            return f"has {head.count} lines, and had {before.count} before: it was cut, or put back"
        return ""

    def _is_signed(self, site: str, head: AuditHead) -> bool:
        """Check a head with the key as it was read, and again with the one of now: it may have been replaced."""
        if _is_signed(site, head, self._keys):
            return True
        self._keys = self.read_keys()
        return _is_signed(site, head, self._keys)


@dataclass
class WitnessedConversation:
    """A conversation whose answers' heads are noted.

    Args:
        witness: notes them.
    """

    conversation: Conversation
    witness: WitnessedExchange

    def open(self) -> frozenset[str]:
        """Return the sites whose answer to a plan has not been taken yet."""
        return self.conversation.open()

    def send(self, mailing: Mailing) -> None:
        """Send plans."""
        self.conversation.send(mailing)

    def answers(
        self, *, absent_seconds: float | None = None, until: Callable[[], float] = lambda: math.inf
    ) -> Generator[Answer, None, None]:
        """Yield answers as they arrive, and note the heads when the iterator ends or is closed."""
        return self.witness.noted(self.conversation.answers(absent_seconds=absent_seconds, until=until))

    def give_up(self, sites: Collection[str]) -> None:
        """Take back the open plans of some sites."""
        self.conversation.give_up(sites)

    def close(self) -> None:
        """Take back all open plans."""
        self.conversation.close()


def _is_signed(site: str, head: AuditHead, keys: Keys) -> bool:
    return site in keys and is_signed(head.head, head.signature, site=site, key=keys[site])


def last_heads(folder: RunFolder) -> dict[str, AuditHead]:
    """Return the newest head of each site in a run's log.

    Raises:
        StateError: the log is damaged.
    """
    found: dict[str, AuditHead] = {}
    for event in folder.read_events():
        if isinstance(event, HeadsNoted):
            found |= event.heads
    return found
