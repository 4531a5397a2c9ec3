"""A site's counts on its test split: enough to recompute every interval, and no example."""

from pydantic import Field, model_validator

from consilium.common.protocol.cards import Count
from consilium.common.protocol.patients import Patients
from consilium.common.study.record import Record

ROUNDING = 0.02
"""How far a difference may be from that of the two numbers, as all three are rounded when they leave a site."""


LEAST_ERROR = 1e-9
"""Standard errors below this are of draws that differ by rounding alone."""
NEUTRAL = (0.0, 0.5)
"""Scores of answers that are the same for all rows, which no draw changes: they alone have an error of 0."""


class PatientCounts(Record):
    """Sums over the patients of the test split: of correct answers per model, and of personal minus local."""

    majority: Patients | None = None
    local: Patients | None = None
    global_: Patients | None = None
    personal: Patients
    difference: Patients | None = None


class Estimate(Record):
    """A number measured on the test split, and its standard error over the patients."""

    value: float = Field(ge=-1, le=1)
    error: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> "Estimate":
        if self.error < LEAST_ERROR and (self.error or self.value not in NEUTRAL):
            raise ValueError(f"a score of {self.value} has the standard error {self.error}, expected a larger one")
        return self


class Estimates(Record):
    """The score of every model where it is no share of right answers: None where the test split does not say it."""

    majority: Estimate | None = None
    local: Estimate | None = None
    global_: Estimate | None = None
    personal: Estimate | None = None
    difference: Estimate | None = None

    @model_validator(mode="after")
    def _check(self) -> "Estimates":
        known = [one.value for one in (self.majority, self.local, self.global_, self.personal) if one is not None]
        if min(known, default=0.0) < 0:
            raise ValueError(f"a score is from 0 to 1, got {min(known)}")
        one, other, moved = self.personal, self.local, self.difference
        if moved is None:
            return self
        if moved.value and not moved.error:
            raise ValueError(f"the difference {moved.value} has the standard error 0, expected a larger one")
        if one is None or other is None:
            raise ValueError("the difference of personal and local is there without the two")
        if abs(moved.value - (one.value - other.value)) > ROUNDING:
            raise ValueError(f"difference {moved.value} is not personal {one.value} less local {other.value}")
        return self


class TestCounts(Record):
    """How many test examples each model got right; enough to recompute every interval.

    `pairs` counts the examples by (local right, personal right): both, only local, only personal,
    neither. Both it and `local` are None in a study without the local-only baseline. `majority`, of the
    constant answer, is None where the site's policy keeps it. `patients` are
    sums over patients, None where every example is a patient's only one. Counts and sums only: no
    example, no score.

    In a private study every patient counts by one row, and `num_test` is the announced number of them. `global_` and
    `personal` come from counts of right and of wrong answers that have noise of a standard deviation of `noise` each.
    What would tell of single training patients is None: `majority`, the models that were trained without noise
    (`local`, `pairs`, and `personal` where the site tunes it), and sums over patients.

    Where answers are neither right nor wrong, as risks are, there are `estimates` and no counts.
    """

    num_test: Count = Field(ge=1)
    majority: Count | None = None
    local: Count | None = None
    global_: Count | None = None
    personal: Count | None
    pairs: tuple[Count, Count, Count, Count] | None = None
    patients: PatientCounts | None = None
    noise: float | None = Field(default=None, gt=0, le=1e6, exclude_if=lambda noise: noise is None)
    """Standard deviation of the noise on each count of a private study; None: they are exact."""
    estimates: Estimates | None = Field(default=None, exclude_if=lambda estimates: estimates is None)
    """Scores with their standard errors, in place of counts; None where there are counts."""
    brier: Estimates | None = Field(default=None, exclude_if=lambda brier: brier is None)
    """Of times until an event, where the study has a `horizon`: the Brier scores then, smaller being better."""

    @model_validator(mode="after")
    def _check(self) -> "TestCounts":
        counts = (self.majority, self.local, self.global_, self.personal, self.patients, self.noise)
        if self.estimates is not None and any(one is not None for one in counts):
            raise ValueError("estimates stand in place of counts, expected one of the two")
        if self.brier is not None and self.estimates is None:
            raise ValueError("a Brier score of times stands beside estimates, which are not there")
        if (self.pairs is None) != (self.local is None):
            raise ValueError("pairs and local go together: expected both or neither")
        if self.pairs is not None:
            both, only_local, only_personal, _ = self.pairs
            seen = (sum(self.pairs), both + only_local, both + only_personal)
            expected = (self.num_test, self.local, self.personal)
            if seen != expected:
                raise ValueError(
                    f"pairs {self.pairs} give {seen} (tested, local right, personal right), expected {expected}"
                )
        if max(self.majority or 0, self.global_ or 0, self.personal or 0) > self.num_test:
            raise ValueError(f"more right than the {self.num_test} tested: {self.majority}, {self.global_}")
        told = (self.global_, self.personal)
        if self.noise is not None and told == (None, None):
            raise ValueError(f"noise {self.noise:g} on no counts")
        if self.patients is not None:
            self._check_patients(self.patients)
        return self

    def _check_patients(self, of: PatientCounts) -> None:
        """Refuse sums over patients that are not of these counts."""
        gained = None if self.pairs is None else self.pairs[2] - self.pairs[1]
        expected = {"majority": self.majority, "local": self.local, "global_": self.global_, "personal": self.personal}
        first = of.personal
        for name, total in (expected | {"difference": gained}).items():
            sums: Patients | None = getattr(of, name)
            if (sums is None) != (total is None):
                raise ValueError(f"sums over patients of '{name}' without its counts, or counts without sums")
            if sums is None:
                continue
            sizes = (sums.num, sums.rows, sums.sizes, sums.fourths)
            known = (first.num, self.num_test, first.sizes, first.fourths)
            if sizes != known or sums.total != total or (name != "difference" and (sums.worse or sums.moved != total)):
                raise ValueError(f"sums over patients of '{name}' are not of these counts: {sums}, expected {total}")
        if self.pairs is not None and of.difference is not None:
            _, only_local, only_personal, _ = self.pairs
            of_patients = of.difference.better, of.difference.worse, of.difference.moved
            of_rows = only_personal, only_local, only_local + only_personal
            if any(one > most for one, most in zip(of_patients, of_rows, strict=True)):
                raise ValueError(f"patients better, worse and moved {of_patients}, expected at most {of_rows}")
