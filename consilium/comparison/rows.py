"""Rows of a comparison: whose answers each site has, and what rows are called."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consilium.common.errors import listed
from consilium.common.study.task_base import LabelKind
from consilium.comparison.cells import Cell

MAJORITY, MEAN, LOCAL, POOLED, FEDAVG, TUNED = (
    "majority class",
    "mean of the training labels",
    "local only",
    "pooled",
    "FedAvg",
    "FedAvg + fine-tuning",
)

CONSTANTS: Mapping[LabelKind, str] = {
    "classes": MAJORITY,
    "numbers": MEAN,
    "times until an event": "the same risk for all",
    "several labels": "each label's share",
    "masks": "most frequent class of each pixel",
}
"""What the row of the constant answer is called, by what labels are."""

USUAL_TOOLS = "alone, with usual tools"

OWN, OWN_REFITTED = "each its own choice", "each its own choice, refitted"

ALONE_OWN, ALONE_OWN_REFITTED = "alone, own choice", "alone, own choice, refitted"

CHOSEN, REFITTED = "one choice for all", "one choice for all, refitted"

ALONE_CHOSEN, ALONE_REFITTED = "alone, one choice for all", "alone, one choice for all, refitted"

SAME_BUDGET = "local only, same budget"

ALONE = frozenset({LOCAL, USUAL_TOOLS, SAME_BUDGET, ALONE_OWN, ALONE_OWN_REFITTED, ALONE_CHOSEN, ALONE_REFITTED})
"""Rows in which nobody joins."""

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
        epsilon: of a private study the budget, or what it has spent at most where it gives the noise.
    """

    name: str
    places: Mapping[int, Sequence[Mapping[str, Place]]]
    baseline: bool = False
    note: str = ""
    among: int = 0
    epsilon: float | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Return how often each candidate was chosen, over splits, seeds and sites, the most frequent first."""
        counts = Counter(
            place.chosen
            for seeds in self.places.values()
            for sites in seeds
            for place in sites.values()
            if place.chosen
        )
        return {name: count / counts.total() for name, count in counts.most_common()}

    def chosen_at(self, site: str) -> dict[str, float]:
        """Return how often each candidate was chosen at one site, the most frequent first."""
        own = {split: [{site: sites[site]} for sites in seeds if site in sites] for split, seeds in self.places.items()}
        return Row(self.name, own).shares

    def cells(self) -> dict[int, list[Cell]]:
        """Return the cells per split, one per seed; nothing where the sites' answers are of different cells."""
        cells: dict[int, list[Cell]] = {}
        for split, seeds in self.places.items():
            for sites in seeds:
                if len({(place.cell, place.model) for place in sites.values()}) != 1:
                    return {}
                cells.setdefault(split, []).append(next(iter(sites.values())).cell)
        return cells

    def model(self, split: int) -> str:
        """Return which of its cells' models the row is in a split, if it is one."""
        return next(iter(self.places[split][0].values())).model


MOST_NAMED = 3


def shares_text(shares: Mapping[str, float]) -> str:
    """Return what was chosen: the name, or of several the most frequent with their shares."""
    if len(shares) == 1:
        return next(iter(shares))
    return listed([f"{name} {100 * share:.0f} %" for name, share in shares.items()], MOST_NAMED)


def best_of(place: Place) -> Place:
    """Return where the same model is, of the round with the least validation loss."""
    return Place(place.cell, f"{place.model}.best", place.chosen)
