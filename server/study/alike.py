"""What sites must have in common before round 1: versions, data schema, initial weights, and what their cards say."""

from collections.abc import Iterable, Mapping

import consilium.common
from consilium.common.errors import ConfigError, HandshakeMismatch, ProtocolError, clean
from consilium.common.protocol.cards import DataCard
from consilium.common.protocol.replies import HandshakeReply
from consilium.common.study.parts import OwnPackage
from consilium.common.study.signals import CLASS_COUNTS
from consilium.common.study.study import StudyConfig


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


def largest_group(replies: Mapping[str, HandshakeReply]) -> list[str]:
    """Return the sites of the largest group that is alike, in sorted order; of equal ones that of the first site."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for site, reply in sorted(replies.items()):
        alike.setdefault(tuple(_facts(reply).values()), []).append(site)
    return max(alike.values(), key=len)


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
