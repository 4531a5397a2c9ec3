"""Turns the cells of a comparison into rows (one per method and baseline), choices and intervals."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from common.study.task import Task
from consilium.comparison.cells import Cell, Kind, read_scores, scores_of
from consilium.comparison.evaluation import SMALLER_IS_BETTER, UNBOUNDED, Floats, Labels, Scores, kind_of
from consilium.comparison.evidence import averaged, evidence_of, minus
from consilium.comparison.runner import Results
from consilium.comparison.usual import USUAL
from consilium.findings import LEAST_PATIENTS, LEAST_SPLITS, Evidence, Interval, interval_of, over_sites, over_splits

MAJORITY, MEAN, LOCAL, POOLED, FEDAVG, TUNED = (
    "majority class",
    "mean of the training labels",
    "local only",
    "pooled",
    "FedAvg",
    "FedAvg + fine-tuning",
)
USUAL_TOOLS = "alone, with usual tools"
OWN, OWN_REFITTED = "each its own choice", "each its own choice, refitted"
ALONE_OWN, ALONE_OWN_REFITTED = "alone, own choice", "alone, own choice, refitted"
CHOSEN, REFITTED = "one choice for all", "one choice for all, refitted"
ALONE_CHOSEN, ALONE_REFITTED = "alone, one choice for all", "alone, one choice for all, refitted"
BESIDE = "local only, same budget"
ALONE = frozenset({LOCAL, USUAL_TOOLS, BESIDE, ALONE_OWN, ALONE_OWN_REFITTED, ALONE_CHOSEN, ALONE_REFITTED})
"""Rows of who does not join."""
LAST, BEST = "last round", "best round on validation"
NAMES = {"fedavg": FEDAVG, "fine_tune": TUNED}
"""What the labels of the two federated baselines are called in tables."""


@dataclass(frozen=True)
class Place:
    """Where one site's answers are: a cell, and which of its models; with what was chosen, where it is a choice."""

    cell: Cell
    model: str
    chosen: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table: whose answers each site has, per split and seed.

    Args:
        places: per split, for each seed, where each site's answers are.
        note: what a reader must know of it.
        among: from how many candidates it was chosen; 0: it is no choice.
    """

    name: str
    places: Mapping[int, Sequence[Mapping[str, Place]]]
    baseline: bool = False
    note: str = ""
    among: int = 0

    @property
    def shares(self) -> dict[str, float]:
        """Return how often each candidate was chosen, over splits, seeds and sites, the most frequent first."""
        found = Counter(
            place.chosen
            for seeds in self.places.values()
            for sites in seeds
            for place in sites.values()
            if place.chosen
        )
        return {name: count / found.total() for name, count in found.most_common()}

    def chosen_at(self, site: str) -> dict[str, float]:
        """Return how often each candidate was chosen at one site, the most frequent first."""
        own = {split: [{site: sites[site]} for sites in seeds if site in sites] for split, seeds in self.places.items()}
        return Row(self.name, own).shares

    def cells(self) -> dict[int, list[Cell]]:
        """Return the cells per split, one per seed; nothing where the sites' answers are of different cells."""
        found: dict[int, list[Cell]] = {}
        for split, seeds in self.places.items():
            for sites in seeds:
                if len({(place.cell, place.model) for place in sites.values()}) != 1:
                    return {}
                found.setdefault(split, []).append(next(iter(sites.values())).cell)
        return found

    def model(self, split: int) -> str:
        """Return which of its cells' models the row is in a split, if it is one."""
        return next(iter(self.places[split][0].values())).model


