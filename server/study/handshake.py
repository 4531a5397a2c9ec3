"""Before round 1: wait for the sites, compare their versions and data, agree on the initial weights.

The server builds no model and imports no torch: every site reports the digest of the initial weights
it would build, and the weights themselves come from one site once all digests are equal.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import consilium.common
from consilium.common.codecs import Identity
from consilium.common.errors import (
    ConfigError,
    ConsiliumError,
    HandshakeMismatch,
    ProtocolError,
    SitesMissing,
    clean,
    error_named,
)
from consilium.common.protocol.cards import DataCard
from consilium.common.protocol.plans import HandshakePlan, InitialWeightsPlan, ScalePlan, study_digest
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
from consilium.common.study.signals import CLASS_COUNTS
from consilium.common.study.study import StudyConfig
from consilium.common.study.used import packages_of
from consilium.common.weights.arrays import Array, Weights, digest
from consilium.common.weights.checks import check_finite
from consilium.server.study.exchange import Answer, Exchange
from consilium.server.study.scale import AgreedScale, agree_on_scale
from consilium.server.study.sentences import named
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


def wait_for_sites(
    exchange: Exchange,
    study: StudyConfig,
    *,
    on_change: Callable[[frozenset[str]], None] = lambda _: None,
    on_pause: Callable[[frozenset[str]], None] = lambda _: None,
) -> frozenset[str]:
    """Wait for the sites that a study begins with, and return those online.

    `study.min_sites` are enough at once. Without it all are waited for, and after `study.join_timeout_seconds` as many
    as a quorum needs are enough, where sites can come later; with fewer the run pauses.

    Args:
        on_pause: called once with the sites online, when the time is over and too few are there.

    Raises:
        SitesMissing: names the connected and the missing sites.
    """
    began, paused = time.monotonic(), False
    limit = study.join_timeout_seconds + (study.pause_limit_seconds if exchange.patient else 0.0)
    before: frozenset[str] | None = None
    while True:
        online = exchange.connected() & set(study.sites)
        if online != before:
            before = online
            on_change(online)
        waited = time.monotonic() - began
        is_late = waited >= study.join_timeout_seconds
        if len(online) >= (needed_sites(exchange, study) if is_late else study.min_sites or len(study.sites)):
            return online
        if waited >= limit:
            missing = sorted(set(study.sites) - online)
            raise SitesMissing(
                f"after {limit:g} s these sites of study '{study.name}' have not connected: "
                f"{', '.join(missing)}; connected: {', '.join(sorted(online)) or 'none'}"
            )
        if is_late and not paused:
            on_pause(online)
            paused = True
        time.sleep(0.1)


def needed_sites(exchange: Exchange, study: StudyConfig) -> int:
    """Return how many sites must shake hands for a run to begin."""
    return study.least_sites_to_start if exchange.patient else study.min_sites or len(study.sites)


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
    alike: dict[tuple[str, ...], list[str]] = {}
    for site, reply in sorted(present.replies.items()):
        alike.setdefault(tuple(_facts(reply).values()), []).append(site)
    most = max(alike.values(), key=len)
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
        (answer,) = exchange.ask(
            {first: plan}, payload=None, timeout_seconds=study.round_timeout_seconds, most_bytes=MAX_PAYLOAD_BYTES
        )
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
    answers = exchange.ask(
        plans,
        payload=None,
        timeout_seconds=study.round_timeout_seconds,
        absent_seconds=study.absent_seconds,
    )
    return sorted(answers, key=lambda answer: answer.site)


def _send_scale(
    exchange: Exchange, study: StudyConfig, run: str, sites: Collection[str], scale: AgreedScale
) -> list[Answer]:
    plans = {
        site: ScalePlan(study=study_digest(study.seen_by(site)), run=run, site=site, scale=scale.scale)
        for site in sorted(sites)
    }
    answers = exchange.ask(plans, payload=None, timeout_seconds=study.round_timeout_seconds)
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


def compare(replies: Mapping[str, HandshakeReply], *, packages: Iterable[OwnPackage] = ()) -> None:
    """Check that all sites agree in versions, data schema, shared names and initial weights.

    Args:
        packages: packages of one's own that the study uses, as they are at the server.

    Raises:
        HandshakeMismatch: one line per difference, with every site's value.
    """
    rows: dict[str, dict[str, str]] = {}
    for site, reply in sorted(replies.items()):
        for what, value in _facts(reply).items():
            rows.setdefault(what, {})[site] = value
    rows["consilium version"]["server"] = consilium.common.__version__
    for package in packages:
        rows.setdefault(f"package {package.package}", {})["server"] = _package(package)
    differing = {what: values for what, values in rows.items() if len(set(values.values())) > 1}
    if differing:
        lines = [
            f"  {what}: " + ", ".join(f"{site} has {clean(value, 200)}" for site, value in values.items())
            for what, values in differing.items()
        ]
        raise HandshakeMismatch("the sites differ, so the study was stopped before training:\n" + "\n".join(lines))


def check_card(study: StudyConfig, site: str, reply: HandshakeReply) -> None:
    """Check that a site announces data that the study can use, and shares the counts and sums that the study needs.

    Raises:
        ProtocolError: more examples than the study's `max_examples`, classes that the study does not name, or sums of
            other columns than the study's.
        ConfigError: the weighting needs class counts, or the scale needs sums, and the site's settings keep them there.
    """
    card = reply.card
    if (most := max(card.num_examples, card.num_skipped)) > study.max_examples:
        raise ProtocolError(
            f"site '{site}' announces {most} examples, the study accepts at most {study.max_examples} (max_examples)"
        )
    if unknown := sorted({*card.classes, *(card.class_counts or {})} - set(study.task.classes)):
        names = ", ".join(unknown)[:200]
        raise ProtocolError(f"site '{site}' announces classes that the study does not have: {names}")
    if unknown := sorted((card.label_counts or {}).keys() - set(study.task.label_names)):
        names = ", ".join(unknown)[:200]
        raise ProtocolError(f"site '{site}' announces labels that the study does not have: {names}")
    _check_moments(study, site, card)
    if CLASS_COUNTS in study.needs and card.class_counts is None:
        kinds = [factor.kind for factor in study.weights_by.factors if CLASS_COUNTS in factor.needs]
        raise ConfigError(
            f"site '{site}' does not share its class counts, which the weighting '{', '.join(kinds)}' needs: set "
            "share_class_counts = true in its site.toml (class_counts_epsilon adds noise), or weigh otherwise"
        )


def _check_moments(study: StudyConfig, site: str, card: DataCard) -> None:
    """Check the sums for a common scale: they are of the study's columns, and are there if the study needs them."""
    columns = study.task.scaled_columns if study.task.agrees_on_scale else ()
    if card.moments is not None and len(card.moments.counts) != len(columns):
        raise ProtocolError(
            f"site '{site}' sent sums of {len(card.moments.counts)} columns, expected those of {len(columns)}"
        )
    if card.moments is None and study.task.agrees_on_scale and study.task.scale == "federation":
        raise ConfigError(
            f"site '{site}' does not share the sums of its columns, which task.scale = 'federation' needs: set "
            "share_scale = true in its site.toml, or agree on another task.scale"
        )


def _facts(reply: HandshakeReply) -> dict[str, str]:
    versions = {f"{name} version": value for name, value in reply.versions.model_dump(exclude={"parts"}).items()}
    packages = {f"package {one.package}": _package(one) for one in reply.versions.parts}
    return {
        **versions,
        **packages,
        "data schema": reply.card.schema_digest[:12],
        "common test set": f"{reply.card.num_test} rows {reply.card.test_digest[:12]}"
        if reply.card.test_digest
        else "none",
        "initial weights": reply.initial_digest[:12],
        "shared initial weights": reply.shared_digest[:12],
        "shared buffers": ", ".join(sorted(reply.shared_buffers)) or "none",
    }


def _package(package: OwnPackage) -> str:
    return f"{package.version} with sha256 {package.sha256[:12]}"


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
