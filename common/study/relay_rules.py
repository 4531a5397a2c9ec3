"""Which studies cannot be run through relays, each with the sentence that says why and what to do."""

from collections.abc import Callable

from consilium.common.errors import listed
from consilium.common.study.pace import BufferedPace
from consilium.common.study.privacy_rules import SUMMABLE_FACTORS
from consilium.common.study.ruled import Study

RELAYED = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "feddyn", "reptile", "per_fedavg")
"""Strategies that take nothing but the sites' mean, so that means of a few sites each are all they need."""


def _relays_are_of_named_sites(study: Study) -> str | None:
    if not study.relays or not (study.groups or study.devices is not None):
        return None
    return (
        "relays stand before sites that the study names, and groups and devices have no such names: leave relays out, "
        "or name the sites"
    )


def _means_are_all_that_is_needed(study: Study) -> str | None:
    """Refuse what takes more of the sites' updates than their mean."""
    what = _not_a_mean(study) if study.relays else None
    return None if what is None else f"a relay sends on the mean of its sites' updates alone, but {what}"


def _not_a_mean(study: Study) -> str | None:
    strategy, weighting = study.strategy, study.weighting
    if not strategy.of_sums or strategy.travels or strategy.per_step:
        return f"strategy '{strategy.kind}' needs more of them: set strategy.kind to one of {listed(RELAYED, 20)}"
    for factor in weighting.factors if weighting is not None else ():
        if factor.kind not in SUMMABLE_FACTORS:
            return (
                f"weighting '{factor.kind}' compares all sites with each other: weigh by "
                f"{' or '.join(SUMMABLE_FACTORS)}, each with an exponent (size with 0 weighs all alike)"
            )
    if weighting is not None and (weighting.smoothing or weighting.minimum > 0 or (weighting.maximum or 1) < 1):
        return "weighting.smoothing, .minimum and .maximum need all sites' weights: leave them out"
    return None


def _relays_carry_plain_numbers(study: Study) -> str | None:
    link = "uplink" if study.uplink else "downlink" if study.downlink else None
    if not study.relays or link is None:
        return None
    return f"{link}: a relay takes and sends arrays as they are: leave uplink and downlink out"


def _relays_know_one_round(study: Study) -> str | None:
    if not study.relays or not isinstance(study.schedule, BufferedPace):
        return None
    return (
        "schedule = 'buffered' takes updates one by one as they come, and a relay sends one mean of a round: set "
        "schedule.kind = 'rounds'"
    )


def _relays_ask_all_of_theirs(study: Study) -> str | None:
    """Refuse what leaves a relay with one site, whose update its mean would be, and what ends its one mean early."""
    if not study.relays:
        return None
    if study.cohort_fraction < 1 or study.over_selection:
        return (
            "cohort_fraction and over_selection draw sites wherever they are, and a relay of which one is drawn has no "
            "mean to send: leave them out"
        )
    if study.straggler_seconds is not None:
        return (
            "straggler_seconds begins with the quorum, which a relay does not know, and it makes one mean a round of "
            "all its sites: leave it out; round_timeout_seconds bounds how long a round takes"
        )
    return None


def _secrets_end_at_relays(study: Study) -> str | None:
    privacy = study.privacy
    name = "secure_aggregation" if privacy.secure_aggregation else "sites" if privacy.sites is not None else None
    if not study.relays or name is None:
        return None
    return (
        f"privacy.{name} is reckoned with all sites of a round at one server, and relays stand between them: leave "
        "relays out, or protect patients at each site by privacy.examples"
    )


def _single_updates_stay_at_relays(study: Study) -> str | None:
    if not study.relays:
        return None
    if study.keep_updates:
        return "keep_updates keeps every site's update at the coordinator, who gets means from relays: set it to false"
    if study.defence.against:
        return (
            "defence.against compares single updates from round to round, and a relay sends on means: leave it out; "
            "defence.norm works at each relay, for its own sites"
        )
    return None


RELAY_RULES: tuple[Callable[[Study], str | None], ...] = (
    _relays_are_of_named_sites,
    _means_are_all_that_is_needed,
    _relays_carry_plain_numbers,
    _relays_know_one_round,
    _relays_ask_all_of_theirs,
    _secrets_end_at_relays,
    _single_updates_stay_at_relays,
)
