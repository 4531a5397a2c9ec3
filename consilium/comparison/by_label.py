"""Several labels one by one: at each site how many examples have it, and how well it is predicted alone and joined."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from consilium.comparison.comparison import Comparison
from consilium.comparison.rows import Row


@dataclass(frozen=True)
class LabelLine:
    """One label at one site, or as a mean over the sites at which it can be measured.

    Args:
        site: its name; "" of the mean.
        there: how many of the site's examples have the label.
        known: how many of them know it.
        test_there: as `there`, of the test rows of the first split.
        test_known: as `known`, of these.
        alone: AUROC of who stays alone, as a mean over the splits and seeds in which it is defined; None: in none.
        joined: AUROC of who joins.
        alone_precision: AUPRC of who stays alone.
        joined_precision: AUPRC of who joins.
        num_sites: how many sites can measure it; 1 of a site.
    """

    label: str
    site: str
    there: int
    known: int
    test_there: int
    test_known: int
    alone: float | None
    joined: float | None
    alone_precision: float | None
    joined_precision: float | None
    num_sites: int = 1

    def as_json(self) -> dict[str, Any]:
        """Return the line's numbers."""
        return asdict(self)


def lines_of(comparison: Comparison, alone: Row, joined: Row) -> list[LabelLine]:
    """Return each label's lines, its mean first; none where an example has one label."""
    return [line for label in comparison.task.label_names for line in _of_label(comparison, label, alone, joined)]


def _of_label(comparison: Comparison, label: str, alone: Row, joined: Row) -> Iterator[LabelLine]:
    sites = [_at_site(comparison, label, site, alone, joined) for site in comparison.sites]
    both = [one for one in sites if one.alone is not None and one.joined is not None]
    yield LabelLine(
        label=label,
        site="",
        there=sum(one.there for one in sites),
        known=sum(one.known for one in sites),
        test_there=sum(one.test_there for one in sites),
        test_known=sum(one.test_known for one in sites),
        alone=_mean([one.alone for one in both]),
        joined=_mean([one.joined for one in both]),
        alone_precision=_mean([one.alone_precision for one in both]),
        joined_precision=_mean([one.joined_precision for one in both]),
        num_sites=len(both),
    )
    yield from sites


def _at_site(comparison: Comparison, label: str, site: str, alone: Row, joined: Row) -> LabelLine:
    facts = comparison.facts(joined.places[min(joined.places)][0][site].cell, site)
    there, absent = (facts.label_counts or {}).get(label, (0, 0))
    test_there, test_absent = (facts.label_support or {}).get(label, (0, 0))
    of_alone, of_joined = (
        {name: _value(comparison, row, site, f"{name}.{label}") for name in ("auroc", "auprc")}
        for row in (alone, joined)
    )
    return LabelLine(
        label=label,
        site=site,
        there=there,
        known=there + absent,
        test_there=test_there,
        test_known=test_there + test_absent,
        alone=of_alone["auroc"],
        joined=of_joined["auroc"],
        alone_precision=of_alone["auprc"],
        joined_precision=of_joined["auprc"],
    )


def _value(comparison: Comparison, row: Row, site: str, metric: str) -> float | None:
    places = [sites[site] for seeds in row.places.values() for sites in seeds if site in sites]
    return _mean([comparison.value(place, site, metric) for place in places])


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
