"""What masks of pictures are as labels: how answers are compared with them, and which constant one must be beaten."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consilium.client.data.strata import rarest
from consilium.client.data.target import ScoredTarget
from consilium.client.training.dice import mask_loss
from consilium.common.intervals.evidence import Evidence
from consilium.common.segmentation.evidence import evidence_of
from consilium.common.segmentation.overlap import dice, mean_of, measured, of_classes, pixel_counts


@dataclass(frozen=True)
class MaskTarget(ScoredTarget):
    """Labels are masks: the class of every pixel, uint8 `(N, H, W)`; an answer has logits `(N, C, H, W)`.

    The score is the mean Dice over the classes but the background, each a mean over the pictures of which truth or
    answer have it. The constant answer is one mask for all pictures: each pixel's most frequent class.

    Args:
        num_classes: with the background, 2 or more.
    """

    num_classes: int
    dense: ClassVar[bool] = True

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the mean over the pictures of cross-entropy and soft Dice."""
        return mask_loss(logits, y)

    def answers(self, logits: Tensor) -> Tensor:
        """Return the class of every pixel `(N, H, W)`, as uint8."""
        return logits.argmax(dim=1).to(torch.uint8)

    def constant(self, y: Tensor) -> Tensor:
        """Return the most frequent class of each pixel `(H, W)`, of equals the first, as uint8."""
        times = torch.stack([(y == one).sum(dim=0) for one in range(self.num_classes)])
        return times.argmax(dim=0).to(torch.uint8)

    def score(self, answers: Tensor, y: Tensor) -> float:
        """Return the mean Dice; NaN where neither truth nor answers have any class."""
        return float(mean_of(of_classes(dice(self._counts(answers, y)))))

    def constant_outputs(self, y: Tensor, count: int) -> Tensor:
        """Return the same mask for all pictures."""
        return self.constant(y).expand(count, *y.shape[1:])

    def evidence(
        self, y: Tensor, outputs: Mapping[str, Tensor], groups: NDArray[np.int64] | None
    ) -> dict[str, Evidence]:
        """Return the evidence of the mean Dice of masks `(N, H, W)`; none where no picture has any class."""
        return evidence_of({name: self._counts(of, y) for name, of in outputs.items()}, groups)

    def kept_outputs(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return pixels and distances of each picture and class but the background `(N, C - 1, 4)`, as float64."""
        return torch.from_numpy(measured(_array(y), _array(outputs), self.num_classes))

    def kept_labels(self, y: Tensor) -> Tensor:
        """Return which classes each picture holds `(N, C)`."""
        return self.present(y)

    def strata(self, y: Tensor) -> Tensor:
        """Return the rarest class `(N,)` of each picture, the background left out."""
        return rarest(self.present(y)[:, 1:])

    def present(self, y: Tensor) -> Tensor:
        """Return a mask of the classes that each picture holds `(N, C)`."""
        flat = y.flatten(1)
        return torch.stack([(flat == one).any(dim=1) for one in range(self.num_classes)], dim=1)

    def counts(self, y: Tensor, num_classes: int) -> Tensor:
        """Return how many pictures hold each class `(C,)`."""
        return self.present(y).sum(dim=0)

    def _counts(self, answers: Tensor, y: Tensor) -> NDArray[np.float64]:
        return pixel_counts(_array(y), _array(answers), self.num_classes)


def _array(masks: Tensor) -> NDArray[np.uint8]:
    return np.asarray(masks.cpu().numpy(), dtype=np.uint8)
