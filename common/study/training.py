"""The model, how it is trained and how rows are divided: `[model]`, `[training]`, `[split]`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from consilium.common.study.models import checked_settings
from consilium.common.study.names import Fraction, Sha256, clean_text, file_beside
from consilium.common.study.record import Record


class PretrainedConfig(Record):
    """Where the backbone's weights come from: torchvision by name, or a local file."""

    weights: str | None = None
    """A torchvision weights name, e.g. `IMAGENET1K_V1`."""
    file: str | None = None
    """Or a file in every site's `weights_dir`."""
    sha256: Sha256 | None = None
    """The SHA-256 that the file must have."""

    @model_validator(mode="after")
    def _check(self) -> "PretrainedConfig":
        if (self.weights is None) == (self.file is None):
            raise ValueError("give exactly one of 'weights' (a torchvision name) and 'file'")
        if self.file is not None and (Path(self.file).is_absolute() or ".." in Path(self.file).parts):
            raise ValueError(f"file must be relative to the site's weights folder, got '{self.file}'")
        return self


class ModelConfig(Record):
    """Which model, from which weights, and which part of it is trained."""

    name: Annotated[str, Field(max_length=200), AfterValidator(clean_text)] = "small_cnn"
    """`small_cnn`, `resnet20`, `mlp`, `mlp_bn`, `linear`, a torchvision model, or one of a package of your own."""
    hidden: tuple[int, ...] | None = None
    """`mlp`, `mlp_bn`: sizes of the hidden layers; None: one of 32. No other model takes it."""
    head: tuple[Annotated[int, Field(ge=1, le=100_000)], ...] | None = Field(default=None, min_length=1)
    """Sizes of hidden layers of the head, with a ReLU after each; None: one linear layer. `linear` takes none."""
    settings: dict[str, bool | int | float | str | tuple[int, ...]] = Field(default_factory=dict, validate_default=True)
    """Settings of a model of a package of your own."""
    pretrained: PretrainedConfig | None = None
    """Where the backbone's weights come from; None: random."""
    trainable: Literal["all", "head", "last_block"] = "all"
    """What is trained; `last_block` is the head and the last block before it."""
    batch_norm: Literal["average", "local", "freeze"] = "average"
    """BatchNorm arrays: `average` (shared), `local` (personal), `freeze` (untouched)."""

    @field_validator("settings")
    @classmethod
    def _check(cls, settings: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return checked_settings(info.data["name"], settings) if "name" in info.data else settings


class TrainingConfig(Record):
    """How a site trains in one round."""

    optimiser: Literal["sgd", "adam"] = "sgd"
    """The optimiser; its memory is empty at the start of each round."""
    learning_rate: float = Field(default=0.05, gt=0)
    """Step size of a site's training."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of `sgd`; `adam` ignores it."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Strength of the pull of all weights towards 0."""
    batch_size: int = Field(default=32, ge=1)
    """Examples per step."""
    epochs: int | None = Field(default=None, ge=1)
    """Local work per round in passes over the site's training examples."""
    steps: int | None = Field(default=None, ge=1)
    """Or in batches; give exactly one of the two."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16`: passes in half the bits where the device is quicker with them; weights and steps stay float32."""

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of 'epochs' and 'steps' (local work per round)")
        return self


class SplitConfig(Record):
    """How each site splits its own data: stratified by class or each patient by itself, the same at every start.

    Rows of one patient stay together: exact copies of each other, unless `copies` is `ignore`, and rows that `group`
    says are one patient's. Where `parts` is given, it says which rows are for training, validation and test.
    """

    test: Fraction = 0.2
    """Part of each site's examples that is read only at the end."""
    validation: Fraction = 0.15
    """Part of the rest on which models are measured during training."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the split; the study's own `seed` can vary while the split stays the same."""
    validation_seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the validation part: another one draws other validation rows, and the test rows stay."""
    group: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(clean_text)] | None = None
    """Where a row's patient is named, so that a patient's rows stay together: a table's column; `folder` or a pattern
    such as `^(P[0-9]+)_` for image files; an array's name.
    """
    parts: (
        Annotated[str, Field(min_length=1, max_length=200), AfterValidator(clean_text), AfterValidator(file_beside)]
        | None
    ) = None
    """Where each row's part is named, in place of drawing it: a file `NAME.csv` in the data folder; else a table's
    column, `folder`, or an array's name.
    """
    draw: Literal["counts", "each"] | None = None
    """`counts`: parts of fixed sizes, stratified by class; `each`: each patient by itself, so that nobody's part hangs
    on who else is there. None: `each` in a private study, else `counts`.
    """
    copies: Literal["together", "ignore"] = "together"
    """Exact copies stay together as one patient's rows; `ignore`: they are only counted, for published splits."""
