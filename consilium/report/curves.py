"""What sites measured round by round: curves of one site, and their means over the sites."""

import math
from collections.abc import Iterable, Sequence

from consilium.common.results import RoundRecord

CURVES = ("global", "personal", "local")
"""Models that a site measures on its validation rows."""
ROUND_METRICS = (*(f"{model}.{number}" for model in CURVES for number in ("loss", "accuracy")), "train.loss")


def metric_of(record: RoundRecord, site: str, name: str) -> float | None:
    """Return one of a site's metrics in a round; None where it reported none."""
    return record.sites[site].metrics.get(name) if site in record.sites else None


def measured_rounds(rounds: Sequence[RoundRecord]) -> Sequence[RoundRecord]:
    """Return the rounds in which some site measured a model, as others are no gaps in a curve; all if none ever did."""
    losses = {f"{model}.loss" for model in CURVES}
    return [record for record in rounds if any(losses & of.metrics.keys() for of in record.sites.values())] or rounds


def mean_curves(rounds: Sequence[RoundRecord]) -> dict[str, list[float | None]]:
    """Return round numbers, and each of `ROUND_METRICS` as a mean over the sites that reported it."""
    measured = measured_rounds(rounds)
    curves: dict[str, list[float | None]] = {"round": [record.round for record in measured]}
    for name in ROUND_METRICS:
        curves[name] = [_mean(metric_of(record, site, name) for site in record.sites) for record in measured]
    return curves


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def signals_of(rounds: Sequence[RoundRecord]) -> list[str]:
    """Return the names of all signals behind the weights, e.g. `size.examples`, in sorted order."""
    return sorted({name for record in rounds for of in record.sites.values() for name in of.signals})
