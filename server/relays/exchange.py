"""The server's side of relays: to the rounds it is an exchange with sites, to the wire one with relays.

The plans of a relay's sites go to it in one message. What comes back becomes one answer for each of these sites: its
own reply, and with it the mean of the updates of all of them, which in every site's place gives what their updates
would (`server/privacy/secure/round.py` does the same with sums). So the rounds, their quorum, their records and the
result are those of the sites, wherever these are connected.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace

from consilium.common.errors import ProtocolError, clean
from consilium.common.protocol.plans import InitialWeightsPlan, Plan, RoundPlan
from consilium.common.protocol.relays import LeafAnswer, answers_in, most_bytes_of_leaf, plan_for_relay
from consilium.common.protocol.replies import FailureReply, InitialWeightsReply, RelayReply, RoundReply
from consilium.common.study.relays import LEAST_LEAVES, relay_of
from consilium.common.study.study import StudyConfig
from consilium.server.study.exchange import Answer, Conversation, Exchange, Mailing, ask

log = logging.getLogger(__name__)

GRACE_SECONDS = 30.0
"""How much longer than its sites a relay has, which waits for them as long as the server would."""
BUSY = "does it carry another run? A relay carries one at a time: wait until that one is over"
LOOK_SECONDS, STATUS_SECONDS = 1.0, 10.0
"""How old it may be what is known of a relay's connected sites, and how long it is waited for."""


@dataclass
class RelayedExchange:
    """An exchange with the sites of a study, some of them through relays.

    Args:
        exchange: with the relays, and with the sites that have none.
        run: its name; `digest` is that of the study.
    """

    exchange: Exchange
    config: StudyConfig
    run: str
    digest: str
    _online: dict[str, frozenset[str]] = field(default_factory=dict)
    _looked: dict[str, float] = field(default_factory=dict)

    @property
    def patient(self) -> bool:
        """Whether a site that is away may come back."""
        return self.exchange.patient

    def connected(self) -> frozenset[str]:
        """Return the sites that are connected, to the server or to a relay that is."""
        here = self.exchange.connected()
        relays = here & self.config.relays.keys()
        now = time.monotonic()
        if late := [relay for relay in sorted(relays) if now - self._looked.get(relay, -math.inf) > LOOK_SECONDS]:
            self._look(late)
        direct = frozenset(site for site in here - relays if relay_of(self.config.relays, site) is None)
        return direct.union(*(self._online.get(relay, frozenset()) for relay in relays))

    def converse(self) -> "RelayedConversation":
        """Return a conversation in which plans stay open over several rounds."""
        return RelayedConversation(self.exchange.converse(), self)

    def mail(self, relay: str, plans: Mapping[str, Plan], seconds: float, absent_seconds: float | None) -> Plan:
        """Return the plans of a relay's sites in one.

        A mean without which the round has no quorum would be of no use, and the relay's only one of that round.
        """
        others = len(self.config.sites) - len(self.config.relays[relay])
        needed = min(len(plans), self.config.least_updates - others)
        return plan_for_relay(
            relay,
            plans,
            run=self.run,
            study=self.digest,
            seconds=seconds,
            absent_seconds=absent_seconds,
            least=max(LEAST_LEAVES, needed),
        )

    def note(self, relay: str, reply: RelayReply) -> None:
        """Note which of its sites a relay says are connected; those of other relays are none of them."""
        self._online[relay] = frozenset(reply.online) & frozenset(self.config.relays[relay])
        self._looked[relay] = time.monotonic()

    def _look(self, relays: Collection[str]) -> None:
        """Ask relays which of their sites are connected; of one that does not say, none is."""
        plans = {relay: self.mail(relay, {}, STATUS_SECONDS, 0.0) for relay in relays}
        for answer in ask(self.exchange, plans, timeout_seconds=STATUS_SECONDS, absent_seconds=0.0):
            self._online[answer.site], self._looked[answer.site] = frozenset(), time.monotonic()
            if isinstance(answer.reply, RelayReply):
                self.note(answer.site, answer.reply)
            elif answer.problem == "timeout":
                log.warning("relay=%s does not say which sites it has: %s", answer.site, BUSY)


