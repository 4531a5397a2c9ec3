"""What a tracker is given: points of curves, a study's settings, and the test scores at the end."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from consilium.common.errors import clean
from consilium.common.events.measures import validation_measures
from consilium.common.events.run import RoundFinished, RunStarted
from consilium.common.results import RunResult
from consilium.common.study.study import StudyConfig
from consilium.history.flat import MOST_TEXT, Setting, flattened
from consilium.history.scores import mean_of, scores_of

MOST_CURVES_OF_SITES = 200
"""With more sites there are curves of their means alone: trackers draw each site by itself."""
MODEL = "model"
"""The folder of a run's model."""
_LISTED_ELSEWHERE = ("sites", "num_sites", "uplink", "downlink", "task.columns", "task.scale", "task.classes")
"""Settings that are lists as long as the study, or names in people's data: their sizes are given instead."""


@dataclass(frozen=True)
class Point:
    """One number of one round.

    Args:
        site: None: of the whole federation.
    """

    name: str
    value: float
    step: int
    time: datetime
    site: str | None = None


def points_of(event: RoundFinished) -> list[Point]:
    """Return a round's points: of the federation, of the means over its sites, and of every site."""
    each = [point for site in sorted(event.sites) for point in _site_points(event, site)]
    shown = each if len(event.sites) <= MOST_CURVES_OF_SITES else []
    points = [*_federation_points(event), *_means(each), *shown]
    return [point for point in points if math.isfinite(point.value)]


def _federation_points(event: RoundFinished) -> Iterator[Point]:
    numbers = {
        "bytes/up": event.bytes_up,
        "bytes/down": event.bytes_down,
        "seconds/round": event.seconds,
        "seconds/transfer": event.transfer_seconds,
        "seconds/aggregation": event.aggregation_seconds,
        "norm/update": event.update_norm,
        "norm/downlink_nmse": event.downlink_nmse,
        "sites/asked": len(event.asked),
        "sites/accepted": len(event.accepted),
        "sites/rejected": len(event.rejected),
    }
    for name, value in numbers.items():
        yield Point(name, float(value), event.round, event.time)


def _site_points(event: RoundFinished, site: str) -> Iterator[Point]:
    facts = event.sites[site]
    numbers = {f"{what}/{model}": value for model, what, value in validation_measures(facts.metrics)}
    numbers |= {"work/seconds": facts.seconds, "work/examples": float(facts.num_examples)}
    if facts.weight is not None:
        numbers["share"] = facts.weight
    for name, value in numbers.items():
        yield Point(name, value, event.round, event.time, site)


def _means(each: list[Point]) -> Iterator[Point]:
    """Yield losses and accuracies as means over the sites that measured them."""
    by_name: dict[str, list[Point]] = {}
    for point in each:
        if point.name.startswith(("loss/", "accuracy/")):
            by_name.setdefault(point.name, []).append(point)
    for name, points in by_name.items():
        yield Point(name, math.fsum(point.value for point in points) / len(points), points[0].step, points[0].time)


def settings_of_event(event: RunStarted) -> dict[str, Setting]:
    """Return what the event of a run's start says of its study."""
    return {
        "num_sites": len(event.sites),
        "rounds": event.rounds,
        "quorum": event.quorum,
        "method.kind": clean(event.method, MOST_TEXT),
        "strategy.kind": clean(event.strategy, MOST_TEXT),
        "codec": clean(event.codec, MOST_TEXT),
    }


def settings_of(study: StudyConfig) -> dict[str, Setting]:
    """Return a study's settings, one by one, with points between the names of tables."""
    values = study.model_dump(mode="json", exclude_none=True)
    flat = dict(flattened({**values, "weighting": study.weights_by.model_dump(mode="json")}))
    settings = {
        name: value
        for name, value in flat.items()
        if not any(name == left_out or name.startswith(f"{left_out}.") for left_out in _LISTED_ELSEWHERE)
    }
    columns = values["task"].get("columns")
    sizes = {"task.num_classes": len(study.task.classes), **({} if columns is None else {"num_columns": len(columns)})}
    return {**settings, **sizes, "num_sites": len(study.sites), "codec": study.codec}


def final_points(result: RunResult, at: datetime) -> list[Point]:
    """Return the scores on the test rows as points of the last round: every site's, and their mean."""
    step = max((record.round for record in result.rounds), default=0)
    points = []
    for model, scores in scores_of(result).items():
        points.append(Point(f"test/{model}", mean_of(scores), step, at))
        if len(scores) <= MOST_CURVES_OF_SITES:
            points += [Point(f"test/{model}", value, step, at, site) for site, value in scores.items()]
    return points
