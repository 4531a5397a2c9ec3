"""What `model.json` says: how a model is built, how inputs are prepared, where it comes from, how good it was."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from consilium.common.protocol.plans import RunName
from consilium.common.study.methods import MethodConfig
from consilium.common.study.names import ClassName, ColumnName, PlainName, Sha256, SiteName, clean_text
from consilium.common.study.record import Record
from consilium.common.study.scale import Finite, Positive, Scale
from consilium.common.study.task import CategoryColumn, SeriesTask, TableTask, Task
from consilium.common.study.training import ModelConfig

Served = Literal["personal", "global", "local", "adapted"]
"""What the arrays are: the site's own model, the federation's, the one that the site trained alone, or the federation's
adapted at a site that never took part."""


PlainText = Annotated[str, Field(max_length=300), AfterValidator(clean_text)]
"""Text of whoever wrote a folder, which terminals show."""


class Preprocessing(Record):
    """What becomes of inputs before the model sees them: missing features filled, then `(x - mean) / std`."""

    mean: tuple[Finite, ...] | None = None
    """Of every feature of a table, in their order, or of every channel; None: inputs stay as they are read."""
    std: tuple[Positive, ...] | None = None
    """The divisors after that."""
    fill: tuple[Finite | None, ...] | None = None
    """What a missing feature becomes; None where nothing is known to fill it with."""
    known: bool = True
    """False where inputs must be scaled, but each site did so by its own rows and no scale is known."""

    @classmethod
    def of_scale(cls, task: Task, scale: Scale | None) -> "Preprocessing":
        """Return what is known of a study without a site's data: the scale of all sites, or the study's own."""
        if isinstance(task, SeriesTask):
            return cls._of_series(task, scale)
        if scale is None:
            return cls(known=not task.scaled_columns or (not isinstance(task, TableTask) and task.scale is None))
        mean, std = scale.mean, scale.std
        if not isinstance(task, TableTask):
            return cls(mean=mean, std=std)
        numbers, widened, fill = iter(zip(mean, std, strict=True)), list[tuple[float, float]](), list[float | None]()
        for column in task.columns.values():
            if isinstance(column, CategoryColumn):
                widened += [(0.0, 1.0)] * (len(column.values) - 1)
                fill += [None] * (len(column.values) - 1)
            else:
                widened.append(next(numbers))
                fill.append(widened[-1][0])
        return cls(
            mean=tuple(one for one, _ in widened),
            std=tuple(one for _, one in widened),
            fill=tuple(fill) if task.missing == "impute" else None,
        )

    @classmethod
    def _of_series(cls, task: SeriesTask, scale: Scale | None) -> "Preprocessing":
        """Return what is known of series, of which the steps that short ones lack become 0 after scaling."""
        zeros = scale.mean if scale is not None else (0.0,) * len(task.channels)
        fill = zeros if task.short == "pad" else None
        if scale is None:
            return cls(fill=fill if task.scale is None else None, known=task.scale is None)
        return cls(mean=scale.mean, std=scale.std, fill=fill)

    def scale_of(self, task: Task) -> Scale | None:
        """Return the scale of the number columns or channels, in the task's order; None where there is none."""
        if self.mean is None or self.std is None or not isinstance(task, TableTask):
            return None if self.mean is None or self.std is None else Scale(mean=self.mean, std=self.std)
        places, start = list[int](), 0
        for column in task.columns.values():
            if isinstance(column, CategoryColumn):
                start += len(column.values) - 1
            else:
                places.append(start)
                start += 1
        return Scale(mean=tuple(self.mean[at] for at in places), std=tuple(self.std[at] for at in places))


class Score(Record):
    """A measurement of the model, with its 95 % interval."""

    name: PlainText
    """`accuracy`, `share within 5 of the true 'age'`, or `mean absolute error`."""
    rows: Literal["test", "validation"] = "test"
    """Which rows of the site it was measured on."""
    num: Annotated[int, Field(ge=1)]
    """How many rows."""
    patients: Annotated[int, Field(ge=1)]
    """Of how many patients."""
    value: Finite
    """The measurement."""
    low: Finite | None = None
    """Lower bound of the interval; None where there are too few patients for one."""
    high: Finite | None = None
    """Upper bound of the interval."""


