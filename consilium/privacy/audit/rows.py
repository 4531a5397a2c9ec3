"""The findings of an audit as cells and sentences, for a terminal and for a page."""

from consilium.common.errors import listed
from consilium.privacy.audit.audit import Audit

ROUND_TITLES = ("round", "shares", "weights", "after it", "sites and their shares")
SITE_TITLES = ("site", "examples", "rounds", "commitment to its data", "data digest, if opened", "its own audit log")
MOST_SHARES = 8
"""How many sites of a round are listed."""


def chain_sentence(audit: Audit) -> str:
    """Return what is to be said of the log."""
    if audit.chain is None:
        return "its log is not what was written"
    return f"its log is whole: {audit.chain.lines} lines, the last one with the SHA-256 {audit.chain.head}"


def code_of(audit: Audit) -> str:
    """Return the versions and packages of all sites, in words; empty where the run came to none."""
    versions = [f"{name} {value}" for name, value in audit.versions.items()]
    return ", ".join([*versions, *(f"package {name} {value}" for name, value in audit.packages.items())])


def round_cells(audit: Audit) -> list[tuple[str, ...]]:
    """Return a line for every round that was run."""
    return [
        (
            f"{row.number}" if row.final else f"{row.number} (undone)",
            row.shares,
            row.aggregate,
            row.weights[:12],
            listed([f"{site} {100 * share:.2f} %" for site, share in row.sites.items()], MOST_SHARES),
        )
        for row in audit.rounds
    ]


def site_cells(audit: Audit) -> list[tuple[str, ...]]:
    """Return a line for every site."""
    return [
        (
            row.site,
            f"{row.num_examples}",
            f"{row.rounds}",
            row.data_commitment[:16] or "none",
            (row.data or "")[:16],
            "none" if row.audit_lines is None else f"{row.audit_lines} lines, head {(row.audit_head or '')[:12]}",
        )
        for row in audit.sites
    ]
