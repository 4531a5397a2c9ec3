"""What a model's answers on a test split are worth: scikit-learn's numbers, with class support.

A number that a split does not define (one class only, say) is None, never a stand-in.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics
from sklearn.calibration import calibration_curve

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

CALIBRATION_BINS = 15
METRICS = (
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "auprc",
    "sensitivity",
    "specificity",
    "f1",
    "brier",
    "calibration_error",
)
"""Of each, larger is better, but for the last two."""
SMALLER_IS_BETTER = frozenset({"brier", "calibration_error"})


@dataclass(frozen=True)
class Scores:
    """A model's answers on one test split.

    Args:
        y: the classes `(N,)`, 0 to C - 1.
        probabilities: `(N, C)`, rows add up to 1.
    """

    y: Labels
    probabilities: Floats

    @classmethod
    def of_logits(cls, y: NDArray[np.integer], logits: NDArray[np.floating]) -> "Scores":
        """Return the scores of logits `(N, C)`, or `(N, 1)` for two classes."""
        wide = logits.astype(np.float64)
        if wide.shape[1] == 1:  # one logit is the second class's, beside a 0 for the first
            wide = np.concatenate([np.zeros_like(wide), wide], axis=1)
        shifted = np.exp(wide - wide.max(axis=1, keepdims=True))
        return cls(y.astype(np.int64), shifted / shifted.sum(axis=1, keepdims=True))

    @classmethod
    def of_majority(cls, y: NDArray[np.integer], majority: int, num_classes: int) -> "Scores":
        """Return the scores of a model that always answers one class."""
        return cls(y.astype(np.int64), np.tile(np.eye(num_classes)[majority], (len(y), 1)))

    @property
    def predicted(self) -> Labels:
        """Return the most probable class of each example `(N,)`; of equals, the first."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @property
    def support(self) -> list[int]:
        """Return how many test examples each class has."""
        return [int(count) for count in np.bincount(self.y, minlength=self.probabilities.shape[1])]

    def taken(self, rows: Labels) -> "Scores":
        """Return the scores of some rows; a row may be there twice."""
        return Scores(self.y[rows], self.probabilities[rows])


def measure(scores: Scores, name: str) -> float | None:
    """Return one of `METRICS`, in [0, 1]; None where this split does not define it.

    With two classes the second is the positive one, for sensitivity, specificity, F1, AUROC and AUPRC. With more,
    these are means over the classes, one against the rest (macro). Balanced accuracy is the mean over the classes that
    occur. Brier is the mean squared error of the probabilities, over all classes, halved (so in [0, 1]; Brier 1950).
    """
    classes = list(range(scores.probabilities.shape[1]))
    binary, y, predicted = len(classes) == 2, scores.y, scores.predicted
    present = len(set(y.tolist()))
    match name:
        case "accuracy":
            return float(metrics.accuracy_score(y, predicted))
        case "balanced_accuracy":
            with warnings.catch_warnings():  # a predicted class that the split does not have
                warnings.simplefilter("ignore", UserWarning)
                return float(metrics.balanced_accuracy_score(y, predicted)) if present > 1 else None
        case "auroc" if binary:
            return float(metrics.roc_auc_score(y, scores.probabilities[:, 1])) if present == 2 else None
        case "auroc":
            if present < len(classes):
                return None
            return float(metrics.roc_auc_score(y, scores.probabilities, multi_class="ovr", labels=classes))
        case "auprc" if binary:
            return float(metrics.average_precision_score(y, scores.probabilities[:, 1])) if present == 2 else None
        case "auprc":
            if present < len(classes):
                return None
            return float(metrics.average_precision_score(np.eye(len(classes))[y], scores.probabilities))
        case "sensitivity" if binary:
            return float(metrics.recall_score(y, predicted)) if 1 in y else None
        case "sensitivity":
            if present < len(classes):
                return None
            return float(metrics.recall_score(y, predicted, average="macro", labels=classes))
        case "specificity":
            return _specificity(y, predicted, [1] if binary else classes)
        case "f1":
            if present < len(classes):
                return None
            average, labels = ("binary", None) if binary else ("macro", classes)
            return float(metrics.f1_score(y, predicted, average=average, labels=labels, zero_division=0))
        case "brier":
            return float(metrics.brier_score_loss(y, scores.probabilities, labels=classes, scale_by_half=True))
        case "calibration_error":
            return _calibration_error(predicted == y, scores.probabilities.max(axis=1))
    raise ValueError(f"no metric '{name}', expected one of {', '.join(METRICS)}")


def _specificity(y: Labels, predicted: Labels, positives: list[int]) -> float | None:
    """Return the recall of "not this class", as a mean over the classes; None where one has no such example."""
    found = []
    for positive in positives:
        if (y != positive).sum() == 0:
            return None
        found.append(float(metrics.recall_score(y != positive, predicted != positive)))
    return float(np.mean(found))


def _calibration_error(right: NDArray[np.bool_], confidence: Floats) -> float:
    """Return the gap between confidence and accuracy, as a mean over equal bins (ECE, Guo 2017, arXiv:1706.04599)."""
    accuracy, mean = calibration_curve(right, confidence, n_bins=CALIBRATION_BINS)
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    count = np.bincount(np.searchsorted(edges[1:-1], confidence))  # the bins of calibration_curve
    return float((np.abs(accuracy - mean) * count[count > 0]).sum() / len(right))


def measure_all(scores: Scores) -> Mapping[str, float | None]:
    """Return every metric."""
    return {name: measure(scores, name) for name in METRICS}