@dataclass(frozen=True)
class Comparison:
    """Everything that was run: cells with their results, the folder of their scores, the study's task and sites."""

    results: Results
    out: Path
    task: Task
    sites: tuple[str, ...]
    metric: str = "accuracy"
    seed: int = 0
    known: dict[tuple[str, ...], Evidence | None] = field(default_factory=dict)
    """What was read and drawn so far: every difference needs that of two rows again."""
    patients: dict[tuple[int, str], Labels | None] = field(default_factory=dict)
    """Whose the test examples are, per split and site, as far as it was read."""

    def cells(self, label: str, kind: Kind = "federated") -> dict[int, list[Cell]]:
        """Return a label's finished cells per split, seed by seed; a split is left out if one of its seeds failed."""
        found: dict[int, list[Cell]] = {}
        failed = set()
        for cell, result in self.results.items():
            if cell.label == label and cell.kind == kind:
                found.setdefault(cell.split, []).append(cell)
                if "error" in result:
                    failed.add(cell.split)
        return {split: cells for split, cells in found.items() if split not in failed}

    def row(self, name: str, model: str, cells: Mapping[int, Sequence[Cell]], **settings: Any) -> Row:
        """Return a row in which every site has the answers of the same cells."""
        places = {
            split: [{site: Place(cell, model) for site in self.sites} for cell in of_split]
            for split, of_split in cells.items()
        }
        return Row(name, places, **settings)

    def facts(self, cell: Cell, site: str) -> Mapping[str, Any]:
        """Return what a cell has on a site: counts, metrics, validation; nothing where the site is missing."""
        found: Mapping[str, Any] = self.results[cell]["sites"].get(site, {})
        return found

    def value(self, place: Place, site: str, metric: str) -> float | None:
        """Return one number on one site's test split; None where it is undefined or the site is missing."""
        found = self.facts(place.cell, site).get("metrics", {}).get(place.model, {}).get(metric)
        return None if found is None else float(found)

    def scores(self, place: Place, site: str) -> Scores | None:
        """Return a model's answers on one site's test split."""
        found = read_scores(self.results[place.cell]["key"], self.out)
        return scores_of(found[site], place.model, self.task) if site in found else None

    def groups(self, split: int, site: str) -> Labels | None:
        """Return the patient of each of a site's test examples `(N,)`; None: each its own."""
        if (split, site) not in self.patients:
            cells = self.cells("fedavg").get(split, [])[:1]
            scores = [read_scores(self.results[cell]["key"], self.out).get(site, {}) for cell in cells]
            groups = [one["groups"].astype(np.int64) for one in scores if "groups" in one]
            self.patients[split, site] = groups[0] if groups else None
        return self.patients[split, site]

    def validation(self, cell: Cell, model: str, site: str) -> tuple[float, float] | None:
        """Return what a choice looks at, larger is better: a site's validation accuracy of a model, and minus its loss.

        Where the label is a number, the loss alone.
        """
        seen = self.facts(cell, site).get("validation", {}).get(model)
        if seen is None:
            return None
        return (float(seen["accuracy"]) if self.task.classes else -float(seen["loss"])), -float(seen["loss"])


@dataclass(frozen=True)
class Candidate:
    """One model that may be chosen: of a label's cells the served one, the local-only one, or that of usual tools."""

    label: str
    model: Literal["personal", "local", "usual"] = "personal"

    @property
    def kind(self) -> Kind:
        """Return of which kind its cells are."""
        return "usual" if self.model == USUAL else "federated"

    def name(self, facts: Mapping[str, Any]) -> str:
        """Return what it is called in a table, given what its cell has on the site."""
        if self.model == USUAL:
            return str(facts.get("tool", USUAL_TOOLS))
        if self.model == "local":
            return LOCAL if self.label == "fedavg" else f"local only, budget of {self.label}"
        return NAMES.get(self.label, self.label)


Choice = Mapping[int, Candidate]
"""Per split, what validation chose for all sites."""
OwnChoice = Mapping[tuple[int, int, str], Candidate]
"""Per split, seed (its place among the split's) and site, what the site's own validation rows chose."""


@dataclass(frozen=True)
class Choices:
    """What validation chose among those that join and those that do not.

    Args:
        joined, alone: for all sites, among those that join, and among those that stay alone.
        own: each site among both, so staying alone included.
        own_alone: each site among those that stay alone.
        refitted: all were trained again, on training and validation rows.
        beside: where nothing can be chosen, the candidate whose local-only baseline has its own row.
        num_joined, num_alone: how many candidates each side has.
    """

    joined: Choice = field(default_factory=dict)
    alone: Choice = field(default_factory=dict)
    own: OwnChoice = field(default_factory=dict)
    own_alone: OwnChoice = field(default_factory=dict)
    refitted: bool = False
    beside: Candidate | None = None
    num_joined: int = 0
    num_alone: int = 0

    def wanted(self) -> set[tuple[int, Candidate]]:
        """Return everything that was chosen by anyone, with the split."""
        each = {(split, one) for own in (self.own, self.own_alone) for (split, _, _), one in own.items()}
        return each | {(split, one) for chosen in (self.joined, self.alone) for split, one in chosen.items()}


def refit_label(label: str) -> str:
    """Return the label of cells that train what was chosen on training and validation rows together."""
    return f"{label}, refitted"


