"""How far the groups of a study are, for a view that has a line for each site and not one for each device."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from consilium.common.study.device_names import group_of


@dataclass
class GroupProgress:
    """The groups of a run, and what their devices did in the round.

    Args:
        cohorts: how many devices are asked in a round, by the names of the groups.
    """

    cohorts: dict[str, int] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Take over the groups of a study as its run says at the start."""
        self.cohorts = {str(group["name"]): int(group["cohort"]) for group in settings.get("groups", ())}

    def of(self, site: str) -> str | None:
        """Return the group of a device; None for a site that has a line of its own."""
        return group if (group := group_of(site)) in self.cohorts else None

    def named(self, sites: Iterable[str]) -> list[str]:
        """Return the sites that are no devices."""
        return [site for site in sites if self.of(site) is None]

    def ask(self, sites: Iterable[str]) -> dict[str, str]:
        """Count the devices that are asked; return what the groups do, by the titles of their lines."""
        self.asked = Counter(group for site in sites if (group := self.of(site)) is not None)
        self.answered = Counter()
        return {title(group): f"{self.asked[group]} devices asked" for group in self.cohorts}

    def answer(self, group: str) -> dict[str, str]:
        """Count the answer of a device; return what its group does, by the title of its line."""
        self.answered[group] += 1
        return {title(group): f"{self.answered[group]} of {self.asked[group]} devices answered"}

    def counted(self, sites: Iterable[str]) -> list[str]:
        """Return in words how many devices of each group are among some sites: `phones: 200 devices`."""
        counts = Counter(group for site in sites if (group := self.of(site)) is not None)
        return [f"{group}: {counts[group]} devices" for group in self.cohorts]


def title(group: str) -> str:
    """Return what the line of a group is called; no site's name holds a space."""
    return f"group {group}"
