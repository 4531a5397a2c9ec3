"""Turns the cells of a comparison into rows (one per method and baseline), intervals, choices and sentences."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from common.config import Task
from consilium.comparison.cells import Cell, read_scores, scores_of
from consilium.comparison.evaluation import SMALLER_IS_BETTER, Scores, kind_of
from consilium.comparison.intervals import LEAST_SPLITS, Floats, Interval, corrected_t, drawn, summarised
from consilium.comparison.runner import Results

MAJORITY, MEAN, LOCAL, POOLED, FEDAVG, TUNED = (
    "majority class",
    "mean of the training labels",
    "local only",
    "pooled",
    "FedAvg",
    "FedAvg + fine-tuning",
)
CHOSEN = "chosen on validation"
REFITTED = "chosen, refitted"
LOCAL_CHOSEN = "local only, chosen on validation"
LOCAL_REFITTED = "local only, refitted"
BESIDE = "local only, same budget"
LAST, BEST = "last round", "best round on validation"
NAMES = {"fedavg": FEDAVG, "fine_tune": TUNED}
"""What the labels of the two federated baselines are called in tables."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a model, and in which cell to find it per split and seed.

    Args:
        cells: per split, one cell per seed.
        model: which of the cell's models.
        choice: per split the label that was chosen; for rows that are a choice.
        models: which model in a split where it is another than `model`.
    """

    name: str
    model: str
    cells: Mapping[int, Sequence[Cell]]
    baseline: bool = False
    choice: Mapping[int, str] = field(default_factory=dict)
    models: Mapping[int, str] = field(default_factory=dict)

    def of(self, split: int) -> str:
        """Return which of the cell's models is this row in a split."""
        return self.models.get(split, self.model)


@dataclass(frozen=True)
class Comparison:
    """Everything that was run: cells with their results, the folder of their scores, the study's task and sites."""

    results: Results
    out: Path
    task: Task
    sites: tuple[str, ...]
    metric: str = "accuracy"
    seed: int = 0
    draws: dict[tuple[str, ...], Floats] = field(default_factory=dict)
    """What was drawn so far: every difference needs the draws of two rows again."""

    def cells(self, label: str, kind: str = "federated") -> dict[int, list[Cell]]:
        """Return a label's finished cells per split; a split is left out if one of its seeds failed."""
        found: dict[int, list[Cell]] = {}
        failed = set()
        for cell, result in self.results.items():
            if cell.label == label and cell.kind == kind:
                found.setdefault(cell.split, []).append(cell)
                if "error" in result:
                    failed.add(cell.split)
        return {split: cells for split, cells in found.items() if split not in failed}

    def value(self, cell: Cell, site: str, model: str, metric: str) -> float | None:
        """Return one number on one site's test split; None where it is undefined or the site is missing."""
        found = self.results[cell]["sites"].get(site, {}).get("metrics", {}).get(model, {}).get(metric)
        return None if found is None else float(found)

    def scores(self, cell: Cell, site: str, model: str) -> Scores | None:
        """Return a model's answers on one site's test split."""
        found = read_scores(self.results[cell]["key"], self.out)
        return scores_of(found[site], model, self.task) if site in found else None

    def validation(self, cell: Cell, model: str) -> tuple[float, float] | None:
        """Return what a choice looks at, larger is better: mean validation accuracy of a model, and minus its loss.

        Where the label is a number, the loss alone.
        """
        rounds = self.results[cell]["rounds"]
        means = rounds[-1]["means"] if rounds else {}
        if f"{model}.accuracy" not in means:
            return None
        loss = -means[f"{model}.loss"]
        return (means[f"{model}.accuracy"] if self.task.classes else loss), loss


@dataclass(frozen=True)
class Candidate:
    """One model that may be chosen: of the cells of a label, the served one (`personal`) or the local-only one."""

    label: str
    model: Literal["personal", "local"] = "personal"

    @property
    def name(self) -> str:
        """Return what it is called in a table."""
        return self.label if self.model == "personal" else f"local, as for {plain_label(self.label)}"


_BESIDE = ", beside it local only"
Choice = Mapping[int, Candidate]
"""Per split, what validation chose."""


