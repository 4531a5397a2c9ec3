"""Events: what is written reads as it was, what is unknown is passed over, and what is wrong is named."""

import ast
import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from pydantic import ValidationError

from consilium.common.errors import StateError
from consilium.common.events.enrolment import ENROLMENT_EVENTS
from consilium.common.events.log import Event, EventLog, Follower, Vocabulary
from consilium.common.events.run import (
    APP_EVENTS,
    STUDY_EVENTS,
    RoundAsked,
    RoundFinished,
    RunEvent,
    RunFinished,
    RunWarning,
)
from consilium.common.events.site import OF_THE_PLAN, SITE_EVENTS, PlanAnswered, PlanFailed, SiteEvent
from consilium.common.protocol.cards import DataCard
from consilium.common.protocol.replies import (
    FinishReply,
    HandshakeReply,
    InitialWeightsReply,
    KeysReply,
    RoundReply,
    ScaleReply,
    UnmaskReply,
)
from consilium.common.results import RoundRecord, SiteFacts, SiteRound

ASKED = RoundAsked(round=1, sites=("berlin", "lyon"), quorum=2)
FINISHED = RoundFinished(
    round=1,
    asked=("berlin", "lyon"),
    answered=("berlin",),
    accepted=("berlin",),
    rejected={"lyon": "timeout"},
    seconds=2.5,
    sites={"berlin": SiteRound(num_examples=30, seconds=1.5, metrics={"global.loss": 0.25}, weight=1.0)},
)
FIRST = {"line": 1, "before": "0" * 64}
"""What the chain adds to a log's first line."""


def matched(tree: ast.AST) -> set[str]:
    """Return the classes that a module tells apart, by `case` or by `isinstance`."""
    cases = {ast.unparse(node.cls) for node in ast.walk(tree) if isinstance(node, ast.MatchClass)}
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance")
    return cases | {name.id for call in calls for name in ast.walk(call.args[1]) if isinstance(name, ast.Name)}


