"""Pictures as a task of a study: `[task]` with `kind = "images"`."""

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from consilium.common.errors import written
from consilium.common.study.labels_task import SeveralLabelsTask
from consilium.common.study.names import ClassName, without_duplicates
from consilium.common.study.record import Record
from consilium.common.study.task_base import TaskBase, TimedTask

MOST_SLICES = 32
"""Most slices of one volume."""
FILE = "file"
"""In a table of pictures, the column with the path of each."""


def _known_range(value: Any) -> Any:
    """Return the range; refuse with one sentence what is neither two rising numbers nor one of the words."""
    if value is None or value in ("picture", "window"):
        return value
    numbers = [one for one in value if isinstance(one, int | float)] if isinstance(value, list | tuple) else []
    if len(numbers) == 2 == len(value) and all(map(math.isfinite, numbers)) and numbers[0] < numbers[1]:
        return value
    raise ValueError(
        "must be the levels of black and white, the smaller one first, such as [0, 4095], or 'picture' or 'window', "
        f"got {written(value)[:60]}"
    )


PixelRange = tuple[float, float] | Literal["picture", "window"]


class SlicesConfig(Record):
    """Which slices of a volume (NIfTI) are pictures; those of one volume count as one patient's."""

    axis: Literal["axial", "coronal", "sagittal"] = "axial"
    """The plane of a slice, by the directions that the file states, however its numbers are stored."""
    at: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(0.5,), min_length=1, max_length=MOST_SLICES)
    """Where the slices lie, as parts of the way through the volume: from the feet up (axial), from the back to the
    front (coronal), from left to right (sagittal). `[0.4, 0.5, 0.6]` are three pictures of each volume.
    """

    @model_validator(mode="after")
    def _check(self) -> "SlicesConfig":
        without_duplicates(tuple(map(str, self.at)), what="slices.at")
        return self


class PictureTask(TaskBase):
    """Base of tasks whose examples are pictures: how these become the numbers that a model sees."""

    kind: str
    """What is learned of the pictures."""
    size: int = Field(default=32, ge=4, le=1024)
    """Images are resized to `size` x `size` pixels."""
    channels: Literal[1, 3] = 3
    """1 (grey) or 3 (colour)."""
    pixel_range: Annotated[PixelRange | None, BeforeValidator(_known_range)] = Field(
        default=None, exclude_if=lambda value: value is None
    )
    """Levels of black and white in pictures of more than 8 bits (16-bit files, DICOM, NIfTI, whole numbers and floats
    in `.npz` files), such as `[0, 4095]`; what lies beyond is black or white. `picture`: each picture's own 1st and
    99th percentile; `window`: each DICOM file's own window; None: 0 to 65535 of 16 bits, what a DICOM file's bits can
    hold, 0 to 1 of floats. Pictures of 8 bits are black at 0 and white at 255.
    """
    slices: SlicesConfig = Field(default=SlicesConfig(), exclude_if=lambda slices: slices == SlicesConfig())
    """Which slices of a NIfTI volume are pictures; of other files it is the first page or frame."""
    pixel_max: float = Field(default=1.0, gt=0)
    """Pixel values are scaled to 0..`pixel_max`."""
    mean: tuple[float, ...] = (0.0,)
    """Subtracted after that; one value or one per channel."""
    std: tuple[float, ...] = (1.0,)
    """Divided by after that; one value or one per channel."""
    scale: Literal["federation", "site"] | None = None
    """Whose images the channels' scale is computed from, in place of `mean` and `std`; None: `mean` and `std` hold."""

    @model_validator(mode="after")
    def _check(self) -> "PictureTask":
        without_duplicates(self.classes, what="classes")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                known = "1 value" if self.channels == 1 else f"1 or {self.channels} values"
                raise ValueError(f"{name} must have {known}, got {len(values)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be greater than 0, got {min(self.std)}")
        if self.scale is not None and (self.mean, self.std) != ((0.0,), (1.0,)):
            raise ValueError(f"scale = '{self.scale}' takes mean and std from the images: remove 'mean' and 'std'")
        return self

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: `(C, H, W)`."""
        return (self.channels, self.size, self.size)

    @property
    def scaled_columns(self) -> tuple[str, ...]:
        """Names of the channels."""
        return ("grey",) if self.channels == 1 else ("red", "green", "blue")

    @property
    def scaled_values(self) -> str:
        """Which values of an example are scaled."""
        return "images' pixels, per channel"

    @property
    def agrees_on_scale(self) -> bool:
        """Whether the scale is settled in the handshake; without `scale` it is `mean` and `std`."""
        return self.scale == "federation"


class ImageTask(PictureTask, TimedTask, SeveralLabelsTask):
    """Learn from pictures: files or arrays, as each site has them.

    With `classes` the files lie in one sub-folder per class. With `survival` or `labels` a table names
    each file with its label.
    """

    data_kinds: ClassVar[tuple[str, ...]] = ("images", "arrays")
    kind: Literal["images"] = "images"
    classes: tuple[ClassName, ...] = ()
    """Names of the classes, at least two; two give one logit."""

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(classes) == 1:
            raise ValueError(f"must have at least 2 entries, got {list(classes)}")
        return classes

    @model_validator(mode="after")
    def _check_label(self) -> "ImageTask":
        given = {"survival": self.survival, "labels": self.labels or None, "classes": self.classes or None}
        several = [name for name, value in given.items() if value is not None]
        if len(several) > 1:
            raise ValueError(f"{several[0]} says what the label is: leave '{several[1]}' out")
        if not several:
            raise ValueError("give 'classes', at least two, 'survival' for times until an event, or several 'labels'")
        if FILE in self.label_columns:
            raise ValueError(
                f"'{FILE}' cannot be the column of a label: a table of pictures has the path of each in it; give the "
                "label another name"
            )
        return self

    @property
    def label_columns(self) -> dict[str, str]:
        """The columns of the label in a table of files, and what each is for; none where folders are the classes."""
        return self.columns_of_labels if self.survival is None else self.survival.columns
