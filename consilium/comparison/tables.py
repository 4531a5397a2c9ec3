"""What the page and the terminal show of a comparison: computed once, here."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import ConfigError
from common.study.study import StudyConfig
from common.study.task import TableTask
from consilium.comparison.cells import Cell
from consilium.comparison.evaluation import IN_UNITS, SMALLER_IS_BETTER, UNBOUNDED, kind_of
from consilium.comparison.summary import (
    ALONE,
    ALONE_CHOSEN,
    ALONE_OWN,
    ALONE_OWN_REFITTED,
    ALONE_REFITTED,
    BESIDE,
    CHOSEN,
    FEDAVG,
    LOCAL,
    MAJORITY,
    NAMES,
    OWN,
    OWN_REFITTED,
    REFITTED,
    Comparison,
    Place,
    Row,
    Summary,
    best_of,
    curves,
    num_patients,
    shares_text,
    summarise,
    to_target,
)
from consilium.comparison.variants import Skipped
from consilium.findings import ALPHA, LEAST_SPLITS, Interval, holm, sentence, verdict
from consilium.findings.contradiction import contradiction
from consilium.findings.html import DASH

MOST_NAMED = 4
"""Sites that one warning names."""


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
    survives: bool = False
    """Whether the mean over sites minus local only is clear once all methods are counted (Holm)."""


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
        "chosen": line.row.shares,
        "among": line.row.among,
        "note": line.row.note,
        "numbers": both(line.numbers),
        "minus local only": both(line.against_local),
        "minus FedAvg": both(line.against_fedavg),
        "clear after Holm": line.survives,
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
    local, fedavg = by_name[LOCAL], by_name.get(FEDAVG)
    if target is None and fedavg is not None:
        last = next((value for value in reversed(curves(found, fedavg)["accuracy"]) if value is not None), None)
        target = last or None  # 0 is where everybody starts
    lines = _marked([_line(found, row, local, fedavg, target) for row in rows])
    judged = _judged(by_name, own)
    for_all = next((pair for pair in _pairs(by_name, ((ALONE_REFITTED, REFITTED), (ALONE_CHOSEN, CHOSEN)))), judged)
    cells = [cell for cells in for_all[1].cells().values() for cell in cells]
    return Report(
        study=study,
        metric=found.metric,
        lines=lines,
        headlines=_headlines(found, *judged),
        judged=(judged[0].name, judged[1].name),
        for_all=_headlines(found, *for_all) if for_all is not judged else {},
        judged_for_all=(for_all[0].name, for_all[1].name),
        holdings=_holdings(found, local),
        scales=sorted({found.results[cell]["scale"] for cells in local.cells().values() for cell in cells}),
        rounds=_rounds(found),
        weights=_weights(found, cells),
        counts=_counts(found, cells),
        problems=[*_contradictions(found, by_name), *_problems(found, rows[0], study.task.classes, skipped)],
        seeds=max(len(seeds) for seeds in local.places.values()),
        splits=len({cell.split for cell in found.results}),
        cells=len(found.results),
        target=target,
        seconds=seconds,
        settings=settings,
    )


def _pairs(by_name: Mapping[str, Row], names: Sequence[tuple[str, str]]) -> list[tuple[Row, Row]]:
    return [(by_name[alone], by_name[joined]) for alone, joined in names if alone in by_name and joined in by_name]


def _judged(by_name: Mapping[str, Row], own: str) -> tuple[Row, Row]:
    """Return the two rows that the headlines compare: alone and joined."""
    method = NAMES.get(own, own)
    names = ((ALONE_OWN_REFITTED, OWN_REFITTED), (ALONE_OWN, OWN), (BESIDE, method), (LOCAL, method), (LOCAL, FEDAVG))
    return _pairs(by_name, names)[0]


def _marked(lines: Sequence[Line]) -> list[Line]:
    """Return the lines with a mark on those methods whose mean minus local only survives Holm over the methods."""
    p = {}
    for line in lines:
        one = line.against_local.over["mean"] if line.against_local else None
        if one is not None and not line.row.baseline and line.row.name not in ALONE:
            p[line.row.name] = one.p
    adjusted = holm(p)
    clear = {name for name, value in adjusted.items() if value is not None and value < ALPHA}
    return [replace(line, survives=line.row.name in clear) for line in lines]


def _line(found: Comparison, row: Row, local: Row | None, fedavg: Row | None, target: float | None) -> Line:
    places = {
        split: [{site: best_of(place) for site, place in sites.items()} for sites in seeds]
        for split, seeds in row.places.items()
    }
    best = Row(row.name, places)
    known = all(
        found.value(place, site, found.metric) is not None
        for seeds in places.values()
        for sites in seeds
        for site, place in sites.items()
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
        found.value(place, site, metric)
        for seeds in row.places.values()
        for sites in seeds
        for site, place in sites.items()
    ]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) and known else None


def _headlines(found: Comparison, alone: Row, joined: Row) -> dict[str, tuple[str, str]]:
    """Return per site the verdict, corrected for the number of sites, and its sentence."""
    numbers, others, difference = summarise(found, joined), summarise(found, alone), summarise(found, joined, alone)
    adjusted = holm({site: None if one is None else one.p for site, one in difference.sites.items()})
    places = places_of(found.metric, [numbers, others]) if found.metric in UNBOUNDED else 2
    smaller, num_splits = found.metric in SMALLER_IS_BETTER, len(alone.places.keys() & joined.places.keys())
    few = 1 < num_splits < LEAST_SPLITS
    without = {"without": f"{num_splits} splits, of 1 or {LEAST_SPLITS} and more there is one"} if few else {}
    headlines = {}
    for site in found.sites:
        before, after, change = others.sites[site], numbers.sites[site], difference.sites[site]
        if before is not None and _same(alone, joined, site):
            kept = f"{shares_text(joined.chosen_at(site))}, {_named(found.metric)}{before.value:.{places}f}"
            text = f"{site} would stay alone by its own validation rows ({kept}): joining changes nothing for it."
            headlines[site] = ("stays", text)
            continue
        p = adjusted[site]
        kind = verdict(change, smaller_is_better=smaller, p_adjusted=p)
        text = sentence(
            site,
            before,
            after,
            change,
            metric=found.metric,
            smaller_is_better=smaller,
            p_adjusted=p,
            places=places,
            **without,
        )
        headlines[site] = (kind, text if kind == "unknown" else text + _of_whom(alone, joined, site))
    return headlines


def _same(alone: Row, joined: Row, site: str) -> bool:
    """Return whether a site is served the same where it may join and where it may not, in every split and seed."""
    return bool(joined.among) and all(
        mine[site].cell == other[site].cell and mine[site].model == other[site].model
        for split in alone.places.keys() & joined.places.keys()
        for mine, other in zip(alone.places[split], joined.places[split], strict=True)
        if site in mine and site in other
    )


def _named(metric: str) -> str:
    return "" if metric == "accuracy" else f"{metric.replace('_', ' ')} "


def _of_whom(alone: Row, joined: Row, site: str) -> str:
    """Return what is served alone, and what joined, where these are choices."""
    if not (joined.among and alone.among):
        return f" Alone: {alone.name}; joined: {joined.name}."
    return f" Alone: {shares_text(alone.chosen_at(site))}; joined: {shares_text(joined.chosen_at(site))}."


def _contradictions(found: Comparison, by_name: Mapping[str, Row]) -> list[str]:
    """Return a sentence per site whose data contradict the others', by FedAvg's model: for classes only."""
    if not found.task.classes:
        return []
    sentences = []
    for site in found.sites:
        shares = [_mean_at(found, by_name.get(name), site) for name in (MAJORITY, LOCAL, FEDAVG)]
        size = max(found.facts(place.cell, site).get("num_test", 0) for place in _first(by_name[LOCAL], site))
        if None not in shares and size:
            majority, local, everyone = (share * size for share in shares if share is not None)
            sentences.append(
                contradiction(
                    site,
                    num_test=size,
                    majority=majority,
                    local=local,
                    everyone=everyone,
                    num_sites=len(found.sites),
                )
            )
    return [one for one in sentences if one is not None]


def _first(row: Row, site: str) -> list[Place]:
    return [sites[site] for seeds in row.places.values() for sites in seeds if site in sites][:1]


def _mean_at(found: Comparison, row: Row | None, site: str) -> float | None:
    seeds = [] if row is None else [sites for seeds in row.places.values() for sites in seeds if site in sites]
    values = [found.value(sites[site], site, "accuracy") for sites in seeds]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _holdings(found: Comparison, local: Row) -> dict[str, dict[str, int]]:
    """Return per site the numbers of rows in the first split, and of how many patients the test rows are."""
    split = min(local.places)
    held = {}
    for site in found.sites:
        facts = found.facts(local.places[split][0][site].cell, site)
        sizes = {name: int(facts[f"num_{name}"]) for name in ("train", "validation", "test") if f"num_{name}" in facts}
        if "test" in sizes:
            sizes["patients"] = num_patients(found, split, site, sizes["test"])
        held[site] = sizes | {name: int(facts[name]) for name in ("num_copies", "num_groups") if facts.get(name)}
    return held


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
    for cell in (cell for cells in row.cells().values() for cell in cells):
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


SURVIVES = " \N{DAGGER}"
"""Marks a mean difference that is clear also once all methods are counted."""


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
        mark = SURVIVES if line.survives else ""
        cells.append(" ".join(text(line.against_local.over["mean"], sign=True)) + mark if line.against_local else DASH)
        style = "dim" if line.row.baseline else ""
        table.add_row(Text(named(line.row), style=style), *cells)
    console.print(table)
    console.print(
        Text(
            f"test {report.metric.replace('_', ' ')}{explained(report)}; {counted(report.seeds, 'seed')}, "
            f"{counted(report.splits, 'split')}; 95 % intervals {over_what(report)}; {SURVIVES.strip()} clear also "
            "once all methods are counted (Holm)",
            style="dim",
        )
    )
    console.print()
    console.print(Text(lead(report)), soft_wrap=True)
    for _, said in report.headlines.values():
        console.print(Text(said), soft_wrap=True)
    for problem in report.problems:
        console.print(Text(problem, style="yellow"), soft_wrap=True)


def named(row: Row) -> str:
    """Return a row's name with what a reader must know of it: a note, or among how many it was chosen."""
    said = row.note or (f"of {row.among}" if row.among else "")
    return f"{row.name} ({said})" if said else row.name


def over_what(report: Report) -> str:
    """Return what the intervals are over."""
    if report.splits > 1:
        return "over splits" if report.splits >= LEAST_SPLITS else f"need 1 split, or {LEAST_SPLITS} and more"
    return "over test patients and seeds" if report.seeds > 1 else "over test patients, not over training: 1 seed"


def lead(report: Report) -> str:
    """Return what is clear once all sites are counted, in one sentence."""
    found = [kind for kind, _ in report.headlines.values()]
    stays = f"; {found.count('stays')} would stay alone" if "stays" in found else ""
    return (
        f"Of {counted(len(found), 'site')}, joining clearly helps {found.count('helps')} and clearly hurts "
        f"{found.count('hurts')}, all sites counted (Holm){stays}."
    )
