"""The transport that the round loop needs: connected sites, a way to ask them, and answers as they arrive."""

import math
import mmap
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import IO, Protocol

from consilium.common.codecs import Payload
from consilium.common.errors import ProtocolError, clean
from consilium.common.protocol.parse import parse_reply
from consilium.common.protocol.plans import Plan
from consilium.common.protocol.replies import Reply


@dataclass(frozen=True)
class Answer:
    """One site's answer to one plan.

    Exactly one of `reply` and `problem` is set: `problem` is a short name (`timeout`, `crash`,
    `protocol`, `gone`) and `detail` a sentence. A large payload lies in `file`, from its beginning to its end.
    """

    site: str
    reply: Reply | None = None
    payload: Payload | None = None
    file: IO[bytes] | None = None
    problem: str | None = None
    detail: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    transfer_seconds: float = 0.0
    """This answer's part of the time the server spent sending plans and fetching replies."""


def cut_off(site: str) -> Answer:
    """Return what stands for the answer of a site that is not waited for any longer."""
    return Answer(site, problem="cut_off", detail=f"site '{site}' was slower than the round waits for")


def gone(site: str) -> Answer:
    """Return what stands for the answer of a site that is not there."""
    return Answer(site, problem="gone", detail=f"site '{site}' is not connected")


def crashed(site: str, reason: str, *, bytes_down: int) -> Answer:
    """Return what stands for the answer of a site whose program failed in a way that it does not know."""
    reason = clean(reason)
    detail = reason if f"site '{site}'" in reason else f"site '{site}' failed: {reason}"
    return Answer(site, problem="crash", detail=detail, bytes_down=bytes_down)


NOTHING: Mapping[str, bytes] = MappingProxyType({})


@dataclass(frozen=True)
class Mailing:
    """Plans for sites, with the payload that goes along.

    Args:
        timeout_seconds: how long each site has from when they are sent.
        instead: other payloads for some sites.
        most_bytes: the largest payload of a reply that can be of use; a small one always may come.
    """

    plans: Mapping[str, Plan]
    timeout_seconds: float
    payload: bytes | None = None
    instead: Mapping[str, bytes] = field(default_factory=lambda: NOTHING)
    most_bytes: int = 0

    def payload_for(self, site: str) -> bytes | None:
        """Return what a site gets along with its plan."""
        return self.instead.get(site, self.payload)


class Conversation(Protocol):
    """Plans that stay open until they are answered or given up, over as many rounds as that takes; one for each site.

    Closed, it gives up all that are open.
    """

    def open(self) -> frozenset[str]:
        """Return the sites whose answer to a plan has not been taken yet."""
        ...

    def send(self, mailing: Mailing) -> None:
        """Send plans to sites without an open one; a site that is not connected gets its plan as soon as it is."""
        ...

    def answers(
        self, *, absent_seconds: float | None = None, until: Callable[[], float] = lambda: math.inf
    ) -> Generator[Answer, None, None]:
        """Yield one answer for every open plan, as they arrive; plans may be sent in between.

        What has arrived when the iterator is closed, and what comes later, comes out of the next one. A site that does
        not answer in time yields an answer with problem `timeout`, one that is away with `gone`, one that `until` ends
        the wait for with `cut_off`.

        Args:
            absent_seconds: once all connected sites have answered, a site that has been away for so long is not waited
                for; None: all are waited for alike.
            until: says, each time that it is asked, until when (`time.monotonic`) the others are still waited for.
        """
        ...

    def give_up(self, sites: Collection[str]) -> None:
        """Take back the open plans of some sites; what they answer is of no use any more."""
        ...

    def close(self) -> None:
        """Take back all open plans."""
        ...


class Exchange(Protocol):
    """One study's connection to its sites."""

    @property
    def patient(self) -> bool:
        """Whether a site that is away may come back, so that a run waits for it below its quorum."""
        ...

    def connected(self) -> frozenset[str]:
        """Return the names of the sites that are online now."""
        ...

    def converse(self) -> Conversation:
        """Return a conversation in which plans stay open over several rounds."""
        ...


def ask(
    exchange: Exchange,
    plans: Mapping[str, Plan],
    *,
    timeout_seconds: float,
    payload: bytes | None = None,
    instead: Mapping[str, bytes] = NOTHING,
    most_bytes: int = 0,
    absent_seconds: float | None = None,
    until: Callable[[], float] = lambda: math.inf,
) -> Iterator[Answer]:
    """Send every site its plan, yield one answer per site as they arrive, and give up what is open at the end.

    Args:
        timeout_seconds, payload, instead, most_bytes: as in `Mailing`.
        absent_seconds, until: as in `Conversation.answers`.

    Raises:
        StateError: a large payload cannot be written or read.
    """
    with closing(exchange.converse()) as conversation:
        conversation.send(Mailing(plans, timeout_seconds, payload, instead, most_bytes))
        payload, instead = None, NOTHING  # frees memory: they are sent, and as large as the model
        yield from conversation.answers(absent_seconds=absent_seconds, until=until)


def answer_of(
    site: str, text: str | bytes, payload: Payload | None, file: IO[bytes] | None = None, *, bytes_down: int = 0
) -> Answer:
    """Return a site's reply as an answer, checked as far as that is possible without the study.

    Args:
        text: JSON, as it came.
        file: with a large payload, in place of `payload`.
    """
    try:
        reply = parse_reply(text if isinstance(text, str) else text.decode(), site=site)
        if reply.site != site:
            raise ProtocolError(f"the site that is known as '{site}' answered as '{reply.site}'")
        if file is not None:
            payload = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    except ProtocolError as error:
        return Answer(site, problem="protocol", detail=str(error), bytes_down=bytes_down)
    except (OSError, ValueError) as error:  # an empty file, or text that is not UTF-8
        return Answer(site, problem="protocol", detail=f"site '{site}': {clean(str(error))}", bytes_down=bytes_down)
    bytes_up = len(text) + len(payload or b"")
    return Answer(site, reply=reply, payload=payload, file=file, bytes_up=bytes_up, bytes_down=bytes_down)
