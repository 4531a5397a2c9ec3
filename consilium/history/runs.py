"""Reads the folder of a run: its log, its result, and the verdicts of its report."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from consilium.common.errors import StateError, clean
from consilium.common.events.run import (
    APP_EVENTS,
    STUDY_EVENTS,
    AppStarted,
    RoundFinished,
    RunEvent,
    RunFailure,
    RunFinished,
    RunStarted,
    RunStopped,
    RunSubmitted,
    StoppedEarly,
)
from consilium.common.results import RunResult
from consilium.common.study.sentences import describe
from consilium.history.entry import Entry, Kind, Score, Status, counted
from consilium.history.reading import event_lines, read_bounded, read_object
from consilium.history.scores import MODELS, mean_of, scores_of

APP, LOG, RESULT, REPORT = "app.bin", "events.jsonl", "result.json", "report.json"
_WANTED = ("submitted", "started", "stopped_early", "finished", "failed", "stopped")


@dataclass
class _Log:
    """What a run's log says, its last attempt before earlier ones."""

    kind: Kind = "run"
    status: Status = "unfinished"
    study: str = ""
    detail: str = ""
    first: datetime | None = None
    start: RunStarted | None = None
    round: RoundFinished | None = None
    problems: list[str] = field(default_factory=list)


def read_run(folder: Path, name: str) -> Entry:
    """Return what the folder of a run holds."""
    log = _Log(kind="app" if (folder / APP).exists() else "run")
    try:
        _read_log(folder, log)
    except StateError as error:
        log.problems.append(str(error))
    result = _result(folder, log.problems)
    if log.status == "finished" and log.kind == "run" and result is None and not (folder / RESULT).exists():
        log.problems.append(f"{RESULT} is missing, though the run finished")
    effects = _effects(folder, log.problems)
    start, study = log.start, None if result is None else result.study
    return Entry(
        id=name,
        folder=folder,
        kind=log.kind,
        status="finished" if result is not None else log.status,
        study=clean(log.study if study is None else study.name, 100),
        started=log.first,
        method=clean("" if start is None else start.method, 60) if study is None else study.method.kind,
        strategy=clean("" if start is None else start.strategy, 60) if study is None else study.strategy.kind,
        rounds_done=_rounds_done(log, result),
        rounds_asked=(None if start is None else start.rounds) if study is None else study.rounds,
        sites=tuple(clean(site, 100) for site in (() if start is None else start.sites))
        if study is None
        else study.sites,
        score=_validation_score(log.round) if result is None else _test_score(result),
        effects=effects,
        detail=log.detail,
        problems=tuple(log.problems),
        result=result,
    )


def _read_log(folder: Path, log: _Log) -> None:
    content = read_bounded(folder / LOG)
    if content is None:
        log.problems.append(f"{LOG} is missing")
        return
    last_round = None
    for event_name, line in event_lines(content):
        if event_name == "round":
            last_round = line
        elif event_name in _WANTED:
            _take(_event(line, log), log)
    if last_round is not None and isinstance(event := _event(last_round, log), RoundFinished):
        log.round = event
    if log.first is None:
        log.problems.append(f"{LOG} holds no event that this version reads")


def _event(line: bytes, log: _Log) -> RunEvent | None:
    try:
        return (APP_EVENTS if log.kind == "app" else STUDY_EVENTS).read(line, where=LOG)
    except StateError as error:
        if len(log.problems) < 3:
            log.problems.append(clean(str(error), 200))
        return None


def _take(event: RunEvent | None, log: _Log) -> None:
    if event is None:
        return
    log.first = log.first or event.time
    match event:
        case RunSubmitted():
            log.study, log.status, log.detail = event.study or event.app or log.study, "unfinished", ""
        case RunStarted():
            log.start, log.status, log.detail = event, "unfinished", ""
        case AppStarted():
            log.study, log.status = event.app, "unfinished"
        case RunFinished():
            log.status = "finished"
        case RunFailure():
            log.status, log.detail = "failed", clean(f"{event.error}: {event.message}", 300)
        case StoppedEarly():
            log.detail = clean(event.text, 300)
        case RunStopped():
            log.status = "stopped"


def _result(folder: Path, problems: list[str]) -> RunResult | None:
    try:
        values = read_object(folder / RESULT)
        return None if values is None else RunResult.model_validate(values)
    except ValidationError as error:
        problems.append(f"another version wrote it, or a package is missing: {clean(describe(error, RESULT), 200)}")
    except StateError as error:
        problems.append(str(error))
    return None


class _SiteOfReport(BaseModel):
    verdict: str


class _Report(BaseModel):
    sites: dict[str, _SiteOfReport]


def _effects(folder: Path, problems: list[str]) -> dict[str, int]:
    """Return at how many sites joining helps, hurts, ... as the report says; nothing where there is none."""
    try:
        values = read_object(folder / REPORT)
        return {} if values is None else counted(of.verdict for of in _Report.model_validate(values).sites.values())
    except ValidationError:
        problems.append(f"{REPORT} holds no verdicts of sites")
    except StateError as error:
        problems.append(str(error))
    return {}


def _rounds_done(log: _Log, result: RunResult | None) -> int | None:
    if result is not None:
        return max((record.round for record in result.rounds), default=0)
    if log.round is not None:
        return log.round.round
    return None if log.start is None else 0


def _test_score(result: RunResult) -> Score | None:
    scores = scores_of(result)
    return next((Score(mean_of(scores[model]), model, "test") for model in MODELS if model in scores), None)


def _validation_score(event: RoundFinished | None) -> Score | None:
    for model in MODELS if event is not None else ():
        values = {site: of.metrics.get(f"{model}.accuracy") for site, of in event.sites.items()} if event else {}
        known = {site: value for site, value in values.items() if value is not None}
        if known:
            return Score(mean_of(known), model, "validation")
    return None
