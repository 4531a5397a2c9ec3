"""The tasks that runs have for sites, until they are answered; large payloads lie in files."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from consilium.common.errors import StateError, clean

Seconds = float


@dataclass(frozen=True)
class Offer:
    """A reply whose payload is still at its site.

    Args:
        text: JSON.
        size: of the payload, in bytes.
    """

    text: bytes
    size: int


class Answers(Protocol):
    """The part of a run that receives the answers to its tasks."""

    def answer(
        self, task: "Task", *, problem: str = "", detail: str = "", text: bytes = b"", payload: bytes = b""
    ) -> None:
        """Hand over one answer; a large payload lies in the task's file."""
        ...


@dataclass(eq=False, repr=False)
class Task:
    """One order on its way to one site, and the reply on its way back.

    Args:
        id: 16 random bytes, by which the site names it.
        order: a serialised SignedOrder.
        payload: a small one; `outgoing` is the file of a large one.
        deadline: after it (`time.monotonic`) nobody waits for the reply.
        most_bytes: the largest payload of a reply that can be of use.
        incoming: the file into which a large payload of the reply is written.
    """

    id: bytes
    site: str
    run: Answers
    order: bytes
    payload: bytes
    outgoing: Path | None
    size: int
    deadline: Seconds
    most_bytes: int
    incoming: Path
    sent: bool = False
    offer: Offer | None = None
    received: int = 0
    lost_turns: int = 0
    busy: Seconds = 0.0
    """How long the transfers of its payloads took."""

    @property
    def seconds_left(self) -> Seconds:
        """How long its reply is still waited for."""
        return max(0.0, self.deadline - time.monotonic())


@dataclass(eq=False)
class Tasks:
    """All tasks that are not answered yet."""

    _by_id: dict[bytes, Task] = field(default_factory=dict)
    _by_site: dict[str, dict[bytes, Task]] = field(default_factory=dict)

    def add(self, task: Task) -> None:
        """Take a task in."""
        self._by_id[task.id] = task
        self._by_site.setdefault(task.site, {})[task.id] = task

    def of(self, identifier: bytes, *, site: str) -> Task | None:
        """Return a task if it is this site's; None for an unknown one or another site's."""
        task = self._by_id.get(identifier)
        return task if task is not None and task.site == site else None

    def belongs_to_another(self, identifier: bytes, *, site: str) -> bool:
        """Return whether there is such a task, but not of this site."""
        task = self._by_id.get(identifier)
        return task is not None and task.site != site

    def at(self, site: str) -> list[Task]:
        """Return a site's tasks in the order in which they were given."""
        return list(self._by_site.get(site, {}).values())

    def remove(self, task: Task) -> None:
        """Forget a task; its incoming file belongs to the run that got the answer."""
        if self._by_id.pop(task.id, None) is not None:
            of_site = self._by_site[task.site]
            del of_site[task.id]
            if not of_site:
                del self._by_site[task.site]

    def announced_bytes(self) -> int:
        """Return how much of the payloads that sites have announced is still to come."""
        return sum(task.offer.size - task.received for task in self._by_id.values() if task.offer is not None)

    def late(self) -> Iterator[Task]:
        """Yield the tasks whose replies nobody waits for any more."""
        now = time.monotonic()
        yield from [task for task in self._by_id.values() if task.deadline < now]

    def of_run(self, run: Answers) -> Iterator[Task]:
        """Yield a run's tasks."""
        yield from [task for task in self._by_id.values() if task.run is run]


def drop_incoming(tasks: Iterable[Task]) -> None:
    """Delete the arrived parts of replies that nobody will read."""
    for task in tasks:
        with suppress(OSError):  # a file that cannot be deleted now is deleted with the run's folder
            task.incoming.unlink()


def prepare_incoming(task: Task, size: int, *, reserve_bytes: int) -> None:
    """Make the file of a reply's payload, if the disk has room for all of it.

    Raises:
        StateError: it has not, or the file cannot be made.
    """
    folder = task.incoming.parent
    try:
        free = os.statvfs(folder)
        if free.f_bavail * free.f_frsize < size + reserve_bytes:
            raise StateError(f"the server's disk has no room for a payload of {size} bytes")
        task.incoming.unlink(missing_ok=True)  # with the parts of an earlier offer
        task.incoming.touch(mode=0o600)
    except OSError as error:
        raise StateError(f"cannot write in '{folder}': {clean(error.strerror or str(error))}") from error
