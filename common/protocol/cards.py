"""A site's report on itself in the handshake: versions, and totals of its data."""

from typing import Annotated

from pydantic import Field, model_validator

from consilium.common.study.names import ClassName
from consilium.common.study.parts import OwnPackage
from consilium.common.study.record import Record
from consilium.common.study.scale import Moments

Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9.+_!-]{1,64}$")]

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")]

MAX_CLASSES = 10_000
"""How many classes there can be in one reply."""


class Versions(Record):
    """The versions that must be equal at every site for equal results.

    `parts`: packages of one's own whose parts this study uses here, a reader's included.
    """

    consilium: Version
    flwr: Version
    torch: Version
    torchvision: Version
    python: Version
    parts: tuple[OwnPackage, ...] = Field(default=(), max_length=100, exclude_if=lambda parts: not parts)


Count = Annotated[int, Field(ge=0, le=2**53)]
"""A count: a whole number that floating point holds exactly."""

NOISE_PER_CLASS = 10_000
"""How far noise may take a class's count from the truth; with `class_counts_epsilon = 0.01`, 140 is typical."""


class DataCard(Record):
    """A site's report on its data: totals, class names, never an example.

    `label_counts`: of each of several labels, how many examples have it and how many have it not; None without labels,
    or where the site does not share class counts.
    `label_noise`: standard deviation of the noise on each of these (`class_counts_epsilon`); None: they are exact.
    `num_groups`: how many patients the site's own examples are of; None where every example is a patient's only one.
    `num_copies`: how many of its own examples are exact copies of another one that they are kept together with.
    `num_alike`: how many are equal to another one, but may be of two patients, since equal rows are likely here.
    `test_digest`: the SHA-256 of the study's common test set, empty without one; its rows are `num_test`.
    `moments`: of each number column or channel, for one scale over all sites; None where the site does not share them
    or the study does not need them.
    `data_commitment`: SHA-256 that the hospital can later open, to show an auditor which data it had in this run.
    `test_readings`: how often its test split was read for this study, of `test_readings_allowed`.
    """

    num_examples: Count
    num_train: Count
    num_validation: Count
    num_test: Count
    num_skipped: Count
    classes: tuple[ClassName, ...] = Field(max_length=MAX_CLASSES)
    class_counts: dict[ClassName, Count] | None = Field(default=None, max_length=MAX_CLASSES)
    label_counts: dict[ClassName, tuple[Count, Count]] | None = Field(
        default=None, max_length=MAX_CLASSES, exclude_if=lambda counts: counts is None
    )
    label_noise: float | None = Field(default=None, gt=0, le=1e12, exclude_if=lambda noise: noise is None)
    num_groups: Count | None = None
    num_copies: Count = 0
    num_alike: Count = 0
    schema_digest: Digest
    test_digest: Digest = ""
    data_commitment: Digest = ""
    moments: Moments | None = None
    test_readings: Count = 0
    test_readings_allowed: Annotated[Count, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _check(self) -> "DataCard":
        parts = self.num_train + self.num_validation + self.num_test
        if parts != self.num_examples:
            raise ValueError(f"training, validation and test examples are {parts}, expected {self.num_examples} in all")
        own = self.num_examples - (self.num_test if self.test_digest else 0)
        if max(self.num_copies, self.num_alike, self.num_groups or 0) > own:
            raise ValueError(f"more copies or patients than the {own} examples of the site's own")
        told = self.class_counts or {}
        if sum(told.values()) > self.num_examples + NOISE_PER_CLASS * len(told):
            raise ValueError(f"class counts are {sum(told.values())} in all, of {self.num_examples} examples")
        together = max if self.label_noise is not None else sum  # noise is on each of the two counts
        if self.label_counts and (known := max(map(together, self.label_counts.values()))) > self.num_examples:
            raise ValueError(f"a label is known of {known} examples, of {self.num_examples} in all")
        if self.moments is not None and max(self.moments.counts, default=0) > self.num_train:
            raise ValueError(f"moments are of {max(self.moments.counts)} values, of {self.num_train} training examples")
        return self
