"""Logs that grow without end: their oldest lines are put away, the chain goes on, and readers miss nothing."""

import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from consilium.common.errors import StateError
from consilium.common.events.log import EventLog, Follower
from consilium.common.events.parts import CONTINUED, parts_of, verify_log
from consilium.common.events.run import STUDY_EVENTS, RunEvent, RunWarning
from consilium.common.host.files import write_atomically
from consilium.server.study.run_folder import RunFolder


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EventLog:
    """Return a log that puts away its lines as soon as there are some 2,000 bytes of them, and keeps three parts."""
    monkeypatch.setattr("consilium.common.events.log.PART_BYTES", 2_000)
    monkeypatch.setattr("consilium.common.events.parts.MOST_PARTS", 3)
    return EventLog(tmp_path / "journal.jsonl", {"run": "one"}, endless=True)


def numbers(events: list[RunEvent]) -> list[int]:
    """Return which events these are."""
    return [int(event.message) for event in events if isinstance(event, RunWarning)]


def fill(log: EventLog, *events: int) -> None:
    """Write events, each a number."""
    for number in events:
        log.log(RunWarning(message=f"{number:05d}"))


def test_lines_are_put_away_and_the_chain_goes_on(log: EventLog) -> None:
    """Small enough for every disk: three parts and the log, whose lines have been one chain from the first on."""
    fill(log, *range(100))
    parts = parts_of(log.path)
    assert 3 == len(parts)
    assert log.path.stat().st_size < 2_400
    assert {0o600} == {path.stat().st_mode & 0o777 for path in (log.path, *(part for _, part in parts))}
    assert sum(part.stat().st_size for _, part in parts) < 3 * 1_200
    chain = verify_log(log.path)
    first = json.loads(log.path.read_bytes().splitlines()[0])
    assert (CONTINUED, parts[-1][0] + 1) == (first["event"], first["line"])
    last = json.loads(log.path.read_bytes().splitlines()[-1])
    assert chain.lines == last["line"] > 100
    fill(log, 100)
    assert chain.lines + 1 == verify_log(log.path).lines


def test_log_of_a_run_is_never_put_away(log: EventLog) -> None:
    """An audit needs all of it, and it ends with its run."""
    plain = EventLog(log.path.with_name("events.jsonl"))
    fill(plain, *range(50))
    assert plain.path.stat().st_size > 5_000
    assert [] == parts_of(plain.path)


def test_reader_misses_nothing_however_seldom_it_looks(log: EventLog) -> None:
    """Neither of what was put away since nor of what was put away before it began; and it reads nothing twice."""
    quick, slow, seen, late = Follower(log.path, STUDY_EVENTS), Follower(log.path, STUDY_EVENTS), [], []
    for number in range(60):
        fill(log, number)
        seen += numbers(quick.new())
        if number % 13 == 12:
            late += numbers(slow.new())
    late += numbers(slow.new())
    assert list(range(60)) == seen == late
    kept = numbers(log.read(STUDY_EVENTS))
    assert list(range(kept[0], 60)) == kept
    assert kept[0] > 0
    assert len(kept) > 15


def test_reader_says_which_line_is_wrong_by_its_number_in_the_chain(log: EventLog) -> None:
    """Also after lines were put away."""
    fill(log, *range(20))
    content = log.path.read_bytes()
    line = json.loads(content.splitlines()[-1])["line"]
    log.path.write_bytes(content.replace(b'"message": "00019"', b'"massage": "00019"'))
    with pytest.raises(StateError, match=rf"journal\.jsonl, line {line}\)"):
        log.read(STUDY_EVENTS)