def make_rows(
    found: Comparison, labels: Sequence[str], choices: Choices, *, notes: Mapping[str, str] | None = None
) -> list[Row]:
    """Return the baselines, every method, and what validation chose among those that join and those that do not.

    Args:
        notes: per label what a reader must know of it.
    """
    base, said = found.cells("fedavg"), notes or {}
    rows = [
        found.row(MAJORITY if found.task.classes else MEAN, "majority", base, baseline=True),
        found.row(LOCAL, "local", base, baseline=True),
        found.row(USUAL_TOOLS, USUAL, found.cells(USUAL_TOOLS, "usual"), baseline=True, note=_tools(found)),
        found.row(POOLED, "pooled", found.cells(POOLED, "pooled"), baseline=True),
        found.row(FEDAVG, "personal", base, baseline=True),
        found.row(TUNED, "personal", found.cells("fine_tune"), baseline=True),
    ]
    rows += [
        found.row(label, "personal", found.cells(label), note=said.get(label, ""))
        for label in labels
        if label not in NAMES
    ]
    if choices.beside is not None:
        rows.append(found.row(BESIDE, choices.beside.model, found.cells(choices.beside.label), baseline=True))
    both = choices.num_joined + choices.num_alone
    for refitted in (False, True) if choices.refitted else (False,):
        names = (OWN_REFITTED, ALONE_OWN_REFITTED, REFITTED, ALONE_REFITTED)
        own, alone_own, chosen, alone = names if refitted else (OWN, ALONE_OWN, CHOSEN, ALONE_CHOSEN)
        rows += [
            _own_row(found, own, choices.own, refitted=refitted, among=both),
            _own_row(found, alone_own, choices.own_alone, refitted=refitted, among=choices.num_alone),
            _choice_row(found, chosen, choices.joined, refitted=refitted, among=choices.num_joined),
            _choice_row(found, alone, choices.alone, refitted=refitted, among=choices.num_alone),
        ]
    return [row for row in rows if row.places]


def _tools(found: Comparison) -> str:
    """Return how often each of the usual tools was chosen."""
    cells = [cell for cells in found.cells(USUAL_TOOLS, "usual").values() for cell in cells]
    tools = Counter(str(found.facts(cell, site).get("tool")) for cell in cells for site in found.sites)
    return shares_text({name: count / tools.total() for name, count in tools.most_common()})


MOST_NAMED = 3


def shares_text(shares: Mapping[str, float]) -> str:
    """Return what was chosen: the name, or of several the most frequent with their shares."""
    if len(shares) == 1:
        return next(iter(shares))
    texts = [f"{name} {100 * share:.0f} %" for name, share in list(shares.items())[:MOST_NAMED]]
    left = len(shares) - MOST_NAMED
    return ", ".join(texts) + (f" and {left} more" if left > 0 else "")


def _choice_row(found: Comparison, name: str, choice: Choice, *, refitted: bool, among: int) -> Row:
    seeds = {split: len(cells) for split, cells in found.cells("fedavg").items()}
    own = {
        (split, seed, site): one
        for split, one in choice.items()
        for seed in range(seeds.get(split, 0))
        for site in found.sites
    }
    return _own_row(found, name, own, refitted=refitted, among=among)


def _own_row(found: Comparison, name: str, choice: OwnChoice, *, refitted: bool, among: int) -> Row:
    cells: dict[Candidate, dict[int, list[Cell]]] = {}
    places: dict[int, list[dict[str, Place]]] = {}
    failed = set()
    for (split, seed, site), one in choice.items():
        if one not in cells:
            cells[one] = found.cells(refit_label(one.label) if refitted else one.label, one.kind)
        if seed >= len(of_split := cells[one].get(split, [])):
            failed.add(split)
            continue
        seeds = places.setdefault(split, [])
        seeds.extend({} for _ in range(seed + 1 - len(seeds)))
        seeds[seed][site] = Place(of_split[seed], one.model, one.name(found.facts(of_split[seed], site)))
    whole = {split: seeds for split, seeds in sorted(places.items()) if split not in failed}
    return Row(name, whole, among=among)


def choose(found: Comparison, candidates: Sequence[Candidate]) -> dict[int, Candidate]:
    """Return per split the candidate with the best validation numbers, as means over the split's seeds and all sites.

    Only that split's own validation rows are looked at: another split's may be test rows of this one. Of each site
    counts what it measured last. Accuracy decides, or where the label is a number the loss; loss between equals, the
    first of equals. A split without validation rows has no choice.
    """
    choice: dict[int, Candidate] = {}
    best: dict[int, tuple[float, float]] = {}
    for candidate in candidates:
        for split, cells in found.cells(candidate.label, candidate.kind).items():
            seen = [
                one
                for cell in cells
                for site in found.sites
                if (one := found.validation(cell, candidate.model, site)) is not None
            ]
            if not seen:
                continue
            mean = (float(np.mean([a for a, _ in seen])), float(np.mean([b for _, b in seen])))
            if split not in best or mean > best[split]:
                best[split], choice[split] = mean, candidate
    return choice


