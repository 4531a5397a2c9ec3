"""What the round loop needs from a transport: who is there, ask them, and answers as they arrive."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from common.protocol import Plan, Reply


@dataclass(frozen=True)
class Answer:
    """What came back from one site for one plan.

    Exactly one of `reply` and `problem` is set: `problem` is a short name (`timeout`, `crash`,
    `protocol`, `gone`) and `detail` a sentence.
    """

    site: str
    reply: Reply | None = None
    payload: bytes | None = None
    problem: str | None = None
    detail: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    transfer_seconds: float = 0.0
    """This answer's part of the time the server spent sending plans and fetching replies."""


class Exchange(Protocol):
    """One study's connection to its sites."""

    def connected(self) -> frozenset[str]:
        """Return the names of the sites that are online now."""
        ...

    def ask(self, plans: Mapping[str, Plan], *, payload: bytes | None, timeout_seconds: float) -> Iterator[Answer]:
        """Send every site its plan (and the same payload) and yield one answer per site, as they arrive.

        A site that does not answer in time yields an answer with problem `timeout`.
        """
        ...