def test_no_change_of_a_part_passes(log: EventLog) -> None:
    """A line of a part, its beginning, a part in the middle, or a byte of the compressed file: each is named."""
    fill(log, *range(100))
    (_, first), (_, second), _ = parts_of(log.path)
    whole = first.read_bytes(), second.read_bytes()
    lines = gzip.decompress(whole[0]).splitlines(keepends=True)
    for changed in (
        [*lines[:2], lines[2].replace(b'"one"', b'"two"'), *lines[3:]],
        lines[1:],
        lines[:-1],
        [lines[0].replace(CONTINUED.encode(), b"warning"), *lines[1:]],
    ):
        first.write_bytes(gzip.compress(b"".join(changed)))
        with pytest.raises(StateError, match=r"event log '.*', line [0-9]+: "):
            verify_log(log.path)
    for at in range(12, len(whole[0])):  # before that lies the time of compression, which is no part of it
        first.write_bytes(whole[0][:at] + bytes([whole[0][at] ^ 1]) + whole[0][at + 1 :])
        with pytest.raises(StateError, match=r"cannot read '.*gz'|event log"):
            verify_log(log.path)
    first.write_bytes(whole[0])
    second.unlink()
    with pytest.raises(StateError, match=r"event log '.*', line [0-9]+: .*lines before it were taken out"):
        verify_log(log.path)
    second.write_bytes(whole[1])
    assert verify_log(log.path).lines > 100


def test_crash_between_the_part_and_the_new_log_loses_and_repeats_nothing(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part is there, the log is still the old one: it is put away once more, under the same name."""
    follower = Follower(log.path, STUDY_EVENTS)

    def killed(path: Path, content: bytes, *, mode: int = 0o644) -> None:
        if path == log.path:
            raise KeyboardInterrupt
        write_atomically(path, content, mode=mode)

    fill(log, *range(3))
    seen = numbers(follower.new())
    monkeypatch.setattr("consilium.common.events.parts.write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        fill(log, *range(3, 100))
    monkeypatch.undo()
    monkeypatch.setattr("consilium.common.events.log.PART_BYTES", 2_000)
    (part,) = parts_of(log.path)
    lost = json.loads(log.path.read_bytes().splitlines()[-1])["line"]  # the number of the one that was to come
    fill(log, *range(lost, 12))
    assert [part] == parts_of(log.path)
    assert list(range(12)) == seen + numbers(follower.new()) == numbers(log.read(STUDY_EVENTS))
    verify_log(log.path)


def test_several_writers_put_away_at_once(log: EventLog) -> None:
    """The server and its runs write one journal: each line is in it once, in one chain."""
    writers = [EventLog(log.path, {"run": str(number)}, endless=True) for number in range(4)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("consilium.common.events.parts.MOST_PARTS", 100)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: fill(writers[number % 4], number), range(120)))
    assert list(range(120)) == sorted(numbers(log.read(STUDY_EVENTS)))
    verify_log(log.path)


def test_damaged_part_costs_a_reader_its_own_lines_only(log: EventLog) -> None:
    """Metrics go on without them, and somebody is told."""
    fill(log, *range(100))
    (_, first), (_, second), _ = parts_of(log.path)
    first.write_bytes(b"damaged")
    problems: list[StateError] = []
    read = numbers(Follower(log.path, STUDY_EVENTS).new(problems.append))
    assert 99 == read[-1]
    assert list(range(read[0], 100)) == read
    assert [True] == [str(first) in str(problem) for problem in problems]
    assert len(gzip.decompress(second.read_bytes()).splitlines()) < len(read)


def test_journal_that_cannot_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is for metrics; the run's own log has all events, and the server's log says once what is amiss."""
    (tmp_path / "home").write_text("no folder")
    folder = RunFolder(tmp_path / "run", EventLog(tmp_path / "home" / "journal.jsonl", endless=True))
    for number in range(3):
        folder.log(RunWarning(message=str(number)))
    assert [0, 1, 2] == numbers(folder.read_events())
    assert 1 == caplog.text.count("metrics lack events until it can be written")
    (tmp_path / "home").unlink()
    folder.log(RunWarning(message="3"))
    assert folder.journal is not None
    assert [3] == numbers(folder.journal.read(STUDY_EVENTS))
