"""The hash chain of event logs: whatever is changed afterwards is found and named, a crash is not."""

import hashlib
import json
import multiprocessing
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.common.errors import StateError
from consilium.common.events.chain import Chain, verify_chain
from consilium.common.events.log import EventLog
from consilium.common.events.run import APP_EVENTS, STUDY_EVENTS, RoundAsked, RunWarning
from consilium.common.events.site import SITE_EVENTS

LINES = 6


def written(path: Path, number: int = LINES) -> list[bytes]:
    """Write a log and return its lines."""
    log = EventLog(path)
    for one in range(number):
        log.log(RunWarning(message=f"warning {one}"))
    return path.read_bytes().splitlines(keepends=True)


def test_lines_are_a_chain(tmp_path: Path) -> None:
    """Recomputed here from the bytes: each names its place and the SHA-256 of the line before it, the first zeros."""
    lines = written(tmp_path / "events.jsonl")
    before = "0" * 64
    for number, line in enumerate(lines, start=1):
        content = json.loads(line)
        assert (number, before) == (content["line"], content["before"])
        before = hashlib.sha256(line.rstrip(b"\n")).hexdigest()
    assert Chain(LINES, before) == verify_chain(tmp_path / "events.jsonl")


def test_empty_log_is_whole(tmp_path: Path) -> None:
    """Its head is that of no line; a log that is not there cannot be read."""
    (tmp_path / "events.jsonl").touch()
    assert Chain() == verify_chain(tmp_path / "events.jsonl")
    with pytest.raises(StateError, match="cannot read the event log"):
        verify_chain(tmp_path / "none.jsonl")


def test_long_lines_and_many_at_once_are_linked(tmp_path: Path) -> None:
    """A line longer than what is read of a log's end at first, and lines that are appended together."""
    log = EventLog(tmp_path / "events.jsonl")
    for size in (1, 4000, 5000, 40_000, 300_000, 2):
        event = RoundAsked(round=1, sites=tuple(f"s{number}" for number in range(size // 5)), quorum=1)
        log.append([log.line(event), log.line(RunWarning(message="ä" * size))], durable=False)
    assert 12 == verify_chain(log.path).lines


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (lambda lines: [*lines[:2], lines[2].replace(b"warning 2", b"warning 7"), *lines[3:]], "line 4: line 3 was ch"),
        (lambda lines: [*lines[:2], *lines[3:]], "line 3: it is line 4 of what was written: lines before it were take"),
        (lambda lines: lines[1:], "line 1: it is line 2 of what was written: lines before it were taken out"),
        (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], "line 3: it is line 4 of what was written"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], "line 4: it is line 3 of what was written: lines before it"),
        (lambda lines: [*lines[:3], b'{"event": "warning"}\n', *lines[3:]], "line 4: it was changed or put in"),
        (lambda lines: [*lines[:3], lines[3][1:], *lines[4:]], "line 4: it was changed: it is not JSON"),
    ],
    ids=["changed", "removed", "first removed", "swapped", "repeated", "put in", "cut"],
)
def test_what_is_changed_afterwards_is_named(broken: object, sentence: str, tmp_path: Path) -> None:
    """By its line and by what is wrong with it."""
    path = tmp_path / "events.jsonl"
    assert callable(broken)
    lines = broken(written(path))
    path.write_bytes(b"".join(lines))
    with pytest.raises(StateError, match=sentence):
        verify_chain(path)


@given(st.data())
def test_no_byte_but_of_the_last_line_can_change(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whichever it is, and whatever it becomes; the last line is what the head is for."""
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    lines = written(path)
    content, head = bytearray(b"".join(lines)), verify_chain(path).head
    place = data.draw(st.integers(0, len(content) - 2))
    content[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    path.write_bytes(content)
    if place < len(content) - len(lines[-1]):
        with pytest.raises(StateError, match="line"):
            verify_chain(path)
        return
    try:
        assert verify_chain(path).head != head
    except StateError as error:
        assert "line" in str(error)  # noqa: PT017  either is right


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_line_that_a_crash_cut_off_is_none(cut: int, tmp_path: Path) -> None:
    """It is cut off with the next append, and the chain goes on from the last whole line."""
    path = tmp_path / "events.jsonl"
    lines = written(path)
    path.write_bytes(b"".join(lines)[:-cut])
    assert LINES - 1 == verify_chain(path).lines
    EventLog(path).log(RunWarning(message="again"))
    assert LINES == verify_chain(path).lines
    assert lines[:-1] == path.read_bytes().splitlines(keepends=True)[:-1]
    assert "again" == json.loads(path.read_bytes().splitlines()[-1])["message"]


def test_log_of_an_earlier_release_goes_on(tmp_path: Path) -> None:
    """Its own lines are no chain, which is said; those after them are linked to the last of them."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    path.write_text(f"{log.line(RunWarning(message='old'))}\n" * 2)
    log.log(RunWarning(message="new"))
    assert 3 == json.loads(path.read_bytes().splitlines()[-1])["line"]
    assert 3 == len(log.read(STUDY_EVENTS))
    with pytest.raises(StateError, match="line 1: it was changed or put in"):
        verify_chain(path)


def _append(path: Path, ready: threading.Barrier) -> None:
    log = EventLog(path)
    ready.wait(60)
    for number in range(300):
        log.append([log.line(RunWarning(message=f"warning {number}"))] * (1 + number % 3), durable=False)


def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    """A run's process and the server's may append at the same time."""
    path = tmp_path / "events.jsonl"
    fork = multiprocessing.get_context("fork")
    ready = fork.Barrier(4)
    processes = [fork.Process(target=_append, args=(path, ready)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [0] * 4 == [process.exitcode for process in processes]
    assert 4 * 100 * (1 + 2 + 3) == verify_chain(path).lines


def test_no_event_has_a_field_of_the_chain() -> None:
    """Else its value would be there twice."""
    for known in (STUDY_EVENTS, APP_EVENTS, SITE_EVENTS):
        for event in known.events.values():
            names = getattr(event, "model_fields", None) or getattr(event, "__dataclass_fields__", {})
            assert not {"line", "before"} & set(names), event
