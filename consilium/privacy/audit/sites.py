"""What each site of a run said of itself, for an auditor: code, data, and the heads of its own audit log."""

from collections.abc import Iterable
from dataclasses import dataclass

from consilium.common.events.run import HeadsNoted
from consilium.common.protocol.audit import AuditHead
from consilium.common.protocol.opened import Opened
from consilium.privacy.audit.log import RunLog


@dataclass(frozen=True)
class SiteRow:
    """One site.

    Args:
        num_examples: as it announced them.
        data_commitment: SHA-256 that the hospital can open to show which data it had.
        data: digest of the data, where the hospital has opened its commitment.
        rounds: in how many rounds its update counted.
        audit_lines, audit_head: how far its own audit log had come with its last answer; nothing where none
            was sent. `consilium audit verify` compares all of them.
    """

    site: str
    num_examples: int
    data_commitment: str
    data: str | None
    rounds: int
    audit_lines: int | None = None
    audit_head: str | None = None


def site_rows(log: RunLog, opened: Iterable[Opened], problems: list[str]) -> list[SiteRow]:
    """Return every site of a run; an opened commitment that is not the site's becomes a problem."""
    shown = dict[str, str]()
    for one in opened:
        facts = log.sites.get(one.site)
        run = next((event.run for event in log.events if event.run is not None), one.run)
        if facts is None or facts.data_commitment != one.commitment or run != one.run:
            problems.append(
                f"site '{one.site}': the data digest {one.data[:12]} and its opening do not give the commitment that "
                f"the site sent in this run, {facts.data_commitment[:12] if facts is not None else 'none'}"
            )
            continue
        shown[one.site] = one.data
    counted = [site for attempt in log.final for site in attempt.event.accepted]
    heads = dict[str, AuditHead]()
    for event in log.events:
        if isinstance(event, HeadsNoted):
            heads |= event.heads
    return [
        SiteRow(
            site,
            facts.num_examples,
            facts.data_commitment,
            shown.get(site),
            counted.count(site),
            audit_lines=heads[site].count if site in heads else None,
            audit_head=heads[site].sha256 if site in heads else None,
        )
        for site, facts in sorted(log.sites.items())
    ]
