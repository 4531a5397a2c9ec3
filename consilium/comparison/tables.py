"""What the page and the terminal show of a comparison: computed once, here."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.config import StudyConfig, TableTask
from common.errors import ConfigError
from consilium.comparison.cells import Cell
from consilium.comparison.evaluation import IN_UNITS, SMALLER_IS_BETTER, UNBOUNDED, kind_of
from consilium.comparison.intervals import LEAST_SPLITS, Interval
from consilium.comparison.summary import (
    BESIDE,
    CHOSEN,
    FEDAVG,
    LOCAL,
    LOCAL_CHOSEN,
    LOCAL_REFITTED,
    NAMES,
    REFITTED,
    Comparison,
    Row,
    Summary,
    better,
    curves,
    headline,
    summarise,
    to_target,
)
from consilium.page import DASH
from consilium.variants import Skipped

MOST_NAMED = 4
"""Sites that one warning names."""
OVER = ("mean", "weighted mean", "worst site", "spread")


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
    curve: Mapping[str, list[Any]]
    others: Mapping[str, float | None]
    """Every other metric, as a mean over sites and cells; None where one is undefined."""


@dataclass(frozen=True)
class Report:
    """Everything a comparison shows.

    Args:
        headlines: per site what joining does (`helps`, `hurts`, `unclear`, `unknown`) and the sentence.
        judged: names of the two rows that the headlines compare.
        rounds: long table of validation numbers per cell and round.
        weights: per site the weight in each round of the judged method, as a mean over cells.
        problems: sentences on what was skipped, failed or is undefined.
    """

    study: StudyConfig
    metric: str
    lines: Sequence[Line]
    headlines: Mapping[str, tuple[str, str]]
    judged: tuple[str, str]
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
            "lines": [_line_json(line) for line in self.lines],
            "problems": list(self.problems),
            "seeds": self.seeds,
            "splits": self.splits,
            "target": self.target,
            "settings": dict(self.settings),
        }


def places_of(metric: str, summaries: Sequence[Summary]) -> int:
    """Return how many digits go behind the point: 3 in [0, 1], and where there are units so many that 4 are told."""
    means = [abs(one.value) for each in summaries if (one := each.over["mean"]) is not None and one.value]
    if metric not in UNBOUNDED or not means:
        return 3
    return min(12, max(0, 3 - math.floor(math.log10(max(means)))))


def _line_json(line: Line) -> dict[str, Any]:
    def both(summary: Summary | None) -> Any:
        if summary is None:
            return None
        parts = {"sites": summary.sites, "over": summary.over}
        return {part: {name: _interval(one) for name, one in found.items()} for part, found in parts.items()}

    return {
        "row": line.row.name,
        "choice": {str(split): label for split, label in line.row.choice.items()},
        "numbers": both(line.numbers),
        "minus local only": both(line.against_local),
        "minus FedAvg": both(line.against_fedavg),
        "best round": _interval(line.best),
        "to target": None if line.target is None else dict(line.target),
        "metrics": dict(line.others),
    }


def _interval(one: Interval | None) -> Any:
    return None if one is None else [one.value, one.low, one.high]


def build_report(
    found: Comparison,
    rows: Sequence[Row],
    *,
    study: StudyConfig,
    skipped: Sequence[Skipped],
    own: str,
    target: float | None,
    seconds: float,
    settings: Mapping[str, str],
) -> Report:
    """Compute everything that is shown.

    Args:
        own: label of the method that is judged where validation cannot choose one.
        target: mean validation accuracy to reach; None: what FedAvg has in its last round, if that is above 0.

    Raises:
        ConfigError: FedAvg failed in every split, so there are no baselines.
    """
    by_name = {row.name: row for row in rows}
    if LOCAL not in by_name:
        failed = next((result["error"] for result in found.results.values() if "error" in result), "no study ran")
        raise ConfigError(f"the baselines could not be run, so there is nothing to compare with: {failed}")
    local, fedavg = by_name.get(LOCAL), by_name.get(FEDAVG)
    if target is None and fedavg is not None:
        last = next((value for value in reversed(curves(found, fedavg)["accuracy"]) if value is not None), None)
        target = last or None  # 0 is where everybody starts
    lines = [_line(found, row, local, fedavg, target) for row in rows]
    judged = _judged(by_name, own)
    cells = [cell for cells in judged[1].cells.values() for cell in cells]
    return Report(
        study=study,
        metric=found.metric,
        lines=lines,
        headlines=_headlines(found, *judged),
        judged=(judged[0].name, judged[1].name),
        rounds=_rounds(found),
        weights=_weights(found, cells),
        counts=_counts(found, cells),
        problems=_problems(found, rows[0], study.task.classes, skipped),
        seeds=len({cell.seed for cell in found.results}),
        splits=len({cell.split for cell in found.results}),
        cells=len(found.results),
        target=target,
        seconds=seconds,
        settings=settings,
    )


def _judged(by_name: Mapping[str, Row], own: str) -> tuple[Row, Row]:
    """Return the two rows that the headlines compare: alone and joined."""
    for alone, joined in ((LOCAL_REFITTED, REFITTED), (LOCAL_CHOSEN, CHOSEN), (BESIDE, NAMES.get(own, own))):
        if alone in by_name and joined in by_name:
            return by_name[alone], by_name[joined]
    return by_name[LOCAL], by_name.get(NAMES.get(own, own), by_name[FEDAVG])


def _line(found: Comparison, row: Row, local: Row | None, fedavg: Row | None, target: float | None) -> Line:
    models = {split: f"{row.of(split)}.best" for split in row.cells}
    best = Row(row.name, row.model, row.cells, models=models)
    known = all(
        found.value(cell, site, models[split], found.metric) is not None
        for split, cells in row.cells.items()
        for cell in cells
        for site in found.sites
    )
    return Line(
        row=row,
        numbers=summarise(found, row),
        against_local=summarise(found, row, local) if local and row is not local else None,
        against_fedavg=summarise(found, row, fedavg) if fedavg and row is not fedavg else None,
        best=summarise(found, best).over["mean"] if known else None,
        target=None if target is None else to_target(found, row, target),
        curve=curves(found, row),
        others={name: _mean(found, row, name) for name in kind_of(found.task).METRICS},
    )


def _mean(found: Comparison, row: Row, metric: str) -> float | None:
    values = [
        found.value(cell, site, row.of(split), metric)
        for split, cells in row.cells.items()
        for cell in cells
        for site in found.sites
    ]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) and known else None


def _headlines(found: Comparison, alone: Row, joined: Row) -> dict[str, tuple[str, str]]:
    numbers, others, difference = summarise(found, joined), summarise(found, alone), summarise(found, joined, alone)
    headlines = {}
    places = places_of(found.metric, [numbers, others]) if found.metric in UNBOUNDED else 2
    for site in found.sites:
        change = difference.sites[site]
        kind = "unknown" if change is None else better(change, found.metric)
        headlines[site] = (
            kind,
            headline(site, others.sites[site], numbers.sites[site], change, found.metric, places=places),
        )
    return headlines


def _rounds(found: Comparison) -> pd.DataFrame:
    lines = [
        {
            "label": cell.label,
            "split": cell.split,
            "seed": cell.seed,
            "round": each["round"],
            "bytes_up": each["bytes_up"],
            "bytes_down": each["bytes_down"],
            **each["means"],
        }
        for cell, result in found.results.items()
        for each in result.get("rounds", [])
    ]
    return pd.DataFrame(lines)


def _weights(found: Comparison, cells: Sequence[Cell]) -> dict[str, list[float]]:
    weights: dict[str, list[list[float]]] = {site: [] for site in found.sites}
    for cell in cells:
        for site in found.sites:
            weights[site].append([each["weights"].get(site, 0.0) for each in found.results[cell]["rounds"]])
    return {site: [sum(column) / len(column) for column in zip(*runs, strict=True)] for site, runs in weights.items()}


def _counts(found: Comparison, cells: Sequence[Cell]) -> dict[str, Mapping[str, int]]:
    sites = found.results[cells[0]]["sites"] if cells else {}
    return {site: (sites.get(site) or {}).get("class_counts") or {} for site in found.sites}


def _problems(found: Comparison, row: Row, classes: Sequence[str], skipped: Sequence[Skipped]) -> list[str]:
    """Return what could not be run, failed, or is not defined on the test rows (looked up in the cells of one row)."""
    problems = [f"Not run: {one.label}: {one.reason}" for one in skipped]
    failed = Counter((cell.label, result["error"]) for cell, result in found.results.items() if "error" in result)
    tried = Counter(cell.label for cell in found.results)
    problems += [
        f"Failed: {label} ({count} of {tried[label]} studies): {text}" for (label, text), count in failed.items()
    ]
    undefined: dict[str, set[str]] = {}
    for cell in (cell for cells in row.cells.values() for cell in cells):
        for site, facts in found.results[cell]["sites"].items():
            if missing := {name for name, count in zip(classes, facts["support"], strict=True) if not count}:
                undefined.setdefault(site, set()).update(missing)
    if undefined:
        lacking = [f"{site} ({', '.join(sorted(missing))})" for site, missing in sorted(undefined.items())]
        more = f" and {len(lacking) - MOST_NAMED} more sites" if len(lacking) > MOST_NAMED else ""
        problems.append(
            f"Test rows of some split have no example of some class at {', '.join(lacking[:MOST_NAMED])}{more}: "
            "numbers that need every class are not defined there and shown as a dash"
        )
    warnings = {text for result in found.results.values() for text in result.get("warnings", [])}
    return problems + sorted(warnings)


# --- the terminal ----------------------------------------------------------------------------------


def text_of(one: Interval | None, *, places: int, sign: bool = False) -> tuple[str, str]:
    """Return a value and its interval as text; a dash and nothing where it is undefined."""
    if one is None:
        return DASH, ""
    spec = f"{'+' if sign else ''}.{places}f"
    bounds = "" if one.low is None or one.high is None else f"[{one.low:{spec}}, {one.high:{spec}}]"
    return f"{one.value:{spec}}", bounds


def counted(count: int, what: str) -> str:
    """Return `1 seed`, `2 seeds`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def explained(report: Report) -> str:
    """Return what a reader must know of the report's metric, in brackets; nothing where more is better."""
    facts = ["smaller is better"] if report.metric in SMALLER_IS_BETTER else []
    if isinstance(report.study.task, TableTask) and report.metric in IN_UNITS:
        facts.append(f"in units of '{report.study.task.label}'")
    return f" ({', '.join(facts)})" if facts else ""