READ = {
    name
    for folder in ("server", "client", "consilium")
    for path in (ROOT / folder).rglob("*.py")
    for name in matched(ast.parse(path.read_text(encoding="utf-8")))
}
LOGS: dict[str, Vocabulary[Any]] = {
    "study": STUDY_EVENTS,
    "app": APP_EVENTS,
    "site": SITE_EVENTS,
    "enrolments": ENROLMENT_EVENTS,
}
EVENTS = sorted(
    {event for known in LOGS.values() for event in known.events.values()},
    key=lambda event: event.__name__,
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_event_has_a_reader_or_is_for_the_record(event: type[Event]) -> None:
    """Some program tells it apart from others, or it says that only people read it; never both."""
    assert (event.__name__ in READ) != event.for_the_record


@pytest.mark.parametrize("base", [RunEvent, SiteEvent])
def test_every_record_is_in_a_log(base: type[Any]) -> None:
    """A class of events that no vocabulary lists would never be read."""
    assert set(base.__subclasses__()) <= set(EVENTS)


@pytest.mark.parametrize("known", LOGS.values(), ids=LOGS)
def test_names_in_a_log_are_each_of_one_event(known: Vocabulary[Event]) -> None:
    """Two records of one name could not be told apart."""
    assert {name: name for name in known.events} == {name: event.name for name, event in known.events.items()}
    assert len(set(known.events.values())) == len(known.events)


def test_event_reads_as_it_was_written(tmp_path: Path) -> None:
    """Also its time; labels of the writer are fields of the record, and the file has the names of the fields."""
    log = EventLog(tmp_path / "journal.jsonl", {"study": "hearts", "run": "run-1"})
    log.log(ASKED)
    log.log(FINISHED)
    labels = {"study": "hearts", "run": "run-1"}
    assert [ASKED.model_copy(update=labels), FINISHED.model_copy(update=labels)] == log.read(STUDY_EVENTS)
    first, second = (json.loads(line) for line in log.path.read_text().splitlines())
    expected = {"event": "asked", **labels, "round": 1, "sites": ["berlin", "lyon"], "quorum": 2}
    assert {"time": ASKED.time.isoformat()} | expected | FIRST == first
    assert ["time", "event", "study", "run", "round", "asked"] == list(second)[:6]


def test_record_of_a_round_survives_the_log(tmp_path: Path) -> None:
    """What a resumed run has of the rounds before is what the round left."""
    log = EventLog(tmp_path / "events.jsonl")
    log.log(FINISHED)
    (read,) = log.read(STUDY_EVENTS)
    record = RoundRecord.model_validate(read, from_attributes=True)
    assert record == RoundRecord.model_validate(FINISHED, from_attributes=True)
    assert "weight" not in SiteRound(num_examples=1, seconds=0.0, metrics={}).model_dump()


def test_unknown_events_and_fields_are_passed_over(tmp_path: Path) -> None:
    """Another release may know more; a line that a crash cut off is none."""
    log = EventLog(tmp_path / "events.jsonl")
    line = json.loads(log.line(ASKED)) | {"invented": 1}
    other = {**line, "event": "invented"}
    log.path.write_text("".join(f"{text}\n" for text in (json.dumps(other), json.dumps(line), '{"time": "20', "7", "")))
    assert [ASKED] == log.read(STUDY_EVENTS)


@pytest.mark.parametrize("known", LOGS.values(), ids=LOGS)
def test_line_of_lists_in_lists_is_passed_over(known: Vocabulary[Event], tmp_path: Path) -> None:
    """A damaged line ends no live view, however deep it is."""
    log = EventLog(tmp_path / "events.jsonl")
    log.path.write_text(f"{'[' * 100_000}\n")
    assert [] == log.read(known)


@pytest.mark.parametrize("changes", [{"round": None}, {"round": "one"}, {"sites": 3}, {"time": "yesterday"}])
def test_wrong_event_is_an_error_that_names_file_and_line(changes: dict[str, object], tmp_path: Path) -> None:
    """The reader of a broken log knows where to look."""
    log = EventLog(tmp_path / "events.jsonl")
    broken = json.dumps(json.loads(log.line(ASKED)) | changes)
    log.path.write_text(f"{log.line(FINISHED)}\n{broken}\n")
    (field,) = changes
    with pytest.raises(StateError, match=rf"{field}: .*\(event 'asked' in .*events\.jsonl, line 2\)"):
        log.read(STUDY_EVENTS)


def test_follower_goes_on_after_a_wrong_event(tmp_path: Path) -> None:
    """It says what is wrong with each, once, and returns the others; line numbers go on from call to call."""
    log, problems = EventLog(tmp_path / "events.jsonl"), list[StateError]()
    follower = Follower(log.path, STUDY_EVENTS)
    assert [] == follower.new()
    lines = [log.line(ASKED), '{"event": "round"}', log.line(FINISHED)]
    for _ in range(2):
        log.append(lines)
        assert [ASKED, FINISHED] == follower.new(problems.append)
    assert ["line 2)", "line 5)"] == [str(problem)[-7:] for problem in problems]
    assert [] == follower.new()


def test_follower_begins_anew_with_a_log_that_shrank(tmp_path: Path) -> None:
    """A run of the same name that begins again has a new log."""
    log = EventLog(tmp_path / "events.jsonl")
    follower = Follower(log.path, STUDY_EVENTS)
    log.append([log.line(ASKED), log.line(FINISHED)])
    assert 2 == len(follower.new())
    log.path.unlink()
    log.log(warning := RunWarning(message="again"))
    assert [warning] == follower.new()


ANSWERED: dict[str, Any] = {
    **{"study": "hearts", "run": "run-1", "kind": "round", "seconds": 1.5, "bytes_up": 10, "bytes_down": 20},
    **{"codec": "identity", "epochs": 1, "pid": 4711, "round": 2, "num_examples": 30, "metrics": {"global.loss": 0.5}},
}


def test_event_of_a_site_reads_as_it_was_written(tmp_path: Path) -> None:
    """What is absent is not in the file, unless its being absent says something."""
    log = EventLog(tmp_path / "events.jsonl", {"site": "berlin"})
    failed = PlanFailed(study=None, run="run-1", kind="round", error="DataError", message="gone")
    log.log(answered := PlanAnswered(**ANSWERED))
    log.log(failed)
    assert [replace(answered, site="berlin"), replace(failed, site="berlin")] == log.read(SITE_EVENTS)
    first, second = (json.loads(line) for line in log.path.read_text().splitlines())
    assert {"time": answered.time.isoformat(), "event": "answered", "site": "berlin", **ANSWERED, **FIRST} == first
    assert second["study"] is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"run": 7}, "run: must be str, got 7"),
        ({"bytes_up": 1.5}, "bytes_up: must be int, got 1.5"),
        ({"round": True}, "round: must be int | None, got True"),
        ({"metrics": {"global.loss": "low"}}, "metrics: must be dict[str, float] | None, got {'global.loss': 'low'}"),
        ({"shared_buffers": "all"}, "shared_buffers: must be tuple[str, ...] | None, got 'all'"),
        ({"time": "yesterday"}, "time: must be datetime, got 'yesterday'"),
        ({"time": "2026-01-01T00:00:00"}, "time: must be datetime, got '2026-01-01T00:00:00'"),
        ({"seconds": math.nan}, "seconds: must be float, got nan"),
        ({"metrics": {"global.loss": math.inf}}, "metrics: must be dict[str, float] | None, got {'global.loss': inf}"),
        ({"seconds": 10**400}, "seconds: must be float, got 1" + 49 * "0"),
    ],
)
def test_wrong_event_of_a_site_is_an_error(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    """Each annotation is held, without pydantic."""
    log = EventLog(tmp_path / "events.jsonl")
    log.path.write_text(json.dumps(json.loads(log.line(PlanAnswered(**ANSWERED))) | changes) + "\n")
    with pytest.raises(StateError, match=re.escape(expected) + r" \(event 'answered' in .*line 1\)"):
        log.read(SITE_EVENTS)


def test_event_of_a_site_that_lacks_a_field_is_an_error(tmp_path: Path) -> None:
    """The same for what is not there."""
    (tmp_path / "events.jsonl").write_text('{"event": "failed", "time": "2026-01-01T00:00:00+00:00", "study": null}\n')
    with pytest.raises(StateError, match="run: is required, got nothing"):
        EventLog(tmp_path / "events.jsonl").read(SITE_EVENTS)


def test_event_can_be_neither_changed_nor_infinite() -> None:
    """A record of what was; JSON has no word for NaN."""
    with pytest.raises(ValidationError, match="frozen"):
        ASKED.round = 2
    with pytest.raises(ValidationError, match="finite number"):
        RunFinished(seconds=float("nan"))


def test_site_notes_every_field_of_every_reply() -> None:
    """What leaves a site is in its own log: its audit trail."""
    replies = (*(HandshakeReply, ScaleReply, InitialWeightsReply, RoundReply, FinishReply), KeysReply, UnmaskReply)
    told = {name for reply in replies for name in reply.model_fields}
    noted = {each.name for each in fields(PlanAnswered)}
    assert told - OF_THE_PLAN <= noted
    assert {"protocol", "codecs", "versions", "signed", "attempt", "audit"} == OF_THE_PLAN - noted


def test_facts_of_a_site_are_those_of_its_card() -> None:
    """Of the same types and defaults, so that none is lost on the way to the result."""
    for name, field in SiteFacts.model_fields.items():
        if name != "pid":
            of_card = DataCard.model_fields[name]
            assert (of_card.annotation, of_card.default) == (field.annotation, field.default), name
