"""How a sentence names sites: one, or a few of many."""

from collections.abc import Mapping

MOST_NAMED = 5
"""Of more sites, so many are named in one sentence; the events hold all."""


def named(site: str, message: str) -> str:
    """Return a site's sentence with the site's name in front, unless it is there already."""
    who = f"site '{site}'"
    return message if message.startswith(who) else f"{who}: {message}"


def reasons(details: Mapping[str, str]) -> str:
    """Return what happened at each site; of many, at the first."""
    sentences = [f"{site}: {detail}" for site, detail in sorted(details.items())]
    more = f"and {len(sentences) - MOST_NAMED} more sites" if len(sentences) > MOST_NAMED else ""
    return "; ".join(filter(None, [*sentences[:MOST_NAMED], more]))
