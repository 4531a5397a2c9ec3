"""Follow a run by its event log, from this machine, until it ends."""

import time
from typing import Protocol

from consilium.common.errors import ConnectionRefused, RunFailed, error_named
from consilium.common.events.log import EventLog, Follower, Vocabulary
from consilium.common.events.run import STUDY_EVENTS, RunEvent, RunFailure, RunFinished, RunStopped, RunSubmitted
from consilium.server.operations.home import ServerHome
from consilium.server.study.run_folder import RunFolder
from consilium.server.wire.submission import Control

POLL_SECONDS, STATUS_SECONDS, MAX_UNANSWERED = 0.05, 3.0, 20
"""Pauses between looks at the log and at the server, and how many of the latter may go unanswered.

A server that is started again within a minute is waited for: its runs go on by themselves.
"""


class Shows(Protocol):
    """What shows the events of a run."""

    def show(self, event: RunEvent) -> None:
        """Take in one event."""
        ...

    def tick(self) -> None:
        """Be called again and again, events or not."""
        ...


def follow_events(
    records: RunFolder, view: Shows, home: ServerHome, *, skip: int = 0, vocabulary: Vocabulary[RunEvent] = STUDY_EVENTS
) -> None:
    """Show the events of a run until it ends.

    Args:
        skip: how many events are not shown, from the first.
        vocabulary: `APP_EVENTS` for the run of a Flower app.

    Raises:
        ConsiliumError: what ended the run, or that the server is gone for good.
    """
    log, asked, unanswered = Follower(records.events, vocabulary), time.monotonic(), 0
    while True:
        events = log.new()
        submitted = max((place for place, event in enumerate(events) if isinstance(event, RunSubmitted)), default=0)
        for place, event in enumerate(events[skip:], start=skip):
            view.show(event)
            # The end of an attempt that was continued since is not the run's.
            if place >= submitted and _ends(event, records):
                return
        skip = max(0, skip - len(events))
        if not events and time.monotonic() - asked > STATUS_SECONDS:
            asked = time.monotonic()
            try:
                _check_runs(records, home, vocabulary)
                unanswered = 0
            except ConnectionRefused:
                unanswered += 1
                if unanswered == MAX_UNANSWERED:
                    raise
        view.tick()
        time.sleep(POLL_SECONDS)


def _ends(event: RunEvent, records: RunFolder) -> bool:
    """Return whether a run finished with this event.

    Raises:
        ConsiliumError: it ended with it otherwise.
    """
    match event:
        case RunFailure():
            raise error_named(event.error, event.message)
        case RunStopped():
            raise RunFailed(_stopped(records))
    return isinstance(event, RunFinished)


def _stopped(records: RunFolder) -> str:
    mend = (
        f"'consilium run STUDY.toml --resume {records.path}' continues it"
        if records.is_resumable
        else "it left no checkpoint to continue from, so a new run is needed"
    )
    return f"run '{records.path.name}' was stopped; {mend}"


def _check_runs(records: RunFolder, home: ServerHome, vocabulary: Vocabulary[RunEvent]) -> None:
    """Check that the server still has this run going on.

    Raises:
        RunFailed: it ended without a word in its log.
        ConnectionRefused: the server does not answer.
    """
    with Control(home) as control:
        entry = next((entry for entry in control.runs() if entry.name == records.path.name), None)
    if entry is None or (entry.state == "failed" and not _has_ended(records, vocabulary)):
        detail = entry.detail if entry is not None else "it is not known there"
        raise RunFailed(f"the server's run ended without a result: {detail}")


def _has_ended(records: RunFolder, vocabulary: Vocabulary[RunEvent]) -> bool:
    events = EventLog(records.events).read(vocabulary)
    return bool(events) and isinstance(events[-1], RunFinished | RunFailure | RunStopped)
