"""Lines of the table of methods: a row with its numbers, differences, costs and curve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from consilium.comparison.comparison import Comparison
from consilium.comparison.curves import Curve, curve_of, to_target
from consilium.comparison.kinds import metrics_of
from consilium.comparison.rows import ALONE, Row, best_of
from consilium.comparison.summary import Summary, summarise
from consilium.findings import ALPHA, Interval, holm


@dataclass(frozen=True)
class Line:
    """One line of the table of methods."""

    row: Row
    numbers: Summary
    against_local: Summary | None
    against_fedavg: Summary | None
    best: Interval | None
    """Mean over sites of the best round on validation."""
    target: Mapping[str, float] | None
    curve: Curve
    others: Mapping[str, float | None]
    """Every other metric, as a mean over sites and cells; None where one is undefined."""
    survives: bool = False
    """Whether the mean over sites minus local only is clear once all methods are counted (Holm)."""

    def as_json(self) -> dict[str, Any]:
        """Return the line as JSON."""
        return {
            "row": self.row.name,
            "chosen": self.row.shares,
            "among": self.row.among,
            "note": self.row.note,
            "epsilon": self.row.epsilon,
            "numbers": _summary_json(self.numbers),
            "minus local only": _summary_json(self.against_local),
            "minus FedAvg": _summary_json(self.against_fedavg),
            "clear after Holm": self.survives,
            "best round": _interval_json(self.best),
            "to target": None if self.target is None else dict(self.target),
            "metrics": dict(self.others),
        }


def _summary_json(summary: Summary | None) -> Any:
    if summary is None:
        return None
    parts = {"sites": summary.sites, "over": summary.over}
    return {part: {name: _interval_json(one) for name, one in of.items()} for part, of in parts.items()}


def _interval_json(one: Interval | None) -> Any:
    return None if one is None else [one.value, one.low, one.high]


def with_marks(lines: Sequence[Line]) -> list[Line]:
    """Return the lines with a mark on those methods whose mean minus local only survives Holm over the methods."""
    p = {}
    for line in lines:
        one = line.against_local.over["mean"] if line.against_local else None
        if one is not None and not line.row.baseline and line.row.name not in ALONE:
            p[line.row.name] = one.p
    adjusted = holm(p)
    clear = {name for name, value in adjusted.items() if value is not None and value < ALPHA}
    return [replace(line, survives=line.row.name in clear) for line in lines]


def make_line(comparison: Comparison, row: Row, local: Row | None, fedavg: Row | None, target: float | None) -> Line:
    """Compute the line of a row."""
    places = {
        split: [{site: best_of(place) for site, place in sites.items()} for sites in seeds]
        for split, seeds in row.places.items()
    }
    best = Row(row.name, places)
    known = all(
        comparison.value(place, site, comparison.metric) is not None
        for seeds in places.values()
        for sites in seeds
        for site, place in sites.items()
    )
    return Line(
        row=row,
        numbers=summarise(comparison, row),
        against_local=summarise(comparison, row, local) if local and row is not local else None,
        against_fedavg=summarise(comparison, row, fedavg) if fedavg and row is not fedavg else None,
        best=summarise(comparison, best).over["mean"] if known else None,
        target=None if target is None else to_target(comparison, row, target),
        curve=curve_of(comparison, row),
        others={name: _mean(comparison, row, name) for name in metrics_of(comparison.task)},
    )


def _mean(comparison: Comparison, row: Row, metric: str) -> float | None:
    values = [
        comparison.value(place, site, metric)
        for seeds in row.places.values()
        for sites in seeds
        for site, place in sites.items()
    ]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) and known else None
