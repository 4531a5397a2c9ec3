"""A round after which the loss of most sites jumps is run again without the site that made its step; once in a run.

Few sites have no bound on their updates: of three, a median says little. One finite update may then take the weights to
where no site's loss was since the beginning, and the rounds after that are spent on the way back, or diverge. Two
things that are known anyway show it:

- every site measures the weights that it receives, on its validation rows: so the next round's answers say what the
  last round did. A site's loss **jumped** if it is JUMP times that of the round before or more, and at least that of
  the weights that the study began with; or if the site fails with numbers that are not finite, in that round first;
- of every round the server knows how long its step would have been without each of the sites (leave-one-out):

      step = sum over j of s_j d_j,    step without k = sum over j other than k of s_j d_j / (1 - s_k)

  with shares s and updates d as they counted; from their lengths and cosines, without another look at an update. A site
  without which at most SMALL of the step is left made it.

A site is a suspect if it made the step and more than half of the others measured a jump: what it says itself is not
asked, and of two sites neither can have the other one put out. Then the run goes back to the checkpoint from before
that round, and the suspect is set aside. Where nobody made the step alone, nothing is undone: the same sites would take
the same step again. Nor where too few sites would be left for the quorum.
"""

from collections.abc import Mapping
from dataclasses import replace

from consilium.common.errors import StateError
from consilium.common.events.run import RoundUndone, SiteSetAside
from consilium.common.results import RoundRecord
from consilium.common.weights.arrays import digest
from consilium.server.study import strikes
from consilium.server.study.checkpoint import load_checkpoint, save_checkpoint
from consilium.server.study.checkpoint_files import set_aside
from consilium.server.study.defence import can_undo
from consilium.server.study.progress import Progress
from consilium.server.study.steps import FEWEST_SITES
from consilium.server.study.stopping import points_of

JUMP = 2.0
"""How many times the loss of the round before a loss is that jumped."""
LOSS = "global.loss"
DIVERGED = frozenset({"failure", "metrics", "not_finite"})
"""Reasons of a site whose numbers are not finite any more."""


def undone(progress: Progress, record: RoundRecord | None, failed: Mapping[str, str]) -> Progress | None:
    """Return the run as it was before its last round, without the site that made it go wrong; None if none did.

    Args:
        progress: after that round.
        record: of the round after it; None if that has too few usable updates.
        failed: the short reason per site that was rejected in it.
    """
    study, state = progress.study, progress.state
    if not progress.rounds or state.undone or not can_undo(study.config):
        return None
    last = progress.rounds[-1]
    suspects = _suspects(progress.rounds, record, failed)
    struck = {**state.strikes, **dict.fromkeys(suspects, study.config.defence.strikes)}
    left = study.train_sizes.keys() - strikes.set_aside(study.config, struck)
    if last.round != state.round or not suspects or len(left) < study.quorum_of(len(left)):
        return None
    try:
        before = load_checkpoint(set_aside(study.folder.checkpoint, last.round - 1), study_digest=study.digest)
    except StateError:
        return None  # a run that has just begun anew has no earlier one
    state = replace(before, strikes=struck, undone=dict.fromkeys(suspects, last.round))
    weights = digest(state.weights)
    message = _sentence(last.round, suspects)
    study.folder.log(RoundUndone(round=last.round, sites=tuple(sorted(suspects)), weights=weights, message=message))
    for site in sorted(suspects):
        study.folder.log(
            SiteSetAside(round=last.round, site=site, strikes=struck[site], reason="undone", message=message)
        )
    save_checkpoint(study.folder.checkpoint, state, run=study.run, study_digest=study.digest)
    rounds = progress.rounds[:-1]
    points = points_of(study.config.stopping, rounds)
    return replace(progress, state=state, weights=weights, rounds=rounds, points=points)


def _suspects(
    rounds: tuple[RoundRecord, ...], record: RoundRecord | None, failed: Mapping[str, str]
) -> dict[str, float]:
    """Return the sites that made the last round's step, if most others measured a jump; with what is left of it."""
    last, first = rounds[-1], rounds[0]
    if len(last.accepted) < FEWEST_SITES:
        return {}
    jumped = {site for site, reason in failed.items() if reason in DIVERGED and site in last.accepted}
    for site, facts in (record.sites if record is not None else {}).items():
        now, before = facts.metrics.get(LOSS), _loss(last, site)
        began = _loss(first, site)
        if now is not None and before is not None and began is not None and now >= max(JUMP * before, began):
            jumped.add(site)
    return {
        site: left for site, left in last.without.items() if 2 * len(jumped - {site}) > len(set(last.accepted) - {site})
    }


def _loss(record: RoundRecord, site: str) -> float | None:
    facts = record.sites.get(site)
    return None if facts is None else facts.metrics.get(LOSS)


def _sentence(number: int, suspects: Mapping[str, float]) -> str:
    names = ", ".join(f"'{site}' (without it {part:.0%} of it is left)" for site, part in sorted(suspects.items()))
    return (
        f"round {number} is run again: after it the loss of most sites jumped, and its step was that of {names}, which "
        "is asked in no further round; ask its staff what was wrong"
    )
