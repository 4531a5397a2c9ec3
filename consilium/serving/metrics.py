"""All metrics of a model's answers where the truth is known, with 95 % intervals, and those of the constant answer.

Means over rows (accuracy, sensitivity, Brier score, ...) have the intervals of `consilium.common.intervals`; others
(AUROC, F1, ...) those of patients drawn anew. Numbers are scikit-learn's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from torch import Tensor

from consilium.client.data.mask_target import MaskTarget
from consilium.client.served.load import Answers
from consilium.common.intervals.evidence import Evidence
from consilium.common.intervals.interval import within
from consilium.common.intervals.means import Kind, interval_of
from consilium.common.protocol.patients import LEAST_PATIENTS
from consilium.common.study.task import Regression
from consilium.common.weights.arrays import Array
from consilium.comparison.evaluation import ClassScores, Scores
from consilium.comparison.evidence import evidence_of
from consilium.comparison.label_scores import PER_LABEL, LabelScores
from consilium.comparison.mask_scores import MaskScores
from consilium.comparison.number_scores import NumberScores
from consilium.comparison.time_scores import BRIER, TimeScores
from consilium.serving.metric import SHARES, UNIT, Metric
from consilium.serving.trained import Trained

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

_OF_CLASSES = ("accuracy", "balanced_accuracy", "auroc", "auprc", "f1")
_OF_PROBABILITIES = ("brier", "calibration_error")
_OF_NUMBERS = ("within_tolerance", "mae", "rmse", "median_error", "r2")
_SMALLEST = 1e-15
"""A probability of 0 for the true class counts as this much in the log loss."""


@dataclass(frozen=True, eq=False)
class Truth:
    """Answers, and what is true.

    Args:
        scores: of the answers.
        constant: of the constant answer: the most frequent class of these rows, or of each pixel; the mean of their
            numbers, the shares of several labels, or the same risk for all.
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
        cls,
        y: Array,
        logits: Array,
        *,
        groups: Labels | None = None,
        training: Trained | None = None,
        horizon: float | None = None,
    ) -> "Truth":
        """Return the model's log risks `(N, 1)` with the times `(N,)`, and what is known of its training patients."""
        labels, hazard = (None, None) if training is None else (training.labels, training.hazard)
        scores = TimeScores(y, logits[:, 0].astype(np.float64), labels, horizon, hazard)
        return cls(scores, TimeScores.of_same_risk(y, labels, horizon), groups)

    @classmethod
    def of_labels(cls, y: Array, logits: Array, names: Sequence[str], *, groups: Labels | None = None) -> "Truth":
        """Return the model's logits `(N, L)` with the labels `(N, L)`."""
        known = (~np.isnan(y)).sum(axis=0)
        shares = np.where(known > 0, np.nansum(y, axis=0) / np.maximum(known, 1), 0.5)
        constant = np.broadcast_to(logit(np.clip(shares, _SMALLEST, 1 - _SMALLEST)), y.shape)
        own, other = (LabelScores(y, of.astype(np.float64), tuple(names)) for of in (logits, constant))
        return cls(own, other, groups)

    @classmethod
    def of_masks(cls, y: Tensor, masks: Tensor, names: Sequence[str], *, groups: Labels | None = None) -> "Truth":
        """Return the model's masks `(N, H, W)` with the true ones `(N, H, W)`; `names` of all classes."""
        target = MaskTarget(len(names))
        there = target.kept_labels(y).numpy()
        own, other = (
            MaskScores.of(there, target.kept_outputs(said, y).numpy(), tuple(names))
            for said in (masks, target.constant_outputs(y, len(y)))
        )
        return cls(own, other, groups, classes=tuple(names))

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
        return [*map(self._named, self.scores.measured), *self._per_label(), *self._per_mask()]

    def _per_mask(self) -> Iterator[Metric]:
        """Yield how well the masks of each class but the background fit."""
        if isinstance(self.scores, MaskScores):
            for of in self.classes[1:]:
                yield from (self._named(name, of=of) for name in self.scores.METRICS)

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

    def _named(self, name: str, constant: float | None = None, of: str = "") -> Metric:
        """Return one of the metrics that `Scores` can measure, of a class of masks where one is named."""
        measure = f"{name}.{of}" if of else name
        if constant is None and name != "calibration_error":
            constant = self.constant.measure(measure)
        evidence = evidence_of([self.scores], measure, groups=self.groups, seed=0, who="evaluation")
        if evidence is None:
            return Metric(name, None, constant, of, note=self._undefined(name))
        return self._with_interval(name, evidence, constant, of)

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
        elif found.bounds is None and self._few_events(name):
            note = f"fewer than {LEAST_PATIENTS} patients had the event: no interval"
        elif found.bounds is None:
            note = "no interval: these rows show no spread"
        return Metric(name, found, constant, of, note)

    def _few_events(self, name: str) -> bool:
        return isinstance(self.scores, TimeScores) and self.scores.carriers(name, self.groups) < LEAST_PATIENTS

    def _undefined(self, name: str) -> str:
        if name == "r2":
            return "all labels are the same"
        if name == "c_index":
            return "no two patients can be compared"
        if name in ("uno_c", BRIER):
            if isinstance(self.scores, TimeScores) and self.scores.training is not None:
                late = "an event came when no training patient was seen any more"
                return late if name == "uno_c" else "too few training patients were seen until the study's horizon"
            return "the training patients' times are not known here: --test-rows knows them"
        if isinstance(self.scores, MaskScores):
            return "in no mask, neither true nor answered"
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
