"""A study from the handshake to its result: agree, run the rounds, finish; a restart goes on from the checkpoint."""

import json
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import consilium.common
from consilium.common.errors import HandshakeMismatch, StateError
from consilium.common.events.chain import verify_chain
from consilium.common.events.run import (
    AnswerRejected,
    CheckpointSaved,
    RoundFinished,
    RunFinished,
    RunResumed,
    RunStarted,
    RunWarning,
    SiteJoined,
    SitesAgreed,
    SitesOnline,
    StoppedEarly,
)
from consilium.common.host.disk import check_room
from consilium.common.host.files import sha256_of
from consilium.common.model import ModelRecord, Preprocessing, Provenance, write_model
from consilium.common.model.folder import RECORD
from consilium.common.protocol.plans import study_json
from consilium.common.protocol.replies import FinishReply
from consilium.common.results import RoundRecord, RunResult, SiteFacts, SiteResult, Stopped
from consilium.common.stopping import Point, stopped_by
from consilium.common.weights.arrays import digest
from consilium.common.weights.checks import check_like
from consilium.server.privacy.noise import check_site_noise_fits
from consilium.server.privacy.secure.round import exchange_keys
from consilium.server.strategies import ServerState
from consilium.server.study.checkpoint import gone_back, load_newest, save_checkpoint
from consilium.server.study.context import Study
from consilium.server.study.finish import finish
from consilium.server.study.handshake import Agreement, SitesAway, admit, shake_hands
from consilium.server.study.hold import Hold
from consilium.server.study.kept_updates import keep, kept_weights
from consilium.server.study.playing import Play, playing
from consilium.server.study.run_folder import RunFolder
from consilium.server.study.scale import load_scale, save_scale, scale_facts
from consilium.server.study.stopping import ending, points_of, with_best
from consilium.server.study.strikes import warnings_of
from consilium.server.study.waiting import needed_sites, wait_for_sites


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Args:
        weights: digest of the global weights.
        points: what the study is stopped by, in the rounds in which it was measured.
        refused: sites that came late and differ from the others; they are not asked again.
    """

    study: Study
    agreement: Agreement
    state: ServerState
    weights: str
    rounds: tuple[RoundRecord, ...] = ()
    points: tuple[Point, ...] = ()
    refused: frozenset[str] = frozenset()

    @property
    def stopped(self) -> Stopped | None:
        """Why the study ends before its last round; None where it does not, or not yet."""
        config = self.study.config
        return None if self.state.round >= config.rounds else stopped_by(config.stopping, self.points)


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


def study_steps(study: Study, *, transport: str, tls: bool) -> Generator[Progress, None, RunResult]:
    """Yield how far a run has come: when the sites agree, and after every round; return its result.

    Closed early, it ends after its last round: the checkpoint is there, and a run in the same folder goes on from it.
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


def begin(study: Study) -> Progress:
    """Agree with the sites on the initial state; a run with a checkpoint goes on from that."""
    agreement = agree(study)
    study = study.with_sites(agreement)
    if study.config.privacy.secure_aggregation:
        exchange_keys(study)
    if study.folder.is_resumable:
        state, rounds, problems = resume(study, agreement)
        agreement = replace(agreement, warnings=(*agreement.warnings, *problems))
    else:
        buffers = next(iter(agreement.replies.values())).shared_buffers
        state, rounds = study.strategy.init(agreement.weights, frozenset(buffers)), ()
        if study.config.keep_updates:
            keep(kept_weights(study.folder.path), state.weights)
    check_site_noise_fits(study.config, state)
    weights = digest(state.weights)
    study.folder.log(_agreed(agreement, state, weights))
    points = points_of(study.config.stopping, rounds)
    return Progress(study, agreement, state, weights, rounds, points, agreement.refused)


def agree(study: Study) -> Agreement:
    """Wait for the sites and shake hands with them."""
    folder, config = study.folder, study.config
    hold = Hold(study, 0, needed_sites(study.exchange, config))
    while True:
        online = wait_for_sites(
            study.exchange,
            config,
            on_change=lambda now: folder.log(SitesOnline(online=tuple(sorted(now)))),
            on_pause=lambda now: hold.pause(set(config.sites) - now, usable=len(now)),
        )
        try:
            agreement = shake_hands(
                study.exchange,
                config,
                study.run,
                online,
                scale=load_scale(folder.scale, config, resuming=folder.is_resumable),
                on_scale=lambda scale: save_scale(folder.scale, scale),
            )
        except SitesAway as away:
            if hold.can_wait(away.problems, usable=away.usable) and hold.wait(away.problems, usable=away.usable):
                continue
            raise HandshakeMismatch(str(away)) from away
        hold.over()
        break
    for site, message in agreement.left_out.items():
        folder.log(AnswerRejected(round=0, site=site, reason="handshake", message=message))
    for warning in agreement.warnings:
        folder.log(RunWarning(message=warning))
    return agreement


