"""Strikes: a site whose answers are rejected again and again for what they hold is asked in no further round."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from consilium.common.errors import listed
from consilium.common.events.run import SiteSetAside
from consilium.common.results import RoundRecord
from consilium.common.study.study import StudyConfig
from consilium.server.strategies import ServerState
from consilium.server.study.context import Study
from consilium.server.study.directions import AGAINST_OTHERS
from consilium.server.study.sentences import MOST_NAMED

log = logging.getLogger(__name__)

OF_CONTENT = frozenset(
    {"protocol", "num_examples", "metrics", "names", "shape", "dtype", "not_finite", "norm"},
)
"""Reasons that lie in what a site sent. One that was away, that failed or answered for another round gets no strike,
nor one whose update went against the others' (`against`): it may be right, and counts again once it goes with them."""


def set_aside(config: StudyConfig, strikes: Mapping[str, int]) -> frozenset[str]:
    """Return the sites that are asked in no further round."""
    most = config.defence.strikes
    return frozenset(site for site, count in strikes.items() if most and count >= most)


def with_another(config: StudyConfig, able: Collection[str]) -> frozenset[str]:
    """Return the sites that can be asked: of a relay none where only one is left, whose update its mean would be."""
    lone = {
        leaves[0]: relay
        for relay, each in config.relays.items()
        if len(leaves := [leaf for leaf in each if leaf in able]) == 1
    }
    for site, relay in lone.items():
        log.warning(
            "site=%s is not asked: it is the only one left of relay=%s, whose mean would be its update", site, relay
        )
    return frozenset(able) - lone.keys()


def counted(before: Mapping[str, int], *, accepted: Collection[str], rejected: Mapping[str, str]) -> dict[str, int]:
    """Return the sites' strikes after a round: one more for each rejected for what it sent, none for those accepted.

    Args:
        rejected: the short reason per site.
    """
    struck = {site: before.get(site, 0) + 1 for site, reason in rejected.items() if reason in OF_CONTENT}
    return {site: count for site, count in sorted({**before, **struck}.items()) if site not in accepted}


def say_set_aside(study: Study, before: ServerState, after: ServerState, reasons: Mapping[str, str]) -> None:
    """Write into the run's log which sites are set aside from now on.

    Args:
        reasons: the short reason per site that was rejected in the round.
    """
    new = set_aside(study.config, after.strikes) - set_aside(study.config, before.strikes)
    for site in sorted(new):
        study.folder.log(
            SiteSetAside(
                round=after.round, site=site, strikes=after.strikes[site], reason=reasons[site], message=_sentence(site)
            )
        )


def _sentence(site: str) -> str:
    return (
        f"site '{site}' is asked in no further round: its answers were rejected again and again for what they held; "
        "ask its staff what is wrong there, and start a new run with it once that is mended"
    )


def warnings_of(config: StudyConfig, state: ServerState, rounds: Sequence[RoundRecord]) -> tuple[str, ...]:
    """Return what a report says of sites that were set aside, that went against the others, or sent too much."""
    aside = [
        f"site '{site}' was set aside: {state.strikes[site]} answers in a row were rejected for what they held "
        f"({listed(_reasons(site, rounds), MOST_NAMED)})"
        for site in sorted(set_aside(config, state.strikes) - state.undone.keys())
    ]
    undone = [
        f"round {number} was run again without site '{site}', which was set aside: after it the loss of most sites had "
        "jumped, and its step was mostly that site's (defence.undo)"
        for site, number in sorted(state.undone.items())
    ]
    shortened = Counter(site for record in rounds for site in record.shortened)
    against = Counter(site for record in rounds for site in record.against)
    uncounted = Counter(
        site for record in rounds for site, reason in record.rejected.items() if reason == AGAINST_OTHERS
    )
    opposed = [
        f"site '{site}': its update went against what the others have in common in {count} of {len(rounds)} rounds, "
        f"and did not count in {uncounted[site]} (defence.against): are its labels coded as the others'?"
        for site, count in sorted(against.items())
        if uncounted[site]
    ]
    often = [
        f"site '{site}': its update was shortened in {count} of {len(rounds)} rounds, since it was much longer than "
        "others' (defence.norm)"
        for site, count in sorted(shortened.items())
    ]
    return (*aside, *undone, *opposed[:MOST_NAMED], *often[:MOST_NAMED])


def _reasons(site: str, rounds: Sequence[RoundRecord]) -> list[str]:
    return sorted({record.rejected[site] for record in rounds if record.rejected.get(site) in OF_CONTENT})
