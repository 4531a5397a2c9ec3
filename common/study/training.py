"""The model, how it is trained and how rows are divided: `[model]`, `[training]`, `[split]`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from common.study.names import Fraction, _check_beside, _check_clean
from common.study.record import Record


class PretrainedConfig(Record):
    """Where the backbone's weights come from: torchvision by name, or a local file."""

    weights: str | None = None
    file: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _check(self) -> "PretrainedConfig":
        if (self.weights is None) == (self.file is None):
            raise ValueError("give exactly one of 'weights' (a torchvision name) and 'file'")
        if self.file is not None and (Path(self.file).is_absolute() or ".." in Path(self.file).parts):
            raise ValueError(f"file must be relative to the site's weights folder, got '{self.file}'")
        return self


class ModelConfig(Record):
    """Which model, from which weights, and what of it is trained."""

    name: str = "small_cnn"
    hidden: tuple[int, ...] | None = None
    pretrained: PretrainedConfig | None = None
    trainable: Literal["all", "head", "last_block"] = "all"
    batch_norm: Literal["average", "local", "freeze"] = "average"


class TrainingConfig(Record):
    """How a site trains in one round."""

    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    batch_size: int = Field(default=32, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of 'epochs' and 'steps' (local work per round)")
        return self


class SplitConfig(Record):
    """How each site splits its own data; stratified by class, the same at every start.

    Rows of one patient stay together: exact copies of each other, unless `copies` is `ignore`, and rows that `group`
    says are one patient's. Where `parts` is given, it says which rows are for training, validation and test.

    Args:
        group: tables: a column; folders of images: `folder` (a sub-folder of the class for each patient) or a pattern
            of file names with the patient in brackets; arrays: the name of an array.
        parts: a file `NAME.csv` beside the data; else tables: a column; folders of images: `folder` (a folder for
            each part above the classes); arrays: the name of an array.
    """

    test: Fraction = 0.2
    validation: Fraction = 0.15
    seed: int = Field(default=0, ge=0, lt=2**32)
    validation_seed: int = Field(default=0, ge=0, lt=2**32)
    group: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_clean)] | None = None
    parts: (
        Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_clean), AfterValidator(_check_beside)]
        | None
    ) = None
    copies: Literal["together", "ignore"] = "together"
