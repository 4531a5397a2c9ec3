"""Who of a study's sites and groups is there: sites by their names, of a group as many as its cohort has."""

from collections.abc import Collection

from consilium.common.study.device_names import group_of
from consilium.common.study.study import StudyConfig


def members(study: StudyConfig, sites: Collection[str]) -> frozenset[str]:
    """Return those of some sites that take part in a study: by their names, and as devices of its groups."""
    named = frozenset(study.sites) & frozenset(sites)
    groups = {group.name for group in study.groups}
    return named | {site for site in sites if group_of(site) in groups} if groups else named


def by_group(study: StudyConfig, sites: Collection[str]) -> dict[str, list[str]]:
    """Return the devices among some sites, by their groups; every group of the study is there."""
    found: dict[str, list[str]] = {group.name: [] for group in study.groups}
    for site in sites if found else ():
        if (group := group_of(site)) in found:
            found[str(group)].append(site)
    return found


def counted(study: StudyConfig, online: Collection[str]) -> int:
    """Return how many of a round's sites are there: of a group at most its cohort."""
    devices = by_group(study, online)
    cohorts = {group.name: group.cohort for group in study.groups}
    named = len(frozenset(study.sites) & frozenset(online))
    return named + sum(min(cohorts[name], len(there)) for name, there in devices.items())


def lacking(study: StudyConfig, online: Collection[str]) -> list[str]:
    """Return in words who of a round's sites is not there."""
    devices = by_group(study, online)
    few = [
        f"{group.cohort - len(devices[group.name])} of {group.cohort} devices of group '{group.name}'"
        for group in study.groups
        if len(devices[group.name]) < group.cohort
    ]
    return [*sorted(set(study.sites) - set(online)), *few]
