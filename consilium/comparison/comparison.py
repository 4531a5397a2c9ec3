"""Everything that a comparison ran: cells, their results, and the answers they kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from consilium.common.study.task import Task
from consilium.comparison.cells import Cell
from consilium.comparison.evaluation import Labels, Scores
from consilium.comparison.finished import read_answers, scores_of
from consilium.comparison.results import Kind, SiteOutcome
from consilium.comparison.rows import Place, Row
from consilium.comparison.runner import Results
from consilium.findings import Evidence

_MISSING = SiteOutcome()


@dataclass(frozen=True)
class Comparison:
    """Everything that was run: cells with their results, the folder of their answers, the study's task and sites."""

    results: Results
    out: Path
    task: Task
    sites: tuple[str, ...]
    metric: str = "accuracy"
    seed: int = 0
    evidence: dict[tuple[str, ...], Evidence | None] = field(default_factory=dict)
    """Evidence that was read and drawn so far; every difference needs that of two rows again."""
    patients: dict[tuple[int, str], Labels | None] = field(default_factory=dict)
    """Patient of each test example, per split and site, as far as it was read."""

    def cells(self, label: str, kind: Kind = "federated") -> dict[int, list[Cell]]:
        """Return a label's finished cells per split, seed by seed; a split is left out if one of its seeds failed."""
        cells: dict[int, list[Cell]] = {}
        failed = set()
        for cell, result in self.results.items():
            if cell.label == label and cell.kind == kind:
                cells.setdefault(cell.split, []).append(cell)
                if result.error is not None:
                    failed.add(cell.split)
        return {split: of_split for split, of_split in cells.items() if split not in failed}

    def row(self, name: str, model: str, cells: Mapping[int, Sequence[Cell]], **settings: Any) -> Row:
        """Return a row in which every site has the answers of the same cells."""
        places = {
            split: [{site: Place(cell, model) for site in self.sites} for cell in of_split]
            for split, of_split in cells.items()
        }
        return Row(name, places, **settings)

    def facts(self, cell: Cell, site: str) -> SiteOutcome:
        """Return what a cell has on a site: counts, metrics, validation; nothing where the site is missing."""
        return self.results[cell].sites.get(site, _MISSING)

    def value(self, place: Place, site: str, metric: str) -> float | None:
        """Return one number on one site's test split; None where it is undefined or the site is missing."""
        return self.facts(place.cell, site).metrics.get(place.model, {}).get(metric)

    def scores(self, place: Place, site: str) -> Scores | None:
        """Return a model's answers on one site's test split."""
        answers = read_answers(self.results[place.cell].key, self.out)
        return scores_of(answers[site], place.model, self.task) if site in answers else None

    def groups(self, split: int, site: str) -> Labels | None:
        """Return the patient of each of a site's test examples `(N,)`; None: each its own."""
        if (split, site) not in self.patients:
            cells = self.cells("fedavg").get(split, [])[:1]
            answers = [read_answers(self.results[cell].key, self.out).get(site, {}) for cell in cells]
            groups = [one["groups"].astype(np.int64) for one in answers if "groups" in one]
            self.patients[split, site] = groups[0] if groups else None
        return self.patients[split, site]

    def validation(self, cell: Cell, model: str, site: str) -> tuple[float, float] | None:
        """Return what a choice looks at, larger is better: a site's validation accuracy of a model, and minus its loss.

        Where the label is no class, the loss alone.
        """
        measured = self.facts(cell, site).validation.get(model)
        if measured is None:
            return None
        by_loss = not self.task.classes or measured.accuracy is None
        return (-measured.loss if by_loss else measured.accuracy or 0.0), -measured.loss
