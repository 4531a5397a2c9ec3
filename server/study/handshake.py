"""Before round 1: wait for the sites, compare what they are, agree on the initial weights.

The server builds no model and imports no torch: every site reports the digest of the initial weights
it would build, and the weights themselves come from one site once all digests are equal.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import common
from common.codecs import Identity
from common.data.patients import LEAST_PATIENTS
from common.errors import ConfigError, ConsiliumError, HandshakeMismatch, ProtocolError, SitesMissing, error_named
from common.host.text import clean
from common.protocol import (
    FailureReply,
    HandshakePlan,
    HandshakeReply,
    InitialWeightsPlan,
    InitialWeightsReply,
    ScalePlan,
    ScaleReply,
    study_digest,
)
from common.study.signals import CLASS_COUNTS
from common.study.study import StudyConfig
from common.weights.arrays import Array, Weights, digest
from common.weights.checks import check_finite
from common.wire.limits import MAX_PAYLOAD_BYTES
from server.study.exchange import Answer, Exchange
from server.study.scale import Settled, far_off, settle

log = logging.getLogger(__name__)

R = TypeVar("R", HandshakeReply, ScaleReply, InitialWeightsReply)

MOST_NAMED = 5
"""Of more sites, so many are named in one sentence; the events hold all."""
DWARFS, DWARFS_THE_OTHER = 100, 1000
"""From so many times the others' median on (with two sites: the other's) a site's examples are worth a warning."""
SHARES_DIFFER = 0.2
"""From such a difference of a class's shares at two sites on, a scale of each site's own is worth a warning."""


@dataclass(frozen=True)
class Agreement:
    """What the sites agreed on before round 1.

    Args:
        settled: by what inputs are scaled; None where the study does not leave that to the handshake.
    """

    replies: Mapping[str, HandshakeReply]
    weights: Weights
    warnings: tuple[str, ...]
    settled: Settled | None = None


def wait_for_sites(
    exchange: Exchange, study: StudyConfig, *, on_change: Callable[[frozenset[str]], None] = lambda _: None
) -> frozenset[str]:
    """Wait for `study.min_sites` sites (default: all), at most `study.join_timeout_seconds`; return who is online.

    Raises:
        SitesMissing: names who came and who is missing.
    """
    deadline = time.monotonic() + study.join_timeout_seconds
    seen: frozenset[str] | None = None
    while True:
        online = exchange.connected() & set(study.sites)
        if online != seen:
            seen = online
            on_change(online)
        missing = sorted(set(study.sites) - online)
        if len(online) >= (study.min_sites or len(study.sites)):
            return online
        if time.monotonic() >= deadline:
            raise SitesMissing(
                f"after {study.join_timeout_seconds:g} s these sites of study '{study.name}' have not connected: "
                f"{', '.join(missing)}; connected: {', '.join(sorted(online)) or 'none'}"
            )
        time.sleep(0.1)


def shake_hands(
    exchange: Exchange,
    study: StudyConfig,
    run: str,
    sites: Collection[str],
    *,
    settled: Settled | None = None,
    on_settled: Callable[[Settled], None] = lambda _: None,
) -> Agreement:
    """Ask the sites what they are, compare, settle their scale, and fetch the agreed initial weights from one of them.

    Args:
        settled: by what the inputs of this run are scaled, if that was settled before.
        on_settled: is told what was settled now, before any site is.

    Raises:
        HandshakeMismatch: who differs in what, as a table; or a site that did not answer.
        ConsiliumError: the sentence of the first site that could not do its part (bad data, wrong weights file).
    """
    answers = _ask(exchange, study, run, sites)
    replies = {answer.site: _expect(answer, HandshakeReply, run) for answer in answers}
    compare(replies)
    for site, reply in replies.items():
        check_told(study, site, reply)
    if study.task.agrees_on_scale:
        if settled is None:
            on_settled(settled := settle(study, replies))
        for answer in _tell_scale(exchange, study, run, replies, settled):
            _expect(answer, ScaleReply, run)
    first = min(replies)
    plan = InitialWeightsPlan(study=study_digest(study.seen_by(first)), run=run, site=first)
    (answer,) = exchange.ask(
        {first: plan}, payload=None, timeout_seconds=study.round_timeout_seconds, most_bytes=MAX_PAYLOAD_BYTES
    )
    weights = _initial_weights(answer, replies[first])
    warnings = (*_about_scale(study, replies, settled), *far_off(study, replies).values(), *_warnings(replies, study))
    return Agreement(replies, weights, warnings, settled)