class Temperature(Record):
    """Temperature scaling: logits are divided by `temperature` (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""

    kind: Literal["temperature"] = "temperature"
    temperature: Annotated[float, Field(ge=0.01, le=100)]
    """Above 1: the model was too sure."""
    num: Annotated[int, Field(ge=2)]
    """On how many validation rows it was fitted."""
    log_loss: tuple[Finite, Finite]
    """Before and after, of rows that it was not fitted on (cross-fitted)."""
    calibration_error: tuple[Finite, Finite]
    """Expected calibration error before and after, likewise."""


class LabelTemperatures(Record):
    """Temperature scaling of several labels, each by the rows that know it."""

    kind: Literal["temperatures"] = "temperatures"
    labels: dict[ColumnName, Temperature] = Field(min_length=1)
    """The temperature by which a label's logits are divided; those of other labels stay as they are."""

    def divisors(self, names: tuple[str, ...]) -> tuple[float, ...]:
        """Return by what the logits of each label are divided."""
        return tuple(self.labels[name].temperature if name in self.labels else 1.0 for name in names)


class Residuals(Record):
    """A prediction interval for a number: value - width to value + width (split conformal prediction)."""

    kind: Literal["residuals"] = "residuals"
    level: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of new patients, like those of the validation rows, whose true value lies inside."""
    width: Annotated[Finite, Field(ge=0)]
    """Half the interval, in the label's units."""
    num: Annotated[int, Field(ge=2)]
    """From how many validation rows."""


Calibration = Annotated[Temperature | LabelTemperatures | Residuals, Field(discriminator="kind")]


class Provenance(Record):
    """Where a model comes from."""

    study: SiteName
    """The study's name."""
    study_digest: Sha256
    """Of the study as the site, or the server, had it."""
    seed: int
    """The study's."""
    run: RunName
    """The run's name."""
    round: Annotated[int, Field(ge=0)]
    """The round that the weights are of."""
    served: Served
    """What the arrays are."""
    site: SiteName | None = None
    """The site that wrote the folder; None: the coordinator."""
    num_sites: Annotated[int, Field(ge=1)]
    """How many sites took part in the study."""
    data_digest: Sha256 | None = None
    """Of the site's examples in their splits."""
    num_train: Annotated[int, Field(ge=0)] | None = None
    """The site's training rows; None at the coordinator."""
    created: PlainText
    """When the folder was written, in UTC."""
    consilium: PlainText
    """The version that wrote it."""


class ModelRecord(Record):
    """The content of `model.json`: enough to use the model without the study.

    Args:
        complete: whether every array is in the folder; else the backbone is built from the study's seed or its
            pretrained file, as the sites built it, and the arrays are put over it.
    """

    format: Literal[1] = 1
    task: Task
    model: ModelConfig
    method: MethodConfig
    complete: bool
    preprocessing: Preprocessing
    provenance: Provenance
    scores: tuple[Score, ...] = ()
    calibration: Calibration | None = None
    files: dict[PlainName, Sha256] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> "ModelRecord":
        expected = self.task.input_shape[-1 if isinstance(self.task, SeriesTask) else 0]
        of_parts = (self.preprocessing.mean, self.preprocessing.std, self.preprocessing.fill)
        if wrong := [len(part) for part in of_parts if part is not None and len(part) != expected]:
            raise ValueError(f"preprocessing is of {wrong[0]} features, the task has {expected}")
        if (self.preprocessing.mean is None) != (self.preprocessing.std is None):
            raise ValueError("preprocessing needs both mean and std, or none of the two")
        if self.calibration is not None and self.calibration.kind != self._calibrated_by:
            raise ValueError(f"the calibration '{self.calibration.kind}' is of another kind of answer than the task's")
        if isinstance(self.calibration, LabelTemperatures) and not self.calibration.labels.keys() <= {
            *self.task.label_names
        }:
            raise ValueError("the calibration has labels that the task has not")
        return self

    @property
    def _calibrated_by(self) -> str:
        """The kind of calibration that fits the task's answers."""
        if self.task.label_names:
            return "temperatures"
        return "temperature" if self.task.number is None else "residuals"

    @property
    def classes(self) -> tuple[ClassName, ...]:
        """The class names; empty where the model answers a number."""
        return self.task.classes
