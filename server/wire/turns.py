"""Turns for sending large payloads: a few at a time, each for as long as it makes progress.

This bounds the server's memory: a payload without a turn stays at its site.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from consilium.common.wire.limits import PROGRESS_SECONDS
from consilium.server.wire.tasks import Task

UPLOADS = 4
"""How many sites send at a time; a server of two cores is busy with two."""
MAX_LOST_TURNS = 4
"""How often a site may lose its turn before its reply is given up."""


class Turns:
    """Hands out turns in the order in which they were asked for.

    Args:
        grant: tells a site that it may send; False where it is not connected.
        give_up: called for a task that lost its turn too often.
    """

    def __init__(
        self,
        grant: Callable[[Task], bool],
        give_up: Callable[[Task], None],
        *,
        most: int = UPLOADS,
        patience_seconds: float = PROGRESS_SECONDS,
    ) -> None:
        self._grant, self._give_up = grant, give_up
        self._most, self._patience = most, patience_seconds
        self._waiting: deque[Task] = deque()
        self._active: dict[Task, asyncio.TimerHandle | None] = {}

    @property
    def waiting(self) -> int:
        """How many payloads wait for a turn."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """How many payloads have one."""
        return len(self._active)

    def ask(self, task: Task) -> None:
        """Put a task into the queue; a site that has its turn but does not use it is granted it again."""
        if self._active.get(task) is not None:
            self._grant(task)
        elif task not in self._waiting and task not in self._active:
            self._waiting.append(task)
        self._next()

    def begin(self, task: Task) -> bool:
        """Note that a site begins to send; False if it has no turn, or sends already."""
        timer = self._active.get(task)
        if timer is None:
            return False
        timer.cancel()
        self._active[task] = None
        return True

    def end(self, task: Task, *, moved: bool) -> None:
        """Take a turn back whose payload is not whole, and put its task at the end of the queue.

        Args:
            moved: whether something arrived in it; too many turns in which nothing does end the task.
        """
        self._release(task)
        task.lost_turns = 0 if moved else task.lost_turns + 1
        if task.lost_turns >= MAX_LOST_TURNS:
            self._give_up(task)
        else:
            self._waiting.append(task)
        self._next()

    def forget(self, task: Task) -> None:
        """Take a task out: its payload is whole, or of no use any more."""
        self._release(task)
        if task in self._waiting:
            self._waiting.remove(task)
        if self._waiting:
            self._next()

    def _release(self, task: Task) -> None:
        timer = self._active.pop(task, None)
        if timer is not None:
            timer.cancel()

    def _next(self) -> None:
        """Give turns to those at the front whose sites are connected; the others keep their place."""
        absent: list[Task] = []
        while self._waiting and len(self._active) < self._most:
            task = self._waiting.popleft()
            timer = asyncio.get_running_loop().call_later(self._patience, self._overslept, task)
            self._active[task] = timer
            if not self._grant(task):
                timer.cancel()
                del self._active[task]
                absent.append(task)
        self._waiting.extendleft(reversed(absent))

    def _overslept(self, task: Task) -> None:
        if task in self._active and self._active[task] is not None:
            self.end(task, moved=False)
