"""The beginning of a run: agree with the sites, or go on from the checkpoint; sites that come later join."""

from collections.abc import Collection
from dataclasses import replace

from consilium.common.errors import HandshakeMismatch, StateError
from consilium.common.events.chain import verify_chain
from consilium.common.events.run import (
    AnswerRejected,
    RoundFinished,
    RunResumed,
    RunWarning,
    SiteJoined,
    SitesAgreed,
    SitesOnline,
)
from consilium.common.results import RoundRecord, SiteFacts
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arrays import digest
from consilium.common.weights.checks import check_like
from consilium.server.privacy.noise import check_site_noise_fits
from consilium.server.privacy.secure.round import exchange_keys
from consilium.server.strategies import ServerState
from consilium.server.study.checkpoint import gone_back, load_newest
from consilium.server.study.context import Study
from consilium.server.study.groups import draw, resting, with_drawn
from consilium.server.study.handshake import Agreement, SitesAway, admit, shake_hands
from consilium.server.study.hold import Hold
from consilium.server.study.kept_updates import keep, kept_weights
from consilium.server.study.members import counted, lacking, members
from consilium.server.study.progress import Progress
from consilium.server.study.run_folder import RunFolder
from consilium.server.study.scale import load_scale, save_scale
from consilium.server.study.stopping import points_of
from consilium.server.study.strikes import set_aside
from consilium.server.study.waiting import needed_sites, wait_for_sites

MOST_NAMES = 20
"""Of devices that did not shake hands, so many are named."""


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
    hold, lost = Hold(study, 0, needed_sites(study.exchange, config)), set[str]()
    while True:
        online = wait_for_sites(
            study.exchange,
            config,
            on_change=lambda now: folder.log(SitesOnline(online=tuple(sorted(now)))),
            on_pause=lambda now: hold.pause(set(config.sites) - now, usable=counted(config, now)),
        )
        online = first_asked(config, online, lost)
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
            devices = {site for site in away.problems if config.group_of(site) is not None}
            waits = hold.can_wait(away.problems, usable=away.usable)
            if waits and devices:  # others are drawn in their place
                lost |= devices
                hold.wait_for_devices(away.usable, ", ".join(sorted(away.problems)[:MOST_NAMES]))
                continue
            if waits and hold.wait(away.problems, usable=away.usable):
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
    """Shake hands with sites of the study that connected since the start; they take part from the next round on.

    Of groups, the devices of the next round are drawn, and those of them that are new shake hands; with too few of them
    the run pauses.

    Raises:
        CohortTooSmall: too few devices are there for longer than a run pauses.
    """
    config = progress.study.config
    if not config.groups:
        return admitted(progress, config.sites)
    hold = Hold(progress.study, progress.state.round + 1, progress.study.quorum)
    while True:
        there = progress.study.exchange.connected()
        drawn = drawn_of(progress, there)
        progress = admitted(progress, [*config.sites, *(site for devices in drawn.values() for site in devices)])
        study = with_drawn(progress.study, drawn)
        able = set(config.sites) & study.train_sizes.keys() - set_aside(config, progress.state.strikes)
        usable = min(len(able), config.asked_sites) + len(study.devices)
        if usable >= study.quorum:
            hold.over()
            return replace(progress, study=study)
        hold.wait_for_devices(usable, ", ".join(lacking(config, there)) or "devices that have shaken hands")


def everyone_admitted(progress: Progress) -> Progress:
    """Shake hands with all devices of groups that are there and were never drawn: they get the last weights, too."""
    config = progress.study.config
    return admitted(progress, members(config, progress.study.exchange.connected())) if config.groups else progress


def first_asked(config: StudyConfig, online: frozenset[str], lost: Collection[str]) -> frozenset[str]:
    """Return who shakes hands at the start: all sites that are there, and of groups the devices of a first draw.

    Args:
        lost: devices that did not answer before, drawn after all others.
    """
    if not config.groups:
        return online
    drawn = draw(config, online, round_number=0, resting=lost)
    return (online & set(config.sites)) | {site for devices in drawn.values() for site in devices}


def drawn_of(progress: Progress, there: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """Return the devices drawn for the next round, by their groups."""
    config, state = progress.study.config, progress.state
    able = there - progress.refused - set_aside(config, state.strikes)
    return draw(config, able, round_number=state.round + 1, resting=resting(progress.rounds) | progress.lost)


def admitted(progress: Progress, sites: Collection[str]) -> Progress:
    """Shake hands with those of some sites that are connected and have not done so."""
    study, agreement = progress.study, progress.agreement
    absent = set(sites) - set(agreement.replies) - progress.refused
    newcomers = absent & study.exchange.connected() if absent else absent
    if not newcomers:
        return progress
    number, folder = progress.state.round + 1, study.folder
    wider, problems = admit(study.exchange, study.config, study.run, agreement, newcomers)
    for site, message in problems.items():
        folder.log(AnswerRejected(round=number, site=site, reason="handshake", message=message))
    for warning in wider.warnings[len(agreement.warnings) :]:
        folder.log(RunWarning(message=warning))
    for site, facts in facts_of(wider).items():
        if site not in agreement.replies:
            folder.log(SiteJoined(round=number, site=site, **dict(facts)))
    # A site that differs is refused for good; one that only did not answer is asked again before the next round.
    refused = progress.refused | problems.keys()
    return replace(progress, study=study.with_sites(wider), agreement=wider, refused=refused)


def _agreed(agreement: Agreement, state: ServerState, weights: str) -> SitesAgreed:
    return SitesAgreed(
        sites=facts_of(agreement),
        parts=_packages(agreement),
        versions=next(iter(agreement.replies.values())).versions,
        weights=weights,
        buffers=tuple(sorted(state.buffers)),
    )


def facts_of(agreement: Agreement) -> dict[str, SiteFacts]:
    """Return what each site told of itself, by its name."""
    return {site: SiteFacts.of(reply) for site, reply in sorted(agreement.replies.items())}


def _packages(agreement: Agreement) -> dict[str, str]:
    """Return the packages of one's own that the sites use, each in words."""
    packages = {one.package: one for reply in agreement.replies.values() for one in reply.versions.parts}
    return {name: f"{one.version} with sha256 {one.sha256}" for name, one in sorted(packages.items())}
