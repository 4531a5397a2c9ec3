"""How the number that a study is stopped by has gone: its mean over the sites, its best round, and when it is over."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from consilium.common.results import RoundRecord, Stopped
from consilium.common.study.stopping import StoppingConfig


@dataclass(frozen=True)
class Point:
    """The mean over the sites in a round in which models were measured."""

    round: int
    value: float


def point_of(stopping: StoppingConfig | None, record: RoundRecord) -> Point | None:
    """Return the mean of a round over the sites that measured, each with its weight in the round.

    None where nothing is stopped by it, and where no site measured in the round. Where all sites that measured had a
    weight of 0, they count alike.
    """
    if stopping is None:
        return None
    found = [
        (of.metrics[stopping.measured], float(of.num_examples) if of.weight is None else of.weight)
        for _, of in sorted(record.sites.items())
        if stopping.measured in of.metrics
    ]
    if not found:
        return None
    if not (total := math.fsum(weight for _, weight in found)) > 0:
        found, total = [(value, 1.0) for value, _ in found], float(len(found))
    return Point(record.round, math.fsum(value * (weight / total) for value, weight in found))


def best_of(stopping: StoppingConfig, points: Iterable[Point]) -> Point | None:
    """Return the best round so far: the last that was better than every one before by `least_gain`, and by any at all.

    Args:
        points: in the order of their rounds.
    """
    best = None
    for point in points:
        if best is None:
            best = point
            continue
        gain = best.value - point.value if stopping.smaller_is_better else point.value - best.value
        if gain > 0 and gain >= stopping.least_gain:
            best = point
    return best


def stopped_by(stopping: StoppingConfig | None, points: tuple[Point, ...]) -> Stopped | None:
    """Return why a study ends with its last measured round; None where it goes on."""
    if stopping is None or (best := best_of(stopping, points)) is None:
        return None
    last = points[-1]
    if last.round - best.round < stopping.patience:
        return None
    return Stopped(round=last.round, metric=stopping.metric, best_round=best.round, best=best.value)
