"""Sentences that name sites: one, or the first few of many."""

from collections.abc import Mapping

MOST_NAMED = 5
"""Most sites that one sentence names; the events name all."""


def named(site: str, message: str) -> str:
    """Return a site's sentence with the site's name in front, unless it is there already."""
    who = f"site '{site}'"
    return message if message.startswith(who) else f"{who}: {message}"


def reasons(details: Mapping[str, str]) -> str:
    """Return each site's sentence; of many sites, those of the first few."""
    sentences = [f"{site}: {detail}" for site, detail in sorted(details.items())]
    more = f"and {len(sentences) - MOST_NAMED} more sites" if len(sentences) > MOST_NAMED else ""
    return "; ".join(filter(None, [*sentences[:MOST_NAMED], more]))
