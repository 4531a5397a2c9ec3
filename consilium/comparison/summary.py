"""The numbers of a row, or of the difference of two rows: per site and over the sites, with intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from consilium.common.intervals.interval import within
from consilium.comparison.comparison import Comparison
from consilium.comparison.evaluation import IN_UNITS, SMALLER_IS_BETTER, UNBOUNDED, Floats
from consilium.comparison.evidence import averaged, evidence_of, minus
from consilium.comparison.rows import Row
from consilium.findings import LEAST_PATIENTS, LEAST_SPLITS, Evidence, Interval, interval_of, over_sites, over_splits

OVER = ("mean", "weighted mean", "worst site", "spread")
"""Numbers over sites; the last two have no interval."""

SHARES = frozenset({"accuracy", "within_tolerance"})


@dataclass(frozen=True)
class Summary:
    """Numbers of a row, or of the difference of two: per site and over the sites."""

    sites: Mapping[str, Interval | None]
    over: Mapping[str, Interval | None]


def summarise(comparison: Comparison, row: Row, other: Row | None = None) -> Summary:
    """Return a row's test metric with intervals, or (given `other`) the paired difference from another row's.

    Splits that only one of two rows has are left out.
    """
    splits = sorted(row.places.keys() & (other.places.keys() if other else row.places.keys()))
    sizes = [_size(comparison, row, splits, site) for site in comparison.sites]
    if len(splits) == 1:
        return _of_one_split(comparison, row, other, splits[0], sizes)
    if not splits:
        return Summary(dict.fromkeys(comparison.sites), dict.fromkeys(OVER))
    many = len(splits) >= LEAST_SPLITS
    values = np.array([[_value(comparison, row, other, split, site) for split in splits] for site in comparison.sites])
    ratio = rows_tested_per_trained(comparison, row, splits) if many else 0.0
    least = None if comparison.metric in UNBOUNDED else -1.0 if other else 0.0
    over = {
        name: _over_splits(line, ratio if many else None, least)
        for name, line in numbers_over(values, sizes, comparison.metric).items()
    }
    sites = {}
    for place, site in enumerate(comparison.sites):
        enough = many and num_patients(comparison, splits[0], site, sizes[place]) >= LEAST_PATIENTS
        sites[site] = _over_splits(values[place], ratio if enough else None, least)
    return Summary(sites, over)


def _of_one_split(comparison: Comparison, row: Row, other: Row | None, split: int, sizes: Sequence[int]) -> Summary:
    kind: Literal["share", "number", "difference"] = "share" if comparison.metric in SHARES else "number"
    kind = "difference" if other else kind
    each = {site: _evidence(comparison, row, other, split, site) for site in comparison.sites}
    low, high = (-math.inf, math.inf) if other else bounds_of(comparison.metric)
    sites = {
        site: None if one is None else within(interval_of(one, kind=kind), low, high) for site, one in each.items()
    }
    known = [one for one in each.values() if one is not None]
    if len(known) < len(each):  # a mean over the sites that happen to have a number is a mean of something else
        return Summary(sites, dict.fromkeys(OVER))
    values = np.array([[one.values.mean()] for one in known])
    over = {name: Interval(float(line[0])) for name, line in numbers_over(values, sizes, comparison.metric).items()}
    for name, weights in (("mean", [1.0] * len(known)), ("weighted mean", [float(size) for size in sizes])):
        if comparison.task.test is None:
            over[name] = within(over_sites(known, weights, kind=kind), low, high)
        else:  # one test set for all: the sites' test patients are the same
            over[name] = within(interval_of(averaged(known, weights), kind=kind), low, high)
    return Summary(sites, over)


def bounds_of(metric: str) -> tuple[float, float]:
    """Return the least and the largest value that a metric can have; `<metric>.<class>` as the metric."""
    name = metric.partition(".")[0]
    return (0.0 if name in IN_UNITS else -math.inf, math.inf) if name in UNBOUNDED else (0.0, 1.0)


def numbers_over(values: Floats, sizes: Sequence[int], metric: str) -> dict[str, Floats]:
    """Return the numbers over sites `(splits,)` of an array `(sites, splits)`."""
    worst = values.max(axis=0) if metric in SMALLER_IS_BETTER else values.min(axis=0)
    weighted = np.average(values, axis=0, weights=sizes)
    return dict(zip(OVER, (values.mean(axis=0), weighted, worst, values.std(axis=0)), strict=True))


def _over_splits(values: Floats, ratio: float | None, least: float | None) -> Interval | None:
    """Return the mean over splits with its interval, within [least, 1] if there are bounds; None where undefined."""
    if np.isnan(values).any():
        return None
    if ratio is None:
        return Interval(float(values.mean()))
    one = over_splits(values.tolist(), test_to_train=ratio)
    if least is None or one.low is None or one.high is None:
        return one
    return Interval(one.value, max(one.low, least), min(one.high, 1.0), one.p)


def _value(comparison: Comparison, row: Row, other: Row | None, split: int, site: str) -> float:
    """Return the metric in one split as a mean over seeds, minus the other row's; NaN where it is undefined."""
    means = []
    for each in (row, other) if other else (row,):
        values = [
            comparison.value(sites[site], site, comparison.metric) if site in sites else None
            for sites in each.places[split]
        ]
        means.append(np.nan if None in values else float(np.mean(values)))  # type: ignore[arg-type]  # no None is among them
    return float(means[0] - means[1] if other else means[0])


