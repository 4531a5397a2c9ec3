"""A study from the handshake to its result: agree, run the rounds, finish; a restart goes on from the checkpoint."""

import json
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import consilium.common
from consilium.common.errors import CohortTooSmall
from consilium.common.events.run import (
    CheckpointSaved,
    RoundFinished,
    RunFinished,
    RunStarted,
    StoppedEarly,
)
from consilium.common.host.disk import check_room
from consilium.common.host.files import sha256_of
from consilium.common.model import ModelRecord, Preprocessing, Provenance, write_model
from consilium.common.model.folder import RECORD
from consilium.common.protocol.plans import study_json
from consilium.common.protocol.replies import FinishReply
from consilium.common.results import EngineUse, RunResult, SiteResult
from consilium.common.weights.arrays import digest
from consilium.server.strategies import ServerState
from consilium.server.study.beginning import admit_newcomers, begin, everyone_admitted, facts_of
from consilium.server.study.checkpoint import save_checkpoint
from consilium.server.study.context import Study
from consilium.server.study.finish import finish
from consilium.server.study.groups import without_lost_devices
from consilium.server.study.handshake import Agreement
from consilium.server.study.hold import Hold
from consilium.server.study.playing import Play, playing
from consilium.server.study.progress import Progress
from consilium.server.study.scale import scale_facts
from consilium.server.study.stopping import ending, points_of, with_best
from consilium.server.study.strikes import warnings_of
from consilium.server.study.undo import undone


def run_study(study: Study, *, transport: str, tls: bool) -> RunResult:
    """Run a study from the handshake, or from its folder's checkpoint, to the result.

    Args:
        transport: what carries plans and payloads.
        tls: whether the connections are encrypted.

    Raises:
        ConsiliumError: the reason why the run ended; everything written until then is kept.
    """
    steps = study_steps(study, transport=transport, tls=tls)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: RunResult = end.value
            return result


def study_steps(
    study: Study, *, transport: str, tls: bool, engine: Callable[[], EngineUse | None] = lambda: None
) -> Generator[Progress, None, RunResult]:
    """Yield how far a run has come: when the sites agree, and after every round; return its result.

    Closed early, it ends after its last round: the checkpoint is there, and a run in the same folder goes on from it.

    Args:
        transport, tls: as of `run_study`.
        engine: says at the end how the sites trained, where that is known here.
    """
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    study.folder.log(_started(study))
    progress = begin(study)
    yield progress
    with playing(progress.study) as play:
        while progress.state.round < study.config.rounds and progress.stopped is None:
            progress = next_round(admit_newcomers(progress), play)
            yield progress
    if (stopped := progress.stopped) is not None:
        study.folder.log(StoppedEarly(**dict(stopped)))
    final = ending(progress.state)
    save_final_model(progress, final)
    progress = everyone_admitted(progress)
    replies = finish(progress.study, final)
    seconds = round(time.monotonic() - began, 3)
    result = RunResult(
        run=study.run,
        study=study.config,
        seed=study.config.seed,
        transport=transport,
        tls=tls,
        started=started,
        seconds=seconds,
        versions=next(iter(progress.agreement.replies.values())).versions,
        engine=engine(),
        warnings=(*progress.agreement.warnings, *warnings_of(study.config, progress.state, progress.rounds)),
        stopped=stopped,
        final_round=None if final.round == progress.state.round else final.round,
        scale=scale_facts(study.config, progress.agreement.scale),
        rounds=progress.rounds,
        sites=site_results(progress.agreement, replies),
    )
    study.folder.save_result(result)
    spent = {site: reply.privacy for site, reply in replies.items() if reply.privacy is not None}
    written = sha256_of(study.folder.result), sha256_of(study.folder.model / RECORD)
    study.folder.log(RunFinished(seconds=seconds, privacy=spent, result=written[0], model=written[1]))
    return result


def next_round(progress: Progress, play: Play) -> Progress:
    """Run one round, and write its checkpoint and its record; or go back to before the last one, if that went wrong."""
    study = progress.study
    wait_for_room(study, progress.state)
    try:
        state, record = play(study, progress.state)
    except CohortTooSmall as error:
        back = undone(progress, None, error.rejected) or without_lost_devices(progress, error.rejected)
        if back is None:
            raise
        return back
    if (back := undone(progress, record, record.rejected)) is not None:
        return back
    points = (*progress.points, *points_of(study.config.stopping, [record]))
    state, weights = with_best(study.config.stopping, progress.state, state, points), digest(state.weights)
    study.folder.log(RoundFinished(**dict(record), weights_before=progress.weights, weights=weights))
    save_checkpoint(study.folder.checkpoint, state, run=study.run, study_digest=study.digest)
    study.folder.log(CheckpointSaved(round=state.round))
    progress = replace(progress, state=state, weights=weights, rounds=(*progress.rounds, record), points=points)
    return replace(progress, lost=frozenset(), lost_since=None)


def wait_for_room(study: Study, state: ServerState) -> None:
    """Pause while the disk has no room for a round: its updates, and another checkpoint.

    Raises:
        DiskFull: it has none for longer than the study waits.
    """
    held = {**state.weights, **state.memory, **state.along, **state.held, **state.link}
    checkpoint = sum(array.nbytes for array in held.values())
    updates = study.config.asked_size * sum(array.nbytes for array in state.weights.values())
    hold = Hold(study, state.round + 1, study.quorum)
    hold.wait_while_full(lambda: check_room(study.folder.path, checkpoint + updates, what="a round"))


def save_final_model(progress: Progress, state: ServerState) -> None:
    """Write the model that the run ends with, into a folder of its own.

    Args:
        state: that of the last round, or of the best one.
    """
    study, agreed, agreed_sites = progress.study, progress.agreement.scale, progress.agreement.replies
    config, scale = study.config, study.config.task.fixed_scale if agreed is None else agreed.scale
    record = ModelRecord(
        task=config.task,
        model=config.model,
        method=config.method,
        complete=False,
        preprocessing=Preprocessing.of_scale(config.task, scale),
        provenance=Provenance(
            study=config.name,
            study_digest=study.digest,
            seed=config.seed,
            run=study.run,
            round=state.round,
            served="global",
            num_sites=len({*config.sites, *agreed_sites}),
            created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            consilium=consilium.common.__version__,
        ),
    )
    write_model(study.folder.model, record, state.served, mode=0o644)


def site_results(agreement: Agreement, replies: Mapping[str, FinishReply]) -> dict[str, SiteResult]:
    """Return every site's facts with what it told at the end, its counts on the test split, if it did."""
    return {
        site: SiteResult(
            **dict(facts),
            test=replies[site].test if site in replies else None,
            privacy=replies[site].privacy if site in replies else None,
        )
        for site, facts in facts_of(agreement).items()
    }


def _started(study: Study) -> RunStarted:
    config = study.config
    return RunStarted(
        rounds=config.rounds,
        sites=config.sites,
        quorum=study.quorum,
        method=config.method.kind,
        strategy=config.strategy.kind,
        codec=config.codec,
        metrics=config.metrics,
        digest=study.digest,
        settings=json.loads(study_json(config)),
    )
