"""What an adaptation measured: every start at every stop, and paired comparisons with the federated one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from consilium.adaptation.starts import FEDERATED
from consilium.client.training.evaluation import Evaluation
from consilium.common.protocol.patients import LEAST_PATIENTS
from consilium.findings import Evidence, Interval, interval_of, verdict
from consilium.findings.decimals import change, counted

FEW_STEPS = 20
"""Stops up to this step get a sentence each; all stops are in the table."""
_VERDICTS = {
    "helps": "federated clearly ahead",
    "hurts": "federated clearly behind",
    "unclear": "no clear difference",
}


@dataclass(frozen=True)
class Measurement:
    """One start at one stop, on the site's test examples."""

    right: int
    accuracy: float
    interval: Interval
    loss: float

    @classmethod
    def of(cls, evaluation: Evaluation, groups: Tensor | None) -> "Measurement":
        """Return an evaluation with the interval of its accuracy; equal counts have equal intervals."""
        interval = interval_of(_evidence(evaluation.right, groups), kind="share")
        return cls(int(evaluation.right.sum()), evaluation.accuracy, interval, evaluation.loss)


@dataclass(frozen=True)
class Contrast:
    """The federated start against another at one stop: which is right on how many examples, and the difference."""

    both: int
    only_other: int
    only_federated: int
    neither: int
    difference: Interval

    @classmethod
    def of(cls, federated: Tensor, other: Tensor, groups: Tensor | None) -> "Contrast":
        """Return the comparison of two masks `(N,)` of correct predictions."""
        both, ours, theirs = int((federated & other).sum()), int(federated.sum()), int(other.sum())
        difference = interval_of(_evidence(federated.int() - other.int(), groups), kind="difference")
        return cls(both, theirs - both, ours - both, len(federated) - ours - theirs + both, difference)

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

    def sentence(self, index: int, *, num_test: int) -> str:
        """Return the sentence of one stop, by its place."""
        stop = self.stops[index]
        when = "Before any step" if stop == 0 else f"After {counted(stop, 'step')}"
        others = " and ".join(
            f"the {name} start on {self.starts[name][index].right} ({contrasts[index].sentence})"
            for name, contrasts in self.contrasts.items()
        )
        right = self.starts[FEDERATED][index].right
        return f"{when} the federated start is right on {right} of {num_test} test examples, {others}."

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as JSON."""
        return {
            "stops": list(self.stops),
            "starts": {
                name: {
                    "right": [one.right for one in row],
                    "accuracy": [one.accuracy for one in row],
                    "interval": [_bounds(one.interval) for one in row],
                    "loss": [one.loss for one in row],
                }
                for name, row in self.starts.items()
            },
            "comparisons": {name: [_contrast_json(one) for one in row] for name, row in self.contrasts.items()},
        }


def _bounds(one: Interval) -> list[float] | None:
    return None if one.bounds is None else list(one.bounds)


def _contrast_json(one: Contrast) -> dict[str, Any]:
    pairs = {"both": one.both, "only_other": one.only_other, "only_federated": one.only_federated}
    return {
        "pairs": pairs | {"neither": one.neither},
        "difference": one.difference.value,
        "interval": _bounds(one.difference),
    }


@dataclass(frozen=True)
class Adaptation:
    """An adaptation: what was done, and what was measured.

    Args:
        weights: the run and the round that the federation's weights are of, and their sha256.
        learning_rate_from: which setting or option the rate is.
        majority: test examples on which the constant answer is right.
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
    majority: int
    constant: str
    score: str
    notes: Sequence[str]
    measured: Measured

    @property
    def headlines(self) -> list[str]:
        """Return a sentence per stop of few steps, and what the constant answer does."""
        few = [index for index, stop in enumerate(self.measured.stops) if stop <= FEW_STEPS]
        constant = f"Always answering the site's {self.constant} is right on {self.majority}."
        return [*(self.measured.sentence(index, num_test=self.num_test) for index in few), constant]

    def as_json(self) -> dict[str, Any]:
        """Return the content of `adapt.json`."""
        facts = {name: value for name, value in vars(self).items() if name != "measured"}
        return {**facts, "notes": list(self.notes), **self.measured.as_json(), "headlines": self.headlines}
