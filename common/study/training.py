"""The model, how it is trained and how rows are divided: `[model]`, `[training]`, `[split]`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from consilium.common.study.adapter import LoraConfig
from consilium.common.study.augment import AugmentConfig
from consilium.common.study.models import checked_settings
from consilium.common.study.names import ClassName, Fraction, PlainName, Sha256, clean_text, file_beside
from consilium.common.study.ranges import Positive
from consilium.common.study.record import Record
from consilium.common.study.schedules import ScheduleConfig
from consilium.common.study.text_models import TRANSFORMER_WEIGHTS
from consilium.common.study.text_task import PathInside

ClassWeights = Annotated[
    Annotated[Literal["balanced"], Tag("word")] | Annotated[dict[ClassName, Positive], Tag("classes")],
    Discriminator(lambda value: "classes" if isinstance(value, dict) else "word"),
]
"""Weights of classes; tagged, so that an error names one number alone."""


def _is_none(value: object) -> bool:
    return value is None


class PretrainedConfig(Record):
    """Where the backbone's weights come from: torchvision by name, a local file, or a local folder of files.

    A file may be as its training script left it: wrappers are opened, one prefix of all names is taken off where that
    makes them fit, and its head is left out.
    """

    weights: str | None = None
    """A torchvision weights name, e.g. `IMAGENET1K_V1`."""
    file: str | None = None
    """Or a file in every site's `weights_dir`."""
    sha256: Sha256 | None = None
    """The SHA-256 that the file must have."""
    folder: PathInside | None = Field(default=None, exclude_if=_is_none)
    """Or a folder in every site's `weights_dir`, for model `transformer`."""
    files: dict[PlainName, Sha256] = Field(default_factory=dict, max_length=20, exclude_if=lambda files: not files)
    """The SHA-256 that each of the folder's files must have: `model.safetensors`, and others such as `config.json`."""

    @model_validator(mode="after")
    def _check(self) -> "PretrainedConfig":
        if sum(one is not None for one in (self.weights, self.file, self.folder)) != 1:
            raise ValueError("give exactly one of 'weights' (a torchvision name), 'file' and 'folder'")
        if (self.folder is not None) != (TRANSFORMER_WEIGHTS in self.files):
            raise ValueError(
                f'a folder needs files = {{ "{TRANSFORMER_WEIGHTS}" = its sha256, ... }}, and nothing else has files'
            )
        if self.file is not None and (Path(self.file).is_absolute() or ".." in Path(self.file).parts):
            raise ValueError(f"file must be relative to the site's weights folder, got '{self.file}'")
        return self


class ModelConfig(Record):
    """Which model, from which weights, and which part of it is trained."""

    name: Annotated[str, Field(max_length=200), AfterValidator(clean_text)] = "small_cnn"
    """`small_cnn`, `resnet20`, `mlp`, `mlp_bn`, `linear`; of series `cnn1d`, `gru`; of texts `text_mean`,
    `text_transformer`, `transformer`; of masks `unet`; a torchvision model, one of timm or MONAI (`timm/resnet18`,
    `monai/densenet121`), or one of a package of your own.
    """
    hidden: tuple[int, ...] | None = None
    """`mlp`, `mlp_bn`: sizes of the hidden layers; None: one of 32. No other model takes it."""
    head: tuple[Annotated[int, Field(ge=1, le=100_000)], ...] | None = Field(default=None, min_length=1)
    """Sizes of hidden layers of the head, with a ReLU after each; None: one linear layer. `linear` takes none."""
    settings: dict[str, bool | int | float | str | tuple[int, ...]] = Field(default_factory=dict, validate_default=True)
    """Settings of `text_mean`, `text_transformer`, `transformer`, or of a model of a package of your own."""
    adapter: LoraConfig | None = Field(default=None, exclude_if=_is_none)
    """Small matrices that are trained in place of the backbone: `{ kind = "lora", rank = 4 }`; None: no such."""
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

    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    """The optimiser; its memory is empty at the start of each round. `adamw` is Adam with decoupled weight decay."""
    learning_rate: float = Field(default=0.05, gt=0)
    """Step size of a site's training."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of `sgd`; `adam` and `adamw` ignore it."""
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
    clip_gradient: float | None = Field(default=None, gt=0, exclude_if=_is_none)
    """Largest Euclidean norm of a step's gradient, over all weights together; a longer one is shortened to it."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, exclude_if=lambda smoothing: smoothing == 0)
    """The part of every label that all classes share, so that no answer need be certain; 0: none."""
    class_weights: ClassWeights | None = Field(default=None, exclude_if=_is_none)
    """How much rows of each class count in the loss of training: numbers by class, or `balanced` so that at each site
    all classes that it has count the same; None: all rows alike. Models are measured without.
    """
    sampling: Literal["shuffled", "balanced"] = Field(
        default="shuffled", exclude_if=lambda sampling: sampling == "shuffled"
    )
    """How batches are drawn: `shuffled` takes every example once in a pass; `balanced` draws each class that a site has
    as often as the others, and examples of it again and again. Batches are as many and as large.
    """
    schedule: ScheduleConfig | None = Field(default=None, exclude_if=_is_none)
    """How the learning rate changes over the rounds; None: not at all."""
    augment: AugmentConfig | None = Field(default=None, exclude_if=_is_none)
    """Random changes of training pictures; None: none. Features of a frozen backbone are then not kept, so that every
    batch passes through the backbone.
    """

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
    """Where a row's patient is named, so that a patient's rows stay together: a table's column; an array's name; for
    image files `folder`, a pattern such as `^(P[0-9]+)_`, or `dicom:PatientID`, which is read from each file's header.
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