def choose_each(
    found: Comparison, candidates: Sequence[Candidate], *, otherwise: Choice
) -> dict[tuple[int, int, str], Candidate]:
    """Return per split, seed and site the candidate that is best on the site's own validation rows of that seed.

    Accuracy decides, or where the label is a number the loss; loss between equals, the first of equals.

    Args:
        otherwise: what was chosen for all, for sites that have no validation rows.
    """
    choice: dict[tuple[int, int, str], Candidate] = {}
    best: dict[tuple[int, int, str], tuple[float, float]] = {}
    for candidate in candidates:
        for split, cells in found.cells(candidate.label, candidate.kind).items():
            for seed, cell in enumerate(cells):
                for site in found.sites:
                    seen, where = found.validation(cell, candidate.model, site), (split, seed, site)
                    if seen is None:
                        if split in otherwise:
                            choice.setdefault(where, otherwise[split])
                    elif where not in best or seen > best[where]:
                        best[where], choice[where] = seen, candidate
    return choice


# --- every number ----------------------------------------------------------------------------------


def all_numbers(found: Comparison, rows: Iterable[Row]) -> pd.DataFrame:
    """Return one line per row, split, seed, site and round (last, or best on validation); NaN: not defined.

    `support.<class>` is the number of test examples of a class.
    """
    lines = []
    for row in rows:
        for place, site, when in _places(row):
            of_site = found.facts(place.cell, site)
            if place.model in of_site.get("metrics", {}):
                cell = place.cell
                fixed = {"row": row.name, "chosen": place.chosen, "split": cell.split, "seed": cell.seed}
                fixed |= {"site": site, "round": when, "num_test": of_site["num_test"]}
                support = zip(found.task.classes, of_site["support"], strict=True)
                fixed |= {f"support.{name}": count for name, count in support}
                values = {name: of_site["metrics"][place.model][name] for name in kind_of(found.task).METRICS}
                lines.append(fixed | values)
    return pd.DataFrame(lines)


def _places(row: Row) -> Iterator[tuple[Place, str, str]]:
    for seeds in row.places.values():
        for sites in seeds:
            for site, place in sites.items():
                yield place, site, LAST
                yield best_of(place), site, BEST


def best_of(place: Place) -> Place:
    """Return where the same model is, of the round with the least validation loss."""
    return Place(place.cell, f"{place.model}.best", place.chosen)


# --- the numbers of a row --------------------------------------------------------------------------

OVER = ("mean", "weighted mean", "worst site", "spread")
"""Numbers over sites; the last two have no interval."""
SHARES = frozenset({"accuracy", "within_tolerance"})


@dataclass(frozen=True)
class Summary:
    """Numbers of a row, or of the difference of two: per site and over the sites."""

    sites: Mapping[str, Interval | None]
    over: Mapping[str, Interval | None]


def summarise(found: Comparison, row: Row, other: Row | None = None) -> Summary:
    """Return a row's test metric with intervals, or (given `other`) the paired difference from another row's.

    Splits that only one of two rows has are left out.
    """
    splits = sorted(row.places.keys() & (other.places.keys() if other else row.places.keys()))
    sizes = [_size(found, row, splits, site) for site in found.sites]
    if len(splits) == 1:
        return _of_one_split(found, row, other, splits[0], sizes)
    if not splits:
        return Summary(dict.fromkeys(found.sites), dict.fromkeys(OVER))
    many = len(splits) >= LEAST_SPLITS
    values = np.array([[_value(found, row, other, split, site) for split in splits] for site in found.sites])
    ratio = rows_tested_per_trained(found, row, splits) if many else 0.0
    least = None if found.metric in UNBOUNDED else -1.0 if other else 0.0
    over = {
        name: _over_splits(line, ratio if many else None, least)
        for name, line in numbers_over(values, sizes, found.metric).items()
    }
    sites = {}
    for place, site in enumerate(found.sites):
        enough = many and num_patients(found, splits[0], site, sizes[place]) >= LEAST_PATIENTS
        sites[site] = _over_splits(values[place], ratio if enough else None, least)
    return Summary(sites, over)


