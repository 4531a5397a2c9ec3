"""What becomes of an answer: checked as it arrives, put on disk, and counted or rejected."""

import time
from collections.abc import Iterator
from dataclasses import replace

from consilium.common.codecs.container import read_form
from consilium.common.errors import UpdateRejected
from consilium.common.events.run import AnswerRejected, UpdateAccepted
from consilium.common.protocol.plans import CONTROL
from consilium.common.protocol.replies import RoundReply
from consilium.common.results import SiteRound
from consilium.common.weights.arrays import Weights
from consilium.server.strategies import ServerState, Update
from consilium.server.study.check import check_update
from consilium.server.study.context import Study
from consilium.server.study.defence import lengths_of, too_long
from consilium.server.study.directions import AGAINST_OTHERS, directions_of, not_counted
from consilium.server.study.exchange import Answer
from consilium.server.study.kept_updates import arrays_of, digest_of, keep, kept_update
from consilium.server.study.record import Cohort, Intake
from consilium.server.study.site_state import warn_of_state
from consilium.server.study.update_files import Spool


def receive(
    study: Study,
    state: ServerState,
    answers: Iterator[Answer],
    spool: Spool,
    intake: Intake,
    *,
    cohort: Cohort,
    held: Weights,
) -> None:
    """Check every answer as it arrives, and put the usable updates on disk."""
    for answer in answers:
        if answer.problem == "cut_off" and study.config.over_selection:
            continue  # one that was asked beyond the cohort
        is_usable = take(study, state, answer, spool, intake, held=held)
        if is_usable and len(intake.updates) == cohort.quorum:
            intake.enough_since = time.monotonic()
    intake.updates.sort(key=lambda update: update.site)


def take(
    study: Study, state: ServerState, answer: Answer, spool: Spool, intake: Intake, *, held: Weights, stale: int = 0
) -> bool:
    """Check an answer and put a usable update on disk; return whether it is usable.

    Args:
        stale: how many rounds before this one the site was asked.
    """
    intake.arrived(answer)
    began = time.monotonic()
    try:
        reply, update = check_update(answer, replace(state, round=state.round - stale), study, held=held)
    except UpdateRejected as error:
        reject(study, state, intake, answer.site, error)
        return False
    intake.checking_seconds += time.monotonic() - began
    accept(study, intake, reply, update="" if study.config.relays else digest_of(update), stale=stale)
    if study.config.keep_updates:
        keep(kept_update(study.folder.path, update.site, round_number=state.round + 1), arrays_of(update))
    intake.lengths[update.site] = lengths_of(update, state)
    intake.updates.append(_on_disk(update, answer, spool, coded=bool(study.config.uplink)))
    return True


def accept(study: Study, intake: Intake, reply: RoundReply, *, update: str = "", stale: int = 0) -> None:
    """Note a usable update.

    Args:
        update: its digest; empty where the server does not see it by itself.
        stale: how many rounds before this one the site was asked.
    """
    number, metrics, site = reply.num_examples, dict(reply.metrics), reply.site
    intake.sites[site] = SiteRound(
        num_examples=number, seconds=round(reply.seconds, 4), metrics=metrics, privacy=reply.privacy, stale=stale
    )
    event = UpdateAccepted(
        round=reply.round + stale, site=site, metrics=metrics, num_examples=number, update=update, stale=stale
    )
    study.folder.note(event)
    warn_of_state(study, reply)


def reject(study: Study, state: ServerState, intake: Intake, site: str, error: UpdateRejected) -> None:
    """Note an unusable answer, and why."""
    intake.rejected[site], intake.details[site] = error.reason, str(error)
    event = AnswerRejected(round=state.round + 1, site=site, reason=error.reason, message=str(error))
    study.folder.log(event)


def refuse_beyond_belief(study: Study, state: ServerState, intake: Intake) -> None:
    """Reject the updates that are beyond belief among those of a round."""
    sent = {update.site: (update.num_examples, intake.lengths[update.site]) for update in intake.updates}
    refused = too_long(study.config, state, sent)
    intake.withdraw(refused.keys())
    for site, sentence in refused.items():
        reject(study, state, intake, site, UpdateRejected("norm", sentence))


def refuse_against(study: Study, state: ServerState, intake: Intake, *, least: int) -> None:
    """Reject the updates of sites that go against the others again and again, a minority, and no more than can be.

    Args:
        least: how many updates must be left.
    """
    config, updates = study.config, intake.updates
    directions = directions_of(config, state, updates, lengths=intake.lengths, labels=study.labels)
    intake.directions = directions
    spare = min((len(updates) - 1) // 2, len(updates) - least)
    refused = not_counted(config, state.against, directions, spare=spare)
    intake.withdraw(refused.keys())
    for site, sentence in refused.items():
        reject(study, state, intake, site, UpdateRejected(AGAINST_OTHERS, sentence))


def _on_disk(update: Update, answer: Answer, spool: Spool, *, coded: bool) -> Update:
    """Return an update whose arrays are read from disk when they are asked for."""
    if answer.file is None or answer.payload is None or coded:
        return replace(update, delta=spool.keep(update.delta), control=spool.keep(update.control))
    form = read_form(answer.payload)
    control = {name: CONTROL + name for name in update.control}
    delta = spool.adopt(answer.file, form, {name: name for name in update.delta})
    return replace(update, delta=delta, control=spool.adopt(answer.file, form, control))
