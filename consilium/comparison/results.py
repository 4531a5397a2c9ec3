"""What a cell leaves: its result as a model, and the answers of its models on every site's test rows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from consilium.common.protocol.replies import PrivacySpent
from consilium.common.results import EngineUse, RoundRecord, Stopped
from consilium.common.study.record import Record
from consilium.common.weights.arrays import Array

Kind = Literal["federated", "pooled", "usual"]
"""Kinds of a cell: a study; one model of all sites' rows; what usual tools do at each site alone."""
Answers = Mapping[str, Mapping[str, Array]]
"""Per site the labels of its test rows, and each model's answers."""


class Validation(Record):
    """What a site measured of one model on its validation rows.

    Args:
        accuracy: None where these rows do not say.
    """

    accuracy: float | None
    loss: float


class SiteOutcome(Record):
    """One site in a cell: its rows, what it measured on validation rows, and the metrics of each model on test rows.

    Args:
        tool: which of the usual tools it chose, in a cell of these.
        privacy: what a private study has spent there.
        support: test examples of each class.
        label_counts: of each of several labels, how many examples have it, and how many have it not.
        label_support: likewise, of the test examples.
        metrics: per model; None: not defined on these rows.
    """

    num_train: int = 0
    num_validation: int = 0
    num_test: int = 0
    class_counts: dict[str, int] | None = None
    label_counts: dict[str, tuple[int, int]] | None = None
    num_groups: int | None = None
    num_copies: int = 0
    tool: str | None = None
    privacy: PrivacySpent | None = None
    validation: dict[str, Validation] = Field(default_factory=dict)
    support: tuple[int, ...] = ()
    label_support: dict[str, tuple[int, int]] | None = None
    metrics: dict[str, dict[str, float | None]] = Field(default_factory=dict)


class RoundMeans(Record):
    """One round: validation metrics as means over the sites, the weight of each site, bytes."""

    round: int
    bytes_up: int = 0
    bytes_down: int = 0
    means: dict[str, float] = Field(default_factory=dict)
    weights: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def of(cls, record: RoundRecord) -> "RoundMeans":
        """Return what a comparison keeps of a round."""
        metrics = [of.metrics for of in record.sites.values()]
        names = sorted({name for each in metrics for name in each})
        return cls(
            round=record.round,
            bytes_up=record.bytes_up,
            bytes_down=record.bytes_down,
            means={name: float(np.mean([each[name] for each in metrics if name in each])) for name in names},
            weights={site: of.weight for site, of in record.sites.items() if of.weight is not None},
        )


class CellResult(Record):
    """The content of a cell's JSON file.

    Args:
        stopped: why it ended before the study's last round; None where it did not.
        ended: the round whose model it ended with; 0 where there are no rounds.
        scale: by whose numbers the inputs were scaled.
        error: why it could not be run; such a result is not written.
        key: what the cell's files are called.
        engine: how the sites trained, where they did so in stacks.
    """

    label: str = ""
    kind: Kind = "federated"
    seed: int = 0
    split: int = 0
    key: str = ""
    error: str | None = None
    sites: dict[str, SiteOutcome] = Field(default_factory=dict)
    rounds: tuple[RoundMeans, ...] = ()
    stopped: Stopped | None = None
    ended: int = 0
    warnings: tuple[str, ...] = ()
    scale: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    engine: EngineUse | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What training left, before its answers are measured."""

    sites: Mapping[str, SiteOutcome]
    answers: Answers
    rounds: tuple[RoundMeans, ...] = ()
    stopped: Stopped | None = None
    ended: int = 0
    warnings: tuple[str, ...] = ()
    scale: str = ""
    engine: EngineUse | None = None


def last_measured(rounds: Iterable[RoundRecord]) -> dict[str, dict[str, Validation]]:
    """Return what each site measured on its validation rows when it last did, by site and model.

    Where not all sites are asked in every round, that is not the last round for all.
    """
    last: dict[str, dict[str, Validation]] = {}
    for record in rounds:
        for site, of in record.sites.items():
            for model in ("global", "personal", "local"):
                if f"{model}.loss" in of.metrics:
                    loss, accuracy = of.metrics[f"{model}.loss"], of.metrics.get(f"{model}.accuracy")
                    last.setdefault(site, {})[model] = Validation(loss=loss, accuracy=accuracy)
    return last
