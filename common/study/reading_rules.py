"""Rules on settings that a study's model, method or task would not read: each returns the sentence, or None."""

from typing import Protocol

from consilium.common.study.methods import MethodConfig
from consilium.common.study.metrics import unfit
from consilium.common.study.models import SERIES_NAMES
from consilium.common.study.task import Task
from consilium.common.study.training import ModelConfig, SplitConfig

WITH_HIDDEN = ("mlp", "mlp_bn")
"""Models that read `model.hidden`."""


class Settings(Protocol):
    """The part of a study that these rules read."""

    @property
    def task(self) -> Task:
        """What is predicted."""
        ...

    @property
    def model(self) -> ModelConfig:
        """Which model."""
        ...

    @property
    def split(self) -> SplitConfig:
        """How each site divides its rows."""
        ...

    @property
    def method(self) -> MethodConfig:
        """What sites share, train and serve."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics in addition to loss and accuracy."""
        ...


def hidden_layers_are_read(study: Settings) -> str | None:
    """`model.hidden` is for models with hidden layers to choose."""
    if study.model.hidden is None or study.model.name in WITH_HIDDEN:
        return None
    return (
        f"model.hidden: model '{study.model.name}' has no hidden layers to choose: leave it out, or choose "
        f"{' or '.join(repr(name) for name in WITH_HIDDEN)}"
    )


def head_layers_are_read(study: Settings) -> str | None:
    """`model.head` is for models and methods whose head may have several layers."""
    if study.model.head is None:
        return None
    if study.model.name == "linear":
        return "model.head: model 'linear' has no features before its head: leave it out, or choose 'mlp'"
    if (why := study.method.linear_head) is not None:
        return f"model.head: method '{study.method.kind}' {why}, which takes a head of one linear layer: leave it out"
    return None


def series_models_are_of_series(study: Settings) -> str | None:
    """A model that goes along time reads series `(T, C)`; those of libraries read pictures, channels first."""
    if study.task.kind == "series" and "/" in study.model.name:
        known = ", ".join(f"'{one}'" for one in SERIES_NAMES)
        return f"model.name: model '{study.model.name}' reads no series: choose {known}, or a model of your own"
    if study.model.name not in SERIES_NAMES or len(study.task.input_shape) == 2:
        return None
    return (
        f"model.name: model '{study.model.name}' reads series, but task.kind is '{study.task.kind}' with examples of "
        f"shape {list(study.task.input_shape)}: choose another model"
    )


def metrics_fit(study: Settings) -> str | None:
    """A metric is of classes, of numbers or of times, as the task's labels are."""
    return unfit(study.metrics, labels=study.task.label_kind)


def has_validation(split: SplitConfig) -> bool:
    """Return whether sites have validation examples, drawn or named."""
    return split.validation > 0 or split.parts is not None


def metrics_can_be_measured(study: Settings) -> str | None:
    """Metrics need validation examples."""
    if not study.metrics or has_validation(study.split):
        return None
    return "metrics are measured on validation examples, but split.validation is 0"
