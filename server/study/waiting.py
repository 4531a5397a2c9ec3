"""Before the handshake: who must be there for a run to begin, and waiting for them."""

import time
from collections.abc import Callable

from consilium.common.errors import SitesMissing
from consilium.common.study.study import StudyConfig
from consilium.server.study.exchange import Exchange
from consilium.server.study.members import counted, lacking, members


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
        online = members(study, exchange.connected())
        if online != before:
            before = online
            on_change(online)
        waited = time.monotonic() - began
        is_late = waited >= study.join_timeout_seconds
        if counted(study, online) >= (needed_sites(exchange, study) if is_late else study.min_sites or study.all_sites):
            return online
        if waited >= limit:
            raise SitesMissing(
                f"after {limit:g} s these sites of study '{study.name}' have not connected: "
                f"{', '.join(lacking(study, online))}; connected: {', '.join(sorted(online)) or 'none'}"
            )
        if is_late and not paused:
            on_pause(online)
            paused = True
        time.sleep(0.1)


def needed_sites(exchange: Exchange, study: StudyConfig) -> int:
    """Return how many sites must shake hands for a run to begin."""
    return study.least_sites_to_start if exchange.patient else study.min_sites or study.all_sites
