"""Plans that stay open over the wire until they are answered, given up, or late; a lost reply is asked for again."""

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable
from dataclasses import dataclass, field, replace

from consilium.common.errors import AnsweredAlready, clean
from consilium.common.protocol.plans import REPLY_GRACE_SECONDS
from consilium.common.protocol.replies import FailureReply
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.limits import SMALL_PAYLOAD_BYTES
from consilium.server.study.exchange import Answer, Mailing, answer_of, cut_off
from consilium.server.wire.outbox import Outbox, Parcel
from consilium.server.wire.run_link import RunLink

LOOK_SECONDS = 0.5
"""How often a run that waits for answers looks for sites that have gone."""
MOST_RENEWALS = 2
"""How often a plan is put into a new order because the site has answered the one before and the reply was lost."""


@dataclass(frozen=True)
class _Sent:
    """A plan on its way, with what a further order of it is made from.

    Args:
        seconds: that the site has for it.
        deadline: until when (`time.monotonic`) that is; infinite before it was sent.
        sending: its part of the time that sending took.
        renewals: how many orders of it there were before.
    """

    site: str
    text: str
    parcel: Parcel
    bytes_down: int
    most_bytes: int
    seconds: float
    deadline: float = math.inf
    sending: float = 0.0
    renewals: int = 0


@dataclass(eq=False)
class Mail:
    """What all conversations of a run have in common: where orders go out, and which conversation an answer is for.

    Args:
        away: since when (`time.monotonic`) each site that was looked for has not been connected.
    """

    link: RunLink
    outbox: Outbox
    away: dict[str, float] = field(default_factory=dict)
    _asked: dict[bytes, "WireConversation"] = field(default_factory=dict)

    def post(self, plans: Iterable[_Sent], conversation: "WireConversation") -> dict[bytes, _Sent]:
        """Send plans in signed orders; return them by the names of their orders.

        Raises:
            ConfigError: an order is longer than a site reads.
            StateError: its number cannot be noted.
        """
        orders = dict[bytes, _Sent]()
        tasks = list[pb.Outgoing]()
        for sent in plans:
            task = self.outbox.task(
                sent.parcel,
                site=sent.site,
                kind="plan",
                text=sent.text,
                seconds=min(sent.seconds, sent.deadline - time.monotonic()) + REPLY_GRACE_SECONDS,
                most_bytes=sent.most_bytes,
            )
            orders[task.id], self._asked[task.id] = sent, conversation
            tasks.append(task)
        self.link.ask(tasks)
        return orders

    def collect(self, seconds: float) -> None:
        """Wait up to `seconds` for answers, and hand each to the conversation that it is for."""
        for received in self.link.answers(seconds):
            if (conversation := self._asked.pop(received.task, None)) is not None:
                conversation.arrived.append(received)
            else:  # it was given up before
                self.drop(received)

    def drop(self, received: pb.Answer) -> None:
        """Delete an answer that nobody waits for any more."""
        self.outbox.done(received.task)
        self.outbox.drop_reply(received.task)

    def forget(self, orders: Collection[bytes]) -> None:
        """Stop waiting for some orders."""
        if orders:
            self.link.forget(orders)
        for order in orders:
            self._asked.pop(order, None)
            self.outbox.done(order)

    def look_for(self, sites: Collection[str]) -> frozenset[str]:
        """Note which of some sites are away, and return those that are connected."""
        now, online = time.monotonic(), self.link.online()
        self.away = {site: since for site, since in self.away.items() if site not in online}
        for site in set(sites) - online:
            self.away.setdefault(site, now)
        return online & frozenset(sites)


