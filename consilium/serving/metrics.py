"""All metrics of a model's answers where the truth is known, with 95 % intervals, and those of the constant answer.

Means over rows (accuracy, sensitivity, Brier score, ...) have the intervals of `consilium.common.intervals`; others
(AUROC, F1, ...) those of patients drawn anew. Numbers are scikit-learn's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from consilium.client.served.load import Answers
from consilium.common.intervals.evidence import Evidence
from consilium.common.intervals.interval import Interval, within
from consilium.common.intervals.means import Kind, interval_of
from consilium.common.protocol.patients import LEAST_PATIENTS
from consilium.common.study.task import Regression
from consilium.common.weights.arrays import Array
from consilium.comparison.evaluation import ClassScores, NumberScores, Scores
from consilium.comparison.evidence import evidence_of
from consilium.comparison.label_scores import PER_LABEL, LabelScores
from consilium.comparison.time_scores import TimeScores

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

SHARES = frozenset({"accuracy", "sensitivity", "specificity", "within_tolerance", "coverage"})
"""Metrics that are shares of rows."""
UNIT = SHARES | {"balanced_accuracy", "auroc", "auprc", "f1", "brier", "calibration_error", "c_index", "uno_c"}
"""Metrics between 0 and 1."""
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "calibration_error", "mae", "rmse", "median_error"})

_TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "auroc": "AUROC",
    "auprc": "average precision",
    "f1": "F1",
    "log_loss": "log loss",
    "brier": "Brier score",
    "calibration_error": "expected calibration error",
    "within_tolerance": "share within the tolerance",
    "coverage": "share inside the interval",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "median_error": "median absolute error",
    "r2": "R2",
    "c_index": "concordance index",
    "uno_c": "Uno's concordance index",
}
_OF_CLASSES = ("accuracy", "balanced_accuracy", "auroc", "auprc", "f1")
_OF_PROBABILITIES = ("brier", "calibration_error")
_OF_NUMBERS = ("within_tolerance", "mae", "rmse", "median_error", "r2")
_SMALLEST = 1e-15
"""A probability of 0 for the true class counts as this much in the log loss."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: as programs call it.
        interval: the value with its bounds; None where these rows do not define it.
        constant: the same of the constant answer; None where it has none.
        of: the class that it is about; "" for none.
        note: why there is no value or no interval; "" where there is.
    """

    name: str
    interval: Interval | None
    constant: float | None = None
    of: str = ""
    note: str = ""

    @property
    def title(self) -> str:
        """Return its name for people."""
        return f"{_TITLES[self.name]} of '{self.of}'" if self.of else _TITLES[self.name]

    @property
    def lower_is_better(self) -> bool:
        """Return whether a smaller value is the better one."""
        return self.name in LOWER_IS_BETTER

    def as_json(self) -> dict[str, Any]:
        """Return the metric as JSON; what is not defined is null."""
        value, bounds = (None, None) if self.interval is None else (self.interval.value, self.interval.bounds)
        low, high = bounds or (None, None)
        names = {"name": self.name, **({"class": self.of} if self.of else {})}
        return {**names, "value": value, "low": low, "high": high, "constant": self.constant, "note": self.note or None}


@dataclass(frozen=True, eq=False)
class Truth:
    """Answers, and what is true.

    Args:
        scores: of the answers.
        constant: of the constant answer: the most frequent class of these rows, the mean of their numbers, the shares
            of several labels, or the same risk for all.
        groups: the patient of each row `(N,)`; None: every row is one.
        width: half of the interval around a number; None without calibration.
        classes: their names; empty for numbers.
    """

    scores: Scores
    constant: Scores
    groups: Labels | None = None
    width: float | None = None
    classes: tuple[str, ...] = field(default=())

    @classmethod
    def of_classes(
        cls, y: Labels, answers: Answers, classes: Sequence[str], *, groups: Labels | None = None
    ) -> "Truth":
        """Return the answers with the true classes `(N,)`, at least one."""
        if answers.probabilities is None:
            raise ValueError("the model answers numbers")
        counts = np.bincount(y, minlength=len(classes))
        constant = ClassScores.of_majority(y, int(counts.argmax()), len(classes))
        return cls(ClassScores(y, answers.probabilities.numpy()), constant, groups, classes=tuple(classes))

    @classmethod
    def of_numbers(
        cls, y: Array, logits: Array, number: Regression, *, groups: Labels | None = None, width: float | None = None
    ) -> "Truth":
        """Return the model's outputs with the labels `(N,)`, both still `(number - center) / scale`."""
        scores = NumberScores.of_outputs(y, logits, number)
        constant = NumberScores.of_outputs(y, np.full_like(y, y.astype(np.float64).mean()), number)
        return cls(scores, constant, groups, width)

    @classmethod
    def of_times(
        cls, y: Array, logits: Array, *, groups: Labels | None = None, training: Array | None = None
    ) -> "Truth":
        """Return the model's log risks `(N, 1)` with the times `(N,)`, and those of its training patients, if known."""
        risks = logits[:, 0].astype(np.float64)
        return cls(TimeScores(y, risks, training), TimeScores(y, np.zeros_like(risks), training), groups)

    @classmethod
    def of_labels(cls, y: Array, logits: Array, names: Sequence[str], *, groups: Labels | None = None) -> "Truth":
        """Return the model's logits `(N, L)` with the labels `(N, L)`."""
        known = (~np.isnan(y)).sum(axis=0)
        shares = np.where(known > 0, np.nansum(y, axis=0) / np.maximum(known, 1), 0.5)
        constant = np.broadcast_to(logit(np.clip(shares, _SMALLEST, 1 - _SMALLEST)), y.shape)
        own, other = (LabelScores(y, of.astype(np.float64), tuple(names)) for of in (logits, constant))
        return cls(own, other, groups)

    @property
    def patients(self) -> int:
        """Return how many patients the rows are of."""
        return len(self.scores) if self.groups is None else len(np.unique(self.groups))

    def metrics(self) -> list[Metric]:
        """Return every metric, those that people ask for first at the beginning."""
        if isinstance(self.scores, NumberScores):
            return list(self._of_numbers(self.scores))
        if isinstance(self.scores, ClassScores):
            return list(self._of_classes(self.scores))
        return [*map(self._named, self.scores.METRICS), *self._per_label()]

    def _per_label(self) -> Iterator[Metric]:
        """Yield how well each of several labels is ranked, over the rows that know it."""
        if not isinstance(self.scores, LabelScores) or not isinstance(self.constant, LabelScores):
            return
        for place, name in enumerate(self.scores.names):
            alone = replace(self, scores=self.scores.only(place), constant=self.constant.only(place))
            for metric in PER_LABEL:
                yield replace(alone._named(metric), of=name)

    def _of_numbers(self, scores: NumberScores) -> Iterator[Metric]:
        for name in _OF_NUMBERS:
            yield self._named(name)
            if name == "within_tolerance" and self.width is not None:
                inside = np.abs(scores.y - scores.predicted) <= self.width
                yield self._mean("coverage", inside.astype(np.float64))

    def _of_classes(self, scores: ClassScores) -> Iterator[Metric]:
        yield from map(self._named, _OF_CLASSES)
        yield from self._per_class(scores)
        shares = np.bincount(scores.y, minlength=len(self.classes)) / len(scores)
        yield self._mean("log_loss", _log_losses(scores.y, scores.probabilities), constant=_entropy(shares))
        for name in _OF_PROBABILITIES:
            constant = None
            if name == "brier":
                constant = ClassScores(scores.y, np.tile(shares, (len(scores), 1))).measure(name)
            yield self._named(name, constant=constant)

    def _per_class(self, scores: ClassScores) -> Iterator[Metric]:
        """Yield how many of a class were found, and how many of the others were not taken for it.

        Of two classes only the second has these: those of the first are the same two, exchanged.
        """
        said, most = scores.predicted, int(np.bincount(scores.y).argmax())
        for place in range(len(self.classes)) if len(self.classes) > 2 else [1]:
            name, of_class = self.classes[place], scores.y == place
            yield self._mean(
                "sensitivity", (said == place).astype(np.float64), of_class, of=name, constant=float(most == place)
            )
            yield self._mean(
                "specificity", (said != place).astype(np.float64), ~of_class, of=name, constant=float(most != place)
            )

    def _named(self, name: str, constant: float | None = None) -> Metric:
        """Return one of the metrics that `Scores` can measure."""
        if constant is None and name != "calibration_error":
            constant = self.constant.measure(name)
        evidence = evidence_of([self.scores], name, groups=self.groups, seed=0, who="evaluation")
        if evidence is None:
            return Metric(name, None, constant, note=self._undefined(name))
        return self._with_interval(name, evidence, constant)

    def _mean(
        self,
        name: str,
        adds: Floats,
        chosen: NDArray[np.bool_] | None = None,
        *,
        of: str = "",
        constant: float | None = None,
    ) -> Metric:
        """Return a metric that is the mean of what each of the chosen rows adds."""
        rows = np.ones(len(adds), dtype=bool) if chosen is None else chosen
        if not rows.any():
            whose = f"no row is of '{of}'" if name == "sensitivity" else f"every row is of '{of}'"
            return Metric(name, None, constant, of, note=whose)
        groups = None if self.groups is None else self.groups[rows]
        return self._with_interval(name, Evidence.of_rows(adds[rows][None], groups), constant, of)

    def _with_interval(self, name: str, evidence: Evidence, constant: float | None, of: str = "") -> Metric:
        kind: Kind = "share" if name in SHARES else "number"
        found = interval_of(evidence, kind=kind)
        if name in UNIT:
            found = within(found, 0.0, 1.0)
        elif name == "r2":
            found = within(found, -np.inf, 1.0)
        else:
            found = within(found, 0.0, np.inf)
        note = ""
        if found.bounds is None and evidence.effective < LEAST_PATIENTS:
            note = f"fewer than {LEAST_PATIENTS} patients: no interval"
        elif found.bounds is None:
            note = "no interval: these rows show no spread"
        return Metric(name, found, constant, of, note)

    def _undefined(self, name: str) -> str:
        if name == "r2":
            return "all labels are the same"
        if name == "c_index":
            return "no two patients can be compared"
        if name == "uno_c":
            if isinstance(self.scores, TimeScores) and self.scores.training is not None:
                return "an event came when no training patient was seen any more"
            return "the training patients' times are not known here: --test-rows knows them"
        if isinstance(self.scores, LabelScores):
            return "no row has it, or every row has it, of those that know it"
        missing = [of for of, count in zip(self.classes, self.scores.support, strict=True) if not count]
        if len(self.classes) - len(missing) == 1:
            (only,) = set(self.classes) - set(missing)
            return f"every row is of class '{only}'"
        return f"no row is of class '{missing[0]}'" if missing else "not defined for these rows"


def _log_losses(y: Labels, probabilities: Floats) -> Floats:
    return -np.log(np.maximum(probabilities[np.arange(len(y)), y], _SMALLEST))


def _entropy(shares: Floats) -> float:
    known = shares[shares > 0]
    return float(-(known * np.log(known)).sum()) + 0.0
