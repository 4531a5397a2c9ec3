"""What the page and the terminal show of a comparison: computed once, here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from consilium.common.errors import ConfigError
from consilium.common.study.study import StudyConfig
from consilium.comparison.by_class import ClassLine, lines_of_classes
from consilium.comparison.by_label import LabelLine, lines_of
from consilium.comparison.by_time import SiteCurve, curves_of_times
from consilium.comparison.cells import Cell
from consilium.comparison.comparison import Comparison
from consilium.comparison.curves import curve_of, rounds_table, weights_of
from consilium.comparison.headlines import headlines_of
from consilium.comparison.lines import Line, make_line, with_marks
from consilium.comparison.prices import Price
from consilium.comparison.problems import contradictions_of, problems_of
from consilium.comparison.rows import (
    ALONE_CHOSEN,
    ALONE_OWN,
    ALONE_OWN_REFITTED,
    ALONE_REFITTED,
    CHOSEN,
    FEDAVG,
    LOCAL,
    NAMES,
    OWN,
    OWN_REFITTED,
    REFITTED,
    SAME_BUDGET,
    Row,
)
from consilium.comparison.summary import num_patients, places_of
from consilium.comparison.variants import Skipped


@dataclass(frozen=True)
class Report:
    """Everything a comparison shows.

    Args:
        headlines: per site what joining does (a verdict, or `stays`: it would stay alone) and the sentence.
        judged: names of the two rows that the headlines compare.
        for_all: the same where one choice is made for all sites; nothing where that is what `headlines` are about.
        judged_for_all: names of their two rows.
        holdings: per site how many training, validation and test rows, and test patients.
        scales: by whose numbers inputs were scaled: `federation`, `site`, or `study` where they are fixed.
        rounds: long table of validation numbers per cell and round.
        weights: per site the weight in each round of the judged method, as a mean over cells.
        problems: sentences on what was skipped, failed or is undefined.
        prices: what privacy costs each site, per method that was trained with noise.
        labels: of several labels each by itself, by the two rows of one choice for all sites, where there are such.
        classes: of masks each class by itself, in every row.
        times: of times until an event each site's curve of who is left without it.
    """

    study: StudyConfig
    metric: str
    lines: Sequence[Line]
    headlines: Mapping[str, tuple[str, str]]
    judged: tuple[str, str]
    for_all: Mapping[str, tuple[str, str]]
    judged_for_all: tuple[str, str]
    holdings: Mapping[str, Mapping[str, int]]
    scales: Sequence[str]
    rounds: pd.DataFrame
    weights: Mapping[str, list[float]]
    counts: Mapping[str, Mapping[str, int]]
    problems: Sequence[str]
    seeds: int
    splits: int
    cells: int
    target: float | None
    seconds: float
    settings: Mapping[str, str]
    prices: Sequence[Price] = ()
    labels: Sequence[LabelLine] = ()
    classes: Sequence[ClassLine] = ()
    times: Sequence[SiteCurve] = ()

    @property
    def places(self) -> int:
        """How many digits a value has behind the point."""
        return places_of(self.metric, [line.numbers for line in self.lines])

    def line(self, name: str) -> Line | None:
        """Return the line of a row."""
        return next((line for line in self.lines if line.row.name == name), None)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as JSON."""
        return {
            "metric": self.metric,
            "headlines": {site: {"effect": kind, "text": text} for site, (kind, text) in self.headlines.items()},
            "judged": list(self.judged),
            "one choice for all": {site: {"effect": kind, "text": text} for site, (kind, text) in self.for_all.items()},
            "lines": [line.as_json() for line in self.lines],
            "problems": list(self.problems),
            "seeds": self.seeds,
            "splits": self.splits,
            "target": self.target,
            "privacy": [price.as_json() for price in self.prices],
            **({"labels": [line.as_json() for line in self.labels]} if self.labels else {}),
            **({"classes": [line.as_json() for line in self.classes]} if self.classes else {}),
            **({"times": [curve.as_json() for curve in self.times]} if self.times else {}),
            "settings": dict(self.settings),
        }