def admit(
    exchange: Exchange, study: StudyConfig, run: str, agreement: Agreement, sites: Collection[str]
) -> tuple[Agreement, dict[str, str]]:
    """Shake hands with sites that came later; return the wider agreement, and who was refused with a sentence why."""
    admitted, refused = dict(agreement.replies), dict[str, str]()
    first = min(agreement.replies)
    for answer in _ask(exchange, study, run, sites):
        try:
            reply = _expect(answer, HandshakeReply, run)
            compare({first: agreement.replies[first], answer.site: reply})
            check_told(study, answer.site, reply)
            if agreement.settled is not None:
                (answer,) = _tell_scale(exchange, study, run, [answer.site], agreement.settled)
                _expect(answer, ScaleReply, run)
            admitted[answer.site] = reply
        except ConsiliumError as error:
            if answer.problem is not None:
                log.warning("late site did not answer site=%s problem=%s", answer.site, clean(answer.problem))
                continue
            refused[answer.site] = named(answer.site, str(error))
    larger = [warning for warning in _dwarfing(admitted) if warning not in agreement.warnings]
    farther = [warning for site, warning in far_off(study, admitted).items() if site not in agreement.replies]
    return replace(agreement, replies=admitted, warnings=(*agreement.warnings, *larger, *farther)), refused


def _ask(exchange: Exchange, study: StudyConfig, run: str, sites: Collection[str]) -> list[Answer]:
    plans = {site: HandshakePlan(study=study.seen_by(site), run=run, site=site) for site in sorted(sites)}
    answers = exchange.ask(plans, payload=None, timeout_seconds=study.round_timeout_seconds)
    return sorted(answers, key=lambda answer: answer.site)


def _tell_scale(
    exchange: Exchange, study: StudyConfig, run: str, sites: Collection[str], settled: Settled
) -> list[Answer]:
    plans = {
        site: ScalePlan(study=study_digest(study.seen_by(site)), run=run, site=site, scale=settled.scale)
        for site in sorted(sites)
    }
    answers = exchange.ask(plans, payload=None, timeout_seconds=study.round_timeout_seconds)
    return sorted(answers, key=lambda answer: answer.site)


def _expect(answer: Answer, kind: type[R], run: str) -> R:
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


def compare(replies: Mapping[str, HandshakeReply]) -> None:
    """Check that all sites agree in versions, data schema, shared names and initial weights.

    Raises:
        HandshakeMismatch: one line per difference, with every site's value.
    """
    rows: dict[str, dict[str, str]] = {}
    for site, reply in sorted(replies.items()):
        for what, value in _facts(reply).items():
            rows.setdefault(what, {})[site] = value
    rows["consilium version"]["server"] = common.__version__
    differing = {what: seen for what, seen in rows.items() if len(set(seen.values())) > 1}
    if differing:
        lines = [
            f"  {what}: " + ", ".join(f"{site} has {clean(value, 200)}" for site, value in seen.items())
            for what, seen in differing.items()
        ]
        raise HandshakeMismatch("the sites differ, so the study was stopped before training:\n" + "\n".join(lines))


