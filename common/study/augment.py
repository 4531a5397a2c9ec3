"""Random changes of training pictures: `[training.augment]`."""

from typing import Literal

from pydantic import Field, model_validator

from consilium.common.study.record import Record


class AugmentConfig(Record):
    """What is drawn anew for every picture of every training batch; models are measured on pictures as they are."""

    flip: Literal["horizontal", "vertical", "both"] | None = None
    """Mirror every second picture, left to right, upside down, or each of both by itself."""
    crop: int = Field(default=0, ge=0, le=512)
    """Pixels of black around a picture, from which a piece of the picture's size is cut at random."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """Turn by up to so many degrees, either way; black fills the corners."""
    colour: float = Field(default=0.0, ge=0, lt=1)
    """Multiply brightness, contrast and, of colour pictures, saturation, each by 1 - `colour` to 1 + `colour`."""

    @model_validator(mode="after")
    def _check(self) -> "AugmentConfig":
        if self == AugmentConfig.model_construct():
            raise ValueError("names no change: give at least one of 'flip', 'crop', 'rotate' and 'colour'")
        return self
