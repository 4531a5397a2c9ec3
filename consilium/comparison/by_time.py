"""Times until an event site by site: the share of patients without it over time, by Kaplan and Meier."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from consilium.common.study.policy import PolicyConfig
from consilium.common.survival.curves import kaplan_meier
from consilium.common.survival.times import Times
from consilium.comparison.comparison import Comparison
from consilium.comparison.finished import read_answers

LEAST_AT_RISK = PolicyConfig().least_count
"""Steps at which fewer patients are at risk are not drawn: class counts below that do not leave a site either."""


@dataclass(frozen=True)
class SiteCurve:
    """Who is left without the event at one site, where enough patients are at risk.

    Args:
        patients: how many the curve is of.
        events: in how many of them the event was seen.
        times: when it changes, rising, and after them where it ends; empty where patients are too few.
        shares: of those without the event, from each time on, in [0, 1].
    """

    site: str
    patients: int
    events: int
    times: tuple[float, ...]
    shares: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the curve's numbers."""
        return asdict(self)


def curves_of_times(comparison: Comparison) -> list[SiteCurve]:
    """Return each site's curve over the training and test patients of the first split; none where labels are no times.

    A test set that all sites share (`task.test`) is nobody's own and left out.
    """
    if comparison.task.survival_times is None:
        return []
    return list(_of_sites(comparison))


def site_curve(site: str, of: Times) -> SiteCurve:
    """Return the curve of a site's patients, up to the last time at which `LEAST_AT_RISK` of them are at risk."""
    steps = kaplan_meier(of)
    at_risk = len(of) - np.searchsorted(np.sort(of.times), steps.times, side="left")
    known = at_risk >= LEAST_AT_RISK
    times, shares = steps.times[known], steps.values[known]
    changed = np.diff(shares, prepend=steps.first) != 0
    changed[-1:] = True
    return SiteCurve(
        site=site,
        patients=len(of),
        events=int(of.events.sum()),
        times=tuple(times[changed].tolist()),
        shares=tuple(shares[changed].tolist()),
    )


def _of_sites(comparison: Comparison) -> Iterator[SiteCurve]:
    """Yield the curves by the first cell that kept the times of its training rows."""
    for cell in sorted(comparison.results, key=lambda cell: (cell.split, cell.seed)):
        result = comparison.results[cell]
        held = {} if result.error is not None else read_answers(result.key, comparison.out)
        if held and all("training" in own for own in held.values()):
            for site in (one for one in comparison.sites if one in held):
                parts = [held[site]["training"]]
                if comparison.task.test is None:
                    parts.append(held[site]["labels"])
                yield site_curve(site, Times.of_labels(np.concatenate(parts)))
            return