@dataclass(frozen=True)
class Choices:
    """What validation chose among those that join, and among those that stay alone.

    Args:
        refitted: both were trained again, on training and validation rows.
        beside: where nothing can be chosen, the label whose local-only baseline has its own row.
    """

    joined: Choice = field(default_factory=dict)
    alone: Choice = field(default_factory=dict)
    refitted: bool = False
    beside: str = ""


def beside_label(label: str) -> str:
    """Return the label of cells in which a method runs with its local-only baseline: same budget, nobody joins."""
    return label + _BESIDE


def plain_label(label: str) -> str:
    """Return the method's own label for one that `beside_label` made; others as they are."""
    return label.removesuffix(_BESIDE)


def refit_label(label: str) -> str:
    """Return the label of cells that train what was chosen on training and validation rows together."""
    return f"{label}, refitted"


def make_rows(found: Comparison, labels: Sequence[str], choices: Choices) -> list[Row]:
    """Return the baselines, every method, and what validation chose among those that join and those that do not."""
    base = found.cells("fedavg")
    rows = [
        Row(MAJORITY if found.task.classes else MEAN, "majority", base, baseline=True),
        Row(LOCAL, "local", base, baseline=True),
        Row(POOLED, "pooled", found.cells(POOLED, "pooled"), baseline=True),
        Row(FEDAVG, "personal", base, baseline=True),
        Row(TUNED, "personal", found.cells("fine_tune"), baseline=True),
    ]
    rows += [Row(label, "personal", found.cells(label)) for label in labels if label not in NAMES]
    if choices.beside:
        rows.append(Row(BESIDE, "local", found.cells(beside_label(choices.beside)), baseline=True))
    rows += [_choice_row(found, CHOSEN, choices.joined), _choice_row(found, LOCAL_CHOSEN, choices.alone)]
    if choices.refitted:
        rows.append(_choice_row(found, REFITTED, choices.joined, refit_label))
        rows.append(_choice_row(found, LOCAL_REFITTED, choices.alone, refit_label))
    return [row for row in rows if row.cells]


def _choice_row(found: Comparison, name: str, choice: Choice, label: Callable[[str], str] = str) -> Row:
    cells = {split: found.cells(label(one.label)).get(split, []) for split, one in choice.items()}
    return Row(
        name,
        "personal",
        {split: each for split, each in cells.items() if each},
        choice={split: one.name for split, one in choice.items()},
        models={split: one.model for split, one in choice.items()},
    )


def choose(found: Comparison, candidates: Sequence[Candidate]) -> dict[int, Candidate]:
    """Return per split the candidate with the best validation numbers, as means over the split's seeds.

    Only that split's own validation rows are looked at: another split's may be test rows of this one. Accuracy
    decides, or where the label is a number the loss; loss between equals, the first of equals. A split without
    validation rows has no choice.
    """
    choice: dict[int, Candidate] = {}
    best: dict[int, tuple[float, float]] = {}
    for candidate in candidates:
        for split, cells in found.cells(candidate.label).items():
            seen = [one for cell in cells if (one := found.validation(cell, candidate.model)) is not None]
            if len(seen) < len(cells):
                continue
            mean = (float(np.mean([a for a, _ in seen])), float(np.mean([b for _, b in seen])))
            if split not in best or mean > best[split]:
                best[split], choice[split] = mean, candidate
    return choice


# --- every number ----------------------------------------------------------------------------------


def all_numbers(found: Comparison, rows: Iterable[Row]) -> pd.DataFrame:
    """Return one line per row, split, seed, site and round (last, or best on validation); NaN: not defined.

    `support.<class>` is the number of test examples of a class.
    """
    lines = []
    for row in rows:
        for cell, site, model, when in _places(found, row):
            of_site = found.results[cell]["sites"][site]
            if model in of_site["metrics"]:
                fixed = {"row": row.name, "chosen": row.choice.get(cell.split, ""), "split": cell.split}
                fixed |= {"seed": cell.seed, "site": site, "round": when, "num_test": of_site["num_test"]}
                support = zip(found.task.classes, of_site["support"], strict=True)
                fixed |= {f"support.{name}": count for name, count in support}
                values = {name: of_site["metrics"][model][name] for name in kind_of(found.task).METRICS}
                lines.append(fixed | values)
    return pd.DataFrame(lines)


