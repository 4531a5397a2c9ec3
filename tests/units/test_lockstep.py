"""Tasks in lockstep: one at a time, answered together, and none left behind."""

import threading
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from consilium.running.lockstep import Ask, Wrong, in_lockstep

_name: ContextVar[str] = ContextVar("name", default="outside")


def test_tasks_stop_where_they_ask_and_are_answered_together() -> None:
    """All first questions come at once, then the second ones of those that have one; results keep their order."""
    seen: list[list[int]] = []

    def double(questions: Sequence[int]) -> list[int]:
        seen.append(list(questions))
        return [2 * one for one in questions]

    def twice(ask: Ask[int, int]) -> int:
        return ask(ask(1))

    def once(ask: Ask[int, int]) -> int:
        return ask(10)

    def never(_: Ask[int, int]) -> int:
        return 7

    assert in_lockstep([twice, never, once], double) == [4, 7, 20]
    assert seen == [[1, 10], [2]]


def test_only_one_task_runs_at_a_time_and_in_order() -> None:
    """What they write comes in the order given, in every step."""
    written: list[str] = []

    def task(name: str) -> str:
        return name

    def make(name: str):  # type: ignore[no-untyped-def]  # a closure of the test
        def run(ask: Ask[str, str]) -> str:
            for step in range(3):
                written.append(f"{name}{step}")
                ask(name)
            return task(name)

        return run

    assert in_lockstep([make("a"), make("b")], list) == ["a", "b"]
    assert written == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_task_has_its_callers_context_and_keeps_its_own_changes() -> None:
    """A variable that is set around the call holds in the tasks; one that a task sets holds in no other."""

    def run(ask: Ask[str, str]) -> str:
        before = _name.get()
        _name.set("changed")
        ask("")
        return f"{before} {_name.get()}"

    token = _name.set("caller")
    try:
        assert in_lockstep([run, run], list) == ["caller changed", "caller changed"]
        assert _name.get() == "caller"
    finally:
        _name.reset(token)


def test_wrong_answer_is_raised_in_the_task_that_asked() -> None:
    """It can go on from there; the others know nothing of it."""

    def careful(ask: Ask[int, int]) -> str:
        try:
            return str(ask(1))
        except ValueError as error:
            return f"went on: {error}"

    def answer(questions: Sequence[int]) -> list[int | Wrong]:
        return [Wrong(ValueError("no")), *questions[1:]]

    assert in_lockstep([careful, careful], answer) == ["went on: no", "1"]


@pytest.mark.parametrize("where", ["task", "answer"])
def test_error_ends_all_and_leaves_no_thread(where: str) -> None:
    """What a task or the answer raises comes out, and what waits is ended where it waits."""
    ended: list[str] = []
    before = threading.active_count()

    def waiting(ask: Ask[int, int]) -> int:
        try:
            return ask(1)
        finally:
            ended.append("waiting")

    def failing(ask: Ask[int, int]) -> int:
        if where == "task":
            raise KeyboardInterrupt
        return ask(2)

    def answer(_: Sequence[int]) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_lockstep([waiting, failing], answer)
    assert ended == ["waiting"]
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon:
            thread.join(timeout=1)
    assert threading.active_count() == before