@dataclass
class RelayedConversation:
    """A `Conversation` with sites, some of them through relays."""

    conversation: Conversation
    relayed: RelayedExchange
    _asked: dict[str, dict[str, Plan]] = field(default_factory=dict)

    def open(self) -> frozenset[str]:
        """Return the sites whose answer to a plan has not been taken yet."""
        direct = self.conversation.open() - self._asked.keys()
        return direct.union(*(plans.keys() for plans in self._asked.values()))

    def send(self, mailing: Mailing) -> None:
        """Send plans, those of a relay's sites in one message to it."""
        direct: dict[str, Plan] = {}
        for site, plan in mailing.plans.items():
            if (relay := relay_of(self.relayed.config.relays, site)) is None:
                direct[site] = plan
            else:
                self._asked.setdefault(relay, {})[site] = plan
        if direct:
            self.conversation.send(replace(mailing, plans=direct))
        if not self._asked:
            return
        seconds, absent = mailing.timeout_seconds, self.relayed.config.absent_seconds
        relays = {relay: self.relayed.mail(relay, plans, seconds, absent) for relay, plans in self._asked.items()}
        leaves = max(map(len, self._asked.values()))
        most_bytes = mailing.most_bytes + leaves * most_bytes_of_leaf(mailing.plans.values())
        self.conversation.send(Mailing(relays, seconds + GRACE_SECONDS, mailing.payload, most_bytes=most_bytes))

    def answers(
        self, *, absent_seconds: float | None = None, until: Callable[[], float] = lambda: math.inf
    ) -> Generator[Answer, None, None]:
        """Yield one answer for every open plan: those of a relay's sites together, as soon as it has answered."""
        for answer in self.conversation.answers(absent_seconds=absent_seconds, until=until):
            asked = self._asked.pop(answer.site, None)
            if asked is None:
                yield answer
            else:
                yield from _by_leaf(answer, asked, self.relayed)

    def give_up(self, sites: Collection[str]) -> None:
        """Take back the open plans of some sites; a relay's, where those of all its sites are."""
        left = {relay: plans for relay, plans in self._asked.items() if not plans.keys() <= set(sites)}
        self.conversation.give_up({*sites, *self._asked.keys() - left.keys()})
        self._asked = left

    def close(self) -> None:
        """Take back all open plans."""
        self.conversation.close()
        self._asked = {}


def _by_leaf(answer: Answer, asked: Mapping[str, Plan], relayed: RelayedExchange) -> Iterator[Answer]:
    """Yield the answers of a relay's sites; the first has the bytes and the seconds of all."""
    relay, rest = answer.site, answer
    try:
        reply = _reply_of(answer, relayed.run)
        answers = answers_in(reply, answer.payload or b"", asked)
    except ProtocolError as error:
        problem = answer.problem or ("failure" if isinstance(answer.reply, FailureReply) else "protocol")
        for leaf in asked:
            yield replace(rest, site=leaf, reply=None, payload=None, file=None, problem=problem, detail=str(error))
            rest = replace(rest, bytes_up=0, bytes_down=0, transfer_seconds=0.0)
        return
    relayed.note(relay, reply)
    update = None if answer.payload is None else answer.payload[: reply.update_bytes]
    for one in answers:
        carried = update if _carries(one, asked[one.site]) else None
        told = Answer(one.site, one.reply, carried, answer.file if carried is not None else None)
        yield replace(
            told,
            problem=one.problem,
            detail=one.detail,
            bytes_up=rest.bytes_up,
            bytes_down=rest.bytes_down,
            transfer_seconds=rest.transfer_seconds,
        )
        rest = replace(rest, bytes_up=0, bytes_down=0, transfer_seconds=0.0)


def _reply_of(answer: Answer, run: str) -> RelayReply:
    """Return a relay's reply.

    Raises:
        ProtocolError: it sent none, could not do it, or sent another.
    """
    who, reply = f"relay '{answer.site}'", answer.reply
    if answer.problem is not None:
        busy = f"; {BUSY}" if answer.problem == "timeout" else ""
        raise ProtocolError(clean(answer.detail).replace(f"site '{answer.site}'", who) + busy)
    if isinstance(reply, FailureReply):
        raise ProtocolError(f"{who}: {reply.message}")
    if not isinstance(reply, RelayReply) or reply.run != run:
        raise ProtocolError(f"{who} answered {type(reply).__name__}, expected RelayReply of run '{run}': is it a site?")
    return reply


def _carries(answer: LeafAnswer, plan: Plan) -> bool:
    """Return whether what the relay sends along belongs to a leaf's reply."""
    return (isinstance(answer.reply, RoundReply) and isinstance(plan, RoundPlan)) or (
        isinstance(answer.reply, InitialWeightsReply) and isinstance(plan, InitialWeightsPlan)
    )
