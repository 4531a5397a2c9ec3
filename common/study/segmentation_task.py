"""Masks of pictures as a task of a study: `[task]` with `kind = "segmentation"`."""

from typing import ClassVar, Literal

from pydantic import Field

from consilium.common.study.image_task import PictureTask
from consilium.common.study.names import ClassName
from consilium.common.study.task_base import LabelKind

MOST_CLASSES = 60
"""Most classes of a mask, with the background: which of them a picture holds is one number of 64 bits."""


class SegmentationTask(PictureTask):
    """Say of every pixel what it is of: pictures with a mask each, as each site has them.

    Pictures lie in a folder `images`, their masks under the same names in a folder `masks`; or both in one `.npz` file.
    """

    data_kinds: ClassVar[tuple[str, ...]] = ("masks",)
    kind: Literal["segmentation"] = "segmentation"
    classes: tuple[ClassName, ...] = Field(min_length=2, max_length=MOST_CLASSES)
    """Names of what a pixel may be of, in the order of the masks' numbers; the first is the background."""

    @property
    def num_outputs(self) -> int:
        """How many numbers a model answers per pixel: one per class."""
        return len(self.classes)

    @property
    def label_kind(self) -> LabelKind:
        """What the labels are."""
        return "masks"

    @property
    def score(self) -> str:
        """Name of the score: the overlap of answer and truth."""
        return "mean Dice"

    @property
    def constant(self) -> str:
        """Name of the constant answer: the same mask for every picture."""
        return "most frequent class of each pixel"
