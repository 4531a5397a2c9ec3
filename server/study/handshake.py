"""Before round 1: compare the versions and data of sites, agree on the scale and on the initial weights.

The server builds no model and imports no torch: every site reports the digest of the initial weights
it would build, and the weights themselves come from one site once all digests are equal.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from consilium.common.codecs import Identity
from consilium.common.errors import (
    ConsiliumError,
    HandshakeMismatch,
    ProtocolError,
    clean,
    error_named,
)
from consilium.common.protocol.plans import HandshakePlan, InitialWeightsPlan, Plan, ScalePlan, study_digest
from consilium.common.protocol.replies import (
    FailureReply,
    HandshakeReply,
    InitialWeightsReply,
    KeysReply,
    PeersReply,
    ScaleReply,
)
from consilium.common.study.limits import MAX_PAYLOAD_BYTES
from consilium.common.study.parts import OwnPackage
from consilium.common.study.study import StudyConfig
from consilium.common.study.used import packages_of
from consilium.common.weights.arrays import Array, Weights, digest
from consilium.common.weights.checks import check_finite
from consilium.server.study.alike import check_card, compare, largest_group
from consilium.server.study.exchange import Answer, Exchange, ask
from consilium.server.study.scale import AgreedScale, agree_on_scale
from consilium.server.study.sentences import named
from consilium.server.study.waiting import needed_sites
from consilium.server.study.warnings import about_newcomers, at_the_start

log = logging.getLogger(__name__)

R = TypeVar("R", HandshakeReply, ScaleReply, InitialWeightsReply, KeysReply, PeersReply)


@dataclass(frozen=True)
class Agreement:
    """What the sites agreed on before round 1.

    Args:
        scale: of the inputs; None where the study does not leave it to the handshake.
        left_out: the sites that were there and do not take part, with what is wrong at each.
        refused: those of them that are not asked again.
    """

    replies: Mapping[str, HandshakeReply]
    weights: Weights
    warnings: tuple[str, ...]
    scale: AgreedScale | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()


class SitesAway(Exception):
    """Too few sites answered the handshake, and those that are missing may come back.

    Args:
        problems: a short name for each that did not answer.
        usable: how many did.
    """

    def __init__(self, message: str, problems: Mapping[str, str], usable: int) -> None:
        super().__init__(message)
        self.problems, self.usable = problems, usable


@dataclass
class Present:
    """The sites that are still in the handshake.

    Args:
        needed: how many must be left at its end; a fault at one more ends it.
        refused: what is wrong with the sites that must not take part.
        away: what is wrong with those that did not answer, and may later.
    """

    needed: int
    replies: dict[str, HandshakeReply] = field(default_factory=dict)
    refused: dict[str, ConsiliumError] = field(default_factory=dict)
    away: dict[str, ConsiliumError] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def leave(self, site: str, error: ConsiliumError, *, problem: str | None = None) -> None:
        """Take a site out.

        Args:
            problem: a short name where it did not answer.
        """
        self.replies.pop(site, None)
        if problem is None or problem == "protocol":
            self.refused[site] = error
        else:
            self.away[site], self.problems[site] = error, problem

    def check(self) -> None:
        """Check that enough sites are left.

        Raises:
            SitesAway: too few answered, and with those that are away they would be enough.
            ConsiliumError: the first fault of a site that is to blame.
        """
        if len(self.replies) >= self.needed:
            return
        _, error = min((self.refused or self.away).items())
        if self.away and len(self.replies) + len(self.away) >= self.needed:
            _, error = min(self.away.items())
            raise SitesAway(str(error), self.problems, len(self.replies)) from error
        raise error


def shake_hands(
    exchange: Exchange,
    study: StudyConfig,
    run: str,
    sites: Collection[str],
    *,
    scale: AgreedScale | None = None,
    on_scale: Callable[[AgreedScale], None] = lambda _: None,
) -> Agreement:
    """Ask the sites for their facts, compare, agree on a scale, and fetch the agreed initial weights from one of them.

    A site that does not answer, cannot do its part or differs from the others is left out, as long as enough are left.

    Args:
        scale: of this run's inputs, if it was agreed on before a restart.
        on_scale: called with the scale that is agreed on now, before it is sent to any site.

    Raises:
        HandshakeMismatch: sites differ, with a table of the differences; or a site did not answer.
        ConsiliumError: the sentence of the first site that could not do its part (bad data, wrong weights file).
    """
    present = Present(needed=min(needed_sites(exchange, study), len(sites)))
    for answer in _ask(exchange, study, run, sites):
        with _leaving(present, answer):
            present.replies[answer.site] = expect(answer, HandshakeReply, run)
    present.check()
    _compare_most(present, packages=packages_of(study))
    for site, reply in list(present.replies.items()):
        try:
            check_card(study, site, reply)
        except ConsiliumError as error:
            present.leave(site, error)
    present.check()
    if study.task.agrees_on_scale:
        if scale is None:
            on_scale(scale := agree_on_scale(study, present.replies))
        for answer in _send_scale(exchange, study, run, present.replies, scale):
            with _leaving(present, answer):
                expect(answer, ScaleReply, run)
        present.check()
    weights = _weights_of_one(exchange, study, run, present)
    left_out = {site: named(site, str(error)) for site, error in (present.refused | present.away).items()}
    return Agreement(
        replies=present.replies,
        weights=weights,
        warnings=at_the_start(study, present.replies, scale),
        scale=scale,
        left_out=left_out,
        refused=frozenset(present.refused),
    )


@contextmanager
def _leaving(present: Present, answer: Answer) -> Iterator[None]:
    """Take the answer's site out of a handshake where something is wrong with the answer."""
    try:
        yield
    except ConsiliumError as error:
        present.leave(answer.site, error, problem=answer.problem)