def _evidence(comparison: Comparison, row: Row, other: Row | None, split: int, site: str) -> Evidence | None:
    one = _of_row(comparison, row, split, site)
    if other is None or one is None:
        return one
    alone = _of_row(comparison, other, split, site)
    return None if alone is None else minus(one, alone)


def _of_row(comparison: Comparison, row: Row, split: int, site: str) -> Evidence | None:
    places = [sites[site] for sites in row.places[split] if site in sites]
    where = (site, *(f"{comparison.results[place.cell].key}/{place.model}" for place in places))
    if where not in comparison.evidence:
        scores = [one for place in places if (one := comparison.scores(place, site)) is not None]
        whole = len(scores) == len(row.places[split])
        who = f"{site if comparison.task.test is None else 'all'}/{split}"
        comparison.evidence[where] = (
            evidence_of(scores, comparison.metric, groups=comparison.groups(split, site), seed=comparison.seed, who=who)
            if whole
            else None
        )
    return comparison.evidence[where]


def num_patients(comparison: Comparison, split: int, site: str, num_test: int) -> int:
    """Return how many patients a site's test examples are of."""
    groups = comparison.groups(split, site)
    return num_test if groups is None else len(np.unique(groups))


def _size(comparison: Comparison, row: Row, splits: Sequence[int], site: str) -> int:
    places = row.places[splits[0]][0] if splits else {}
    return (comparison.facts(places[site].cell, site).num_test or 1) if site in places else 1


def rows_tested_per_trained(comparison: Comparison, row: Row, splits: Sequence[int]) -> float:
    """Return how many test rows there are per row that was trained on: validation rows are not among these."""
    cells = {site: place.cell for site, place in row.places[splits[0]][0].items()}
    if row.epsilon is not None and (exact := comparison.cells("fedavg").get(splits[0])):
        cells = dict.fromkeys(cells, exact[0])  # what a private study's sites announce has noise
    facts = [comparison.facts(cell, site) for site, cell in cells.items()]
    trained = sum(one.num_train for one in facts)
    return float(sum(one.num_test for one in facts) / max(1, trained))


def places_of(metric: str, summaries: Sequence[Summary]) -> int:
    """Return how many digits go behind the point: 3 in [0, 1], and where there are units as many as show 4."""
    means = [abs(one.value) for each in summaries if (one := each.over["mean"]) is not None and one.value]
    if metric not in UNBOUNDED or not means:
        return 3
    return min(12, max(0, 3 - math.floor(math.log10(max(means)))))
