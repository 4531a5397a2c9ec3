"""The orders of a site, from their arrival until their replies are whole at the server."""

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from consilium.common.study.limits import MAX_PAYLOAD_BYTES

log = logging.getLogger(__name__)

MAX_TASKS = 64
"""How many orders a site lets wait; no server of a study sends more."""


@dataclass(eq=False)
class Task:
    """One order that was received, until its reply is whole at the server."""

    id: bytes
    order: bytes
    payload: bytes
    size: int
    deadline: float
    reply: Any = None

    @property
    def seconds_left(self) -> float:
        """How long its reply is waited for, at least a second."""
        return max(1.0, self.deadline - time.monotonic())


class Tasks:
    """Orders that wait, the one in hand, and small replies on their way, which are sent again on a new connection."""

    def __init__(self) -> None:
        self.waiting: deque[Task] = deque()
        self.current: Task | None = None
        self.sent: dict[bytes, Task] = {}
        self.arrived = asyncio.Event()
        self.taken = asyncio.Event()
        self.turns: asyncio.Queue[Any] = asyncio.Queue()

    @property
    def ids(self) -> list[bytes]:
        """The ids of all orders that this site still works on or has a reply for."""
        return [*self._open, *self.sent]

    @property
    def replies(self) -> list[Any]:
        """Replies that may not have arrived."""
        tasks = [task for task in (*self.sent.values(), self.current) if task is not None]
        return [task.reply for task in tasks if task.reply is not None]

    @property
    def _open(self) -> list[bytes]:
        return [task.id for task in (*self.waiting, self.current) if task is not None]

    def receive(self, task: Any) -> None:
        """Put an order in line, unless it is known, one too many, or too large."""
        if task.id in self.ids:
            return
        if len(self._open) >= MAX_TASKS or task.payload_size > MAX_PAYLOAD_BYTES:
            log.error("order refused: the server sends too many, or too much")
            return
        deadline = time.monotonic() + task.seconds
        self.waiting.append(Task(task.id, task.order, task.payload, task.payload_size, deadline))
        self.arrived.set()

    def grant(self, turn: Any) -> None:
        """Keep the newest turn for the reply in hand, and no other: a server that sends many fills no memory."""
        if self.current is not None and self.current.id == turn.task:
            self._drop_turns()
            self.turns.put_nowait(turn)

    def forget(self, identifier: bytes) -> None:
        """Drop an order whose reply is at the server, or that was withdrawn."""
        if self.current is not None and self.current.id == identifier:
            self.taken.set()
        self.sent.pop(identifier, None)
        self.waiting = deque(task for task in self.waiting if task.id != identifier)

    def begin(self) -> Task:
        """Start on the order that has waited longest, and return it."""
        task = self.current = self.waiting.popleft()
        self.taken.clear()
        return task

    def end(self) -> None:
        """Stop work on the order in hand."""
        self.current = None
        self._drop_turns()

    def keep(self, task: Task) -> None:
        """Keep a small reply in case the connection breaks meanwhile; drop old ones that nobody waits for."""
        now = time.monotonic()
        self.sent = {held.id: held for held in self.sent.values() if held.deadline > now}
        while len(self.sent) >= MAX_TASKS:
            del self.sent[next(iter(self.sent))]
        task.order = task.payload = b""  # only the reply is sent again
        self.sent[task.id] = task

    def _drop_turns(self) -> None:
        while not self.turns.empty():
            self.turns.get_nowait()