def _of_one_split(found: Comparison, row: Row, other: Row | None, split: int, sizes: Sequence[int]) -> Summary:
    kind: Literal["share", "number", "difference"] = "share" if found.metric in SHARES else "number"
    kind = "difference" if other else kind
    each = {site: _evidence(found, row, other, split, site) for site in found.sites}
    sites = {site: None if one is None else interval_of(one, kind=kind) for site, one in each.items()}
    known = [one for one in each.values() if one is not None]
    if len(known) < len(each):  # a mean over the sites that happen to have a number is a mean of something else
        return Summary(sites, dict.fromkeys(OVER))
    values = np.array([[one.values.mean()] for one in known])
    over = {name: Interval(float(line[0])) for name, line in numbers_over(values, sizes, found.metric).items()}
    for name, weights in (("mean", [1.0] * len(known)), ("weighted mean", [float(size) for size in sizes])):
        if found.task.test is None:
            over[name] = over_sites(known, weights, kind=kind)
        else:  # one test set for all: the sites' test patients are the same
            over[name] = interval_of(averaged(known, weights), kind=kind)
    return Summary(sites, over)


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


def _value(found: Comparison, row: Row, other: Row | None, split: int, site: str) -> float:
    """Return the metric in one split as a mean over seeds, minus the other row's; NaN where it is undefined."""
    means = []
    for each in (row, other) if other else (row,):
        values = [
            found.value(sites[site], site, found.metric) if site in sites else None for sites in each.places[split]
        ]
        means.append(np.nan if None in values else float(np.mean(values)))  # type: ignore[arg-type]
    return float(means[0] - means[1] if other else means[0])


def _evidence(found: Comparison, row: Row, other: Row | None, split: int, site: str) -> Evidence | None:
    one = _of_row(found, row, split, site)
    if other is None or one is None:
        return one
    beside = _of_row(found, other, split, site)
    return None if beside is None else minus(one, beside)


def _of_row(found: Comparison, row: Row, split: int, site: str) -> Evidence | None:
    places = [sites[site] for sites in row.places[split] if site in sites]
    where = (site, *(f"{found.results[place.cell]['key']}/{place.model}" for place in places))
    if where not in found.known:
        scores = [one for place in places if (one := found.scores(place, site)) is not None]
        whole = len(scores) == len(row.places[split])
        who = f"{site if found.task.test is None else 'all'}/{split}"
        found.known[where] = (
            evidence_of(scores, found.metric, groups=found.groups(split, site), seed=found.seed, who=who)
            if whole
            else None
        )
    return found.known[where]


def num_patients(found: Comparison, split: int, site: str, num_test: int) -> int:
    """Return how many patients a site's test examples are of."""
    groups = found.groups(split, site)
    return num_test if groups is None else len(np.unique(groups))


def _size(found: Comparison, row: Row, splits: Sequence[int], site: str) -> int:
    places = row.places[splits[0]][0] if splits else {}
    return int(found.facts(places[site].cell, site).get("num_test", 1)) if site in places else 1


def rows_tested_per_trained(found: Comparison, row: Row, splits: Sequence[int]) -> float:
    """Return how many test rows there are per row that was trained on: validation rows are not among these."""
    facts = [found.facts(place.cell, site) for site, place in row.places[splits[0]][0].items()]
    trained = sum(one.get("num_train", 0) for one in facts)
    return float(sum(one.get("num_test", 0) for one in facts) / max(1, trained))


def to_target(found: Comparison, row: Row, target: float) -> dict[str, float] | None:
    """Return rounds, bytes and seconds until the mean validation accuracy first reaches a target, as means over cells.

    None where a cell never does, or there is nothing to reach (baselines that do not travel, no validation rows).
    """
    seen, of_row = [], {} if row.among else row.cells()
    for split, cells in of_row.items():
        if row.model(split) != "personal":
            return None
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
    if not seen:
        return None
    rounds_, bytes_, seconds = (float(np.mean(column)) for column in zip(*seen, strict=True))
    return {"rounds": rounds_, "bytes": bytes_, "seconds": seconds}


def curves(found: Comparison, row: Row) -> dict[str, list[Any]]:
    """Return round numbers and mean validation accuracy and loss of the row's model, as means over cells.

    Rounds in which nothing was measured are left out. A row in which each site has its own has no curve.
    """
    runs = []
    for split, cells in row.cells().items():
        model = row.model(split)
        for cell in cells:
            measured = [each for each in found.results[cell]["rounds"] if f"{model}.loss" in each["means"]]
            if measured:
                runs.append((model, measured))
    curve: dict[str, list[Any]] = {"round": [each["round"] for each in runs[0][1]] if runs else []}
    for number in ("accuracy", "loss"):
        values = [[each["means"].get(f"{model}.{number}") for each in rounds] for model, rounds in runs]
        curve[number] = [None if None in column else float(np.mean(column)) for column in zip(*values, strict=True)]
    return curve