def resume(study: Study, agreement: Agreement) -> tuple[ServerState, tuple[RoundRecord, ...], tuple[str, ...]]:
    """Return the state of the newest checkpoint that is whole, the records of the rounds up to it, and what was amiss.

    Raises:
        StateError: no checkpoint is whole, or only one that this study must not go back to, or it is of another study.
        UpdateRejected: its weights are not those that the sites train.
    """
    state, problems = load_newest(study.folder.checkpoint, study_digest=study.digest)
    problems = (gone_back(study.config, state, problems),) if problems else ()
    try:
        verify_chain(study.folder.events)
    except StateError as error:
        problems = (*problems, f"{error}; what the report says of earlier rounds is what stands there now")
    for problem in problems:
        study.folder.log(RunWarning(message=problem))
    check_like(state.weights, agreement.weights, who=f"checkpoint of run '{study.run}'")
    rounds = finished_rounds(study.folder, last=state.round)
    study.folder.log(RunResumed(round=state.round))
    return state, rounds, problems


def finished_rounds(folder: RunFolder, *, last: int) -> tuple[RoundRecord, ...]:
    """Return the records of the rounds up to the `last`; of a round that was run twice, the later one."""
    events = [event for event in folder.read_events() if isinstance(event, RoundFinished)]
    latest = {event.round: event for event in events if event.round <= last}
    return tuple(
        RoundRecord(**{name: getattr(latest[number], name) for name in RoundRecord.model_fields})
        for number in sorted(latest)
    )


def admit_newcomers(progress: Progress) -> Progress:
    """Shake hands with sites of the study that connected since the start; they take part from the next round on."""
    study, agreement = progress.study, progress.agreement
    absent = set(study.config.sites) - set(agreement.replies) - progress.refused
    newcomers = absent & study.exchange.connected() if absent else absent
    if not newcomers:
        return progress
    number, folder = progress.state.round + 1, study.folder
    wider, problems = admit(study.exchange, study.config, study.run, agreement, newcomers)
    for site, message in problems.items():
        folder.log(AnswerRejected(round=number, site=site, reason="handshake", message=message))
    for warning in wider.warnings[len(agreement.warnings) :]:
        folder.log(RunWarning(message=warning))
    for site, facts in _facts(wider).items():
        if site not in agreement.replies:
            folder.log(SiteJoined(round=number, site=site, **dict(facts)))
    # A site that differs is refused for good; one that only did not answer is asked again before the next round.
    refused = progress.refused | problems.keys()
    return replace(progress, study=study.with_sites(wider), agreement=wider, refused=refused)


def next_round(progress: Progress, play: Play) -> Progress:
    """Run one round, and write its checkpoint and its record."""
    study = progress.study
    wait_for_room(study, progress.state)
    state, record = play(study, progress.state)
    points = (*progress.points, *points_of(study.config.stopping, [record]))
    state, weights = with_best(study.config.stopping, progress.state, state, points), digest(state.weights)
    study.folder.log(RoundFinished(**dict(record), weights_before=progress.weights, weights=weights))
    save_checkpoint(study.folder.checkpoint, state, run=study.run, study_digest=study.digest)
    study.folder.log(CheckpointSaved(round=state.round))
    return replace(progress, state=state, weights=weights, rounds=(*progress.rounds, record), points=points)


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
    study, agreed = progress.study, progress.agreement.scale
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
            num_sites=len(config.sites),
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
        for site, facts in _facts(agreement).items()
    }


def _agreed(agreement: Agreement, state: ServerState, weights: str) -> SitesAgreed:
    return SitesAgreed(
        sites=_facts(agreement),
        parts=_packages(agreement),
        versions=next(iter(agreement.replies.values())).versions,
        weights=weights,
        buffers=tuple(sorted(state.buffers)),
    )


def _facts(agreement: Agreement) -> dict[str, SiteFacts]:
    return {site: SiteFacts.of(reply) for site, reply in sorted(agreement.replies.items())}


def _packages(agreement: Agreement) -> dict[str, str]:
    """Return the packages of one's own that the sites use, each in words."""
    packages = {one.package: one for reply in agreement.replies.values() for one in reply.versions.parts}
    return {name: f"{one.version} with sha256 {one.sha256}" for name, one in sorted(packages.items())}


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