def _places(found: Comparison, row: Row) -> Iterator[tuple[Cell, str, str, str]]:
    for split, cells in row.cells.items():
        for cell in cells:
            for site in found.sites:
                if site in found.results[cell]["sites"]:
                    yield cell, site, row.of(split), LAST
                    yield cell, site, f"{row.of(split)}.best", BEST


# --- the numbers of a row --------------------------------------------------------------------------

Over = Callable[[Floats], Floats]
WITHOUT_BOUNDS = ("worst site", "spread")
"""Numbers over sites that have no interval from drawing examples anew."""


def over_sites(sizes: Sequence[int], metric: str = "accuracy") -> dict[str, Over]:
    """Return the summaries over sites: functions of an array `(sites, draws)` that return `(draws,)`."""
    worst = np.max if metric in SMALLER_IS_BETTER else np.min
    weights = np.asarray(sizes, dtype=np.float64)
    return {
        "mean": lambda table: table.mean(axis=0),
        "weighted mean": lambda table: (weights[:, None] * table).sum(axis=0) / weights.sum(),
        "worst site": lambda table: np.asarray(worst(table, axis=0)),
        "spread": lambda table: table.std(axis=0),
    }


@dataclass(frozen=True)
class Summary:
    """Numbers of a row, or of the difference of two: per site and over the sites."""

    sites: Mapping[str, Interval | None]
    over: Mapping[str, Interval | None]


def summarise(found: Comparison, row: Row, other: Row | None = None) -> Summary:
    """Return a row's test metric with intervals, or (given `other`) the paired difference from another row's.

    Splits that only one of two rows has are left out.
    """
    splits = sorted(row.cells.keys() & (other.cells.keys() if other else row.cells.keys()))
    tables = [_table(found, row, other, split) for split in splits]
    sizes = _sizes(found, row, splits)
    summaries = over_sites([sizes[site] for site in found.sites], found.metric)
    if len(splits) >= LEAST_SPLITS:
        ratio = _test_to_train(found, row, splits)
        values = np.stack([table[:, 0] for table in tables], axis=1)  # (sites, splits)
        over = {name: _over_splits(function(values), ratio) for name, function in summaries.items()}
        sites = {site: _over_splits(values[place], ratio) for place, site in enumerate(found.sites)}
        return Summary(sites, over)
    if not tables:
        return Summary(dict.fromkeys(found.sites), dict.fromkeys(summaries))
    mean = np.mean(tables, axis=0)
    over = {name: summarised(function(mean)) for name, function in summaries.items()}
    for name in WITHOUT_BOUNDS:  # a minimum or a spread of drawn means is biased once more
        one = over[name]
        over[name] = None if one is None else Interval(one.value)
    return Summary({site: summarised(mean[place]) for place, site in enumerate(found.sites)}, over)


def _over_splits(values: Floats, ratio: float) -> Interval | None:
    return None if np.isnan(values).any() else corrected_t(values.tolist(), test_to_train=ratio)


def _table(found: Comparison, row: Row, other: Row | None, split: int) -> Floats:
    """Return `(sites, 1 + draws)`: the metric as a mean over seeds, and its bootstrap draws; minus the other row's."""
    many = len(row.cells) > 1  # test rows of splits overlap: drawn anew as if they did not, intervals are too narrow
    lines = []
    for site in found.sites:
        draws = _draws(found, row, split, site, point_only=many)
        lines.append(draws - _draws(found, other, split, site, point_only=many) if other else draws)
    width = max(len(line) for line in lines)
    return np.stack([line if len(line) == width else np.full(width, np.nan) for line in lines])


def _draws(found: Comparison, row: Row, split: int, site: str, *, point_only: bool) -> Floats:
    cells = row.cells[split]
    if point_only:
        values = [found.value(cell, site, row.of(split), found.metric) for cell in cells]
        return np.array([np.nan if None in values else np.mean(values)], dtype=np.float64)  # type: ignore[arg-type]
    place = (site, row.of(split), *(found.results[cell]["key"] for cell in cells))
    if place not in found.draws:
        scores = [found.scores(cell, site, row.of(split)) for cell in cells]
        known = [one for one in scores if one is not None]
        whole = len(known) == len(scores)
        drawn_now = drawn(known, found.metric, seed=found.seed, who=f"{site}/{split}") if whole else np.array([np.nan])
        found.draws[place] = drawn_now
    return found.draws[place]


