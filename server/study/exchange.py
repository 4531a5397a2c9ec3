"""The transport that the round loop needs: connected sites, a way to ask them, and answers as they arrive."""

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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


NOTHING: Mapping[str, bytes] = MappingProxyType({})


class Exchange(Protocol):
    """One study's connection to its sites."""

    def connected(self) -> frozenset[str]:
        """Return the names of the sites that are online now."""
        ...

    def ask(
        self,
        plans: Mapping[str, Plan],
        *,
        payload: bytes | None,
        timeout_seconds: float,
        instead: Mapping[str, bytes] = NOTHING,
        most_bytes: int = 0,
    ) -> Iterator[Answer]:
        """Send every site its plan and the same payload, and yield one answer per site, as they arrive.

        Args:
            instead: other payloads for some sites.
            most_bytes: the largest payload of a reply that can be of use; a small one always may come.

        A site that does not answer in time yields an answer with problem `timeout`.
        """
        ...


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
