"""What the labels of examples are: how an answer is compared with them, and which constant answer must be beaten.

A new kind of label is a new `Target`: training, evaluation and the methods ask it, and know no kinds.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from consilium.client.training.cox import cox_loss
from consilium.common.intervals.evidence import Evidence
from consilium.common.survival.concordance import harrell
from consilium.common.survival.evidence import evidence_of
from consilium.common.survival.times import Times


def loss_of(logits: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """Return the loss: of classes `y` binary cross-entropy for one logit `(B, 1)`, cross-entropy for `(B, C)`.

    Of numbers `y` (floats) it is the squared error of the one answer `(B, 1)`.
    """
    if y.is_floating_point():
        return functional.mse_loss(logits[:, 0].to(y.dtype), y, reduction=reduction)
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], y.to(logits.dtype), reduction=reduction)
    return functional.cross_entropy(logits, y, reduction=reduction)


class Target(ABC):
    """One kind of label."""

    by_rows: ClassVar[bool] = True
    """Whether the loss of a batch is the mean of its rows' own losses, so that a part of it can be computed alone."""
    dense: ClassVar[bool] = False
    """Whether there is an answer for each pixel: outputs of many rows are then too large to be kept, answers are."""

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss `()` of a batch's answers `(B, outputs)`."""
        return loss_of(logits, y)

    @property
    def plain(self) -> bool:
        """Whether the loss is `loss_of`, for which there are formulas."""
        return type(self).loss is Target.loss

    def row_losses(self, logits: Tensor, y: Tensor) -> Tensor | None:
        """Return each row's own loss `(B,)`, whose mean is `loss`; None where these labels have no such."""
        return loss_of(logits, y, reduction="none") if self.plain else None

    @abstractmethod
    def answers(self, logits: Tensor) -> Tensor:
        """Return what a model says `(N,)`, of the labels' kind and in their units, given its outputs `(N, outputs)`."""

    @abstractmethod
    def constant(self, y: Tensor) -> Tensor:
        """Return the constant answer `()`, from training labels `(N,)`, that every model must beat."""

    @abstractmethod
    def score(self, answers: Tensor, y: Tensor) -> float:
        """Return how good answers are, in [0, 1]; NaN where these labels do not say."""

    def strata(self, y: Tensor) -> Tensor:
        """Return what a split is stratified by `(N,)`: int64, or floats where it is not."""
        return y

    def counts(self, y: Tensor, num_classes: int) -> Tensor:
        """Return how many rows have each class `(num_classes,)`."""
        return torch.bincount(y, minlength=num_classes)

    def kept_outputs(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return what a site keeps of a model's outputs on test rows `(N, ...)`, from which all scores follow."""
        return outputs

    def kept_labels(self, y: Tensor) -> Tensor:
        """Return what a site keeps of the labels along with that, `(N, ...)`."""
        return y


class CountedTarget(Target):
    """Labels whose answers are right or wrong, each by itself: the score is the share of right ones."""

    @abstractmethod
    def right(self, answers: Tensor, y: Tensor) -> Tensor:
        """Return a mask `(N,)` of correct answers; one answer `()` is for all."""

    def score(self, answers: Tensor, y: Tensor) -> float:
        """Return the share of correct answers, in [0, 1]."""
        return float(self.right(answers, y).double().mean())


class ScoredTarget(Target):
    """Labels whose answers are neither right nor wrong by themselves: a model has a score on all of a site's rows."""

    neutral: ClassVar[float] = 0.0
    """The score of an answer that says nothing."""

    @abstractmethod
    def constant_outputs(self, y: Tensor, count: int) -> Tensor:
        """Return the outputs `(count, outputs, ...)` of the constant answer from training labels `y`."""

    @abstractmethod
    def evidence(
        self, y: Tensor, outputs: Mapping[str, Tensor], groups: NDArray[np.int64] | None
    ) -> dict[str, Evidence]:
        """Return the evidence of each model's score, all in the same draws; none where these rows do not say it.

        Args:
            y: the labels of N rows.
            outputs: of each model, for the same rows.
            groups: the patient of each row `(N,)`; None: every row is one.
        """


@dataclass(frozen=True)
class ClassTarget(CountedTarget):
    """Labels are int64 class numbers; the constant answer is the most frequent class.

    The loss of a row is that of its label `(1 - smoothing) * class + smoothing / C` (Szegedy et al.: Rethinking the
    Inception Architecture for Computer Vision, CVPR 2016, section 7, https://arxiv.org/abs/1512.00567), times the
    weight of its class; the loss of a batch is the mean over its rows.

    Args:
        weights: of each class's rows, >= 0; empty: 1 for all.
        smoothing: the part of a label that all C classes share, in [0, 1).
    """

    weights: tuple[float, ...] = ()
    smoothing: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether rows count alike and labels are whole."""
        return not self.weights and not self.smoothing

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return loss_of(logits, y) if self.plain else self.row_losses(logits, y).mean()

    def row_losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return each row's own loss `(B,)`."""
        if self.plain:
            return loss_of(logits, y, reduction="none")
        if logits.shape[1] == 1:
            whole = y.to(logits.dtype) * (1 - self.smoothing) + self.smoothing / 2
            losses = functional.binary_cross_entropy_with_logits(logits[:, 0], whole, reduction="none")
        else:
            losses = functional.cross_entropy(logits, y, reduction="none", label_smoothing=self.smoothing)
        if self.weights:
            losses = losses * torch.tensor(self.weights, dtype=losses.dtype, device=losses.device)[y]
        return losses

    def answers(self, logits: Tensor) -> Tensor:
        """Return the class per row: probability above 0.5 for one logit, the largest otherwise."""
        return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)

    def right(self, answers: Tensor, y: Tensor) -> Tensor:
        """Return which classes are equal."""
        return answers == y

    def constant(self, y: Tensor) -> Tensor:
        """Return the most frequent class."""
        return y.mode().values


