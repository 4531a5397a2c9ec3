"""Labels of which an example may have several: how answers are compared with them, and their constant answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consilium.client.data.strata import rarest
from consilium.client.data.target import ScoredTarget
from consilium.client.training.labels_loss import cell_losses, labels_loss
from consilium.common.intervals.evidence import Evidence
from consilium.common.labels.evidence import evidence_of, mean_auroc

LEAST_SHARE = 1e-6
"""A label's share counts as at least this, and as at most 1 less this, where it becomes a logit."""


@dataclass(frozen=True)
class LabelsTarget(ScoredTarget):
    """Labels are float32 `(N, L)`: 1, 0, or NaN where one is not known; an answer has a logit for each `(N, L)`.

    The score is the mean AUROC over the labels of which some row has each kind. The constant answer is each label's
    share of the rows that know it.
    """

    neutral: ClassVar[float] = 0.5

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of a batch's known labels, of which all count alike."""
        return labels_loss(logits, y)

    def row_losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return each row's own loss `(B,)`: the mean over its L labels, of which those that are not known have 0."""
        return cell_losses(logits, y).mean(dim=1)

    def answers(self, logits: Tensor) -> Tensor:
        """Return the logits `(N, L)`."""
        return logits

    def constant(self, y: Tensor) -> Tensor:
        """Return the logit `(L,)` of each label's share of the rows that know it; 0 where none does."""
        return torch.logit(torch.nan_to_num(torch.nanmean(y, dim=0), nan=0.5), eps=LEAST_SHARE)

    def score(self, answers: Tensor, y: Tensor) -> float:
        """Return the mean AUROC; NaN where no label has both kinds."""
        logits = answers.detach().double().cpu().numpy()
        found = mean_auroc(y.cpu().numpy(), logits) if bool(torch.isfinite(answers).all()) else None
        return float("nan") if found is None else found

    def constant_outputs(self, y: Tensor, count: int) -> Tensor:
        """Return the same logits for all rows."""
        return self.constant(y).expand(count, -1)

    def evidence(
        self, y: Tensor, outputs: Mapping[str, Tensor], groups: NDArray[np.int64] | None
    ) -> dict[str, Evidence]:
        """Return the evidence of the mean AUROC; none where no label has both kinds."""
        scores = {name: of.double().cpu().numpy() for name, of in outputs.items()}
        return evidence_of(y.cpu().numpy(), scores, groups)

    def strata(self, y: Tensor) -> Tensor:
        """Return the rarest label `(N,)` that a row has, so that the few rows that have it are spread over the parts.

        L for rows without any. Labels whose rows would be fewer than `LEAST_ROWS` make no stratum.
        """
        return rarest(y == 1)