def print_report(report: Report, console: Console) -> None:
    """Print the table of methods and the sentence of every site."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("method", overflow="fold")
    for title in ("mean of sites", "weighted", "worst site", "minus local only"):
        table.add_column(title, justify="right", no_wrap=True)
    text = partial(text_of, places=report.places)
    for line in report.lines:
        over = line.numbers.over
        cells = [" ".join(text(over["mean"])), text(over["weighted mean"])[0], text(over["worst site"])[0]]
        cells.append(" ".join(text(line.against_local.over["mean"], sign=True)) if line.against_local else DASH)
        style = "dim" if line.row.baseline else ""
        table.add_row(Text(line.row.name, style=style), *cells)
    console.print(table)
    over_what = "over splits" if report.splits >= LEAST_SPLITS else f"need 1 split, or {LEAST_SPLITS} and more"
    over_what = "over test examples" if report.splits == 1 else over_what
    console.print(
        Text(
            f"test {report.metric.replace('_', ' ')}{explained(report)}; {counted(report.seeds, 'seed')}, "
            f"{counted(report.splits, 'split')}; 95 % intervals {over_what}",
            style="dim",
        )
    )
    console.print()
    for _, sentence in report.headlines.values():
        console.print(Text(sentence), soft_wrap=True)
    for problem in report.problems:
        console.print(Text(problem, style="yellow"), soft_wrap=True)