def _compare_most(present: Present, *, packages: Iterable[OwnPackage]) -> None:
    """Compare the sites; those that differ from most leave, if enough are left.

    Raises:
        HandshakeMismatch: too few are alike; one line per difference, with every site's value.
    """
    most = largest_group(present.replies)
    if len(most) < present.needed:
        most = sorted(present.replies)
    compare({site: present.replies[site] for site in most}, packages=packages)
    for site in sorted(present.replies.keys() - set(most)):
        try:
            compare({most[0]: present.replies[most[0]], site: present.replies[site]}, packages=packages)
        except HandshakeMismatch as error:
            present.leave(site, error)


def _weights_of_one(exchange: Exchange, study: StudyConfig, run: str, present: Present) -> dict[str, Array]:
    """Fetch the initial weights from the first site that has them.

    Raises:
        ConsiliumError: too few sites are left.
    """
    while True:
        first = min(present.replies)
        plan = InitialWeightsPlan(study=study_digest(study.seen_by(first)), run=run, site=first)
        (answer,) = _asked(exchange, study, {first: plan}, most_bytes=MAX_PAYLOAD_BYTES)
        with _leaving(present, answer):
            return _initial_weights(answer, present.replies[first])
        present.check()


def admit(
    exchange: Exchange, study: StudyConfig, run: str, agreement: Agreement, sites: Collection[str]
) -> tuple[Agreement, dict[str, str]]:
    """Shake hands with sites that came later; return the wider agreement, and the refused sites with the reason."""
    admitted, refused = dict(agreement.replies), dict[str, str]()
    first = min(agreement.replies)
    for answer in _ask(exchange, study, run, sites):
        try:
            reply = expect(answer, HandshakeReply, run)
            compare({first: agreement.replies[first], answer.site: reply}, packages=packages_of(study))
            check_card(study, answer.site, reply)
            if agreement.scale is not None:
                (answer,) = _send_scale(exchange, study, run, [answer.site], agreement.scale)
                expect(answer, ScaleReply, run)
            admitted[answer.site] = reply
        except ConsiliumError as error:
            if answer.problem is not None:
                log.warning("late site did not answer site=%s problem=%s", answer.site, clean(answer.problem))
                continue
            refused[answer.site] = named(answer.site, str(error))
    new = about_newcomers(study, admitted, before=agreement.replies, known=agreement.warnings)
    return replace(agreement, replies=admitted, warnings=(*agreement.warnings, *new)), refused


def _ask(exchange: Exchange, study: StudyConfig, run: str, sites: Collection[str]) -> list[Answer]:
    plans = {site: HandshakePlan(study=study.seen_by(site), run=run, site=site) for site in sorted(sites)}
    return _asked(exchange, study, plans)


def _send_scale(
    exchange: Exchange, study: StudyConfig, run: str, sites: Collection[str], scale: AgreedScale
) -> list[Answer]:
    plans = {
        site: ScalePlan(study=study_digest(study.seen_by(site)), run=run, site=site, scale=scale.scale)
        for site in sorted(sites)
    }
    return _asked(exchange, study, plans)


def _asked(exchange: Exchange, study: StudyConfig, plans: Mapping[str, Plan], *, most_bytes: int = 0) -> list[Answer]:
    """Ask without a payload; a site that was lost meanwhile is not waited for longer than in a round."""
    timeout, absent = study.round_timeout_seconds, study.absent_seconds
    if study.groups and study.straggler_seconds is not None:  # a device that hangs keeps nobody waiting for longer
        timeout = min(timeout, study.straggler_seconds)
    answers = ask(exchange, plans, timeout_seconds=timeout, absent_seconds=absent, most_bytes=most_bytes)
    return sorted(answers, key=lambda answer: answer.site)


def expect(answer: Answer, kind: type[R], run: str) -> R:
    """Return an answer's reply, if it is of the kind and run that was asked for.

    Raises:
        ConsiliumError: the site's own sentence where it could not do what was asked, or what is wrong with its answer.
    """
    if isinstance(answer.reply, FailureReply):
        raise error_named(answer.reply.error, named(answer.site, answer.reply.message))
    if answer.problem is not None:
        detail = clean(answer.detail)
        raise HandshakeMismatch(f"site '{answer.site}' did not answer the handshake: {answer.problem}: {detail}")
    if not isinstance(answer.reply, kind):
        raise ProtocolError(f"site '{answer.site}' answered {type(answer.reply).__name__}, expected {kind.__name__}")
    if answer.reply.run != run:
        raise ProtocolError(f"site '{answer.site}' answered for run '{answer.reply.run}', expected '{run}'")
    return answer.reply


def _initial_weights(answer: Answer, handshake: HandshakeReply) -> dict[str, Array]:
    expect(answer, InitialWeightsReply, handshake.run)
    try:
        weights = Identity().decode(answer.payload or b"")
    except ProtocolError as error:
        raise ProtocolError(named(answer.site, str(error))) from error
    if digest(weights) != handshake.shared_digest:
        raise HandshakeMismatch(f"site '{answer.site}' sent initial weights other than those it had announced")
    check_finite(weights, who=f"initial weights from site '{answer.site}'")
    return weights
