"""Metrics in addition to loss and accuracy: of probabilities of classes, or of numbers in the label's units."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from consilium.common.errors import ConfigError, clean
from consilium.common.study.parts import implementation_of
from consilium.common.study.task import Regression

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Metric = Callable[[npt.NDArray[Any], Floats], float]
"""`metric(y, answers)`: of classes `y` `(N,)` int64 and probabilities `(N, C)`, C >= 2; of numbers `(N,)` and `(N,)`,
both in the label's units. NaN where it is not defined for these examples; such a value is left out."""


def auroc(y: npt.NDArray[Any], answers: Floats) -> float:
    """Return the area under the ROC curve; NaN where all examples are of one class."""
    from sklearn.metrics import roc_auc_score

    return _mean_over_classes(y, answers, lambda truth, part: float(roc_auc_score(truth, part)))


def average_precision(y: npt.NDArray[Any], answers: Floats) -> float:
    """Return the mean precision over the recall; NaN where all examples are of one class."""
    from sklearn.metrics import average_precision_score

    return _mean_over_classes(y, answers, lambda truth, part: float(average_precision_score(truth, part)))


def _mean_over_classes(y: npt.NDArray[Any], answers: Floats, score: Callable[[Any, Any], float]) -> float:
    """Return the score of the second of two classes, or the mean of each against the rest, of those that occur."""
    classes = [1] if answers.shape[1] == 2 else range(answers.shape[1])
    scores = [score(y == one, answers[:, one]) for one in classes if 0 < (y == one).sum() < len(y)]
    return float(np.mean(scores)) if scores else math.nan


def f1(y: npt.NDArray[Any], answers: Floats) -> float:
    """Return 2 TP / (2 TP + FP + FN) of the second of two classes, or the mean over the classes that occur."""
    given = _chosen(answers)
    classes = [1] if answers.shape[1] == 2 else np.union1d(y, given).tolist()
    scores = []
    for one in classes:
        hits, wrong = int(((y == one) & (given == one)).sum()), int(((y == one) != (given == one)).sum())
        scores.append(2 * hits / (2 * hits + wrong) if hits + wrong else math.nan)
    return float(np.mean(scores))


def balanced_accuracy(y: npt.NDArray[Any], answers: Floats) -> float:
    """Return the mean over the classes that occur of the share of their examples that is answered correctly."""
    given = _chosen(answers)
    return float(np.mean([(given[y == one] == one).mean() for one in np.unique(y)]))


def brier(y: npt.NDArray[Any], answers: Floats) -> float:
    """Return the mean squared difference of the probabilities and what came true; of two classes, of the second."""
    if answers.shape[1] == 2:
        return float(((answers[:, 1] - y) ** 2).mean())
    return float(((answers - np.eye(answers.shape[1])[y]) ** 2).sum(axis=1).mean())


def mae(y: npt.NDArray[Any], answers: Floats) -> float:
    """Return the mean absolute error."""
    return float(np.abs(answers - y).mean())


def rmse(y: npt.NDArray[Any], answers: Floats) -> float:
    """Return the square root of the mean squared error."""
    return float(np.sqrt(((answers - y) ** 2).mean()))


def r2(y: npt.NDArray[Any], answers: Floats) -> float:
    """Return 1 - squared error / squared deviation from the mean; NaN where all labels are equal."""
    spread = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((answers - y) ** 2).sum()) / spread if spread > 0 else math.nan


def _chosen(answers: Floats) -> npt.NDArray[np.int64]:
    """Return the class that is answered; of two equal probabilities the first."""
    return np.asarray(answers.argmax(axis=1), dtype=np.int64)


METRICS: Mapping[str, Metric] = {
    "auroc": auroc,
    "average_precision": average_precision,
    "f1": f1,
    "balanced_accuracy": balanced_accuracy,
    "brier": brier,
    "mae": mae,
    "rmse": rmse,
    "r2": r2,
}
"""Built-in metrics by name."""


def measure(names: Sequence[str], logits: Tensor, y: Tensor, number: Regression | None) -> dict[str, float]:
    """Return the metrics that are defined for these examples; nothing where an answer is not finite.

    Args:
        logits: a model's outputs `(N, outputs)`, N >= 1.
        y: class numbers, or numbers as the model answers them, `(N,)`; of several labels 1, 0 or NaN `(N, outputs)`.
        number: how a label that is a number is answered; None for classes.

    Raises:
        ConfigError: a metric of one's own may not be used, or fails.
    """
    if not names:
        return {}
    outputs, labels = logits.double().cpu(), y.cpu().numpy()
    if not bool(outputs.isfinite().all()):
        return {}  # the loss is not finite either, and is reported as what is wrong
    if labels.ndim == 2:
        chances = outputs.sigmoid().numpy()
        values = {name: _over_labels(name, labels, chances) for name in names}
    elif number is not None:
        answers, truth = map(number.to_label, (outputs[:, 0].numpy(), labels.astype(float)))
        values = {name: _value(name, truth, answers) for name in names}
    else:
        values = {name: _value(name, labels, probabilities(outputs).numpy()) for name in names}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def probabilities(logits: Tensor) -> Tensor:
    """Return the probabilities of the classes `(N, C)`, C >= 2, of logits `(N, outputs)`."""
    if logits.shape[1] > 1:
        return logits.softmax(dim=1)
    return torch.cat([(-logits).sigmoid(), logits.sigmoid()], dim=1)


def _over_labels(name: str, y: npt.NDArray[Any], chances: Floats) -> float:
    """Return the mean of a metric over the labels for which the examples that know them define it."""
    values = []
    for place, known in enumerate(~np.isnan(y.T)):
        if known.any():
            chance = chances[known, place]
            truth = y[known, place].astype(np.int64)
            values.append(_value(name, truth, np.stack([1 - chance, chance], axis=1)))
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def _value(name: str, y: npt.NDArray[Any], answers: Floats) -> float:
    if name in METRICS:
        return METRICS[name](y, answers)
    metric: Metric = implementation_of("metrics", name)
    try:
        return float(metric(y.copy(), answers.copy()))
    except Exception as error:  # whatever the package's own code raises; its text may hold examples' values
        log.exception("metric failed name=%s", name)
        raise ConfigError(
            f"metric '{clean(name, 100)}' ended with {type(error).__name__}: this site's log says more"
        ) from None
