"""Tasks that run one at a time and stop where they ask something, until all have asked and are answered together.

Each task has a thread of its own, because what asks may lie deep in code that knows nothing of it; but never do two of
them run at the same time, and they always go on in the same order. So a run is as deterministic as without threads.
"""

import contextvars
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock, Thread
from typing import Generic, TypeVar

R = TypeVar("R")
Q = TypeVar("Q")
A = TypeVar("A")

Ask = Callable[[Q], A]
"""`ask(question)` stops the task that calls it until all others have asked or ended, and returns the answer."""


@dataclass(frozen=True, eq=False)
class Wrong:
    """In place of an answer, the error that `ask` raises in the task."""

    error: BaseException


class _Abandoned(BaseException):
    """Nobody waits for the task any more."""


@dataclass(eq=False)
class _Task(Generic[R, Q, A]):
    """A task's thread, which runs only between `go` and the next `stopped`.

    Args:
        question: what it waits for an answer to; in a list, empty where it has none.
    """

    work: Callable[[Ask[Q, A]], R]
    go: Lock = field(default_factory=Lock)
    stopped: Lock = field(default_factory=Lock)
    question: list[Q] = field(default_factory=list)
    answer: A | Wrong | None = None
    result: list[R] = field(default_factory=list)
    error: BaseException | None = None

    def start(self) -> None:
        """Run to the first question, or to the end."""
        self.go.acquire()
        self.stopped.acquire()
        context = contextvars.copy_context()
        Thread(target=lambda: context.run(self._run), daemon=True).start()
        self.stopped.acquire()

    def resume(self, answer: A | Wrong) -> None:
        """Run to the next question, or to the end."""
        self.answer = answer
        self.question.clear()
        self.go.release()
        self.stopped.acquire()

    def _run(self) -> None:
        try:
            self.result.append(self.work(self._ask))
        except BaseException as error:  # raised again where all tasks are waited for
            self.error = error
        self.stopped.release()

    def _ask(self, question: Q) -> A:
        self.question.append(question)
        self.stopped.release()
        self.go.acquire()
        answer, self.answer = self.answer, None
        if isinstance(answer, Wrong):
            raise answer.error
        return answer  # type: ignore[return-value]  # `resume` has just set it


def in_lockstep(
    tasks: Sequence[Callable[[Ask[Q, A]], R]], answer: Callable[[Sequence[Q]], Sequence[A | Wrong]]
) -> list[R]:
    """Run tasks and return their results in the same order; `answer` is given the questions of all that have one.

    Args:
        answer: returns one answer for each question; it runs in the caller's thread.

    Raises:
        BaseException: what a task or `answer` raised; the other tasks are ended where they wait.
    """
    running = [_Task(work) for work in tasks]
    try:
        for task in running:
            task.start()
            _check(task)
        while waiting := [task for task in running if task.question]:
            for task, one in zip(waiting, answer([task.question[0] for task in waiting]), strict=True):
                task.resume(one)
                _check(task)
    finally:
        for task in running:
            while task.question:
                task.resume(Wrong(_Abandoned()))
    return [task.result[0] for task in running]


def _check(task: _Task[R, Q, A]) -> None:
    if task.error is not None:
        raise task.error
