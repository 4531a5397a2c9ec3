"""Follows a run by its event log and writes it into trackers; what goes wrong with them never ends the run."""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from consilium.common.errors import ConfigError, StateError, clean
from consilium.common.events.log import Follower
from consilium.common.events.run import (
    STUDY_EVENTS,
    RunEvent,
    RunFailure,
    RunFinished,
    RunResumed,
    RunStarted,
    RunStopped,
    RunSubmitted,
)
from consilium.common.results import RunResult
from consilium.common.study.study import StudyConfig
from consilium.tracking.addresses import without_password
from consilium.tracking.contract import Writer
from consilium.tracking.points import MODEL, final_points, points_of, settings_of, settings_of_event
from consilium.tracking.settled import Settled
from consilium.tracking.targets import Identity, Target, writer_for

POLL_SECONDS, END_SECONDS = 0.5, 60.0
"""Pauses between looks at the log, and how long the end of a run waits for its trackers."""
MOST_RESULT_BYTES = 256 * 2**20
ARTEFACTS = ("report.html", "report.json", "rounds.csv")
_WEIGHTS = "model/weights.safetensors"

Say = Callable[[str], None]


class _Tool:
    """One writer with what it has of the run so far."""

    def __init__(self, target: Target, run: Identity) -> None:
        self.writer: Writer = writer_for(target, run)
        self.settled = Settled()

    def begin(self, event: RunStarted, study: StudyConfig | None) -> None:
        """Begin with the settings that are known."""
        settings = settings_of_event(event) if study is None else settings_of(study)
        self.settled = Settled(self.writer.begin(settings))

    def take(self, event: RunEvent) -> None:
        """Write the round that an event makes final."""
        done = self.settled.take(event)
        if done is not None:
            self.writer.write(points_of(done))


class Follow:
    """A run as its trackers get it: reads new events, and writes them to each that still works.

    Args:
        study: its settings, where they are known before its result is.
        say: takes a sentence about what goes wrong.
    """

    def __init__(self, folder: Path, targets: Sequence[Target], *, say: Say, study: StudyConfig | None = None) -> None:
        self._folder, self._targets, self._say, self._study = folder.resolve(), targets, say, study
        self._log = Follower(folder / "events.jsonl", STUDY_EVENTS)
        self._tools: dict[Target, _Tool] = {}
        self._name = ""
        self._begun = False
        self.status = "running"

    @property
    def places(self) -> list[str]:
        """Where the run is written to, as far as it works."""
        return [tool.writer.place for tool in self._tools.values()]

    def step(self) -> None:
        """Read the new events and write them."""
        for event in self._log.new(on_problem=lambda problem: logging.getLogger(__name__).warning(str(problem))):
            self._take(event)

    def end(self) -> None:
        """Write the rest, the test scores and the files, and close every tracker."""
        self.step()
        result = _result(self._folder) if self.status == "finished" else None
        for target in list(self._tools):
            self._guarded(target, lambda tool: self._end(tool, result))

    def _end(self, tool: _Tool, result: RunResult | None) -> None:
        points = [] if result is None else final_points(result, datetime.now(UTC))
        if result is not None:
            tool.writer.describe(settings_of(result.study))
        tool.writer.end(points, status=self.status, files=_artefacts(self._folder) if result is not None else ())

    def _take(self, event: RunEvent) -> None:
        match event:
            case RunSubmitted():
                self._name = event.study or self._name
            case RunStarted() if not self._begun:
                self._begun, name = True, self._study.name if self._study is not None else self._name
                run = Identity(self._folder, name or self._folder.name, event.time.isoformat())
                for target in self._targets:
                    self._open(target, run, event)
        match event:
            case RunStarted() | RunResumed():
                self.status = "running"
            case RunFinished():
                self.status = "finished"
            case RunFailure():
                self.status = "failed"
            case RunStopped():
                self.status = "stopped"
        for target in list(self._tools):
            self._guarded(target, lambda tool: tool.take(event))

    def _open(self, target: Target, run: Identity, event: RunStarted) -> None:
        try:
            tool = _Tool(target, run)
            tool.begin(event, self._study)
            self._tools[target] = tool
        except Exception as error:  # whatever a tool raises, the run goes on
            self._lost(target, error)

    def _guarded(self, target: Target, act: Callable[[_Tool], None]) -> None:
        try:
            act(self._tools[target])
        except Exception as error:  # likewise
            del self._tools[target]
            self._lost(target, error)

    def _lost(self, target: Target, error: Exception) -> None:
        why = clean(without_password(str(error)).partition("\n")[0], 300) or type(error).__name__
        self._say(f"{target.kind}: {why}")


class Tracking(AbstractContextManager["Tracking"]):
    """Tracks a run in a thread of its own while the block lasts; at its end report and model are written too."""

    def __init__(self, folder: Path, targets: Sequence[Target], *, say: Say, study: StudyConfig | None = None) -> None:
        self._follow = Follow(folder, targets, say=self._lost, study=study)
        self._folder, self._say, self._any = folder, say, bool(targets)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def __enter__(self) -> "Tracking":
        if self._any:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._any:
            return
        self._stop.set()
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            self._say(f"tracking did not end within {END_SECONDS:.0f} s and is left; the run is not affected")
        for place in self._follow.places:
            self._say(f"tracked: {place}")

    def _lost(self, problem: str) -> None:
        export = f"'consilium runs export {self._folder} --to TOOL' writes it later"
        self._say(f"tracking ended, {problem}; the run goes on, and {export}")

    def _run(self) -> None:
        try:
            while not self._stop.wait(POLL_SECONDS):
                self._follow.step()
            self._follow.end()
        except Exception as error:  # e.g. an unreadable log: the run says so itself
            self._say(f"tracking ended: {clean(str(error), 300)}; the run is not affected")


def export_run(folder: Path, target: Target) -> str:
    """Write a run that is there already; return where it was written to.

    Raises:
        ConfigError: the folder holds no run that started.
        StateError: the tracker refused it.
    """
    problems: list[str] = []
    result = _result(folder)
    follow = Follow(folder, [target], say=problems.append, study=None if result is None else result.study)
    follow.end()
    if problems:
        raise StateError(f"run '{folder.name}' was not exported, {problems[0]}")
    if not follow.places:
        raise ConfigError(f"'{folder}' holds no run of a study that has started: it has no such event in events.jsonl")
    return follow.places[0]


def _result(folder: Path) -> RunResult | None:
    """Return a run's result; None where it has none that this version reads, and so no test scores."""
    path = folder / "result.json"
    try:
        if path.stat().st_size > MOST_RESULT_BYTES:
            return None
        return RunResult.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def _artefacts(folder: Path) -> list[Path]:
    model = sorted(path for path in (folder / MODEL).glob("*") if path.is_file())
    plain = [folder / name for name in ARTEFACTS if (folder / name).is_file()]
    weights = folder / _WEIGHTS
    return [*plain, *(model or ([weights] if weights.is_file() else []))]
