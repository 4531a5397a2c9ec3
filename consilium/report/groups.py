"""Groups of devices in a report: counts and quantiles in place of a row for each device, where there are many."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from consilium.common.protocol.counts import TestCounts
from consilium.common.results import RoundRecord, RunResult, SiteResult
from consilium.findings import DIFFERENCE, MEASURES
from consilium.findings.decimals import DASH, number

MOST_ROWS = 30
"""Up to so many devices of a group that took part have a row each; quantiles of fewer would say little."""
QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class GroupRow:
    """What a report says of a group with many devices.

    Args:
        devices: how many shook hands.
        tested: how many reported test results.
        examples: of all of them together.
        quantiles: the 10 %, 50 % and 90 % quantile over the devices per measure; None where no device tells it.
        better: at how many devices the served model has more test examples right than the one trained alone.
        worse: at how many it has fewer.
    """

    name: str
    devices: int
    tested: int
    examples: int
    quantiles: Mapping[str, tuple[float, ...] | None]
    better: int
    worse: int

    @property
    def texts(self) -> dict[str, str]:
        """Return each measure as `0.90 (0.81 to 0.97)`: the median, and the 10 % and 90 % quantiles."""
        texts = dict[str, str]()
        for name, values in self.quantiles.items():
            sign = "+" if name == DIFFERENCE and values is not None and values[1] > 0 else ""
            texts[name] = (
                DASH if values is None else f"{sign}{number(values[1])} ({number(values[0])} to {number(values[2])})"
            )
        return texts

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        quantiles = {name: None if values is None else list(values) for name, values in self.quantiles.items()}
        counts = {"devices": self.devices, "tested": self.tested, "num_examples": self.examples}
        return {**counts, "quantiles": quantiles, "better": self.better, "worse": self.worse}


def rows_of(result: RunResult) -> tuple[str, ...]:
    """Return who has a row in a report: the study's sites, and the devices of groups that have few."""
    devices = _devices(result)
    few = [site for of in devices.values() if len(of) <= MOST_ROWS for site in of]
    return (*result.study.sites, *few)


def group_rows(result: RunResult) -> tuple[GroupRow, ...]:
    """Return what is said of the groups with many devices, in the order of the study."""
    return tuple(
        _row(name, {site: result.sites[site] for site in sites})
        for name, sites in _devices(result).items()
        if len(sites) > MOST_ROWS
    )


def without_devices(record: Mapping[str, Any], result: RunResult) -> dict[str, Any]:
    """Return a round as JSON has it with counts in place of the devices that have no row."""
    rows = set(rows_of(result))
    hidden = {group for group, sites in _devices(result).items() if len(sites) > MOST_ROWS}
    if not hidden:
        return dict(record)
    groups: dict[str, dict[str, int]] = {group: {} for group in sorted(hidden)}
    for key in ("asked", "answered", "accepted"):
        counts = Counter(result.study.group_of(site) for site in record[key])
        for group in groups:
            groups[group][key] = counts[group]
    kept: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            kept[key] = {site: of for site, of in value.items() if site in rows or result.study.group_of(site) is None}
        elif key in ("asked", "answered", "accepted"):
            kept[key] = [site for site in value if site in rows]
        else:
            kept[key] = value
    return {**kept, "groups": groups}


def group_weights(result: RunResult, rounds: Sequence[RoundRecord]) -> list[tuple[str, list[str]]]:
    """Return how much each group with many devices counted: in the first round, least, most, and in the last one."""
    hidden = {row.name for row in group_rows(result)}
    rows = list[tuple[str, list[str]]]()
    for group in sorted(hidden):
        shares = [
            sum(of.weight or 0.0 for site, of in record.sites.items() if result.study.group_of(site) == group)
            for record in rounds
        ]
        texts = (
            [f"{100 * share:.1f} %" for share in (shares[0], min(shares), max(shares), shares[-1])] if shares else []
        )
        rows.append((f"group {group}", texts or [DASH] * 4))
    return rows


def _devices(result: RunResult) -> dict[str, list[str]]:
    """Return the devices that took part by their groups, in the order of names."""
    found: dict[str, list[str]] = {group.name: [] for group in result.study.groups}
    for site in sorted(result.sites) if found else ():
        if (group := result.study.group_of(site)) is not None:
            found[group].append(site)
    return found


def _row(name: str, sites: Mapping[str, SiteResult]) -> GroupRow:
    tested = [of.test for of in sites.values() if of.test is not None]
    values = {measure: [one for test in tested if (one := _value(test, measure)) is not None] for measure in MEASURES}
    changes = values[DIFFERENCE]
    return GroupRow(
        name,
        devices=len(sites),
        tested=len(tested),
        examples=sum(of.num_examples for of in sites.values()),
        quantiles={
            measure: tuple(float(one) for one in np.quantile(of, QUANTILES)) if of else None
            for measure, of in values.items()
        },
        better=sum(change > 0 for change in changes),
        worse=sum(change < 0 for change in changes),
    )


def _value(test: TestCounts, measure: str) -> float | None:
    """Return a device's own number of a measure, from its counts or estimates; None where it does not tell it."""
    if test.estimates is not None:
        field = {"global": "global_", DIFFERENCE: "difference"}.get(measure, measure)
        one = getattr(test.estimates, field)
        return None if one is None else float(one.value)
    if measure == DIFFERENCE:
        return None if test.pairs is None else (test.pairs[2] - test.pairs[1]) / test.num_test
    right = getattr(test, "global_" if measure == "global" else measure)
    return None if right is None else right / test.num_test