@dataclass(frozen=True)
class NumberTarget(CountedTarget):
    """Labels are float32 numbers, in the model's units; the constant answer is their mean.

    Args:
        tolerance: how far a correct answer may be off, in the same units.
    """

    tolerance: float

    def answers(self, logits: Tensor) -> Tensor:
        """Return the one output per row."""
        return logits[:, 0]

    def right(self, answers: Tensor, y: Tensor) -> Tensor:
        """Return which numbers are within the tolerance."""
        return (answers - y).abs() <= self.tolerance

    def constant(self, y: Tensor) -> Tensor:
        """Return the mean."""
        return y.mean()


@dataclass(frozen=True)
class TimeTarget(ScoredTarget):
    """Labels are float32 times until an event, with a minus sign where they are censored; answers are log risks.

    The loss is Cox's partial likelihood, in which a batch is a risk set of its own. The constant answer says nothing of
    who is first.
    """

    by_rows: ClassVar[bool] = False
    neutral: ClassVar[float] = 0.5

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return Cox's partial likelihood of a batch, less than 0 never, divided by its rows."""
        return cox_loss(logits[:, 0], y)

    def answers(self, logits: Tensor) -> Tensor:
        """Return the one output per row, the log of its risk."""
        return logits[:, 0]

    def constant(self, y: Tensor) -> Tensor:
        """Return 0, as for any other number all risks are the same."""
        return torch.zeros((), dtype=y.dtype)

    def score(self, answers: Tensor, y: Tensor) -> float:
        """Return Harrell's c; NaN where no two rows can be compared."""
        risks = answers.detach().double().cpu().numpy()
        found = harrell(Times.of_labels(y.cpu().numpy()), risks) if bool(torch.isfinite(answers).all()) else None
        return float("nan") if found is None else found

    def constant_outputs(self, y: Tensor, count: int) -> Tensor:
        """Return the same risk for all."""
        return torch.zeros(count, 1)

    def evidence(
        self, y: Tensor, outputs: Mapping[str, Tensor], groups: NDArray[np.int64] | None
    ) -> dict[str, Evidence]:
        """Return the evidence of Harrell's c; none where no two patients can be compared."""
        risks = {name: of[:, 0].double().cpu().numpy() for name, of in outputs.items()}
        return evidence_of(Times.of_labels(y.cpu().numpy()), risks, groups)

    def strata(self, y: Tensor) -> Tensor:
        """Return 1 where the event was seen, 0 where it was not."""
        return (~torch.signbit(y)).long()


CLASSES = ClassTarget()
"""Of labels that are classes."""