class WireConversation:
    """A `Conversation` over the wire.

    Args:
        arrived: answers to its orders that have not been taken yet.
    """

    def __init__(self, mail: Mail) -> None:
        self._mail = mail
        self._sent: dict[bytes, _Sent] = {}
        self.arrived: deque[pb.Answer] = deque()

    def open(self) -> frozenset[str]:
        """Return the sites whose answer to a plan has not been taken yet."""
        return frozenset(sent.site for sent in self._sent.values())

    def send(self, mailing: Mailing) -> None:
        """Send every site its plan.

        Raises:
            StateError: a large payload cannot be written.
        """
        began = time.monotonic()
        parcels: dict[int, Parcel] = {}
        going = list[_Sent]()
        for site, plan in mailing.plans.items():
            text, content = plan.model_dump_json(), mailing.payload_for(site)
            if id(content) not in parcels:
                parcels[id(content)] = self._mail.outbox.prepare(content)
            bytes_down, most = len(text) + len(content or b""), max(mailing.most_bytes, SMALL_PAYLOAD_BYTES)
            going.append(_Sent(site, text, parcels[id(content)], bytes_down, most, mailing.timeout_seconds))
        orders, now = self._mail.post(going, self), time.monotonic()
        sending = (now - began) / max(1, len(orders))
        self._sent |= {
            order: replace(sent, deadline=now + sent.seconds, sending=sending) for order, sent in orders.items()
        }

    def answers(
        self, *, absent_seconds: float | None = None, until: Callable[[], float] = lambda: math.inf
    ) -> Generator[Answer, None, None]:
        """Yield one answer for every open plan, as they arrive.

        Raises:
            StateError: a large payload cannot be read.
        """
        while self._sent:
            if self.arrived:
                if (answer := self._taken(self.arrived.popleft())) is not None:
                    yield answer
                continue
            if (left := self._end(absent_seconds, until) - time.monotonic()) > 0:
                self._mail.collect(min(left, LOOK_SECONDS))
                continue
            yield from self._late(absent_seconds, until)

    def give_up(self, sites: Collection[str]) -> None:
        """Take back the open plans of some sites."""
        orders = {order for order, sent in self._sent.items() if sent.site in sites}
        for received in [received for received in self.arrived if received.task in orders]:
            self.arrived.remove(received)
            self._mail.drop(received)
            del self._sent[received.task]
            orders.remove(received.task)
        self._mail.forget(orders)
        for order in orders:
            del self._sent[order]

    def close(self) -> None:
        """Take back all open plans."""
        self.give_up(self.open())

    def _taken(self, received: pb.Answer) -> Answer | None:
        """Return what came for a plan; None where the site's reply was lost, and it is asked in a new order."""
        sent = self._sent.pop(received.task)
        answer = self._read(received, sent)
        if sent.renewals < MOST_RENEWALS and _is_lost_reply(answer):
            self._sent |= self._mail.post([replace(sent, renewals=sent.renewals + 1)], self)
            self._mail.outbox.done(received.task)
            return None
        self._mail.outbox.done(received.task)
        return replace(answer, transfer_seconds=sent.sending + received.seconds)

    def _read(self, received: pb.Answer, sent: _Sent) -> Answer:
        site, bytes_down = sent.site, sent.bytes_down
        if received.problem:
            return Answer(site, problem=received.problem, detail=clean(received.detail), bytes_down=bytes_down)
        file = self._mail.outbox.open_reply(received.task) if received.payload_size else None
        return answer_of(site, received.text, received.payload or None, file, bytes_down=bytes_down)

    def _end(self, absent_seconds: float | None, until: Callable[[], float]) -> float:
        """Return until when the next answer is waited for, as things stand."""
        first = min(sent.deadline for sent in self._sent.values())
        return min(first, until(), self._patience(absent_seconds))

    def _patience(self, absent_seconds: float | None) -> float:
        """Return until when the sites are waited for that are not connected; for ever while a connected one works."""
        sites, most = self.open(), max(sent.seconds for sent in self._sent.values())
        if self._mail.look_for(sites):
            return math.inf
        absent = most if absent_seconds is None else min(absent_seconds, most)
        return max(self._mail.away[site] for site in sites) + absent

    def _late(self, absent_seconds: float | None, until: Callable[[], float]) -> list[Answer]:
        """Take back the plans that are not waited for any longer, and return what stands for their answers."""
        now = time.monotonic()
        cut, all_away = until() <= now, self._patience(absent_seconds) <= now
        late = {order: sent for order, sent in self._sent.items() if cut or all_away or sent.deadline <= now}
        self._mail.forget(late.keys())
        for order in late:
            del self._sent[order]
        return [self._instead(sent, cut=cut) for sent in late.values()]

    def _instead(self, sent: _Sent, *, cut: bool) -> Answer:
        if sent.site in self._mail.away:
            return Answer(sent.site, problem="gone", detail=f"site '{sent.site}' is not connected")
        detail = f"site '{sent.site}' did not answer within {sent.seconds:g} s"
        answer = cut_off(sent.site) if cut else Answer(sent.site, problem="timeout", detail=detail)
        return replace(answer, bytes_down=sent.bytes_down, transfer_seconds=sent.sending)


def _is_lost_reply(answer: Answer) -> bool:
    """Return whether a site has answered an order whose reply never arrived: it ended in between."""
    return isinstance(answer.reply, FailureReply) and answer.reply.error == AnsweredAlready.__name__
