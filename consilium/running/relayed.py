"""Relays of one process: the code of real ones between the server's and the sites' own, without a wire."""

import math
import os
import time
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from consilium.common.errors import ConsiliumError
from consilium.common.protocol.plans import Plan, RelayPlan, study_digest
from consilium.common.protocol.replies import FailureReply, RelayReply
from consilium.common.study.study import StudyConfig
from consilium.server.relays.exchange import RelayedExchange
from consilium.server.relays.relay import Relay
from consilium.server.study.exchange import Answer, Conversation, Exchange, Mailing, cut_off
from consilium.server.study.run_folder import RunFolder

RELAYS = "relays"
"""Folder of a run in one process that has a folder for each relay."""


def relayed(study: StudyConfig, folder: Path, exchange_with: Callable[[Collection[str]], Exchange]) -> RelayedExchange:
    """Return an exchange with the sites of a study through its relays.

    Args:
        folder: of the run.
        exchange_with: returns an exchange with some of the sites.
    """
    leaves = {leaf for each in study.relays.values() for leaf in each}
    relays = {
        name: _relay(name, exchange_with(each), folder / RELAYS / name, each) for name, each in study.relays.items()
    }
    direct = exchange_with([site for site in study.sites if site not in leaves])
    return RelayedExchange(LocalRelays(relays, direct), study, folder.name, study_digest(study))


def _relay(name: str, exchange: Exchange, folder: Path, leaves: Collection[str]) -> Relay:
    return Relay(name, lambda _: exchange, lambda _: RunFolder(folder), lambda: leaves, os.getpid())


@dataclass(frozen=True)
class LocalRelays:
    """An exchange with relays of this process, and with the sites that have none."""

    relays: Mapping[str, Relay]
    direct: Exchange

    @property
    def patient(self) -> bool:
        """Whether a site that is away may come back."""
        return self.direct.patient

    def connected(self) -> frozenset[str]:
        """Return the names of the relays, and of the sites without one."""
        return self.direct.connected() | self.relays.keys()

    def converse(self) -> "LocalConversation":
        """Return a conversation in which plans stay open over several rounds."""
        return LocalConversation(self.relays, self.direct.converse())


@dataclass
class LocalConversation:
    """A `Conversation` with relays of this process: each answers when its answer is taken."""

    relays: Mapping[str, Relay]
    direct: Conversation
    _open: dict[str, tuple[Plan, bytes | None]] = field(default_factory=dict)

    def open(self) -> frozenset[str]:
        """Return the relays and sites whose answer to a plan has not been taken yet."""
        return self.direct.open() | self._open.keys()

    def send(self, mailing: Mailing) -> None:
        """Take plans in."""
        ours = {name: plan for name, plan in mailing.plans.items() if name in self.relays}
        self._open |= {name: (plan, mailing.payload_for(name)) for name, plan in ours.items()}
        if rest := {name: plan for name, plan in mailing.plans.items() if name not in ours}:
            self.direct.send(Mailing(rest, mailing.timeout_seconds, mailing.payload, mailing.instead))

    def answers(
        self, *, absent_seconds: float | None = None, until: Callable[[], float] = lambda: math.inf
    ) -> Generator[Answer, None, None]:
        """Yield one answer for every open plan."""
        yield from self.direct.answers(absent_seconds=absent_seconds, until=until)
        while self._open:
            name, (plan, payload) = next(iter(self._open.items()))
            del self._open[name]
            yield cut_off(name) if until() <= time.monotonic() else self._answer(name, plan, payload)

    def give_up(self, sites: Collection[str]) -> None:
        """Take back the open plans of some relays and sites."""
        self.direct.give_up(sites)
        self._open = {name: plan for name, plan in self._open.items() if name not in sites}

    def close(self) -> None:
        """Take back all open plans."""
        self.direct.close()
        self._open = {}

    def _answer(self, name: str, plan: Plan, payload: bytes | None) -> Answer:
        assert isinstance(plan, RelayPlan)  # a relay gets no other
        text, began = plan.model_dump_json(), time.monotonic()
        reply: RelayReply | FailureReply
        try:
            reply, content = self.relays[name].answer(plan, payload)
        except ConsiliumError as error:
            seconds, kind = time.monotonic() - began, type(error).__name__
            reply = FailureReply(
                run=plan.run, site=name, pid=os.getpid(), seconds=seconds, error=kind, message=str(error)
            )
            content = b""
        bytes_up, bytes_down = len(reply.model_dump_json()) + len(content), len(text) + len(payload or b"")
        return Answer(name, reply=reply, payload=content, bytes_up=bytes_up, bytes_down=bytes_down)