def _sizes(found: Comparison, row: Row, splits: Sequence[int]) -> dict[str, int]:
    cell = row.cells[splits[0]][0] if splits else None
    of_cell = found.results[cell]["sites"] if cell else {}
    return {site: int(of_cell.get(site, {}).get("num_test", 1)) for site in found.sites}


def _test_to_train(found: Comparison, row: Row, splits: Sequence[int]) -> float:
    sites = found.results[row.cells[splits[0]][0]]["sites"].values()
    return float(sum(one["num_test"] for one in sites) / max(1, sum(one["num_train"] for one in sites)))


# --- what a person reads ---------------------------------------------------------------------------


def better(difference: Interval, metric: str) -> str:
    """Return `helps`, `hurts` or `unclear` (the interval holds 0)."""
    sign = -difference.sign if metric in SMALLER_IS_BETTER else difference.sign
    return {1: "helps", -1: "hurts", 0: "unclear"}[sign]


_OPENINGS = {
    "helps": "Joining helps {site}",
    "hurts": "Joining hurts {site}",
    "unclear": "Joining shows no clear effect at {site}",
}


def headline(
    site: str,
    alone: Interval | None,
    joined: Interval | None,
    difference: Interval | None,
    metric: str,
    *,
    places: int = 2,
) -> str:
    """Return the sentence of a site: alone, joined, and the difference with its interval; accuracy goes unnamed.

    Args:
        places: behind the point; more where the interval needs them to be seen to exclude 0.
    """
    if alone is None or joined is None or difference is None:
        return f"{site}: {metric.replace('_', ' ')} is not defined on its test rows, so nothing can be said."
    opening = _OPENINGS[better(difference, metric)].format(site=site)
    bounds = "no interval from one split and seed"
    if difference.low is not None and difference.high is not None:
        digits = _digits(difference, places)
        bounds = f"95 % {difference.low:+.{digits}f} to {difference.high:+.{digits}f}"
    what = "" if metric == "accuracy" else f"{metric.replace('_', ' ')} "
    values = f"{alone.value:.{places}f} -> {joined.value:.{places}f}"
    return f"{opening}: {what}{values} ({difference.value:+.{places}f}, {bounds})"


def _digits(difference: Interval, digits: int) -> int:
    """Return how many digits show that an interval excludes 0, if it does: three more than `digits` at most."""
    most = digits + 3
    if difference.low is None or difference.high is None:
        return digits
    while difference.sign and digits < most and 0 in (round(difference.low, digits), round(difference.high, digits)):
        digits += 1
    return digits


def to_target(found: Comparison, row: Row, target: float) -> dict[str, float] | None:
    """Return rounds, bytes and seconds until the mean validation accuracy first reaches a target, as means over cells.

    None where a cell never does, or there is nothing to reach (baselines that do not travel, no validation rows).
    """
    seen = []
    for cells in row.cells.values():
        for cell in cells:
            rounds, total = found.results[cell]["rounds"], 0
            for each in rounds:
                total += each["bytes_up"] + each["bytes_down"]
                if each["means"].get("personal.accuracy", -math.inf) >= target:
                    share = each["round"] / len(rounds)
                    seen.append((each["round"], total, share * found.results[cell]["seconds"]))
                    break
            else:
                return None
    if not seen or row.model != "personal" or row.models:
        return None
    rounds_, bytes_, seconds = (float(np.mean(column)) for column in zip(*seen, strict=True))
    return {"rounds": rounds_, "bytes": bytes_, "seconds": seconds}


def curves(found: Comparison, row: Row) -> dict[str, list[Any]]:
    """Return round numbers and mean validation accuracy and loss of the row's model, as means over cells.

    Rounds in which nothing was measured are left out.
    """
    runs = []
    for split, cells in row.cells.items():
        for cell in cells:
            measured = [each for each in found.results[cell]["rounds"] if f"{row.of(split)}.loss" in each["means"]]
            if measured:
                runs.append((row.of(split), measured))
    curve: dict[str, list[Any]] = {"round": [each["round"] for each in runs[0][1]] if runs else []}
    for number in ("accuracy", "loss"):
        values = [[each["means"].get(f"{model}.{number}") for each in rounds] for model, rounds in runs]
        curve[number] = [None if None in column else float(np.mean(column)) for column in zip(*values, strict=True)]
    return curve
