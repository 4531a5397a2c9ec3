"""What an adaptation measured: every start at every stop, and paired comparisons with the federated one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from consilium.adaptation.starts import FEDERATED
from consilium.client.training.evaluation import Evaluation
from consilium.common.protocol.patients import LEAST_PATIENTS
from consilium.comparison.evidence import minus
from consilium.findings import Evidence, Interval, interval_of, verdict
from consilium.findings.decimals import change, counted, number

FEW_STEPS = 20
"""Stops up to this step get a sentence each; all stops are in the table."""
_VERDICTS = {
    "helps": "federated clearly ahead",
    "hurts": "federated clearly behind",
    "unclear": "no clear difference",
}


@dataclass(frozen=True)
class Measurement:
    """One start at one stop, on the site's test examples.

    Args:
        right: how many answers are right; None where answers are neither right nor wrong.
        accuracy: the share of them, or the score that stands for it.
    """

    right: int | None
    accuracy: float
    interval: Interval
    loss: float

    @classmethod
    def of(cls, evaluation: Evaluation, groups: Tensor | None) -> "Measurement":
        """Return an evaluation with the interval of its accuracy; equal counts have equal intervals."""
        interval = interval_of(_evidence(evaluation.right, groups), kind="share")
        return cls(int(evaluation.right.sum()), evaluation.accuracy, interval, evaluation.loss)

    @classmethod
    def of_score(cls, evaluation: Evaluation, evidence: Evidence) -> "Measurement":
        """Return an evaluation with the interval of its score."""
        interval = interval_of(evidence, kind="share")
        return cls(None, interval.value, interval, evaluation.loss)

    def told(self, of: int) -> str:
        """Return how many of so many answers are right, or the score."""
        return number(self.accuracy) if self.right is None else f"{self.right} of {of}"


@dataclass(frozen=True)
class Contrast:
    """The federated start against another at one stop.

    Args:
        difference: federated less the other.
        pairs: on how many examples both are right, only the other, only the federated one, neither; None where
            answers are neither right nor wrong.
    """

    difference: Interval
    pairs: tuple[int, int, int, int] | None = None

    @classmethod
    def of(cls, federated: Tensor, other: Tensor, groups: Tensor | None) -> "Contrast":
        """Return the comparison of two masks `(N,)` of correct predictions."""
        both, ours, theirs = int((federated & other).sum()), int(federated.sum()), int(other.sum())
        difference = interval_of(_evidence(federated.int() - other.int(), groups), kind="difference")
        pairs = (both, theirs - both, ours - both, len(federated) - ours - theirs + both)
        return cls(difference, pairs)

    @classmethod
    def of_scores(cls, federated: Evidence, other: Evidence) -> "Contrast":
        """Return the comparison of two scores, measured in the same draws."""
        return cls(interval_of(minus(federated, other), kind="difference"))

    @property
    def sentence(self) -> str:
        """Return what it says: the verdict, the difference and its interval."""
        kind = verdict(self.difference)
        if kind == "too_few":
            return f"fewer than {LEAST_PATIENTS} test patients: too few to tell"
        return f"{_VERDICTS[kind]}: {change(self.difference)}"


def _evidence(adds: Tensor, groups: Tensor | None) -> Evidence:
    """Return the evidence of what each test example adds `(N,)`, with the patient of each."""
    rows = adds.cpu().numpy().astype(np.float64)
    return Evidence.of_rows(rows[None], None if groups is None else groups.numpy())


@dataclass(frozen=True)
class Measured:
    """What every start was measured at, stop by stop, and the contrasts of the federated one with each other."""

    stops: Sequence[int]
    starts: Mapping[str, Sequence[Measurement]]
    contrasts: Mapping[str, Sequence[Contrast]]

    @classmethod
    def of(
        cls, evaluations: Mapping[str, Sequence[Evaluation]], stops: Sequence[int], *, groups: Tensor | None = None
    ) -> "Measured":
        """Return the counts and intervals of evaluations by start, one per stop.

        Args:
            groups: the patient of each test example `(N,)`; None: each its own.
        """
        federated = [one.right for one in evaluations[FEDERATED]]
        return cls(
            stops=stops,
            starts={name: [Measurement.of(one, groups) for one in row] for name, row in evaluations.items()},
            contrasts={
                name: [Contrast.of(ours, one.right, groups) for ours, one in zip(federated, row, strict=True)]
                for name, row in evaluations.items()
                if name != FEDERATED
            },
        )

    @classmethod
    def of_scores(
        cls,
        evaluations: Mapping[str, Sequence[Evaluation]],
        stops: Sequence[int],
        evidence: Sequence[Mapping[str, Evidence]],
    ) -> "Measured":
        """Return scores and intervals of evaluations by start, one per stop, where answers are not right or wrong.

        Args:
            evidence: of each start's score, one per stop, all in the same draws.
        """
        return cls(
            stops=stops,
            starts={
                name: [Measurement.of_score(one, of[name]) for one, of in zip(row, evidence, strict=True)]
                for name, row in evaluations.items()
            },
            contrasts={
                name: [Contrast.of_scores(of[FEDERATED], of[name]) for of in evidence]
                for name in evaluations
                if name != FEDERATED
            },
        )

    def sentence(self, index: int, *, num_test: int, score: str) -> str:
        """Return the sentence of one stop, by its place."""
        stop, ours = self.stops[index], self.starts[FEDERATED][index]
        when = "Before any step" if stop == 0 else f"After {counted(stop, 'step')}"
        of_counts = ours.right is not None
        others = " and ".join(
            f"the {name} start {'on' if of_counts else 'of'} {_short(self.starts[name][index])} "
            f"({contrasts[index].sentence})"
            for name, contrasts in self.contrasts.items()
        )
        if of_counts:
            return f"{when} the federated start is right on {ours.right} of {num_test} test examples, {others}."
        return f"{when} the federated start has a {score} of {number(ours.accuracy)}, {others}."

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as JSON."""
        return {
            "stops": list(self.stops),
            "starts": {
                name: {
                    **({} if row[0].right is None else {"right": [one.right for one in row]}),
                    "accuracy": [one.accuracy for one in row],
                    "interval": [_bounds(one.interval) for one in row],
                    "loss": [one.loss for one in row],
                }
                for name, row in self.starts.items()
            },
            "comparisons": {name: [_contrast_json(one) for one in row] for name, row in self.contrasts.items()},
        }


