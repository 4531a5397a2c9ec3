"""What validation chooses: one candidate for all sites, and one for each site."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from consilium.comparison.comparison import Comparison
from consilium.comparison.results import Kind, SiteOutcome
from consilium.comparison.rows import LOCAL, NAMES, USUAL_TOOLS
from consilium.comparison.usual import USUAL


@dataclass(frozen=True)
class Candidate:
    """One model that may be chosen: of a label's cells the served one, the local-only one, or that of usual tools."""

    label: str
    model: Literal["personal", "local", "usual"] = "personal"

    @property
    def kind(self) -> Kind:
        """Return of which kind its cells are."""
        return "usual" if self.model == USUAL else "federated"

    def name(self, facts: SiteOutcome) -> str:
        """Return what it is called in a table, given what its cell has on the site."""
        if self.model == USUAL:
            return facts.tool or USUAL_TOOLS
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
        same_budget: where nothing can be chosen, the candidate whose local-only baseline has its own row.
        num_joined, num_alone: how many candidates each side has.
    """

    joined: Choice = field(default_factory=dict)
    alone: Choice = field(default_factory=dict)
    own: OwnChoice = field(default_factory=dict)
    own_alone: OwnChoice = field(default_factory=dict)
    refitted: bool = False
    same_budget: Candidate | None = None
    num_joined: int = 0
    num_alone: int = 0

    def wanted(self) -> set[tuple[int, Candidate]]:
        """Return everything that was chosen by anyone, with the split."""
        each = {(split, one) for own in (self.own, self.own_alone) for (split, _, _), one in own.items()}
        return each | {(split, one) for chosen in (self.joined, self.alone) for split, one in chosen.items()}


def refit_label(label: str) -> str:
    """Return the label of cells that train what was chosen on training and validation rows together."""
    return f"{label}, refitted"


def choose(comparison: Comparison, candidates: Sequence[Candidate]) -> dict[int, Candidate]:
    """Return per split the candidate with the best validation numbers, as means over the split's seeds and all sites.

    Only that split's own validation rows are looked at: another split's may be test rows of this one. Of each site
    counts what it measured last. Accuracy decides, or where the label is a number the loss; loss between equals, the
    first of equals. A split without validation rows has no choice.
    """
    choice: dict[int, Candidate] = {}
    best: dict[int, tuple[float, float]] = {}
    for candidate in candidates:
        for split, cells in comparison.cells(candidate.label, candidate.kind).items():
            measured = [
                one
                for cell in cells
                for site in comparison.sites
                if (one := comparison.validation(cell, candidate.model, site)) is not None
            ]
            if not measured:
                continue
            mean = (float(np.mean([a for a, _ in measured])), float(np.mean([b for _, b in measured])))
            if split not in best or mean > best[split]:
                best[split], choice[split] = mean, candidate
    return choice


def choose_each(
    comparison: Comparison, candidates: Sequence[Candidate], *, otherwise: Choice
) -> dict[tuple[int, int, str], Candidate]:
    """Return per split, seed and site the candidate that is best on the site's own validation rows of that seed.

    Accuracy decides, or where the label is a number the loss; loss between equals, the first of equals.

    Args:
        otherwise: what was chosen for all, for sites that have no validation rows.
    """
    choice: dict[tuple[int, int, str], Candidate] = {}
    best: dict[tuple[int, int, str], tuple[float, float]] = {}
    for candidate in candidates:
        for split, cells in comparison.cells(candidate.label, candidate.kind).items():
            for seed, cell in enumerate(cells):
                for site in comparison.sites:
                    score, where = comparison.validation(cell, candidate.model, site), (split, seed, site)
                    if score is None:
                        if split in otherwise:
                            choice.setdefault(where, otherwise[split])
                    elif where not in best or score > best[where]:
                        best[where], choice[where] = score, candidate
    return choice
