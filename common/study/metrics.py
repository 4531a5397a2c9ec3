"""Metrics that a study may name in addition to loss and accuracy: what each is of, and which way is better."""

from collections.abc import Iterable, Mapping
from typing import ClassVar

from consilium.common.errors import ConfigError
from consilium.common.study.parts import check_not_shadowed, no_such_kind, own_settings
from consilium.common.study.record import Record
from consilium.common.study.task_base import LabelKind


class MetricSettings(Record):
    """Base of every metric's facts; a metric has no settings to choose."""

    of: ClassVar[LabelKind] = "classes"
    """The labels that it is defined for."""
    of_several: ClassVar[bool] = False
    """Whether it is measured of several labels too: of each over the examples that know it, and the mean of these."""
    smaller_is_better: ClassVar[bool] = False
    """Whether a perfect model has the least value."""


class Auroc(MetricSettings):
    """Area under the ROC curve; of several classes the mean of each against the rest, of those that occur."""

    of_several: ClassVar[bool] = True


class AveragePrecision(MetricSettings):
    """Mean precision over the recall; of several classes the mean of each against the rest, of those that occur."""

    of_several: ClassVar[bool] = True


class F1(MetricSettings):
    """Harmonic mean of precision and recall, of the second of two classes; of several classes the mean over them."""


class BalancedAccuracy(MetricSettings):
    """Mean over the classes of the share of their examples that is answered correctly."""


class Brier(MetricSettings):
    """Mean squared difference of probabilities and what came true, summed over the classes: of two classes halved."""

    of_several: ClassVar[bool] = True
    smaller_is_better: ClassVar[bool] = True


class Mae(MetricSettings):
    """Mean absolute error, in the label's units."""

    of: ClassVar[LabelKind] = "numbers"
    smaller_is_better: ClassVar[bool] = True


class Rmse(MetricSettings):
    """Square root of the mean squared error, in the label's units."""

    of: ClassVar[LabelKind] = "numbers"
    smaller_is_better: ClassVar[bool] = True


class R2(MetricSettings):
    """Part of the labels' variance that the answers explain; 0 is the constant answer, 1 a perfect model."""

    of: ClassVar[LabelKind] = "numbers"


METRICS: Mapping[str, type[MetricSettings]] = {
    "auroc": Auroc,
    "average_precision": AveragePrecision,
    "f1": F1,
    "balanced_accuracy": BalancedAccuracy,
    "brier": Brier,
    "mae": Mae,
    "rmse": Rmse,
    "r2": R2,
}
"""Built-in metrics by name."""


def facts_of(name: str) -> type[MetricSettings]:
    """Return the facts of a metric, built in or of a package of one's own.

    Raises:
        ConfigError: there is no such metric, or its package may not be used.
    """
    if name in METRICS:
        check_not_shadowed("metrics", name)
        return METRICS[name]
    facts = own_settings("metrics", name, MetricSettings)
    if facts is None:
        raise ConfigError(no_such_kind("metrics", name, METRICS, what="metric"))
    assert issubclass(facts, MetricSettings)  # own_settings has checked it
    return facts


def known_metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return `metrics` of a study; refuse names that nobody offers, and repeated ones."""
    if len(set(names)) < len(names):
        raise ValueError(f"metrics must differ from each other, got {list(names)}")
    try:
        for name in names:
            facts_of(name)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return names


def unfit(names: Iterable[str], *, labels: LabelKind) -> str | None:
    """Return the sentence on a metric that this task's labels have none of; None where all fit."""
    for name in names:
        if not _fits(facts_of(name), labels):
            fitting = ", ".join(one for one, facts in METRICS.items() if _fits(facts, labels))
            told = f"of these there are {fitting}" if fitting else f"of these the {_ALWAYS[labels]} is measured anyway"
            return f"metrics: '{name}' is not defined where the labels are {labels}; {told}"
    return None


_ALWAYS: Mapping[LabelKind, str] = {"times until an event": "concordance index", "masks": "mean Dice"}
"""What is measured in every study, of labels that no other metric is of."""


def _fits(facts: type[MetricSettings], labels: LabelKind) -> bool:
    return facts.of == labels or (facts.of_several and labels == "several labels")