def build_report(
    comparison: Comparison,
    rows: Sequence[Row],
    *,
    study: StudyConfig,
    skipped: Sequence[Skipped],
    prices: Sequence[Price] = (),
    own: str,
    target: float | None,
    seconds: float,
    settings: Mapping[str, str],
) -> Report:
    """Compute everything that is shown.

    Args:
        prices: what privacy costs with every method that was trained with noise.
        own: label of the method that is judged where validation cannot choose one.
        target: mean validation accuracy to reach; None: what FedAvg has in its last round, if that is above 0.

    Raises:
        ConfigError: FedAvg failed in every split, so there are no baselines.
    """
    by_name = {row.name: row for row in rows}
    local, fedavg = _local(comparison, by_name), by_name.get(FEDAVG)
    if target is None and fedavg is not None:
        target = _last_accuracy(comparison, fedavg) or None  # 0 is where everybody starts
    lines = with_marks([make_line(comparison, row, local, fedavg, target) for row in rows])
    judged = _judged(by_name, own)
    for_all = next((pair for pair in _pairs(by_name, ((ALONE_REFITTED, REFITTED), (ALONE_CHOSEN, CHOSEN)))), judged)
    cells = [cell for cells in for_all[1].cells().values() for cell in cells]
    return Report(
        study=study,
        metric=comparison.metric,
        lines=lines,
        headlines=headlines_of(comparison, *judged),
        judged=(judged[0].name, judged[1].name),
        for_all=headlines_of(comparison, *for_all) if for_all is not judged else {},
        judged_for_all=(for_all[0].name, for_all[1].name),
        holdings=_holdings(comparison, local),
        scales=sorted({comparison.results[cell].scale for cells in local.cells().values() for cell in cells}),
        rounds=rounds_table(comparison),
        weights=weights_of(comparison, cells),
        counts=_counts(comparison, cells),
        problems=contradictions_of(comparison, by_name) + problems_of(comparison, rows[0], skipped),
        seeds=max(len(seeds) for seeds in local.places.values()),
        splits=len({cell.split for cell in comparison.results}),
        cells=len(comparison.results),
        target=target,
        seconds=seconds,
        settings=settings,
        prices=prices,
        labels=lines_of(comparison, *for_all),
        classes=lines_of_classes(comparison, rows),
        times=curves_of_times(comparison),
    )


def _local(comparison: Comparison, by_name: Mapping[str, Row]) -> Row:
    if LOCAL not in by_name:
        errors = (result.error for result in comparison.results.values() if result.error is not None)
        raise ConfigError(
            f"the baselines could not be run, so there is nothing to compare with: {next(errors, 'no study ran')}"
        )
    return by_name[LOCAL]


def _last_accuracy(comparison: Comparison, row: Row) -> float | None:
    return next((value for value in reversed(curve_of(comparison, row).accuracy) if value is not None), None)


def _pairs(by_name: Mapping[str, Row], names: Sequence[tuple[str, str]]) -> list[tuple[Row, Row]]:
    return [(by_name[alone], by_name[joined]) for alone, joined in names if alone in by_name and joined in by_name]


def _judged(by_name: Mapping[str, Row], own: str) -> tuple[Row, Row]:
    """Return the two rows that the headlines compare: alone and joined."""
    method = NAMES.get(own, own)
    names = (
        (ALONE_OWN_REFITTED, OWN_REFITTED),
        (ALONE_OWN, OWN),
        (SAME_BUDGET, method),
        (LOCAL, method),
        (LOCAL, FEDAVG),
    )
    return _pairs(by_name, names)[0]


def _holdings(comparison: Comparison, local: Row) -> dict[str, dict[str, int]]:
    """Return per site the numbers of rows in the first split, and of how many patients the test rows are."""
    split = min(local.places)
    holdings = {}
    for site in comparison.sites:
        facts = comparison.facts(local.places[split][0][site].cell, site)
        sizes = {"train": facts.num_train, "validation": facts.num_validation, "test": facts.num_test}
        sizes["patients"] = num_patients(comparison, split, site, facts.num_test)
        some = {"num_copies": facts.num_copies, "num_groups": facts.num_groups}
        holdings[site] = sizes | {name: count for name, count in some.items() if count}
    return holdings


def _counts(comparison: Comparison, cells: Sequence[Cell]) -> dict[str, Mapping[str, int]]:
    return {site: (comparison.facts(cells[0], site).class_counts or {}) if cells else {} for site in comparison.sites}