def _short(one: Measurement) -> str:
    return number(one.accuracy) if one.right is None else str(one.right)


def _bounds(one: Interval) -> list[float] | None:
    return None if one.bounds is None else list(one.bounds)


def _contrast_json(one: Contrast) -> dict[str, Any]:
    pairs = ("both", "only_other", "only_federated", "neither")
    return {
        **({} if one.pairs is None else {"pairs": dict(zip(pairs, one.pairs, strict=True))}),
        "difference": one.difference.value,
        "interval": _bounds(one.difference),
    }


@dataclass(frozen=True)
class Adaptation:
    """An adaptation: what was done, and what was measured.

    Args:
        weights: the run and the round that the federation's weights are of, and their sha256.
        learning_rate_from: which setting or option the rate is.
        majority: test examples on which the constant answer is right; the score of it where answers are neither right
            nor wrong.
        constant: name of the constant answer that every model must beat.
        score: what the share of correct predictions is called.
        notes: what a reader must know of the starts.
    """

    site: str
    study: str
    method: str
    weights: Mapping[str, Any]
    steps: int
    learning_rate: float
    learning_rate_from: str
    weight_decay: float
    batch_size: int
    seed: int
    num_train: int
    num_test: int
    majority: int | float
    constant: str
    score: str
    notes: Sequence[str]
    measured: Measured

    @property
    def headlines(self) -> list[str]:
        """Return a sentence per stop of few steps, and what the constant answer does."""
        score, counts = self.score, isinstance(self.majority, int)
        few = [index for index, stop in enumerate(self.measured.stops) if stop <= FEW_STEPS]
        told = f"is right on {self.majority}" if counts else f"has {number(self.majority)}"
        constant = f"Always answering the site's {self.constant} {told}."
        return [*(self.measured.sentence(index, num_test=self.num_test, score=score) for index in few), constant]

    @property
    def level(self) -> float:
        """Return the score of the constant answer."""
        return self.majority / self.num_test if isinstance(self.majority, int) else self.majority

    def as_json(self) -> dict[str, Any]:
        """Return the content of `adapt.json`."""
        facts = {name: value for name, value in vars(self).items() if name != "measured"}
        return {**facts, "notes": list(self.notes), **self.measured.as_json(), "headlines": self.headlines}