def check_told(study: StudyConfig, site: str, reply: HandshakeReply) -> None:
    """Check that a site tells what the study's weighting and scale are made of, within what the study allows.

    Raises:
        ProtocolError: more examples than the study's `max_examples`, classes that the study does not name, or sums of
            other columns than the study's.
        ConfigError: the weighting needs class counts, or the scale needs sums, and the site's settings keep them there.
    """
    if (most := max(reply.card.num_examples, reply.card.num_skipped)) > study.max_examples:
        raise ProtocolError(
            f"site '{site}' announces {most} examples, the study accepts at most {study.max_examples} (max_examples)"
        )
    if unknown := sorted({*reply.card.classes, *(reply.card.class_counts or {})} - set(study.task.classes)):
        raise ProtocolError(f"site '{site}' tells of classes that the study does not have: {', '.join(unknown)[:200]}")
    moments, columns = reply.card.moments, study.task.scaled_columns if study.task.agrees_on_scale else ()
    if moments is not None and len(moments.counts) != len(columns):
        raise ProtocolError(
            f"site '{site}' tells sums of {len(moments.counts)} columns, expected those of {len(columns)}"
        )
    if moments is None and study.task.agrees_on_scale and study.task.scale == "federation":
        raise ConfigError(
            f"site '{site}' does not tell the sums of its columns, which task.scale = 'federation' needs: set "
            "share_scale = true in its site.toml, or agree on another task.scale"
        )
    if CLASS_COUNTS in study.needs and reply.card.class_counts is None:
        kinds = [factor.kind for factor in study.weights_by.factors if CLASS_COUNTS in factor.needs]
        raise ConfigError(
            f"site '{site}' does not tell its class counts, which the weighting '{', '.join(kinds)}' needs: set "
            "share_class_counts = true in its site.toml (class_counts_epsilon adds noise), or weigh otherwise"
        )


def _facts(reply: HandshakeReply) -> dict[str, str]:
    versions = {f"{name} version": value for name, value in reply.versions.model_dump().items()}
    return {
        **versions,
        "data schema": reply.card.schema_digest[:12],
        "common test set": f"{reply.card.num_test} rows {reply.card.test_digest[:12]}"
        if reply.card.test_digest
        else "none",
        "initial weights": reply.initial_digest[:12],
        "shared initial weights": reply.shared_digest[:12],
        "shared buffers": ", ".join(sorted(reply.shared_buffers)) or "none",
    }


def _initial_weights(answer: Answer, shaken: HandshakeReply) -> dict[str, Array]:
    _expect(answer, InitialWeightsReply, shaken.run)
    try:
        weights = Identity().decode(answer.payload or b"")
    except ProtocolError as error:
        raise ProtocolError(named(answer.site, str(error))) from error
    if digest(weights) != shaken.shared_digest:
        raise HandshakeMismatch(f"site '{answer.site}' sent initial weights other than those it had announced")
    check_finite(weights, who=f"initial weights from site '{answer.site}'")
    return weights


def _about_scale(study: StudyConfig, replies: Mapping[str, HandshakeReply], settled: Settled | None) -> Iterator[str]:
    """Yield what is to be said of inputs that every site scales by its own rows."""
    if settled is not None and settled.why_not is not None:
        yield (
            f"there is no scale for all sites, so each scales its inputs by its own training rows: {settled.why_not}"
        )
    if study.task.scale != "site" and (settled is None or settled.scale is not None):
        return
    shares: dict[str, dict[str, float]] = {}
    for site, reply in sorted(replies.items()):
        counts = reply.card.class_counts or {}
        for name in study.task.classes if sum(counts.values()) else ():
            shares.setdefault(name, {})[site] = counts.get(name, 0) / sum(counts.values())
    for name, of in sorted(shares.items(), key=lambda item: min(item[1].values()) - max(item[1].values())):
        low, high = min(of, key=of.__getitem__), max(of, key=of.__getitem__)
        if of[high] - of[low] > SHARES_DIFFER:
            yield (
                f"'{name}' is {of[low]:.0%} of the examples at site '{low}' and {of[high]:.0%} at site '{high}': with "
                "task.scale = 'site' every site's inputs are centred on its own patients, which takes out what tells "
                "sick from healthy; use task.scale = 'federation'"
            )
        return  # the widest difference says it


