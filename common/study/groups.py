"""Groups of devices in a study: nobody lists their names, each device enrols by its group's token."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field

from consilium.common.study.device_names import DIGITS, MOST_DEVICES, group_of
from consilium.common.study.names import GROUP_NAME
from consilium.common.study.record import Record

MOST_GROUPS = 50

GroupName = Annotated[str, Field(pattern=GROUP_NAME)]


class GroupConfig(Record):
    """Devices that enrol by a token, and are named by the server: `phones-000001`, `phones-000002`, ..."""

    name: GroupName
    """The group's name; a device's name is this one with a number."""
    cohort: int = Field(ge=1, le=MOST_DEVICES)
    """Devices asked in each round, drawn from those that are connected."""


def group_problems(groups: Iterable[GroupConfig], sites: Iterable[str]) -> list[str]:
    """Return one sentence for every name that two groups, or a group and a site, share."""
    names, problems = [group.name for group in groups], list[str]()
    for name in names:
        if group_of(name) is not None:
            problems.append(
                f"groups: '{name}' ends like a device's name, with a hyphen and {DIGITS} digits: choose another name"
            )
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"groups: '{repeated[0]}' is there more than once: give each group a name of its own")
    for site in sites:
        if site in names:
            problems.append(f"groups: '{site}' is also the name of a site: rename one of them")
        elif (group := group_of(site)) in names:
            problems.append(
                f"sites: '{site}' is a name of a device of group '{group}', which the server gives: leave it out of "
                "sites, or rename the group"
            )
    return problems


def without_sites(values: Any) -> Any:
    """Return the values of a study with no sites where it has groups or devices and names none; others as they are."""
    if not isinstance(values, dict) or "sites" in values or not (values.get("groups") or values.get("devices")):
        return values
    return {**values, "sites": ()}


def without_required_sites(schema: dict[str, Any]) -> None:
    """Let a JSON schema of studies not ask for sites, since a study with groups or devices has none."""
    schema["required"] = [name for name in schema.get("required", ()) if name != "sites"]
