"""Which studies cannot be run with groups of devices, each with the sentence that says why."""

from collections.abc import Callable

from consilium.common.study.pace import BufferedPace
from consilium.common.study.ruled import Study


def _groups_have_rounds(study: Study) -> str | None:
    if not study.groups or not isinstance(study.schedule, BufferedPace):
        return None
    return (
        "schedule = 'buffered' asks every site at once, but of a group only its cohort is asked in a round: set "
        "schedule.kind = 'rounds', or leave groups out"
    )


def _sums_know_all_sites(study: Study) -> str | None:
    if not study.groups or not (study.privacy.secure_aggregation or study.privacy.sites is not None):
        return None
    return (
        "secure sums and noise of all sites are reckoned with the keys and the number of all sites, which groups do "
        "not have, since devices enrol and go: leave groups out, or privacy.secure_aggregation and privacy.sites"
    )


def _strategy_knows_no_number(study: Study) -> str | None:
    if not study.groups or "num_sites" not in study.strategy.takes:
        return None
    return (
        f"strategy '{study.strategy.kind}' divides by the number of all sites, which nobody knows of a study with "
        "groups: choose another strategy, e.g. 'fedavg'"
    )


GROUP_RULES: tuple[Callable[[Study], str | None], ...] = (
    _groups_have_rounds,
    _sums_know_all_sites,
    _strategy_knows_no_number,
)