def _warnings(replies: Mapping[str, HandshakeReply], study: StudyConfig) -> list[str]:
    holders: dict[str, list[str]] = {}
    for site, reply in sorted(replies.items()):
        for name in reply.card.classes:
            holders.setdefault(name, []).append(site)
    lonely = [
        f"class '{name}' occurs only at site '{sites[0]}'; no other site can learn to recognise it from its own data"
        for name, sites in sorted(holders.items())
        if len(sites) == 1 and len(replies) > 1
    ]
    skipped = [
        f"site '{site}' skipped {reply.card.num_skipped} unusable rows or files"
        for site, reply in sorted(replies.items())
        if reply.card.num_skipped
    ]
    read = [
        f"site '{site}' has read its test split for this study {reply.card.test_readings} times of "
        f"{reply.card.test_readings_allowed} (test_readings in its site.toml): in the end it answers only if the final "
        "weights are those of an earlier run"
        for site, reply in sorted(replies.items())
        if reply.card.test_readings >= reply.card.test_readings_allowed
    ]
    return lonely + skipped + read + _with_few(replies) + _copied(replies, study) + _dwarfing(replies)


def _with_few(replies: Mapping[str, HandshakeReply]) -> list[str]:
    """Return a sentence for the sites that have too few test examples for any verdict: before training, not after."""
    few = sorted(site for site, reply in replies.items() if reply.card.num_test < LEAST_PATIENTS)
    if not few:
        return []
    more = f" and {len(few) - MOST_NAMED} more sites" if len(few) > MOST_NAMED else ""
    return [
        f"{', '.join(few[:MOST_NAMED])}{more}: fewer than {LEAST_PATIENTS} test examples, so nothing will be said of "
        "whether joining helps there; a larger split.test or more examples would change that"
    ]


def _copied(replies: Mapping[str, HandshakeReply], study: StudyConfig) -> list[str]:
    """Return a sentence for each site some of whose rows are equal."""
    found = []
    for site, reply in sorted(replies.items()):
        card, who = reply.card, f"site '{site}': {{}} of {reply.card.num_examples} examples are"
        if card.num_copies:
            apart = "split.copies = 'ignore' lets them lie in training and test alike, and scores are too good by that"
            advice = "ask the site why they are there twice" if study.split.copies == "together" else apart
            found.append(f"{who.format(card.num_copies)} exact copies of others; {advice}")
        if card.num_alike and card.num_groups is None:
            found.append(
                f"{who.format(card.num_alike)} equal to another one, perhaps by chance, and count as different "
                "patients': split.group can name the column that says whose a row is"
            )
    return found


def _dwarfing(replies: Mapping[str, HandshakeReply]) -> list[str]:
    """Return a sentence for each site whose training examples are so many that hardly any other site counts.

    Nobody but the site knows how many it has; a person may know how large the hospital is.
    """
    sizes = {site: reply.card.num_train for site, reply in sorted(replies.items())}
    ordered = sorted(sizes.values())
    warnings = []
    for site, size in sizes.items():
        usual = _median_without(ordered, size)
        if size > (DWARFS if len(ordered) > 2 else DWARFS_THE_OTHER) * max(usual, 1):
            warnings.append(
                f"site '{site}' announces {size} training examples, the median of the others is {usual}: where sites "
                "count by size, hardly any other counts; ask the site whether it is true, or weigh otherwise"
            )
    return warnings


def _median_without(ordered: Sequence[int], size: int) -> int:
    """Return the low median of sorted numbers when one `size` of them is left out; itself where it is the only one."""
    middle = (len(ordered) - 2) // 2
    if middle < 0:
        return size
    return ordered[middle] if size > ordered[middle] else ordered[middle + 1]


def named(site: str, message: str) -> str:
    """Return a site's sentence with the site's name in front, unless it is there already."""
    who = f"site '{site}'"
    return message if message.startswith(who) else f"{who}: {message}"
