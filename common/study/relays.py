"""Relays in a study: between the server and some of its sites, whose updates they add up before these go on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import Field

from consilium.common.study.names import SiteName

MOST_LEAVES, MOST_RELAYS = 1_000, 1_000
"""How many sites a relay may have, whose plans are one message, and how many relays a study."""
LEAST_LEAVES = 2
"""Of how many sites a relay sends a sum at least: the sum of one would be that site's own update."""

Leaves = Annotated[tuple[SiteName, ...], Field(max_length=MOST_LEAVES)]
RelayTable = Annotated[dict[SiteName, Leaves], Field(max_length=MOST_RELAYS)]
"""The sites that each relay stands before, its leaves, by the relay's name."""


def relay_problems(relays: Mapping[str, Sequence[str]], sites: Sequence[str]) -> Iterator[str]:
    """Yield one sentence for every relay that cannot be, and for every leaf of none or of two."""
    above: dict[str, str] = {}
    for relay, leaves in relays.items():
        if relay in sites:
            yield f"relays: '{relay}' is also the name of a site: a relay has no data, so it is not one of sites"
        if len(leaves) < LEAST_LEAVES:
            yield (
                f"relays: '{relay}' has {len(leaves)} site{'' if len(leaves) == 1 else 's'}, expected {LEAST_LEAVES} "
                "or more: the sum of one would be that site's own update"
            )
        for leaf in dict.fromkeys(leaves):
            if leaf in relays:
                yield (
                    f"relays: '{leaf}' of '{relay}' is a relay itself: relays of relays do not work, list the sites of "
                    f"'{leaf}' under it"
                )
            elif leaf not in sites:
                yield f"relays: '{leaf}' of '{relay}' is not one of sites, which name every site of the study"
            if above.setdefault(leaf, relay) != relay or list(leaves).count(leaf) > 1:
                yield f"relays: site '{leaf}' is under '{above[leaf]}' and under '{relay}', expected it once"


def relay_of(relays: Mapping[str, Sequence[str]], site: str) -> str | None:
    """Return the relay that stands before a site; None where the site is connected to the server."""
    return next((relay for relay, leaves in relays.items() if site in leaves), None)
